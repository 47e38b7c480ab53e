//! How fast a backend is, and how much of it is in use.

use super::BackendLedger;
use crate::policy::LOAD_TICKS;
use crate::units::Tokens;
use std::time::Duration;

/// Prefill speed before any was measured, tokens/s: a mid-sized model on one datacentre GPU.
const FIRST_RATE: f64 = 10_000.0;
/// Share of its weight that a backend has at the moment of its return.
const FIRST_SHARE: f64 = 0.1;
/// The longest recomputation, in seconds: whatever a backend says of itself, sums of such times stay durations.
const LONGEST: f64 = 1e9;
/// The best rate seen fades by this factor a window, so that a slower life of the server after it is noticed.
const FADE: f64 = 0.995;

impl BackendLedger {
    /// Once a second: the share after a return grows, the forecast has aged, the mean of steps in flight moves.
    pub fn tick(&mut self, now: Duration, slow_start: Duration) {
        self.climb(now, slow_start);
        self.forget_forecast();
        self.mean_in_flight += (self.in_flight as f64 - self.mean_in_flight) / LOAD_TICKS;
    }

    /// The share of a backend that has returned: from a tenth to all of its weight over `slow_start`.
    pub(super) fn climb(&mut self, now: Duration, slow_start: Duration) {
        let Some(returned) = self.returned else {
            // It has its full share.
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

    /// Load for the choice between backends: steps in flight, in shares of its weight. Just after a return the step
    /// that would come counts too: no step here is not yet less than a few elsewhere.
    pub fn load(&self) -> f64 {
        let next = if self.ramp < 1.0 { 1.0 } else { 0.0 };
        (self.in_flight as f64 + next) / (self.weight() * self.ramp)
    }

    /// Steps that a recomputation would stall: those in flight now, or their mean over the last 30 s (steps
    /// run in lockstep, so that the present number alone falls to none at times), and never less than the
    /// step that comes back itself.
    pub fn crowd(&self) -> f64 {
        self.mean_in_flight.max(self.in_flight as f64).max(1.0)
    }

    /// Prefill ran at this many tokens/s over a window; the fastest window is the nearest to its true speed.
    pub fn saw_rate(&mut self, rate: f64) {
        // Below one token a second the backend mostly idled, and a recomputation would take longer than a duration holds.
        if rate.is_finite() && rate >= 1.0 {
            self.rate = Some(self.rate.map_or(rate, |best| rate.max(best * FADE)));
        }
    }

    /// Prompt tokens a second; `None` before any was measured or reported.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Time to compute `tokens` of prompt here.
    pub fn recompute(&self, tokens: Tokens) -> Duration {
        Duration::from_secs_f64((tokens.as_f64() / self.rate.unwrap_or(FIRST_RATE)).min(LONGEST))
    }
}
