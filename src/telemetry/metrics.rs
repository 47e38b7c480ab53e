//! Counters and histograms, by event. The gauges of gate and fleet are in `current`.

use super::labels::{HoldClass, MoveReason, Released, UpstreamError};
use super::model::{self, ModelMetrics};
use super::register::{Counters, Histograms, counter, family, gauge, histogram};
use crate::scheduler::PoolId;
use crate::scheduler::{DispatchKind, HoldReason, PauseReason};
use crate::units::unix_time;
use arc_swap::ArcSwap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;

/// Bounds of `hold_seconds`: up to `scheduler.hold.max`, 30 minutes by default.
const HOLD_SECONDS: [f64; 14] = [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0];
/// Bounds of `estimate_error_ratio`.
const ESTIMATE_ERROR: [f64; 13] = [-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/// The identity source of steps without a program.
pub const NO_IDENTITY: &str = "none";
/// The identity source of steps whose program is known by their conversation.
pub const FINGERPRINT: &str = "fingerprint";

/// All counters and histograms of the process.
pub struct Metrics {
    pub(super) registry: Registry,
    /// Metrics of each model pool, by [`PoolId`]; the last entry is for requests that reach no pool.
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
    identity: Family<[(&'static str, String); 1], Counter>,
    /// A handle for each source of the configuration.
    identity_sources: ArcSwap<Vec<(String, Counter)>>,
    config_reload_success: Gauge,
    config_reloaded_at: Gauge,
    state_write_success: Gauge,
    pub(super) profile_rows_dropped: Counter,
    pub(super) access_lines_dropped: Counter,
}

/// One request being served, counted until the guard is dropped.
pub struct InFlight(Gauge);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    backend: String,
    kind: &'static str,
}

// === impl Metrics ===

impl Metrics {
    /// `models` are the names of the pools, in the order of their [`PoolId`]; `sources` the configured
    /// identity sources.
    #[must_use]
    pub fn new(models: &[String], sources: &[String]) -> Self {
        let mut registry = Registry::with_prefix("thundergate");
        let r = &mut registry;
        let models = model::register(r, models);
        let config_reload_success =
            gauge(r, "config_reload_success", "1 if the configuration was last loaded without a mistake");
        let config_reloaded_at = gauge(
            r,
            "config_last_reload_success_timestamp_seconds",
            "Unix time at which the configuration was last loaded without a mistake",
        );
        let state_write_success = gauge(r, "state_write_success", "1 unless the last write of the state failed");
        state_write_success.set(1);
        let identity = Family::default();
        r.register("identity_source", "Steps by what named their program", identity.clone());
        let metrics = Self {
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
                HoldReason::ALL,
                HoldReason::label,
            ),
            hold_seconds: hold_histograms(r),
            pauses: Counters::register(
                r,
                ("pauses", "reason", "Programs that lost their place on a backend"),
                PauseReason::ALL,
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
            identity,
            identity_sources: ArcSwap::default(),
            config_reload_success,
            config_reloaded_at,
            state_write_success,
            profile_rows_dropped: counter(r, "profile_rows_dropped", "Rows of step_profiles.csv that were not written"),
            access_lines_dropped: counter(r, "access_log_dropped", "Lines of the access log that were not written"),
            registry,
        };
        metrics.count_sources(sources);
        metrics.config_reloaded(true);
        metrics
    }

    /// Sets the identity sources that are counted from now on.
    pub fn count_sources(&self, sources: &[String]) {
        let names = sources.iter().map(String::as_str).chain([FINGERPRINT, NO_IDENTITY]);
        let handle = |name: &str| (name.to_owned(), self.identity.get_or_create_owned(&[("source", name.to_owned())]));
        self.identity_sources.store(Arc::new(names.map(handle).collect()));
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

    /// Counts a step that began to wait.
    pub fn held(&self, reason: HoldReason) {
        self.holds.inc(reason);
    }

    /// Counts a held step that waits no longer: it was dispatched ([`HoldClass::from`] its kind) or gave up.
    pub fn hold_ended(&self, class: HoldClass, held: Duration) {
        self.hold_seconds[class as usize].observe(held.as_secs_f64());
    }

    /// Counts a program that lost its lease.
    pub fn paused(&self, reason: PauseReason) {
        self.pauses.inc(reason);
    }

    /// Counts a held step that was dispatched.
    pub fn resumed(&self, kind: DispatchKind) {
        self.resumes.inc(kind);
    }

    pub fn moved(&self, reason: MoveReason) {
        self.moves.inc(reason);
    }

    /// Counts a step that was let in although it did not fit.
    pub fn forced(&self) {
        self.forced.inc();
    }

    pub fn released(&self, how: Released) {
        self.released.inc(how);
    }

    /// Records the error of an estimate. `ratio`: (estimated − reported) / reported total tokens of a step.
    pub fn estimate_error(&self, ratio: f64) {
        self.estimate_error.observe(ratio);
    }

    /// Counts a step by the source that named its program, as configured; [`NO_IDENTITY`] if none did.
    pub fn identity_source(&self, source: impl AsRef<str>) {
        let source = source.as_ref();
        if let Some((_, counter)) = self.identity_sources.load().iter().find(|(name, _)| name == source) {
            counter.inc();
        }
    }

    pub fn config_reloaded(&self, success: bool) {
        self.config_reload_success.set(success.into());
        if success {
            let now = unix_time();
            self.config_reloaded_at.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }

    pub fn state_written(&self, success: bool) {
        self.state_write_success.set(success.into());
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn hold_histograms(registry: &mut Registry) -> [Histogram; HoldClass::ALL.len()] {
    let family = Histograms::<[(&'static str, &'static str); 1]>::new_with_constructor(|| Histogram::new(HOLD_SECONDS));
    registry.register("hold_seconds", "How long held steps waited", family.clone());
    HoldClass::ALL.map(|class| family.get_or_create_owned(&[("class", class.label())]))
}
