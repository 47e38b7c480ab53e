//! What the control API is asked, and what it answers.

use crate::error::Refusal;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

/// The listener that a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Clients: `listen`.
    Main,
    /// Operators: `admin.listen`.
    Admin,
}

/// A request to a path that [`route`] knows.
#[derive(Clone, Debug)]
pub struct ControlRequest {
    pub method: Method,
    /// Path without the query, still percent-encoded.
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub listener: Side,
    /// Whether the client is on this machine.
    pub local: bool,
    /// Tenant of the API key on the main listener; `None` without authentication.
    pub tenant: Option<Arc<str>>,
}

/// The answer to a [`ControlRequest`].
pub struct ControlResponse {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: ControlBody,
}

/// The body of an answer, whole or in pieces.
pub enum ControlBody {
    Full(Bytes),
    /// A body that ends when the client leaves or the process ends.
    Stream(BoxStream<'static, Bytes>),
}

// === impl ControlResponse ===

impl ControlResponse {
    pub(super) fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: ControlBody::Full(body.into()) }
            .with(CONTENT_TYPE, content_type)
            .with(CACHE_CONTROL, "no-store")
    }

    pub(super) fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    pub(super) fn json(body: &impl Serialize) -> Self {
        Self::json_with(StatusCode::OK, body)
    }

    pub(super) fn json_with(status: StatusCode, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => Self::new(status, "application/json", body),
            Err(error) => {
                log::error!("control API: {error}");
                Self::refusal(&Refusal::Internal)
            }
        }
    }

    pub(super) fn json_bytes(body: Bytes) -> Self {
        Self::new(StatusCode::OK, "application/json", body)
    }

    /// ThunderAgent's (FastAPI's) error: `{"detail": …}`.
    pub(super) fn detail(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::json_with(status, &json!({"detail": detail.into()}))
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::detail(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn refusal(refusal: &Refusal) -> Self {
        let mut response = Self::new(refusal.status(), "application/json", refusal.body())
            .with(HeaderName::from_static("x-thundergate-error"), refusal.code());
        if *refusal == Refusal::AdminUnauthorized {
            response = response.with(WWW_AUTHENTICATE, "Bearer, Basic realm=\"thundergate\"");
        }
        if let Some(wait) = refusal.retry_after() {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers.push((RETRY_AFTER, seconds.into()));
        }
        response
    }
}
