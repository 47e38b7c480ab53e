//! Programs and their profiles: list, show, release.

use super::message::{ControlRequest, ControlResponse, Side};
use super::overview::{Overview, model_name};
use super::thunderagent::ProgramJson;
use crate::app::App;
use crate::config::{self, Config};
use crate::gate::{PoolId, ProgramView};
use crate::identity::program_key;
use crate::scheduler::ProgramKey;
use crate::telemetry::ProfileSummary;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whose programs a request sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Tenant(Arc<str>),
    All,
}

/// `GET /programs/{id}`: ThunderAgent's fields, and why the program waits.
#[derive(Serialize)]
pub(super) struct ProgramDetail<'a> {
    program_id: &'a str,
    tenant: &'a str,
    model: &'a str,
    #[serde(flatten)]
    program: ProgramJson<'a>,
    /// Whether a backend keeps room for the program.
    leased: bool,
    footprint_tokens: u64,
    steps_in_flight: usize,
    steps_held: usize,
    held_because: Option<&'static str>,
    held_seconds: Option<f64>,
    /// Why the program lost its lease the last time.
    last_pause: Option<&'static str>,
    idle_seconds: Option<f64>,
}

#[derive(Serialize)]
struct ShownProgram<'a> {
    #[serde(flatten)]
    busiest: ProgramDetail<'a>,
    /// Programs of the same id in other pools or tenants.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    others: Vec<ProgramDetail<'a>>,
}

// === impl Scope ===

impl Scope {
    pub(super) fn of(request: &ControlRequest) -> Self {
        match request.listener {
            Side::Admin => Self::All,
            Side::Main => Self::Tenant(request.tenant.clone().unwrap_or_default()),
        }
    }

    fn sees(&self, key: &ProgramKey) -> bool {
        match self {
            Self::Tenant(tenant) => key.tenant == *tenant,
            Self::All => true,
        }
    }

    /// The program's name in a list: its id, with its tenant before the id where the list spans tenants.
    fn name<'a>(&self, key: &'a ProgramKey) -> Cow<'a, str> {
        match self {
            Self::All if !key.tenant.is_empty() => Cow::Owned(format!("{}/{}", key.tenant, key.id)),
            _ => Cow::Borrowed(&key.id),
        }
    }

    /// The programs that `id`, as a path or body writes it, may mean: one for each tenant in sight.
    fn keys(&self, id: &str, config: &Config) -> Vec<ProgramKey> {
        let key = |tenant: &str, id: &str| program_key(&tenant.into(), id, config.identity.max_bytes);
        match self {
            Self::Tenant(tenant) => vec![key(tenant, id)],
            Self::All => {
                let keys = config.auth.keys.iter();
                let tenants: BTreeSet<&str> = keys.map(config::ApiKey::tenant).collect();
                let named = tenants.iter().filter_map(|tenant| {
                    let id = id.strip_prefix(tenant)?.strip_prefix('/')?;
                    Some(key(tenant, id))
                });
                let any = tenants.iter().map(|tenant| key(tenant, id));
                named.chain(any).chain([key("", id)]).collect()
            }
        }
    }
}

pub(super) fn list(app: &App, scope: &Scope) -> ControlResponse {
    let mut overview = Overview::of(app);
    let mut programs = std::mem::take(&mut overview.programs);
    // An id may be known in several pools: then the busiest program is shown.
    programs.sort_by_key(activity_rank);
    let listed: BTreeMap<Cow<'_, str>, ProgramJson<'_>> = programs
        .iter()
        .filter(|(_, view)| scope.sees(&view.key))
        .map(|(pool, view)| (scope.name(&view.key), thunderagent(*pool, view, &overview, app)))
        .collect();
    ControlResponse::json(&listed)
}

pub(super) fn show(app: &App, scope: &Scope, id: &str) -> ControlResponse {
    let overview = Overview::of_backends(app);
    let settings = app.settings();
    let keys = scope.keys(id, &settings);
    let mut views: Vec<_> = keys.iter().flat_map(|key| app.gate.program(key)).collect();
    views.sort_by_key(activity_rank);
    let mut details = views.iter().rev().map(|(pool, view)| {
        let program = thunderagent(*pool, view, &overview, app);
        detail(*pool, view, program, &settings)
    });
    match details.next() {
        Some(busiest) => ControlResponse::json(&ShownProgram { busiest, others: details.collect() }),
        None => unknown(id),
    }
}

pub(super) fn delete(app: &App, scope: &Scope, id: &str) -> ControlResponse {
    if release(app, scope, id) {
        ControlResponse::json(&json!({"program_id": id, "released": true}))
    } else {
        unknown(id)
    }
}

/// `POST /programs/release` with `{"program_id": …}`.
pub(super) fn release_by_body(app: &App, scope: &Scope, body: &[u8]) -> ControlResponse {
    match program_id(body) {
        Ok(id) => {
            let released = release(app, scope, &id);
            ControlResponse::json(&json!({"program_id": id, "released": released}))
        }
        Err(detail) => ControlResponse::bad_request(detail),
    }
}

/// The `program_id` of a release, read in the same way as that of a step.
///
/// # Errors
/// What is wrong, in ThunderAgent's words.
pub(super) fn program_id(body: &[u8]) -> Result<String, &'static str> {
    let value: &RawValue = serde_json::from_slice(body).map_err(|_| "Invalid JSON")?;
    // A map and not a struct: of duplicate keys the last counts, as in Python.
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(value.get()).map_err(|_| "Missing program_id")?;
    let id = fields.get("program_id").ok_or("Missing program_id")?.get();
    match id.as_bytes()[0] {
        b'"' => {
            let id: String = serde_json::from_str(id).map_err(|_| "Invalid JSON")?;
            (!id.is_empty()).then_some(id).ok_or("Missing program_id")
        }
        b'{' | b'[' => Err("program_id must be a string, number or boolean"),
        _ if falsy(id) => Err("Missing program_id"),
        _ => Ok(id.to_owned()),
    }
}

/// Whether Python takes a JSON scalar (other than a string) for false.
fn falsy(json: &str) -> bool {
    matches!(json, "null" | "false") || json.parse() == Ok(0.0_f64)
}

fn release(app: &App, scope: &Scope, id: &str) -> bool {
    let mut released = false;
    for key in scope.keys(id, &app.settings()) {
        released |= app.gate.release(&key);
        if let Some(profiles) = app.telemetry.profiles() {
            profiles.forget(&key);
        }
    }
    released
}

pub(super) fn profiles(app: &App, scope: &Scope) -> ControlResponse {
    let Some(profiles) = app.telemetry.profiles() else {
        return profiling_off();
    };
    let all = profiles.all();
    let listed: BTreeMap<Cow<'_, str>, &ProfileSummary> =
        all.iter().filter(|(key, _)| scope.sees(key)).map(|(key, summary)| (scope.name(key), summary)).collect();
    ControlResponse::json(&listed)
}

pub(super) fn profile(app: &App, scope: &Scope, id: &str) -> ControlResponse {
    let Some(profiles) = app.telemetry.profiles() else {
        return profiling_off();
    };
    let mut keys = scope.keys(id, &app.settings()).into_iter();
    match keys.find_map(|key| profiles.get(&key)) {
        Some(summary) => ControlResponse::json(&summary),
        None => {
            let detail = format!("Profile not found for program: {id}");
            ControlResponse::detail(StatusCode::NOT_FOUND, detail)
        }
    }
}

fn thunderagent<'a>(pool: PoolId, view: &ProgramView, overview: &'a Overview, app: &App) -> ProgramJson<'a> {
    let backend = view.backend.and_then(|id| overview.url(id));
    let profile = app.telemetry.profiles().and_then(|p| p.get(&view.key));
    ProgramJson::new(pool, view, backend, profile, &app.settings())
}

pub(super) fn detail<'a>(
    pool: PoolId,
    view: &'a ProgramView,
    program: ProgramJson<'a>,
    config: &'a Config,
) -> ProgramDetail<'a> {
    ProgramDetail {
        program_id: &view.key.id,
        tenant: &view.key.tenant,
        model: model_name(config, pool),
        program,
        leased: view.leased,
        footprint_tokens: view.footprint.0,
        steps_in_flight: view.in_flight,
        steps_held: view.held,
        held_because: view.hold.map(|(reason, _)| reason.label()),
        held_seconds: view.hold.map(|(_, held)| held.as_secs_f64()),
        last_pause: view.last_pause.map(crate::scheduler::PauseReason::label),
        idle_seconds: view.idle.map(|idle| idle.as_secs_f64()),
    }
}

/// Sorts the busiest program last.
fn activity_rank((_, view): &(PoolId, ProgramView)) -> (bool, bool, u64) {
    (view.in_flight > 0, view.held > 0, view.steps)
}

fn unknown(id: &str) -> ControlResponse {
    ControlResponse::detail(StatusCode::NOT_FOUND, format!("Program not found: {id}"))
}

fn profiling_off() -> ControlResponse {
    let body = json!({"error": "Profiling is off: set profile.dir, or start with --profile"});
    ControlResponse::json_with(StatusCode::BAD_REQUEST, &body)
}
