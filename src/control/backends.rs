//! Backends at run time: list, add, drain and remove.

use super::admin;
use super::message::{ControlRequest, ControlResponse};
use super::overview::{Overview, model_name, prefix_hit_ratio};
use crate::app::App;
use crate::config::{self, Config, Secret};
use crate::fleet::{BackendStatus, DownCause, Origin};
use crate::gate::{LoadView, PoolId};
use crate::scheduler::BackendId;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

/// One entry of `GET /backends`.
#[derive(Serialize)]
pub(super) struct BackendListing<'a> {
    id: u32,
    url: &'a str,
    model: &'a str,
    healthy: bool,
    draining: bool,
    down_because: Option<&'a str>,
    /// Cause of the last ejection: `check`, `connect`, `reset`, `error` or `no_progress`.
    down_cause: Option<&'static str>,
    /// Seconds until the backend returns at the earliest; `null` if only its health checks keep it out.
    returns_in_seconds: Option<f64>,
    weight: u32,
    steps_in_flight: usize,
    programs_running: usize,
    programs_idle: usize,
    charged_running_tokens: u64,
    charged_idle_tokens: u64,
    /// Size of the KV cache, as configured or as the backend reports it.
    capacity_tokens: Option<u64>,
    /// Tokens that the scheduler fills: the capacity after headroom and after what the scheduler has learned.
    effective_capacity_tokens: Option<u64>,
    kv_usage_ratio: Option<f64>,
    prefix_hit_ratio: Option<f64>,
    requests_running: Option<f64>,
    requests_waiting: Option<f64>,
    scrape_age_seconds: Option<f64>,
}

/// The body of `POST /backends`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBackend {
    pub(super) url: String,
    pub(super) model: Option<String>,
    pub(super) weight: Option<u32>,
    pub(super) api_key: Option<String>,
    pub(super) capacity_tokens: Option<u64>,
}

pub(super) fn list(app: &App) -> ControlResponse {
    let overview = Overview::of_backends(app);
    ControlResponse::json(&json!({"backends": entries(&overview, &app.settings())}))
}

pub(super) fn entries<'a>(overview: &'a Overview, config: &'a Config) -> Vec<BackendListing<'a>> {
    let entry = |status: &'a BackendStatus| {
        let load = overview.loads.get(&status.backend.id);
        BackendListing::new(status, load, model_name(config, status.backend.pool))
    };
    overview.statuses.iter().map(entry).collect()
}

/// `POST /backends`.
pub(super) fn add(app: &App, request: &ControlRequest) -> ControlResponse {
    if !admin::is_operator(app, request) {
        return admin::not_an_operator();
    }
    let added =
        serde_json::from_slice::<NewBackend>(&request.body).map_err(|error| error.to_string()).and_then(|new| {
            let url = new.url.clone();
            Ok((add_backend(app, new)?, url))
        });
    match added {
        Ok((id, url)) => {
            let body = json!({"id": id.0, "url": url.trim_end_matches('/')});
            ControlResponse::json_with(StatusCode::CREATED, &body)
        }
        Err(detail) => ControlResponse::bad_request(detail),
    }
}

/// `DELETE /backends/{id}`, where the id may be the backend's URL. Steps in flight on the backend finish first.
pub(super) fn remove(app: &App, id: &str) -> ControlResponse {
    let statuses = app.fleet.statuses();
    let named = |status: &BackendStatus| id.parse() == Ok(status.backend.id.0) || is_at(status, id);
    let found: Vec<&BackendStatus> = statuses.iter().filter(|status| named(status)).collect();
    // All ranks of a server are removed together.
    let server = |status: &BackendStatus| (status.backend.pool, status.backend.server().to_owned());
    let beside = statuses.iter().filter(|status| found.iter().any(|named| server(named) == server(status)));
    let removed: Vec<_> = beside
        .filter(|status| app.fleet.remove(status.backend.id))
        .map(|status| json!({"id": status.backend.id.0, "url": status.backend.url}))
        .collect();
    if removed.is_empty() {
        let detail = format!("Backend not found: {id}");
        return ControlResponse::detail(StatusCode::NOT_FOUND, detail);
    }
    ControlResponse::json_with(StatusCode::ACCEPTED, &json!({"draining": removed}))
}

/// Adds a backend to the pool that serves its model.
///
/// # Errors
/// A sentence that says what is wrong with the backend.
pub(super) fn add_backend(app: &App, new: NewBackend) -> Result<BackendId, String> {
    let pool = pool_for(app, new.model.as_deref())?;
    let backend = config::Backend {
        url: config::parse_url(&new.url).map_err(|error| format!("url: {error}"))?,
        api_key: new.api_key.map(Secret),
        weight: new.weight.unwrap_or(1),
        capacity_tokens: new.capacity_tokens,
    };
    // The bounds that the YAML has.
    if !(1..=1000).contains(&backend.weight) {
        return Err("weight: from 1 to 1000".to_owned());
    }
    if backend.capacity_tokens == Some(0) {
        return Err("capacity_tokens: more than 0".to_owned());
    }
    app.fleet.add(pool, &backend, Origin::Api)
}

/// The pool that serves `model`; without a model the only pool or the unnamed one.
fn pool_for(app: &App, model: Option<&str>) -> Result<PoolId, String> {
    app.fleet.pool_for(model).ok_or_else(|| match model {
        Some(model) => format!("no pool serves the model `{model}`"),
        None => "model is required: there are several pools".to_owned(),
    })
}

pub(super) fn is_at(status: &BackendStatus, url: &str) -> bool {
    let backend = &status.backend;
    let same = |url: &str| [backend.server(), &backend.url].contains(&url.trim_end_matches('/'));
    same(url) || Url::parse(url).is_ok_and(|url| same(url.as_str()))
}

// === impl BackendListing ===

impl<'a> BackendListing<'a> {
    fn new(status: &'a BackendStatus, load: Option<&LoadView>, model: &'a str) -> Self {
        let gauges = status.gauges.as_ref();
        Self {
            id: status.backend.id.0,
            url: &status.backend.url,
            model,
            healthy: status.healthy,
            draining: status.draining,
            down_because: status.down_reason.as_deref(),
            down_cause: status.down_cause.map(DownCause::label),
            returns_in_seconds: status.returns_in.map(|time| time.as_secs_f64()),
            weight: status.backend.settings().weight,
            steps_in_flight: load.map_or(0, |load| load.in_flight),
            programs_running: load.map_or(0, |load| load.leased_running),
            programs_idle: load.map_or(0, |load| load.leased_idle),
            charged_running_tokens: load.map_or(0, |load| load.charged_running.0),
            charged_idle_tokens: load.map_or(0, |load| load.charged_idle.0),
            capacity_tokens: status.capacity,
            effective_capacity_tokens: load.and_then(|load| load.effective_capacity).map(|n| n.0),
            kv_usage_ratio: gauges.map(|gauges| gauges.kv_usage),
            prefix_hit_ratio: prefix_hit_ratio(status),
            requests_running: gauges.map(|gauges| gauges.running),
            requests_waiting: gauges.map(|gauges| gauges.waiting),
            scrape_age_seconds: status.scrape_age.map(|age| age.as_secs_f64()),
        }
    }
}
