//! Gauges that show the state of the gate and the fleet. They are read for each scrape and kept nowhere.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicI64, AtomicU64};

type Integer = Gauge<i64, AtomicI64>;
type Real = Gauge<f64, AtomicU64>;

/// The values of the gauges now.
#[derive(Clone, Debug, Default)]
pub struct CurrentMetrics {
    /// Number of programs by state; the states do not overlap.
    pub programs: Vec<(&'static str, u64)>,
    pub held_steps: u64,
    pub backends: Vec<BackendMetrics>,
}

/// One backend now. A value that is not known has no series.
#[derive(Clone, Debug, Default)]
pub struct BackendMetrics {
    pub url: String,
    /// Name of the pool.
    pub model: String,
    pub healthy: bool,
    /// Ejections of the backend, by cause.
    pub downs: Vec<(&'static str, u64)>,
    /// Size of the KV cache, tokens.
    pub capacity: Option<u64>,
    /// Tokens that the scheduler fills: the capacity after headroom and after what the scheduler has learned.
    pub effective_capacity: Option<u64>,
    pub charged_running: u64,
    pub charged_idle: u64,
    pub kv_usage: Option<f64>,
    pub prefix_hit: Option<f64>,
    pub scrape_age_seconds: Option<f64>,
}

/// `backend` and `model`, and a third label where there is one.
type Labels<const N: usize> = [(&'static str, String); N];

/// A gauge of every backend: name, help, and the function that takes the value from a backend.
type Column<T> = (&'static str, &'static str, fn(&BackendMetrics) -> Option<T>);

// === impl CurrentMetrics ===

impl CurrentMetrics {
    /// A registry for this one scrape: a backend that was removed leaves no series behind.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("thundergate");
        let r = &mut registry;
        build_info(r);
        let programs = Family::<Labels<1>, Integer>::default();
        r.register("programs", "Programs known, by state", programs.clone());
        for (state, count) in &self.programs {
            let labels = [("state", (*state).to_owned())];
            programs.get_or_create(&labels).set(integer(*count));
        }
        let held = Integer::default();
        held.set(integer(self.held_steps));
        r.register("held_steps", "Steps that wait for room now", held);
        self.backend_gauges(r);
        registry
    }

    fn backend_gauges(&self, r: &mut Registry) {
        let tokens: [Column<u64>; 3] = [
            ("capacity_tokens", "Size of the KV cache", |b| b.capacity),
            ("effective_capacity_tokens", "Capacity that the scheduler fills: after headroom, and as learned", |b| {
                b.effective_capacity
            }),
            ("healthy", "1 if the backend takes requests", |b| Some(b.healthy.into())),
        ];
        for (name, help, value) in tokens {
            let family = Family::<Labels<2>, Integer>::default();
            r.register(format!("backend_{name}"), help, family.clone());
            for backend in &self.backends {
                if let Some(value) = value(backend) {
                    let gauge = family.get_or_create_owned(&backend.labels());
                    gauge.set(integer(value));
                }
            }
        }
        let reals: [Column<f64>; 3] = [
            ("backend_kv_usage_ratio", "Share of the KV cache that running requests use, as reported", |b| b.kv_usage),
            (
                "backend_prefix_hit_ratio",
                "Share of prompt tokens found in the prefix cache since the backend started",
                |b| b.prefix_hit,
            ),
            ("scrape_age_seconds", "Since the backend's gauges were last read", |b| b.scrape_age_seconds),
        ];
        for (name, help, value) in reals {
            let family = Family::<Labels<2>, Real>::default();
            r.register(name, help, family.clone());
            for backend in &self.backends {
                if let Some(value) = value(backend) {
                    family.get_or_create_owned(&backend.labels()).set(value);
                }
            }
        }
        self.charged(r);
        self.downs(r);
    }

    fn downs(&self, r: &mut Registry) {
        let family = Family::<Labels<3>, Counter>::default();
        r.register("backend_ejections", "Times that the backend was taken out, by cause", family.clone());
        for backend in &self.backends {
            for (cause, count) in &backend.downs {
                let [url, model] = backend.labels();
                let labels = [url, model, ("cause", (*cause).to_owned())];
                family.get_or_create_owned(&labels).inc_by(*count);
            }
        }
    }

    fn charged(&self, r: &mut Registry) {
        let family = Family::<Labels<3>, Integer>::default();
        let help = "Tokens charged to programs there, by whether a step runs";
        r.register("backend_charged_tokens", help, family.clone());
        for backend in &self.backends {
            let states = [("running", backend.charged_running), ("idle", backend.charged_idle)];
            for (state, tokens) in states {
                let [url, model] = backend.labels();
                let labels = [url, model, ("state", state.to_owned())];
                family.get_or_create_owned(&labels).set(integer(tokens));
            }
        }
    }
}

// === impl BackendMetrics ===

impl BackendMetrics {
    fn labels(&self) -> Labels<2> {
        [("backend", self.url.clone()), ("model", self.model.clone())]
    }
}

fn build_info(registry: &mut Registry) {
    let info = Family::<Labels<1>, Integer>::default();
    let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
    info.get_or_create_owned(&version).set(1);
    registry.register("build_info", "The program that runs", info);
}

fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
