//! Time that one iteration of the engine takes.

use std::time::Duration;

/// Terms of the iteration time, in seconds:
/// `t0 + Σ prefill (n·tp + tq·n·(ctx + n/2)) + Σ decode (td + tkv·ctx)`,
/// where `n` is the tokens of a prefill chunk and `ctx` the tokens already computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Time of any iteration.
    pub t0: f64,
    /// Time per prefilled token.
    pub tp: f64,
    /// Time per prefilled token and per token before it.
    pub tq: f64,
    /// Time per decoded token.
    pub td: f64,
    /// Time per decoded token and per token before it.
    pub tkv: f64,
}

/// Sum of the times of one iteration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Iteration<'a> {
    costs: &'a Costs,
    seconds: f64,
}

// === impl Costs ===

impl Costs {
    /// Times of GLM-4.6-FP8 on 8×H100; plausible, not measured.
    pub const GLM: Self = Self { t0: 0.020, tp: 83e-6, tq: 1.4e-9, td: 0.1e-3, tkv: 20e-9 };

    /// Times of Qwen3-32B on 2×H100; plausible, not measured.
    pub const QWEN: Self = Self { t0: 0.016, tp: 110e-6, tq: 3e-9, td: 0.08e-3, tkv: 47e-9 };

    /// An engine that prefills `prefill_tps` tokens a second. Every iteration takes `decode_ms` milliseconds besides.
    #[must_use]
    pub fn simple(prefill_tps: f64, decode_ms: f64) -> Self {
        Self { t0: decode_ms / 1e3, tp: 1.0 / prefill_tps, tq: 0.0, td: 0.0, tkv: 0.0 }
    }

    /// The same engine, `factor` times as fast.
    #[must_use]
    pub fn faster(self, factor: f64) -> Self {
        Self {
            t0: self.t0 / factor,
            tp: self.tp / factor,
            tq: self.tq / factor,
            td: self.td / factor,
            tkv: self.tkv / factor,
        }
    }

    pub(super) fn iteration(&self) -> Iteration<'_> {
        Iteration { costs: self, seconds: self.t0 }
    }
}

// === impl Iteration ===

impl Iteration<'_> {
    pub(super) fn prefill(&mut self, tokens: usize, context: usize) {
        let (n, ctx) = (tokens as f64, context as f64);
        self.seconds += n * self.costs.tp + self.costs.tq * n * (ctx + n / 2.0);
    }

    pub(super) fn decode(&mut self, context: usize) {
        self.seconds += self.costs.td + self.costs.tkv * context as f64;
    }

    /// The time of the iteration. The result is at least a nanosecond, so that time always moves.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_nanos((self.seconds * 1e9).round().max(1.0) as u64)
    }
}
