//! Backends under the names that slime and sglang-router give them: `/add_worker`, `/remove_worker` and `/list_workers` in
//! older versions, `/workers` in newer ones.

use super::admin;
use super::backends::{self, NewBackend, add_backend, is_at};
use super::message::{ControlRequest, ControlResponse};
use super::overview::model_name;
use crate::app::App;
use crate::fleet::BackendStatus;
use crate::scheduler::BackendId;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use url::form_urlencoded;

/// The worker that a request names, in the query or in a JSON body. sglang-router takes many more members, which mean
/// nothing here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    url: Option<String>,
    worker_url: Option<String>,
    model: Option<String>,
    model_id: Option<String>,
    api_key: Option<String>,
    worker_type: Option<String>,
}

/// `POST /add_worker?url=…`.
pub(super) fn add(app: &App, request: &ControlRequest) -> ControlResponse {
    match ensure(app, request) {
        Ok(_) => changed(app),
        Err(refused) => refused,
    }
}

/// `POST /workers`.
pub(super) fn create(app: &App, request: &ControlRequest) -> ControlResponse {
    match ensure(app, request) {
        Ok((id, url)) => {
            let id = id.0.to_string();
            let body = json!({"status": "accepted", "worker_id": id, "url": url, "location": format!("/workers/{id}")});
            ControlResponse::json_with(StatusCode::ACCEPTED, &body)
        }
        Err(refused) => refused,
    }
}

/// `POST /remove_worker?url=…`.
pub(super) fn remove(app: &App, request: &ControlRequest) -> ControlResponse {
    let url = match Named::of(request).and_then(Named::place) {
        Ok((url, _)) => url,
        Err(refused) => return refused,
    };
    let removed = backends::remove(app, &url);
    if removed.status.is_success() { changed(app) } else { removed }
}

/// `GET /list_workers`.
pub(super) fn urls(app: &App) -> ControlResponse {
    let statuses = app.fleet.statuses();
    let urls: Vec<&str> = staying(&statuses).map(|status| status.backend.server()).collect();
    ControlResponse::json(&json!({"urls": urls}))
}

/// `GET /workers`.
pub(super) fn list(app: &App) -> ControlResponse {
    let (statuses, config) = (app.fleet.statuses(), app.settings());
    let worker = |status: &BackendStatus| {
        json!({
            "id": status.backend.id.0.to_string(),
            "url": status.backend.server(),
            "model_id": model_name(&config, status.backend.pool),
            "worker_type": "regular",
            "is_healthy": status.healthy,
            "load": in_flight(app, status.backend.id),
        })
    };
    let workers: Vec<_> = staying(&statuses).map(worker).collect();
    ControlResponse::json(&json!({"total": workers.len(), "workers": workers}))
}

/// Adds the backend that the request names, unless it is there already: adding a backend twice is no error, as in slime.
fn ensure(app: &App, request: &ControlRequest) -> Result<(BackendId, String), ControlResponse> {
    if !admin::is_operator(app, request) {
        return Err(admin::not_an_operator());
    }
    let (url, named) = Named::of(request)?.place()?;
    if named.worker_type.is_some_and(|kind| kind != "regular") {
        return Err(ControlResponse::bad_request("worker_type: only regular workers are known here"));
    }
    let known = app.fleet.statuses();
    if let Some(status) = staying(&known).find(|status| is_at(status, &url)) {
        return Ok((status.backend.id, url));
    }
    let model = named.model.or(named.model_id);
    let new = NewBackend { url: url.clone(), model, weight: None, api_key: named.api_key, capacity_tokens: None };
    add_backend(app, new).map(|id| (id, url)).map_err(ControlResponse::bad_request)
}

fn changed(app: &App) -> ControlResponse {
    let statuses = app.fleet.statuses();
    let workers: BTreeMap<&str, usize> =
        staying(&statuses).map(|status| (status.backend.server(), in_flight(app, status.backend.id))).collect();
    ControlResponse::json(&json!({"status": "success", "worker_urls": workers}))
}

/// Servers that are not draining. A server with several ranks counts once, by its first rank.
fn staying(statuses: &[BackendStatus]) -> impl Iterator<Item = &BackendStatus> {
    statuses.iter().filter(|status| !status.draining && status.backend.rank.is_none_or(|rank| rank == 0))
}

fn in_flight(app: &App, id: BackendId) -> usize {
    let loads = app.gate.loads();
    loads.iter().find(|(_, load)| load.backend == id).map_or(0, |(_, load)| load.in_flight)
}

// === impl Named ===

impl Named {
    fn of(request: &ControlRequest) -> Result<Self, ControlResponse> {
        let mut named = match request.body.is_empty() {
            true => Self::default(),
            false => serde_json::from_slice(&request.body).map_err(|e| ControlResponse::bad_request(e.to_string()))?,
        };
        for (key, value) in form_urlencoded::parse(request.query.as_deref().unwrap_or_default().as_bytes()) {
            let known = match &*key {
                "url" | "worker_url" => &mut named.url,
                "model" => &mut named.model,
                _ => continue,
            };
            *known = Some(value.into_owned());
        }
        Ok(named)
    }

    fn place(mut self) -> Result<(String, Self), ControlResponse> {
        let url = self.url.take().or(self.worker_url.take()).filter(|url| !url.is_empty());
        url.map(|url| (url, self))
            .ok_or_else(|| ControlResponse::bad_request("url is required: ?url=http://host:port, or in a JSON body"))
    }
}
