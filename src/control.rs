//! The control API: ThunderAgent's endpoints to the key, and ours.

mod admin;
mod backends;
mod events;
mod overview;
mod programs;
mod route;
mod thunderagent;
mod weights;
mod workers;

pub use route::{ControlRoute, Endpoint, paths, route};
pub use weights::WeightSync;

use crate::app::App;
use crate::error::Refusal;
use crate::telemetry::Exposition;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use overview::Overview;
use programs::Scope;
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

/// The largest body that a control endpoint reads, bytes.
pub const BODY_LIMIT: usize = 64 * 1024;

/// Which door a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Main,
    /// `admin.listen`.
    Admin,
}

/// A request to a path that [`route`] knows.
#[derive(Clone, Debug)]
pub struct ControlRequest {
    pub method: Method,
    /// Still percent-encoded.
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub listener: Listener,
    /// The client is on this machine.
    pub local: bool,
    /// The tenant of the API key on the main listener; `None` without authentication.
    pub tenant: Option<Arc<str>>,
}

pub struct ControlResponse {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: ControlBody,
}

pub enum ControlBody {
    Full(Bytes),
    /// Ends when the client leaves or the process does.
    Stream(BoxStream<'static, Bytes>),
}

/// Answers a control request. On the admin listener it asks for the admin token itself; API keys of the main one are
/// the proxy's to check ([`ControlRoute::needs_key`]).
pub async fn handle(app: &Arc<App>, request: ControlRequest) -> ControlResponse {
    let mut response = answer(app, &request).await.unwrap_or_else(|refusal| ControlResponse::refusal(&refusal));
    if request.method == Method::HEAD {
        response.body = ControlBody::Full(Bytes::new());
    }
    response
}

async fn answer(app: &Arc<App>, request: &ControlRequest) -> Result<ControlResponse, Refusal> {
    if request.listener == Listener::Admin {
        admin::authorize(app.settings().admin.as_ref(), request)?;
    }
    let not_found = || Refusal::NotFound(request.path.clone());
    let found = route(&request.method, &request.path).ok_or_else(not_found)?;
    if !found.answers_on(request.listener, &app.settings()) {
        return Err(not_found());
    }
    if !found.method_allowed {
        let refused = ControlResponse::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        return Ok(refused.with(ALLOW, found.allow));
    }
    let scope = Scope::of(request);
    let id = found.id.as_deref().unwrap_or_default();
    Ok(match found.endpoint {
        Endpoint::Programs => programs::list(app, &scope),
        Endpoint::Release => programs::release_by_body(app, &scope, &request.body),
        Endpoint::Program if request.method == Method::DELETE => programs::delete(app, &scope, id),
        Endpoint::Program => programs::show(app, &scope, id),
        Endpoint::Profiles => programs::profiles(app, &scope),
        Endpoint::Profile => programs::profile(app, &scope, id),
        Endpoint::Health => ControlResponse::json(&Overview::of(app).health(app)),
        Endpoint::Metrics => metrics(app, request),
        Endpoint::Livez => ControlResponse::json(&json!({"status": "ok"})),
        Endpoint::Readyz => readyz(app),
        Endpoint::Models => ControlResponse::json_bytes(app.fleet.models().await),
        Endpoint::Backends if request.method == Method::POST => backends::add(app, request),
        Endpoint::Backends => backends::list(app),
        Endpoint::Backend => backends::remove(app, id),
        Endpoint::AddWorker => workers::add(app, request),
        Endpoint::RemoveWorker => workers::remove(app, request),
        Endpoint::ListWorkers => workers::urls(app),
        Endpoint::Workers if request.method == Method::POST => workers::create(app, request),
        Endpoint::Workers => workers::list(app),
        Endpoint::Worker => backends::remove(app, id),
        Endpoint::WeightSyncBegin => weights::begin(app, request),
        Endpoint::WeightSyncEnd => weights::end(app),
        Endpoint::Reload if !admin::is_operator(app, request) => admin::not_an_operator(),
        Endpoint::Reload => reload(app).await,
        Endpoint::Events => events::stream(app.gate.events()),
        Endpoint::Console => console(),
    })
}

/// Prometheus text for those who ask for it, and for all on the admin listener; else ThunderAgent's JSON.
fn metrics(app: &App, request: &ControlRequest) -> ControlResponse {
    let accept = request.headers.get(ACCEPT);
    let accepted = Exposition::accepted(accept.and_then(|v| v.to_str().ok()).unwrap_or_default());
    let format = match (accepted, request.listener) {
        (None, Listener::Main) => {
            return ControlResponse::json(&Overview::of(app).metrics(&app.settings()));
        }
        (accepted, _) => accepted.unwrap_or(Exposition::Prometheus),
    };
    let mirror = Overview::of(app).mirror(&app.settings(), app.gate.held_steps());
    let text = app.telemetry.metrics.encode(&mirror, format);
    ControlResponse::new(StatusCode::OK, format.content_type(), text)
}

fn readyz(app: &App) -> ControlResponse {
    let (status, word) = if app.draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if app.fleet.ready() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no_backend")
    };
    ControlResponse::json_with(status, &json!({"status": word}))
}

/// Reads the configuration file again, as SIGHUP does.
async fn reload(app: &Arc<App>) -> ControlResponse {
    let app = Arc::clone(app);
    match tokio::task::spawn_blocking(move || app.reload()).await {
        Ok(Ok(())) => ControlResponse::json(&json!({"status": "ok"})),
        Ok(Err(reasons)) => ControlResponse::bad_request(reasons.to_string()),
        Err(_) => ControlResponse::refusal(&Refusal::Internal),
    }
}

fn console() -> ControlResponse {
    let page = include_str!("control/console.html");
    ControlResponse::new(StatusCode::OK, "text/html; charset=utf-8", page).with(
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
         frame-ancestors 'none'",
    )
}

// === impl ControlResponse ===

impl ControlResponse {
    fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: ControlBody::Full(body.into()) }
            .with(CONTENT_TYPE, content_type)
            .with(CACHE_CONTROL, "no-store")
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    fn json(body: &impl Serialize) -> Self {
        Self::json_with(StatusCode::OK, body)
    }

    fn json_with(status: StatusCode, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => Self::new(status, "application/json", body),
            Err(error) => {
                log::error!("control API: {error}");
                Self::refusal(&Refusal::Internal)
            }
        }
    }

    fn json_bytes(body: Bytes) -> Self {
        Self::new(StatusCode::OK, "application/json", body)
    }

    /// ThunderAgent's (FastAPI's) error: `{"detail": …}`.
    fn detail(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::json_with(status, &json!({"detail": detail.into()}))
    }

    fn bad_request(detail: impl Into<String>) -> Self {
        Self::detail(StatusCode::BAD_REQUEST, detail)
    }

    fn refusal(refusal: &Refusal) -> Self {
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

#[cfg(test)]
mod tests;
