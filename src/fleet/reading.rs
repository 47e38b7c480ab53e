//! What engines tell of themselves, in one form, and what changes from one reading to the next.

use super::Gauges;
use crate::scheduler::{BackendReport, Life};
use crate::units::Tokens;
use std::time::{Duration, Instant};

/// Shortest span over which a prefill rate is taken: 5 s, less the jitter of a scrape.
/// Shorter ones catch single bursts and read more than the hardware can do.
const RATE_WINDOW: Duration = Duration::from_millis(4_500);

/// One reading, summed over the server's engines (data-parallel ranks).
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub gauges: Gauges,
    /// KV cache of all engines; `None` if it is not told.
    pub capacity: Option<Tokens>,
    pub kv_usage: Option<f64>,
    /// Unix time in seconds.
    pub started: Option<f64>,
    /// Prompt tokens computed and not found in a cache.
    pub computed: Option<f64>,
    /// Lines of metrics that we want and could not read.
    pub malformed: usize,
    /// Data-parallel ranks that were seen, whosever reading it is.
    pub ranks: usize,
    /// The server does not tell its load: `gauges` hold nothing but the capacity.
    pub blind: bool,
}

/// Turns readings into reports: remembers what the last one said.
#[derive(Debug, Default)]
pub struct Tracker {
    last: Option<Reading>,
    window: Option<(Instant, f64)>,
}

/// Whether any counter, ratio or time can have this value: NaN, the infinite, the negative and the immense would only
/// spoil sums. No KV cache has so many tokens, and a float counts exactly up to here (2⁵³).
pub(super) fn is_sound(value: f64) -> bool {
    (0.0..=9_007_199_254_740_992.0).contains(&value)
}

// === impl Reading ===

impl Reading {
    /// `None` if nothing tells one life from another.
    fn life(&self) -> Option<Life> {
        let started_ms = self.started.map(|seconds| (seconds * 1000.0).round() as u64);
        let life = Life { started_ms, prompt_tokens: self.gauges.prompt_tokens as u64 };
        (life != Life::default()).then_some(life)
    }

    /// This page comes from another process than `last`.
    fn restarted_since(&self, last: &Self) -> bool {
        let started_anew = self
            .started
            .zip(last.started)
            // One process always says the same; the margin is for the rounding of other exporters.
            .is_some_and(|(now, before)| (now - before).abs() > 0.01);
        let fell = |counter: fn(&Gauges) -> f64| counter(&self.gauges) < counter(&last.gauges);
        started_anew
            || fell(|g| g.prompt_tokens)
            || fell(|g| g.generation_tokens)
            || fell(|g| g.requests_completed)
            || self.computed.zip(last.computed).is_some_and(|(now, before)| now < before)
    }
}

// === impl Tracker ===

impl Tracker {
    /// Takes in what a page said at `now`.
    pub fn observe(&mut self, now: Instant, mut reading: Reading) -> (Gauges, BackendReport) {
        let restarted = self.last.as_ref().is_some_and(|last| reading.restarted_since(last));
        let report = BackendReport {
            capacity: reading.capacity,
            restarted,
            life: reading.life(),
            prefill_rate: self.prefill_rate(now, reading.computed, restarted),
            kv_usage: reading.kv_usage,
        };
        if let (None, Some(last)) = (reading.capacity, &self.last) {
            reading.gauges.capacity_tokens = last.gauges.capacity_tokens;
            reading.gauges.block_size = last.gauges.block_size;
            reading.gauges.num_gpu_blocks = last.gauges.num_gpu_blocks;
        }
        let gauges = reading.gauges.clone();
        self.last = Some(reading);
        (gauges, report)
    }

    /// Tokens per second, given once a window.
    fn prefill_rate(&mut self, now: Instant, computed: Option<f64>, anew: bool) -> Option<f64> {
        let Some(computed) = computed else {
            self.window = None;
            return None;
        };
        match self.window {
            Some((since, before)) if !anew => {
                let span = now.saturating_duration_since(since);
                if span < RATE_WINDOW {
                    return None;
                }
                self.window = Some((now, computed));
                Some((computed - before).max(0.0) / span.as_secs_f64())
            }
            _ => {
                self.window = Some((now, computed));
                None
            }
        }
    }
}
