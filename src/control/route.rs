//! Which paths are ours, and on which listener they answer. The proxy asks before it reads a body.

use super::message::Side;
use crate::config::Config;
use http::Method;
use percent_encoding::percent_decode_str;

/// The endpoint that a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Programs,
    Release,
    Program,
    Health,
    Profiles,
    Profile,
    Metrics,
    Livez,
    Readyz,
    Models,
    Backends,
    Backend,
    AddWorker,
    RemoveWorker,
    ListWorkers,
    Workers,
    Worker,
    WeightSyncBegin,
    WeightSyncEnd,
    Reload,
    Events,
    Console,
}

/// A path of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlRoute {
    pub endpoint: Endpoint,
    /// The last part of `/programs/{id}`, `/profiles/{id}`, `/backends/{id}` or `/workers/{id}`, percent-decoded.
    pub id: Option<String>,
    /// Whether the path takes the request's method; if not, the answer is 405.
    pub method_allowed: bool,
    pub(super) allow: &'static str,
}

/// Whole paths, with the methods they take.
const EXACT: [(&str, &str, Endpoint); 21] = [
    ("/programs", "GET, HEAD", Endpoint::Programs),
    ("/programs/release", "POST", Endpoint::Release),
    ("/v1/programs/release", "POST", Endpoint::Release),
    ("/health", "GET, HEAD", Endpoint::Health),
    ("/profiles", "GET, HEAD", Endpoint::Profiles),
    ("/metrics", "GET, HEAD", Endpoint::Metrics),
    ("/livez", "GET, HEAD", Endpoint::Livez),
    ("/readyz", "GET, HEAD", Endpoint::Readyz),
    ("/v1/models", "GET, HEAD", Endpoint::Models),
    ("/backends", "GET, HEAD, POST", Endpoint::Backends),
    ("/add_worker", "POST", Endpoint::AddWorker),
    ("/remove_worker", "POST", Endpoint::RemoveWorker),
    ("/list_workers", "GET, HEAD", Endpoint::ListWorkers),
    ("/workers", "GET, HEAD, POST", Endpoint::Workers),
    ("/weight_sync/begin", "POST", Endpoint::WeightSyncBegin),
    ("/weight_sync/end", "POST", Endpoint::WeightSyncEnd),
    ("/reload", "POST", Endpoint::Reload),
    ("/events", "GET, HEAD", Endpoint::Events),
    ("/console", "GET, HEAD", Endpoint::Console),
    // As browsers and people type them.
    ("/console/", "GET, HEAD", Endpoint::Console),
    ("/v1/models/", "GET, HEAD", Endpoint::Models),
];

/// Paths that end in an id; the id may hold slashes, encoded or not.
const WITH_ID: [(&str, &str, Endpoint); 4] = [
    ("/programs/", "GET, HEAD, DELETE", Endpoint::Program),
    ("/profiles/", "GET, HEAD", Endpoint::Profile),
    ("/backends/", "DELETE", Endpoint::Backend),
    ("/workers/", "DELETE", Endpoint::Worker),
];

/// Every path of ours, `{id}` in place of an id, with the methods that it takes.
pub fn paths() -> impl Iterator<Item = (String, &'static str)> {
    let exact = EXACT.iter().map(|(path, methods, _)| ((*path).to_owned(), *methods));
    exact.chain(WITH_ID.iter().map(|(prefix, methods, _)| (format!("{prefix}{{id}}"), *methods)))
}

/// The control endpoint that `path` (without its query) names; `None`: not ours.
#[must_use]
pub fn route(method: &Method, path: &str) -> Option<ControlRoute> {
    let found = |allow: &'static str, endpoint, id| ControlRoute {
        endpoint,
        id,
        method_allowed: allow.split(", ").any(|allowed| allowed == method.as_str()),
        allow,
    };
    if let Some(&(_, allow, endpoint)) = EXACT.iter().find(|(exact, ..)| *exact == path) {
        return Some(found(allow, endpoint, None));
    }
    WITH_ID.iter().find_map(|&(prefix, allow, endpoint)| {
        let id = path.strip_prefix(prefix).filter(|id| !id.is_empty())?;
        let id = percent_decode_str(id).decode_utf8().ok()?;
        Some(found(allow, endpoint, Some(id.into_owned())))
    })
}

// === impl ControlRoute ===

impl ControlRoute {
    /// Whether the path exists on this listener.
    #[must_use]
    pub fn answers_on(&self, listener: Side, config: &Config) -> bool {
        let public = matches!(
            self.endpoint,
            Endpoint::Release | Endpoint::Health | Endpoint::Livez | Endpoint::Readyz | Endpoint::Models
        );
        match listener {
            Side::Admin => true,
            Side::Main if public => true,
            Side::Main if config.admin.is_some() => false,
            // A tenant's key must not do for operators' endpoints: a tenant could add a backend and read others' prompts.
            Side::Main => config.auth.keys.is_empty() || !self.for_operators(),
        }
    }

    /// Whether the main listener asks for an API key when `auth.keys` is set. Probes have no key.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        !matches!(self.endpoint, Endpoint::Health | Endpoint::Livez | Endpoint::Readyz)
    }

    /// Whether the endpoint reads a body (of at most [`super::BODY_LIMIT`] bytes).
    #[must_use]
    pub fn reads_body(&self) -> bool {
        use Endpoint::{AddWorker, Backends, Release, RemoveWorker, WeightSyncBegin, Workers};
        self.method_allowed
            && matches!(self.endpoint, Release | Backends | AddWorker | RemoveWorker | Workers | WeightSyncBegin)
    }

    /// Whether the endpoint acts on, or shows, all tenants.
    fn for_operators(&self) -> bool {
        match self.endpoint {
            Endpoint::Programs
            | Endpoint::Release
            | Endpoint::Program
            | Endpoint::Health
            | Endpoint::Profiles
            | Endpoint::Profile
            | Endpoint::Metrics
            | Endpoint::Livez
            | Endpoint::Readyz
            | Endpoint::Models => false,
            Endpoint::Backends
            | Endpoint::Backend
            | Endpoint::AddWorker
            | Endpoint::RemoveWorker
            | Endpoint::ListWorkers
            | Endpoint::Workers
            | Endpoint::Worker
            | Endpoint::WeightSyncBegin
            | Endpoint::WeightSyncEnd
            | Endpoint::Reload
            | Endpoint::Events
            | Endpoint::Console => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_the_room_lists_every_path() {
        let text = include_str!("../control.rs");
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        for (path, _) in paths() {
            let path = path.trim_end_matches('/');
            assert!(head.iter().any(|line| line.contains(&format!("{path}`"))), "{path}");
        }
    }
}
