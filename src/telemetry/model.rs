//! Counters and histograms of each model pool.

use super::register::{Histograms, family};
use crate::scheduler::Usage;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Bounds of a request's duration, seconds: from a cached tool call to the longest reasoning step.
const REQUEST_SECONDS: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 600.0, 1800.0];
const TTFT_SECONDS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0, 300.0, 1800.0];
const INTER_TOKEN_SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];

/// The metrics of one model pool. Their series are looked up once.
pub struct ModelMetrics {
    model: Arc<str>,
    requests: Family<RequestLabels, Counter>,
    /// Requests of status 200, once there was one.
    served: OnceLock<Counter>,
    duration: Histogram,
    ttft: Histogram,
    inter_token: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
    retries: Counter,
    retries_refused: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: Arc<str>,
}
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: Arc<str>,
    code: u16,
}

// === impl ModelMetrics ===

impl ModelMetrics {
    /// The `model` label: the pool's name, `default` for the unnamed one, empty for none.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.model
    }

    /// Counts a request. `code`: HTTP status of the answer; 499 when the client left before there was one.
    pub fn request_finished(&self, code: u16, duration: Duration) {
        let counter = || self.requests.get_or_create_owned(&RequestLabels { model: Arc::clone(&self.model), code });
        match code {
            200 => self.served.get_or_init(counter).inc(),
            _ => counter().inc(),
        };
        self.duration.observe(duration.as_secs_f64());
    }

    /// Records the time from a request's arrival to the first token of its answer, time held included.
    pub fn ttft(&self, since_arrival: Duration) {
        self.ttft.observe(since_arrival.as_secs_f64());
    }

    /// Records the time between two chunks of a streamed answer.
    pub fn inter_token(&self, gap: Duration) {
        self.inter_token.observe(gap.as_secs_f64());
    }

    /// Counts a request that failed before anything was sent: it goes to another backend, or `retry.budget` refuses that.
    pub fn retry(&self, granted: bool) {
        if granted {
            self.retries.inc()
        } else {
            self.retries_refused.inc()
        };
    }

    /// Counts the tokens that the backend reported for a step.
    pub fn usage(&self, usage: Usage) {
        self.prompt_tokens.inc_by(usage.prompt.0);
        self.completion_tokens.inc_by(usage.completion.0);
        self.cached_tokens.inc_by(usage.cached.unwrap_or_default().0);
    }
}

/// Metrics for each name, and last for requests that reach no pool.
pub(super) fn register(registry: &mut Registry, names: &[String]) -> Vec<ModelMetrics> {
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
    let retries = family(registry, "retries", "Requests tried again, of which nothing had reached a backend");
    let refused = family(registry, "retries_refused", "Requests not tried again: retry.budget was used up");
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
                served: OnceLock::new(),
                duration: duration.get_or_create_owned(&label),
                ttft: ttft.get_or_create_owned(&label),
                inter_token: inter_token.get_or_create_owned(&label),
                prompt_tokens: prompt.get_or_create_owned(&label),
                cached_tokens: cached.get_or_create_owned(&label),
                completion_tokens: completion.get_or_create_owned(&label),
                retries: retries.get_or_create_owned(&label),
                retries_refused: refused.get_or_create_owned(&label),
            }
        })
        .collect()
}

fn model_histogram(registry: &mut Registry, name: &str, help: &str, new: fn() -> Histogram) -> Histograms<ModelLabel> {
    let family = Histograms::new_with_constructor(new);
    registry.register(name, help, family.clone());
    family
}
