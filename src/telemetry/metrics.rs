//! Everything that is counted, by event. Gauges that mirror the ledger and the fleet are not here: see `mirror`.

use super::labels::{HoldClass, MoveReason, Released, UpstreamError};
use crate::gate::PoolId;
use crate::scheduler::{DispatchKind, HoldReason, PauseReason, Usage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// Bounds of a whole request, seconds: from a cached tool call to the longest reasoning step.
const REQUEST_SECONDS: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 600.0, 1800.0];
const TTFT_SECONDS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0, 300.0, 1800.0];
const INTER_TOKEN_SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];
/// Up to `scheduler.hold.max` (30 minutes by default).
const HOLD_SECONDS: [f64; 14] = [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0];
const ESTIMATE_ERROR: [f64; 13] = [-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/// All counters and histograms of the process.
pub struct Metrics {
    pub(super) registry: Registry,
    /// One per model pool, by [`PoolId`]; the last is for requests that reach no pool.
    models: Vec<ModelMetrics>,
    in_flight: Gauge,
    client_disconnects: Counter,
    upstream_errors: Family<UpstreamLabels, Counter>,
    holds: Counters<HoldReason>,
    hold_seconds: [Histogram; HoldClass::ALL.len()],
    pauses: Counters<PauseReason>,
    resumes: Counters<DispatchKind>,
    moves: Counters<MoveReason>,
    forced: Counter,
    released: Counters<Released>,
    estimate_error: Histogram,
    identity_source: Family<SourceLabel, Counter>,
    config_reload_success: Gauge,
    pub(super) profile_rows_dropped: Counter,
    pub(super) access_lines_dropped: Counter,
}

/// What is counted per model pool; its handles are resolved once.
pub struct ModelMetrics {
    model: Arc<str>,
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
    ttft: Histogram,
    inter_token: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
}

/// One request being served; counted until it is dropped.
pub struct InFlight(Gauge);

/// Counters of one label with a small set of values, each resolved once.
struct Counters<K>(Vec<(K, Counter)>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: Arc<str>,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: Arc<str>,
    code: u16,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    backend: String,
    kind: &'static str,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: Cow<'static, str>,
}

// === impl Metrics ===

impl Metrics {
    /// `models` are the names of the pools, in the order of their [`PoolId`].
    #[must_use]
    pub fn new(models: &[String]) -> Self {
        let mut registry = Registry::with_prefix("thundergate");
        let r = &mut registry;
        let models = model_metrics(r, models);
        let config_reload_success =
            gauge(r, "config_reload_success", "1 if the configuration was last loaded without a mistake");
        config_reload_success.set(1);
        Self {
            models,
            in_flight: gauge(r, "inflight_requests", "Requests being served, held ones too"),
            client_disconnects: counter(
                r,
                "client_disconnects",
                "Requests whose client left before the end of the answer",
            ),
            upstream_errors: family(r, "upstream_errors", "Requests that a backend failed, by kind of failure"),
            holds: Counters::register(
                r,
                ("holds", "reason", "Steps that had to wait for room"),
                [
                    HoldReason::NoRoom,
                    HoldReason::PrefillBusy,
                    HoldReason::Queued,
                    HoldReason::NoBackend,
                    HoldReason::Frozen,
                ],
                HoldReason::label,
            ),
            hold_seconds: hold_histograms(r),
            pauses: Counters::register(
                r,
                ("pauses", "reason", "Programs that lost their place on a backend"),
                [
                    PauseReason::Evicted,
                    PauseReason::OverCapacity,
                    PauseReason::CacheLost,
                    PauseReason::PresumedGone,
                    PauseReason::BackendDown,
                    PauseReason::Error,
                ],
                PauseReason::label,
            ),
            resumes: Counters::register(
                r,
                ("resumes", "kind", "Held steps that were let in, by what they were"),
                [
                    DispatchKind::Leased,
                    DispatchKind::New,
                    DispatchKind::Resumed,
                    DispatchKind::Forced,
                    DispatchKind::Unlabelled,
                ],
                DispatchKind::label,
            ),
            moves: Counters::register(
                r,
                ("moves", "reason", "Programs dispatched on another backend than last time"),
                MoveReason::ALL,
                MoveReason::label,
            ),
            forced: counter(r, "forced_admissions", "Steps let in without room, after scheduler.hold.max"),
            released: Counters::register(r, ("released", "how", "Programs that ended"), Released::ALL, Released::label),
            estimate_error: histogram(
                r,
                "estimate_error_ratio",
                "Estimated minus reported total tokens of a step, over reported",
                &ESTIMATE_ERROR,
            ),
            identity_source: family(r, "identity_source", "Requests by what named their program"),
            config_reload_success,
            profile_rows_dropped: counter(r, "profile_rows_dropped", "Rows of step_profiles.csv that were not written"),
            access_lines_dropped: counter(r, "access_log_dropped", "Lines of the access log that were not written"),
            registry,
        }
    }

    /// The handles of a pool; `None` for a request that reaches no pool.
    #[must_use]
    pub fn model(&self, pool: Option<PoolId>) -> &ModelMetrics {
        let last = self.models.len() - 1;
        let at = pool.map_or(last, |pool| pool.0.min(last));
        &self.models[at]
    }

    /// Counts a request as in flight until the guard is dropped.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub fn client_disconnected(&self) {
        self.client_disconnects.inc();
    }

    pub fn upstream_error(&self, backend_url: &str, kind: UpstreamError) {
        let labels = UpstreamLabels { backend: backend_url.to_owned(), kind: kind.label() };
        self.upstream_errors.get_or_create(&labels).inc();
    }

    /// A step began to wait.
    pub fn held(&self, reason: HoldReason) {
        self.holds.inc(reason);
    }

    /// A held step waits no longer: it was dispatched ([`HoldClass::from`] its kind) or gave up.
    pub fn hold_ended(&self, class: HoldClass, held: Duration) {
        self.hold_seconds[class as usize].observe(held.as_secs_f64());
    }

    /// A program lost its lease.
    pub fn paused(&self, reason: PauseReason) {
        self.pauses.inc(reason);
    }

    /// A held step was dispatched.
    pub fn resumed(&self, kind: DispatchKind) {
        self.resumes.inc(kind);
    }

    pub fn moved(&self, reason: MoveReason) {
        self.moves.inc(reason);
    }

    /// A step was let in although it did not fit.
    pub fn forced(&self) {
        self.forced.inc();
    }

    pub fn released(&self, how: Released) {
        self.released.inc(how);
    }

    /// `ratio`: (estimated − reported) / reported total tokens of a step.
    pub fn estimate_error(&self, ratio: f64) {
        self.estimate_error.observe(ratio);
    }

    /// `source`: the name of the identity source, or `none`; from the configured list, never what a client sent.
    pub fn identity_source(&self, source: impl Into<Cow<'static, str>>) {
        let source = source.into();
        self.identity_source.get_or_create(&SourceLabel { source }).inc();
    }

    pub fn config_reloaded(&self, success: bool) {
        self.config_reload_success.set(success.into());
    }
}

// === impl ModelMetrics ===

impl ModelMetrics {
    /// The `model` label: the pool's name, `default` for the unnamed one, empty for none.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.model
    }

    /// `code`: the HTTP status of the answer; 499 when the client left before there was one.
    pub fn request_finished(&self, code: u16, duration: Duration) {
        let model = Arc::clone(&self.model);
        self.requests.get_or_create(&RequestLabels { model, code }).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// From the request's arrival here, time held included, to the first token of the answer.
    pub fn ttft(&self, since_arrival: Duration) {
        self.ttft.observe(since_arrival.as_secs_f64());
    }

    /// Between two chunks of a streamed answer.
    pub fn inter_token(&self, gap: Duration) {
        self.inter_token.observe(gap.as_secs_f64());
    }

    /// What the backend reported for a step.
    pub fn usage(&self, usage: Usage) {
        self.prompt_tokens.inc_by(usage.prompt.0);
        self.completion_tokens.inc_by(usage.completion.0);
        self.cached_tokens.inc_by(usage.cached.unwrap_or_default().0);
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Counters ===

impl<K: Copy + Eq> Counters<K> {
    /// Registers `(name, label, help)` with a series for each of `keys`, at zero.
    fn register(
        registry: &mut Registry,
        (name, label, help): (&str, &'static str, &str),
        keys: impl IntoIterator<Item = K>,
        value: fn(K) -> &'static str,
    ) -> Self {
        let series = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register(name, help, series.clone());
        let handle = |key| (key, series.get_or_create_owned(&[(label, value(key))]));
        Self(keys.into_iter().map(handle).collect())
    }

    fn inc(&self, key: K) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == key) {
            counter.inc();
        }
    }
}

fn model_metrics(registry: &mut Registry, names: &[String]) -> Vec<ModelMetrics> {
    let requests = family(registry, "requests", "Requests answered, by HTTP status");
    let duration = model_histogram(
        registry,
        "request_duration_seconds",
        "From the request's arrival to the end of its answer",
        || Histogram::new(REQUEST_SECONDS),
    );
    let ttft = model_histogram(
        registry,
        "ttft_seconds",
        "From the request's arrival to the first token of its answer, time held included",
        || Histogram::new(TTFT_SECONDS),
    );
    let inter_token =
        model_histogram(registry, "inter_token_seconds", "Between two chunks of a streamed answer", || {
            Histogram::new(INTER_TOKEN_SECONDS)
        });
    let prompt = family(registry, "prompt_tokens", "Prompt tokens, cached ones too");
    let cached = family(registry, "cached_tokens", "Prompt tokens that the backend found in its prefix cache");
    let completion = family(registry, "completion_tokens", "Tokens generated");
    let named = names.iter().map(|name| match name.as_str() {
        "" => "default",
        name => name,
    });
    named
        .chain([""])
        .map(|name| {
            let model = Arc::<str>::from(name);
            let label = ModelLabel { model: Arc::clone(&model) };
            ModelMetrics {
                model,
                requests: Family::clone(&requests),
                duration: duration.get_or_create_owned(&label),
                ttft: ttft.get_or_create_owned(&label),
                inter_token: inter_token.get_or_create_owned(&label),
                prompt_tokens: prompt.get_or_create_owned(&label),
                cached_tokens: cached.get_or_create_owned(&label),
                completion_tokens: completion.get_or_create_owned(&label),
            }
        })
        .collect()
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn model_histogram(registry: &mut Registry, name: &str, help: &str, new: fn() -> Histogram) -> Histograms<ModelLabel> {
    let family = Histograms::new_with_constructor(new);
    registry.register(name, help, family.clone());
    family
}

fn hold_histograms(registry: &mut Registry) -> [Histogram; HoldClass::ALL.len()] {
    let family = Histograms::<[(&'static str, &'static str); 1]>::new_with_constructor(|| Histogram::new(HOLD_SECONDS));
    registry.register("hold_seconds", "How long held steps waited", family.clone());
    HoldClass::ALL.map(|class| family.get_or_create_owned(&[("class", class.label())]))
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn histogram(registry: &mut Registry, name: &str, help: &str, bounds: &[f64]) -> Histogram {
    let histogram = Histogram::new(bounds.iter().copied());
    registry.register(name, help, histogram.clone());
    histogram
}

fn family<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: EncodeLabelSet + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}
