//! Connections: how many are open at once, and how long a client may keep one without saying or taking anything.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::failure::Failure;
use super::patient::Patient;

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections open at once; further ones are answered with status 503.
    pub connections: usize,
    /// For the head of a request (also the first or the next on a connection), for its body, and for taking a part of
    /// the answer; who takes longer is left.
    pub patience: Duration,
}

/// Connections beyond the bound that are told so at once; still further ones are closed without a word.
const REFUSALS: usize = 64;
/// After an error of `accept`, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves every connection until `stop` is done, then finishes the requests under way.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    bounds: Bounds,
    stop: impl Future<Output = ()> + Send,
) {
    let (close, closing) = watch::channel(());
    let places = Arc::new(Semaphore::new(bounds.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if let Ok(place) = places.clone().try_acquire_owned() {
            let service = TowerToHyperService::new(routes.clone());
            tokio::spawn(drive(
                stream,
                service,
                bounds.patience,
                closing.clone(),
                place,
            ));
        } else if let Ok(place) = refusals.clone().try_acquire_owned() {
            let most = bounds.connections;
            let service = service_fn(move |_| async move { Ok::<_, Infallible>(refuse(most)) });
            tokio::spawn(drive(
                stream,
                service,
                bounds.patience,
                closing.clone(),
                place,
            ));
        }
    }
    drop((listener, closing));
    // Nobody may be there to hear it.
    let _ = close.send(());
    close.closed().await;
}

/// One connection to its end; `place` is free again then.
async fn drive<S>(
    stream: TcpStream,
    service: S,
    patience: Duration,
    mut closing: watch::Receiver<()>,
    place: OwnedSemaphorePermit,
) where
    S: HttpService<Incoming, ResBody = axum::body::Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Tokens are sent as they come. Where that cannot be set they arrive a little later.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(Patient::new(stream, patience)), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is the client's matter: it goes away, is too slow, or speaks no HTTP.
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    drop(place);
}

/// The only answer on a connection beyond the bound.
fn refuse(most: usize) -> Response {
    let mut response = Failure::connections(most).into_response();
    let close = axum::http::HeaderValue::from_static("close");
    response
        .headers_mut()
        .insert(axum::http::header::CONNECTION, close);
    response
}

/// A body that comes in time.
///
/// # Errors
/// [`Failure::slow`] where it does not.
pub async fn in_time<T>(patience: Duration, body: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(patience, body)
        .await
        .map_err(|_| Failure::slow(patience))
}
