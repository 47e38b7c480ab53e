//! Every refusal of our own: one enum, with its HTTP status, code and message beside it.

use bytes::Bytes;
use http::StatusCode;
use std::time::Duration;

/// A request that Thundergate answers itself, with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("request body: {0}")]
    InvalidJson(String),
    #[error("{0}: a program id must be a string, number or boolean")]
    InvalidProgramId(String),
    #[error("request body is larger than limits.body ({limit} bytes)")]
    BodyTooLarge { limit: usize },
    #[error("the request bodies in flight or held have reached limits.body_total")]
    Overloaded { retry_after: Duration },
    #[error("malformed request: {0}")]
    InvalidRequest(&'static str),
    #[error("the request's head is larger than {limit} bytes")]
    HeadTooLarge { limit: usize },
    #[error("the path can be read in more than one way")]
    InvalidPath,
    #[error("the request's {what} did not arrive within {limit:?}")]
    RequestTimeout { what: &'static str, limit: Duration },
    #[error("missing or unknown API key: send `Authorization: Bearer KEY`")]
    Unauthorized,
    #[error("missing or wrong admin token: send `Authorization: Bearer TOKEN`")]
    AdminUnauthorized,
    #[error("no such endpoint: {0}")]
    NotFound(String),
    #[error("method not allowed")]
    MethodNotAllowed,
    #[error("the model `{0}` does not exist")]
    UnknownModel(String),
    #[error("rate limit reached: {what}")]
    RateLimited { what: String, retry_after: Duration },
    #[error("too many steps are held already (scheduler.hold.queue)")]
    QueueFull { retry_after: Duration },
    #[error("held for {held:?} without room on any backend (scheduler.hold.max)")]
    HeldTooLong { held: Duration, retry_after: Duration },
    #[error("no usable backend after {waited:?} (scheduler.no_backend_wait)")]
    NoBackend { waited: Duration, retry_after: Duration },
    #[error("a backend could not be reached, and too many requests are tried again already (retry.budget)")]
    RetryBudget { retry_after: Duration },
    #[error("the program was released while this step was held")]
    ProgramReleased,
    #[error("the backend failed before it answered: {0}")]
    UpstreamFailed(String),
    #[error("this server is draining")]
    Draining { retry_after: Duration },
    #[error("internal error")]
    Internal,
}

/// Characters of a client's own words that are told back.
const ECHO: usize = 200;

/// A client's own words, cut short, so that a long request gets no long answer.
#[must_use]
pub fn echo(text: &str) -> String {
    match text.char_indices().nth(ECHO) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

impl Refusal {
    /// The HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::InvalidJson(_) | Self::InvalidProgramId(_) | Self::InvalidRequest(_) | Self::InvalidPath => {
                StatusCode::BAD_REQUEST
            }
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthorized | Self::AdminUnauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) | Self::UnknownModel(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RateLimited { .. } | Self::QueueFull { .. } | Self::HeldTooLong { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::NoBackend { .. } | Self::RetryBudget { .. } | Self::Overloaded { .. } | Self::Draining { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::ProgramReleased => StatusCode::CONFLICT,
            Self::UpstreamFailed(_) => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The machine-readable code: the body's `code`, the `x-thundergate-error` header and the metric label.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidJson(_) => "invalid_json",
            Self::InvalidProgramId(_) => "invalid_program_id",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::Overloaded { .. } => "overloaded",
            Self::InvalidRequest(_) => "invalid_request",
            Self::HeadTooLarge { .. } => "head_too_large",
            Self::InvalidPath => "invalid_path",
            Self::RequestTimeout { .. } => "request_timeout",
            Self::Unauthorized => "invalid_api_key",
            Self::AdminUnauthorized => "invalid_admin_token",
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnknownModel(_) => "model_not_found",
            Self::RateLimited { .. } => "rate_limited",
            Self::QueueFull { .. } | Self::HeldTooLong { .. } => "held_too_long",
            Self::NoBackend { .. } | Self::RetryBudget { .. } => "no_backend",
            Self::ProgramReleased => "program_released",
            Self::UpstreamFailed(_) => "upstream_failed",
            Self::Draining { .. } => "draining",
            Self::Internal => "internal",
        }
    }

    /// Time after which the client may try again: `Retry-After`, in whole seconds, rounded up.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. }
            | Self::QueueFull { retry_after }
            | Self::HeldTooLong { retry_after, .. }
            | Self::NoBackend { retry_after, .. }
            | Self::RetryBudget { retry_after }
            | Self::Overloaded { retry_after }
            | Self::Draining { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// The body in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let kind = match self.status().as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let param = match self {
            Self::InvalidProgramId(place) => Some(place.as_str()),
            Self::UnknownModel(_) => Some("model"),
            _ => None,
        };
        let body = serde_json::json!({
            "error": {"message": self.to_string(), "type": kind, "param": param, "code": self.code()}
        });
        Bytes::from(body.to_string())
    }
}
