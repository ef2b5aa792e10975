//! What is answered when a request is not: OpenAI's error object with the fitting status.

use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

use crate::chat::{Refused, Voice};

#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
    /// Seconds after which trying again may help.
    retry: Option<u32>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry: None,
        }
    }

    fn invalid(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// A field with a value that cannot be used.
    pub fn bad(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::invalid(StatusCode::BAD_REQUEST, message)
        }
    }

    /// A body that is not what it should be as a whole.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::invalid(StatusCode::BAD_REQUEST, message)
    }

    pub fn body(error: &BytesRejection, limit: usize) -> Self {
        match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request is larger than {limit} bytes"),
            ),
            status => Self::invalid(status, error.body_text()),
        }
    }

    pub fn content_type() -> Self {
        Self::invalid(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the content type must be `application/json`",
        )
    }

    pub fn no_model(name: &str) -> Self {
        let known = Voice::ALL
            .map(|voice| format!("`{}`", voice.name()))
            .join(" and ");
        Self {
            param: Some("model"),
            code: Some("model_not_found"),
            ..Self::invalid(
                StatusCode::NOT_FOUND,
                format!("there is no model `{name}`; there are {known}"),
            )
        }
    }

    pub fn not_found(message: String) -> Self {
        Self::invalid(StatusCode::NOT_FOUND, message)
    }

    pub fn method(method: &Method, path: &str) -> Self {
        Self::invalid(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("`{path}` does not take {method}"),
        )
    }

    pub fn forbidden() -> Self {
        Self::invalid(
            StatusCode::FORBIDDEN,
            "this server answers this machine only; to be reached by another name it needs an API key",
        )
    }

    pub fn unauthorised(wrong: bool) -> Self {
        let message = match wrong {
            true => "the API key is not the one of this server",
            false => "an API key is needed: `Authorization: Bearer KEY`",
        };
        Self {
            code: Some("invalid_api_key"),
            ..Self::invalid(StatusCode::UNAUTHORIZED, message)
        }
    }

    pub fn refused(refused: Refused) -> Self {
        match refused {
            Refused::TooLong { tokens, limit } => Self {
                param: Some("messages"),
                code: Some("context_length_exceeded"),
                ..Self::invalid(
                    StatusCode::BAD_REQUEST,
                    format!(
                        "prompt and answer have up to {tokens} tokens, the context has {limit}; shorten the messages or lower `max_tokens`"
                    ),
                )
            },
            Refused::Full => Self {
                code: Some("rate_limit_exceeded"),
                retry: Some(1),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    "as many requests wait as may; try again soon",
                )
            },
            Refused::Gone => {
                Self::internal("the model is no longer there; the server must be started again")
            }
        }
    }

    /// A request that did not come whole in time.
    pub fn slow(patience: Duration) -> Self {
        Self::invalid(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request did not arrive within {} s", patience.as_secs()),
        )
    }

    pub fn connections(most: usize) -> Self {
        Self {
            retry: Some(1),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                format!("{most} connections are open, as many as may be; try again soon"),
            )
        }
    }

    pub fn unavailable() -> Self {
        Self {
            retry: Some(5),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "the server is stopping",
            )
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The body, which is also an event of a stream that has begun.
    pub fn as_json(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code } })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.as_json())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
