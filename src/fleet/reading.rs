//! The state that engines tell of themselves, in one form for all kinds; and the changes since the last reading.

use crate::scheduler::{BackendReport, Life};
use crate::units::Tokens;
use std::time::{Duration, Instant};

/// Shortest span over which a prefill rate is taken: 5 s, less the jitter of a scrape. A shorter span would catch
/// single bursts and give a higher speed than the hardware has.
const RATE_WINDOW: Duration = Duration::from_millis(4_500);

/// One reading of a backend's `/metrics`: gauges and counters, summed over the engines behind its address.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Number of tokens in a KV block.
    pub block_size: u64,
    pub num_gpu_blocks: u64,
    /// KV cache in tokens as the engine tells it, without the null block; 0 while unknown.
    pub capacity_tokens: u64,
    pub running: f64,
    pub waiting: f64,
    /// Share of the KV cache in use, from 0 to 1: the mean over engines.
    pub kv_usage: f64,
    /// Number of tokens looked up in the prefix cache. `prefix_hits` counts tokens too.
    pub prefix_queries: f64,
    pub prefix_hits: f64,
    pub prompt_tokens: f64,
    pub generation_tokens: f64,
    pub preemptions: f64,
    pub requests_completed: f64,
    /// Number of tokens in use. SGLang tells this.
    pub used_tokens: f64,
    /// Hit rate of the last prefills. SGLang tells this.
    pub cache_hit_rate: f64,
    /// Number of engines behind the address; 0 where the number does not matter.
    pub engines: usize,
}

/// One reading of one backend.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub gauges: Gauges,
    pub kv_usage: Option<f64>,
    /// Start of the process: Unix time in seconds.
    pub started: Option<f64>,
    /// Number of prompt tokens that were computed, not found in a cache.
    pub computed: Option<f64>,
    /// Number of lines of wanted metrics that could not be read.
    pub malformed: usize,
    /// Number of data-parallel ranks that were seen on the page, also when the reading is that of one rank.
    pub ranks: usize,
    /// Whether the server does not tell its load. The `gauges` of such a reading hold nothing but the capacity.
    pub blind: bool,
}

/// Turns readings into reports. The tracker remembers the last reading.
#[derive(Debug, Default)]
pub struct Tracker {
    last: Option<Reading>,
    /// Start of the present window, and the value of [`Reading::computed`] at that time.
    window: Option<(Instant, f64)>,
}

/// Whether a counter, ratio or time can have this value. NaN and infinite, negative or immense values would only spoil
/// sums. The upper bound is 2⁵³, up to which a float counts exactly; no KV cache has so many tokens.
pub(super) fn is_sound(value: f64) -> bool {
    (0.0..=9_007_199_254_740_992.0).contains(&value)
}

// === impl Gauges ===

impl Gauges {
    /// KV cache of all engines in tokens; `None` if the engine does not tell it.
    #[must_use]
    pub fn capacity(&self) -> Option<Tokens> {
        (self.capacity_tokens > 0).then_some(Tokens(self.capacity_tokens))
    }

    /// Whether the engine has done something since `last`. Each turn of the engine's own loop moves all of these
    /// values. `requests_completed` is not among them: that counter moves also when clients leave.
    pub(super) fn moved_since(&self, last: &Self) -> bool {
        let of_loop = |g: &Self| {
            let tokens = [g.prompt_tokens, g.generation_tokens, g.prefix_queries];
            (tokens, [g.running, g.waiting, g.kv_usage, g.preemptions])
        };
        of_loop(self) != of_loop(last)
    }
}

// === impl Reading ===

impl Reading {
    /// The value that tells this life of the process from another; `None` if the page has no such value.
    fn life(&self) -> Option<Life> {
        let started_ms = self.started.map(|seconds| (seconds * 1000.0).round() as u64);
        let life = Life { started_ms, prompt_tokens: self.gauges.prompt_tokens as u64 };
        (life != Life::default()).then_some(life)
    }

    /// Whether this page comes from another process than `last`.
    fn restarted_since(&self, last: &Self) -> bool {
        // One process always gives the same start. The margin is for exporters that round.
        let started_anew = self.started.zip(last.started).is_some_and(|(now, before)| (now - before).abs() > 0.01);
        let counters = |g: &Gauges| [g.prompt_tokens, g.generation_tokens, g.requests_completed];
        let fell = counters(&self.gauges).iter().zip(counters(&last.gauges)).any(|(now, before)| *now < before);
        let computed_fell = self.computed.zip(last.computed).is_some_and(|(now, before)| now < before);
        started_anew || fell || computed_fell
    }
}

// === impl Tracker ===

impl Tracker {
    /// Takes in the reading of a page that came at `now`.
    pub fn observe(&mut self, now: Instant, mut reading: Reading) -> (Gauges, BackendReport) {
        let restarted = self.last.as_ref().is_some_and(|last| reading.restarted_since(last));
        let report = BackendReport {
            capacity: reading.gauges.capacity(),
            restarted,
            life: reading.life(),
            prefill_rate: self.prefill_rate(now, reading.computed, restarted),
            kv_usage: reading.kv_usage,
        };
        if let (None, Some(last)) = (reading.gauges.capacity(), &self.last) {
            reading.gauges.capacity_tokens = last.gauges.capacity_tokens;
            reading.gauges.block_size = last.gauges.block_size;
            reading.gauges.num_gpu_blocks = last.gauges.num_gpu_blocks;
        }
        let gauges = reading.gauges.clone();
        self.last = Some(reading);
        (gauges, report)
    }

    /// Prefill speed in tokens per second, told once in a window.
    fn prefill_rate(&mut self, now: Instant, computed: Option<f64>, anew: bool) -> Option<f64> {
        let next = computed.map(|computed| (now, computed));
        let (Some((since, before)), Some(computed)) = (self.window.filter(|_| !anew), computed) else {
            self.window = next;
            return None;
        };
        let span = now.saturating_duration_since(since);
        (span >= RATE_WINDOW).then(|| {
            self.window = next;
            (computed - before).max(0.0) / span.as_secs_f64()
        })
    }
}
