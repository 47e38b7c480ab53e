//! The speed of a backend, and its load.

use super::BackendLedger;
use crate::policy::LOAD_TICKS;
use crate::units::Tokens;
use std::time::Duration;

/// Prefill speed in tokens a second before any was measured: that of a mid-sized model on one datacentre GPU.
const FIRST_RATE: f64 = 10_000.0;
/// Share of its weight that a backend has at the moment of its return.
const FIRST_SHARE: f64 = 0.1;
/// Longest time of a recomputation, in seconds. Whatever a backend reports, sums of such times still fit a duration.
const LONGEST: f64 = 1e9;
/// Factor by which the best rate fades with each window, so that a slower later life of the server shows.
const FADE: f64 = 0.995;

impl BackendLedger {
    /// Follows the time, once a tick: the share after a return grows, the forecast is out of date, and the mean of
    /// steps in flight moves.
    pub fn tick(&mut self, now: Duration, slow_start: Duration) {
        self.climb(now, slow_start);
        self.forget_forecast();
        self.mean_in_flight += (self.in_flight as f64 - self.mean_in_flight) / LOAD_TICKS;
    }

    /// Raises the share of a backend that has returned, from a tenth to all of its weight over `slow_start`.
    pub(super) fn climb(&mut self, now: Duration, slow_start: Duration) {
        let Some(returned) = self.returned else {
            // The backend has its full share.
            return;
        };
        let since = now.saturating_sub(returned);
        if since >= slow_start {
            self.returned = None;
            self.ramp = 1.0;
        } else {
            self.ramp = (since.as_secs_f64() / slow_start.as_secs_f64()).max(FIRST_SHARE);
        }
    }

    /// Load for the choice between backends: steps in flight per weight. For a while after a return, the step that
    /// would come counts too: otherwise a backend without steps would always win, however small its share.
    pub fn load(&self) -> f64 {
        let next = if self.ramp < 1.0 { 1.0 } else { 0.0 };
        (self.in_flight as f64 + next) / (self.weight() * self.ramp)
    }

    /// Number of steps that a recomputation would stall: those in flight now, or their mean over the last 30 ticks if
    /// that is more. The present number alone is zero at times, because steps run in lockstep. It is at least 1, for
    /// the step that comes back itself.
    pub fn crowd(&self) -> f64 {
        self.mean_in_flight.max(self.in_flight as f64).max(1.0)
    }

    /// Takes in the prefill speed over a window, in tokens a second. The fastest window is the nearest to the true
    /// speed.
    pub fn saw_rate(&mut self, rate: f64) {
        // Below one token a second the backend was mostly idle, and a recomputation would take longer than a duration
        // holds.
        if rate.is_finite() && rate >= 1.0 {
            self.rate = Some(self.rate.map_or(rate, |best| rate.max(best * FADE)));
        }
    }

    /// Prefill speed in prompt tokens a second; `None` before any was measured or reported.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Time to compute `tokens` of prompt here.
    pub fn recompute(&self, tokens: Tokens) -> Duration {
        Duration::from_secs_f64((tokens.as_f64() / self.rate.unwrap_or(FIRST_RATE)).min(LONGEST))
    }
}
