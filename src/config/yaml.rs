//! The surface form of the YAML, and how it becomes a `Config`.

use super::draft::Draft;
use super::expand::Surroundings;
use super::humane;
use super::mistake::Failure;
use super::node::{self, MAX_DOCUMENT};
use super::tree::{
    Admin, Auth, Backend, Config, Feedback, Identity, Limits, Listener, Logging, Metrics, OnTimeout, Pool, Profile,
    Programs, Retry, Scheduler, State, Timeouts, UrlOrBackend,
};
use super::{Mark, Mistake, read};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Thundergate's configuration.
#[derive(Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Thundergate configuration")]
pub(super) struct File {
    /// IP address and port that clients connect to, such as `0.0.0.0:8300`, without TLS.
    #[serde(deserialize_with = "humane::some_address")]
    listen: Option<SocketAddr>,
    /// More addresses that clients connect to.
    listeners: Vec<Listener>,
    /// A listener of its own for the control endpoints.
    admin: Option<Admin>,
    /// Short for one pool without a name, which serves any model that no other pool serves.
    #[schemars(with = "Vec<UrlOrBackend>")]
    backends: Option<Vec<Backend>>,
    /// Pools of backends, one for each model.
    models: Vec<Pool>,
    /// When and where steps run, in pools with `routing: program`.
    scheduler: SchedulerKeys,
    /// What is remembered of programs.
    programs: Programs,
    /// Where a step's program is looked for.
    identity: Identity,
    /// Who may use the proxy.
    auth: Auth,
    /// Bounds on what clients may ask for.
    limits: Limits,
    /// How long each part of a request may take.
    timeouts: Timeouts,
    /// What is tried again.
    retry: Retry,
    /// What outlives the process.
    state: State,
    /// What is logged, and where.
    logging: Logging,
    /// Times of every step, kept and written to `step_profiles.csv`; off when absent.
    profile: Option<Profile>,
    /// How the backends' own `/metrics` are read.
    metrics: Metrics,
}

/// When and where steps run.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SchedulerKeys {
    /// What happens to a step that has to wait for room.
    hold: Hold,
    /// Share of each backend's capacity that is left free: 0 to 0.5.
    #[schemars(range(min = 0.0, max = 0.5))]
    headroom: f64,
    /// How far ahead room is looked for, since programs grow.
    forecast: Forecast,
    /// When an idle program has to make room.
    evict: Evict,
    /// When one that waits comes before all others.
    fair: Fair,
    /// Whether a backend's capacity is corrected by the `cached_tokens` of its answers.
    feedback: Feedback,
    /// Time between two looks at what changes by itself, such as programs that have gone idle.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    tick: Duration,
    /// How long a step waits while no backend is usable before it gets 503.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    no_backend_wait: Duration,
    /// How much an idle program's tokens count against capacity: 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    acting_weight: f64,
    /// Let that weight halve with every second that the program is idle.
    acting_decay: bool,
}

/// What happens to a step that has to wait for room.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Hold {
    /// Longest wait. Must lie below the clients' own timeout.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    max: Duration,
    /// What happens then.
    on_timeout: OnTimeout,
    /// Steps that may wait at once; more get 429.
    queue: usize,
}

/// How far ahead room is looked for, since programs grow.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Forecast {
    /// Share of the capacity that the programs of a backend may come to need at their worst moment ahead,
    /// for a new one to be let in.
    #[schemars(range(min = 0.1))]
    slack: f64,
    /// How far ahead a program that returns must fit.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    horizon: Duration,
}

/// When an idle program has to make room.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Evict {
    /// Once it was idle for this many times the stall that recomputing it would cause.
    #[schemars(range(min = 0.0))]
    cost_factor: f64,
    /// Or for this many times the 99th percentile of the pauses between two steps.
    #[schemars(range(min = 0.0))]
    idle_factor: f64,
}

/// When one that waits comes before all others.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Fair {
    /// A started program that has waited this long stops all that are younger, until there is room for it.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    after: Duration,
    /// Most that a started program waits: shortly before, a backend is kept free for it, and programs there make
    /// way as their turns end.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    bound: Duration,
}

/// Reads a file; its mistakes are in the draft.
///
/// # Errors
/// The file cannot be read.
pub(super) fn open(file: &Path) -> Result<Draft, Failure> {
    let unreadable = |source| Failure::Unreadable { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    let sources = Surroundings { env: &|name| std::env::var(name).ok(), dir: file.parent().unwrap_or(Path::new("")) };
    let mut draft = match String::from_utf8(bytes) {
        Ok(text) => parse(&text, &sources),
        Err(error) => not_utf8(error.as_bytes(), error.utf8_error().valid_up_to()),
    };
    draft.file = Some(file.to_owned());
    Ok(draft)
}

/// Reads a document; its mistakes are in the draft.
pub(super) fn parse(text: &str, sources: &Surroundings<'_>) -> Draft {
    let mut draft = Draft::default();
    let mut root = match node::parse(text, &mut draft.mistakes) {
        Ok(root) => root,
        Err(mistake) => {
            draft.mistakes.push(mistake);
            return draft.unusable();
        }
    };
    sources.expand(&mut root, &mut draft.mistakes);
    let file = read::read_all::<File>(&mut root, &mut draft.mistakes);
    draft.tree = Some(root);
    match file {
        Some(file) => file.settle(draft, sources.dir),
        None => draft.unusable(),
    }
}

fn not_utf8(bytes: &[u8], wrong: usize) -> Draft {
    let before = &bytes[..wrong];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n');
    let column = String::from_utf8_lossy(&before[start.map_or(0, |at| at + 1)..]);
    let column = column.chars().count() + 1;
    let mut draft = Draft::default();
    draft.mistakes.push(Mistake::at(Mark { line, column }, "", "not UTF-8"));
    draft.unusable()
}

// === impl File ===

impl File {
    /// The config, and how its paths are written in this file.
    fn settle(self, mut draft: Draft, dir: &Path) -> Draft {
        let mut config = Config {
            admin: self.admin,
            models: self.models,
            scheduler: self.scheduler.into(),
            programs: self.programs,
            identity: self.identity,
            auth: self.auth,
            limits: self.limits,
            timeouts: self.timeouts,
            retry: self.retry,
            state: self.state,
            logging: self.logging,
            profile: self.profile,
            metrics: self.metrics,
            ..Config::default()
        };
        let given = |key| draft.tree.as_ref().is_some_and(|root| root.has(key));
        if given("listen") || given("listeners") {
            config.listeners = self.listeners;
        }
        if !given("listeners") {
            draft.shows("listeners", "listen");
            draft.shows("listeners[0].address", "listen");
        }
        if let Some(address) = self.listen {
            config.listeners.insert(0, Listener::plain(address));
            draft.shows("listeners[0].address", "listen");
            for index in 1..config.listeners.len() {
                let (here, there) = (index, index - 1);
                draft.shows(&format!("listeners[{here}]"), &format!("listeners[{there}]"));
            }
        }
        if let Some(backends) = self.backends {
            let here = format!("models[{}]", config.models.len());
            draft.shows(&format!("{here}.backends"), "backends");
            draft.shows(&format!("{here}.name"), "backends");
            config.models.push(Pool::unnamed(backends));
        }
        for key in &mut config.auth.keys {
            if key.tenant.is_empty() {
                key.tenant.clone_from(&key.name);
            }
        }
        for tls in config.listeners.iter_mut().filter_map(|l| l.tls.as_mut()) {
            tls.cert = dir.join(&tls.cert);
            tls.key = dir.join(&tls.key);
            tls.client_ca = tls.client_ca.take().map(|ca| dir.join(ca));
        }
        if let Some(snapshot) = &mut config.state.snapshot {
            *snapshot = dir.join(&snapshot);
        }
        draft.config = Some(config);
        draft
    }
}

// === impl SchedulerKeys ===

impl Default for SchedulerKeys {
    fn default() -> Self {
        let defaults = Scheduler::default();
        Self {
            hold: Hold::default(),
            headroom: defaults.headroom,
            forecast: Forecast::default(),
            evict: Evict::default(),
            fair: Fair::default(),
            feedback: defaults.feedback,
            tick: defaults.tick,
            no_backend_wait: defaults.no_backend_wait,
            acting_weight: defaults.acting_weight,
            acting_decay: defaults.acting_decay,
        }
    }
}

impl Default for Hold {
    fn default() -> Self {
        let defaults = Scheduler::default();
        Self { max: defaults.hold_max, on_timeout: defaults.hold_on_timeout, queue: defaults.hold_queue }
    }
}

impl Default for Forecast {
    fn default() -> Self {
        let defaults = Scheduler::default();
        Self { slack: defaults.forecast_slack, horizon: defaults.forecast_horizon }
    }
}

impl Default for Fair {
    fn default() -> Self {
        let defaults = Scheduler::default();
        Self { after: defaults.fair_after, bound: defaults.fair_bound }
    }
}

impl Default for Evict {
    fn default() -> Self {
        let defaults = Scheduler::default();
        Self { cost_factor: defaults.evict_cost_factor, idle_factor: defaults.evict_idle_factor }
    }
}

impl From<SchedulerKeys> for Scheduler {
    fn from(keys: SchedulerKeys) -> Self {
        Self {
            hold_max: keys.hold.max,
            hold_on_timeout: keys.hold.on_timeout,
            hold_queue: keys.hold.queue,
            headroom: keys.headroom,
            forecast_slack: keys.forecast.slack,
            forecast_horizon: keys.forecast.horizon,
            evict_cost_factor: keys.evict.cost_factor,
            evict_idle_factor: keys.evict.idle_factor,
            fair_after: keys.fair.after,
            fair_bound: keys.fair.bound,
            feedback: keys.feedback,
            tick: keys.tick,
            no_backend_wait: keys.no_backend_wait,
            acting_weight: keys.acting_weight,
            acting_decay: keys.acting_decay,
        }
    }
}

// === impl Backend ===

impl<'de> Deserialize<'de> for Backend {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Backend;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an URL such as http://gpu1:8000, or a mapping with the key `url`")
            }

            fn visit_str<E: Error>(self, url: &str) -> Result<Backend, E> {
                Backend::at(url).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Backend, A::Error> {
                // The derived form, which takes a mapping only.
                Backend::deserialize(MapAccessDeserializer::new(map))
            }
        }

        source.deserialize_any(Either)
    }
}
