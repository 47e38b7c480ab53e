//! The control API: ThunderAgent's endpoints to the key, and ours.
//!
//! | request | who may, on the main listener | answer |
//! |---|---|---|
//! | `GET /health` | everybody | ThunderAgent's counts of programs, by state and backend |
//! | `GET /livez` | everybody | 200 while the process serves |
//! | `GET /readyz` | everybody | 200 once a backend is usable; 503 without one, and while draining |
//! | `GET /v1/models` | clients | the models of all pools, as OpenAI lists them |
//! | `POST /programs/release`, `/v1/programs/release` | clients, their own | ends a program: `{"program_id": …}` |
//! | `GET /programs`, `/programs/{id}` | clients, their own; no path here with `admin.listen` | programs and what they do |
//! | `DELETE /programs/{id}` | the same | ends a program; 404 if nobody knows it |
//! | `GET /profiles`, `/profiles/{id}` | the same | where the time of a program's steps went |
//! | `GET /metrics` | the same | ThunderAgent's JSON, or the text that `Accept` asks for |
//! | `GET /backends` | operators | every backend, its state and its load |
//! | `POST /backends` | operators, proven | adds a backend, 201 |
//! | `DELETE /backends/{id}` | operators | drains a backend, 202 |
//! | `POST /add_worker`, `/remove_worker`, `GET /list_workers` | as `/backends` | the same for slime's older versions |
//! | `GET`, `POST /workers`, `DELETE /workers/{id}` | as `/backends` | the same for sglang-router and slime |
//! | `POST /weight_sync/begin`, `/weight_sync/end` | operators | stops dispatch, lets it go on |
//! | `POST /reload` | operators, proven | reads the configuration again; 400 with every mistake |
//! | `GET /events` | operators | scheduler decisions as server-sent events |
//! | `GET /console` | operators | a page that shows all this |
//!
//! *Clients* show an API key if `auth.keys` has any. *Operators* may use the main listener as long as neither
//! `admin.listen` nor `auth.keys` is set; *proven* ones come with the admin token, or from this machine without a proxy
//! or a browser between. The admin listener answers every path, behind `admin.token`; `HEAD` goes where `GET` does.

mod admin;
mod backends;
mod events;
mod message;
mod overview;
mod programs;
mod route;
mod thunderagent;
mod weights;
mod workers;

pub use message::{ControlBody, ControlRequest, ControlResponse, Side};
pub use route::{ControlRoute, Endpoint, paths, route};

use crate::app::App;
use crate::error::Refusal;
use crate::telemetry::Exposition;
use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_SECURITY_POLICY};
use http::{Method, StatusCode};
use overview::Overview;
use programs::Scope;
use serde_json::json;
use std::sync::Arc;

/// The largest body that a control endpoint reads, bytes.
pub const BODY_LIMIT: usize = 64 * 1024;

/// Answers a control request. The admin token of the admin listener is checked here. API keys of the main listener are
/// checked by the proxy ([`ControlRoute::needs_key`]).
pub async fn handle(app: &Arc<App>, request: ControlRequest) -> ControlResponse {
    let mut response = answer(app, &request).await.unwrap_or_else(|refusal| ControlResponse::refusal(&refusal));
    if request.method == Method::HEAD {
        response.body = ControlBody::Full(Bytes::new());
    }
    response
}

async fn answer(app: &Arc<App>, request: &ControlRequest) -> Result<ControlResponse, Refusal> {
    if request.listener == Side::Admin {
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

/// The text format that `Accept` asks for. Where it asks for none: Prometheus text on the admin listener, ThunderAgent's
/// JSON on the main one.
fn metrics(app: &App, request: &ControlRequest) -> ControlResponse {
    let accept = request.headers.get(ACCEPT);
    let accepted = Exposition::accepted(accept.and_then(|v| v.to_str().ok()).unwrap_or_default());
    let format = match (accepted, request.listener) {
        (None, Side::Main) => {
            return ControlResponse::json(&Overview::of(app).metrics(&app.settings()));
        }
        (accepted, _) => accepted.unwrap_or(Exposition::Prometheus),
    };
    let current = Overview::of(app).current(&app.settings(), app.gate.held_steps());
    let text = app.telemetry.metrics.encode(&current, format);
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

#[cfg(test)]
mod tests;
