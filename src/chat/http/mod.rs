//! An OpenAI-compatible server before the engine (protocol: <https://platform.openai.com/docs/api-reference/chat>), with a
//! chat page at `/`.

mod answer;
mod connections;
mod failure;
mod patient;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::net::TcpListener;

pub use self::connections::Bounds;
use self::failure::Failure;
use super::{Engine, Job, Voice};

/// The most bytes of a request's body.
const BODY: usize = 1 << 20;

const PAGE: &str = include_str!("page.html");

/// What the server says of itself.
pub struct About {
    /// What was trained: shown on the page.
    pub title: String,
    /// Seconds since 1970, as `/v1/models` gives it.
    pub created: i64,
}

struct Server {
    engine: Engine,
    about: About,
    api_key: Option<String>,
    bounds: Bounds,
    /// No new answers are begun.
    draining: AtomicBool,
}

/// Serves until `stop` is done, then finishes the answers under way. Requests must carry the `api_key`, where there is one.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    about: About,
    api_key: Option<String>,
    bounds: Bounds,
    stop: impl Future<Output = ()> + Send,
) {
    let server = Arc::new(Server {
        engine,
        about,
        api_key,
        bounds,
        draining: AtomicBool::new(false),
    });
    let routes = routes(server.clone());
    let stop = async move {
        stop.await;
        server.draining.store(true, Ordering::SeqCst);
    };
    connections::serve(listener, routes, bounds, stop).await;
}

fn routes(server: Arc<Server>) -> Router {
    let protected = Router::new()
        .route("/v1/chat/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(server.clone(), authorise));
    Router::new()
        .merge(protected)
        .route("/", get(page))
        .route("/about", get(about))
        .route("/health", get(health))
        .fallback(async |method: Method, uri: Uri| {
            Failure::not_found(format!("there is no `{method} {}`", uri.path()))
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Failure::method(&method, uri.path())
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(
            server.clone(),
            refuse_strangers,
        ))
        .layer(middleware::from_fn_with_state(
            server.clone(),
            count_refusals,
        ))
        .with_state(server)
}

/// Counts what was answered with an error.
async fn count_refusals(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        server.engine.traffic.refused(response.status().as_u16());
    }
    response
}

/// Without a key a page of another site must not reach the server through a name of its own that points here.
async fn refuse_strangers(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if server.api_key.is_none() && !host.is_none_or(names_this_machine) {
        return Failure::forbidden().into_response();
    }
    next.run(request).await
}

fn names_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn authorise(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    if let Some(key) = &server.api_key {
        let given = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer "));
        // Digests of equal length are compared, so that the time taken tells nothing of the key.
        let same = given
            .is_some_and(|given| blake3::hash(given.as_bytes()) == blake3::hash(key.as_bytes()));
        if !same {
            return Failure::unauthorised(given.is_some()).into_response();
        }
    }
    next.run(request).await
}

async fn completions(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<Response, Failure> {
    if server.draining.load(Ordering::SeqCst) {
        return Err(Failure::unavailable());
    }
    if !is_json(request.headers()) {
        // A page of another site can send other types here without being asked first.
        return Err(Failure::content_type());
    }
    let body = Bytes::from_request(request, &());
    let body = connections::in_time(server.bounds.patience, body)
        .await?
        .map_err(|error| Failure::body(&error, BODY))?;
    let request = request::parse(&body)?;
    // A long prompt takes a while to encode, and other answers wait to be handed on.
    let prompts = server.engine.prompts.clone();
    let encode = tokio::task::spawn_blocking(move || prompts.encode(&request.messages));
    let prompt = encode
        .await
        .map_err(|error| Failure::internal(error.to_string()))?
        .map_err(|error| Failure::bad("messages", error.to_string()))?;
    let (job, answer) = Job::new(request.voice, prompt, request.decoding);
    server.engine.submit(job).map_err(Failure::refused)?;
    let head = answer::Head::new(request.voice);
    match request.stream {
        true => Ok(answer::stream(head, answer, request.include_usage).into_response()),
        false => answer::whole(head, answer)
            .await
            .map(IntoResponse::into_response),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim() == "application/json")
}

fn described(server: &Server, voice: Voice) -> serde_json::Value {
    json!({ "id": voice.name(), "object": "model", "created": server.about.created, "owned_by": "flow" })
}

async fn models(State(server): State<Arc<Server>>) -> Response {
    let models = Voice::ALL.map(|voice| described(&server, voice));
    Json(json!({ "object": "list", "data": models })).into_response()
}

async fn model(
    State(server): State<Arc<Server>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Response, Failure> {
    let voice = Voice::from_name(&name).ok_or_else(|| Failure::no_model(&name))?;
    Ok(Json(described(&server, voice)).into_response())
}

async fn health(State(server): State<Arc<Server>>) -> Response {
    let status = match (
        server.engine.is_alive(),
        server.draining.load(Ordering::SeqCst),
    ) {
        (true, false) => return Json(json!({ "status": "ok" })).into_response(),
        (true, true) => "stopping",
        (false, _) => "the model is gone",
    };
    (
        StatusCode::SERVICE_UNAVAILABLE,
        Json(json!({ "status": status })),
    )
        .into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Result<Response, Failure> {
    let text = server
        .engine
        .traffic
        .as_text()
        .map_err(|error| Failure::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// The page loads nothing from elsewhere and may not be shown inside another.
async fn page() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response()
}

/// What the page shows of the model.
async fn about(State(server): State<Arc<Server>>) -> Response {
    Json(json!({
        "title": server.about.title,
        "system": server.engine.prompts.system,
        "notice": super::NOTICE,
        "needs_key": server.api_key.is_some(),
    }))
    .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_this_machine() {
        for host in [
            "localhost",
            "localhost:8000",
            "127.0.0.1:1",
            "[::1]:8000",
            "127.9.9.9",
        ] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in [
            "example.com",
            "localhost.example.com",
            "10.0.0.1:8000",
            "",
            "[::2]",
        ] {
            assert!(!names_this_machine(host), "{host}");
        }
    }
}
