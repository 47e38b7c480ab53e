//! The circuit breaker of one backend: whether steps may be sent there.
//!
//! ```text
//!      checks fail                     checks pass
//! Up ─────────────────────▶ Down ─────────────────────▶ Up
//! Up ──▶ Ejected ──▶ Probing ─────────────────────────▶ Up
//!      │           │          checks pass, and a backend that had stopped makes progress
//!      │           its time is over
//!      requests fail, or none makes progress
//! ```
//!
//! In the words of circuit breakers, these states are closed, open, open for a time, and half open. Health checks go on
//! in every state. [`super::member`] logs each change and tells the scheduler of it.

use super::outlier::{DownCause, OutlierState};
use crate::config::{Eject, Health};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, Default)]
enum BreakerState {
    Up {
        since: Instant,
    },
    /// Checks fail, or none has passed yet.
    #[default]
    Down,
    /// Requests have shown that the backend is not well: passed checks do not bring it back before `until`.
    Ejected {
        since: Instant,
        until: Instant,
    },
    /// The time of an ejection is over, and checks have to pass.
    Probing {
        ejected: Instant,
    },
}

#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: BreakerState,
    /// Number of checks in a row that speak against `state`.
    contrary: u32,
    /// Number of ejections that came soon after one another.
    ejections: u32,
    /// Cause of the last time that the backend went down; `None` if it never did.
    cause: Option<DownCause>,
    /// How often the backend went down, for each cause, in the order of [`DownCause::ALL`].
    downs: [u64; DownCause::ALL.len()],
}

// === impl Breaker ===

impl Breaker {
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, BreakerState::Up { .. })
    }

    /// Whether requests, not checks, have taken the backend out.
    pub(super) fn is_ejected(&self) -> bool {
        matches!(self.state, BreakerState::Ejected { .. } | BreakerState::Probing { .. })
    }

    /// The cause for which the backend is down; `None` while it is up, and before it was up for the first time.
    pub(super) fn down_cause(&self) -> Option<DownCause> {
        self.cause.filter(|_| !self.is_up())
    }

    /// Time that is left of an ejection; `None` if the backend is not ejected.
    pub(super) fn returns_in(&self, now: Instant) -> Option<Duration> {
        match self.state {
            BreakerState::Ejected { until, .. } => Some(until.saturating_duration_since(now)),
            BreakerState::Probing { .. } => Some(Duration::ZERO),
            BreakerState::Up { .. } | BreakerState::Down => None,
        }
    }

    /// The number of times that the backend went down, for each cause.
    pub(super) fn downs(&self) -> [(DownCause, u64); DownCause::ALL.len()] {
        std::array::from_fn(|at| (DownCause::ALL[at], self.downs[at]))
    }

    /// Takes in a passed check. `true` if enough checks in a row have passed for [`Breaker::close`]. Before the backend
    /// was up for the first time, one passed check is enough.
    pub(super) fn check_passed(&mut self, limits: &Health) -> bool {
        self.count_check(self.is_up(), if self.cause.is_none() { 1 } else { limits.healthy_after })
    }

    /// Takes in a failed check. `true` if this check took the backend down. One failed check is enough if a request has
    /// failed as well (`confirms`): check and request are two independent signs.
    pub(super) fn check_failed(&mut self, confirms: bool, limits: &Health) -> bool {
        let down = self.count_check(!self.is_up(), if confirms { 1 } else { limits.unhealthy_after });
        if down {
            self.open(BreakerState::Down, DownCause::Check);
        }
        down
    }

    /// Counts a check, which agrees with the state or speaks against it. `true` if enough checks in a row speak against
    /// the state.
    fn count_check(&mut self, agrees: bool, needed: u32) -> bool {
        self.contrary = if agrees { 0 } else { self.contrary.saturating_add(1) };
        !agrees && self.contrary >= needed
    }

    /// Brings the backend back after its checks have passed, unless an ejection still keeps it out. With `last_resort`
    /// no other backend of the pool is usable, and then no ejection keeps the backend out. `true` if the backend was
    /// not up before.
    pub(super) fn close(&mut self, now: Instant, outlier: &OutlierState, last_resort: bool) -> bool {
        if let BreakerState::Ejected { since, until } = self.state
            && now >= until
        {
            self.state = BreakerState::Probing { ejected: since };
        }
        let closes = match self.state {
            BreakerState::Up { .. } => false,
            BreakerState::Down => true,
            BreakerState::Ejected { .. } => last_resort,
            BreakerState::Probing { ejected } => last_resort || !self.still_stalls(ejected, outlier),
        };
        if closes {
            self.state = BreakerState::Up { since: now };
            self.contrary = 0;
        }
        closes
    }

    /// Whether the backend was ejected for want of progress, and its steps still wait in silence.
    fn still_stalls(&self, ejected: Instant, outlier: &OutlierState) -> bool {
        self.cause == Some(DownCause::NoProgress) && outlier.has_pending() && !outlier.progressed_since(ejected)
    }

    /// Takes the backend out, for twice as long as the last time unless it was up for `limits.max` since. Returns the
    /// length of the ejection; `None` if the backend is not up.
    pub(super) fn eject(&mut self, now: Instant, cause: DownCause, limits: &Eject) -> Option<Duration> {
        let BreakerState::Up { since } = self.state else { return None };
        if now.duration_since(since) >= limits.max {
            self.ejections = 0;
        }
        let time = limits.base.saturating_mul(2_u32.saturating_pow(self.ejections)).min(limits.max);
        self.ejections = self.ejections.saturating_add(1);
        self.open(BreakerState::Ejected { since: now, until: now + time }, cause);
        Some(time)
    }

    fn open(&mut self, state: BreakerState, cause: DownCause) {
        self.state = state;
        self.contrary = 0;
        self.cause = Some(cause);
        for (_, downs) in DownCause::ALL.iter().zip(&mut self.downs).filter(|(of, _)| **of == cause) {
            *downs += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes in a check. A passed check closes the breaker as soon as the breaker may close.
    fn check(breaker: &mut Breaker, passed: bool, confirms: bool) -> bool {
        let limits = Health::default();
        if !passed {
            breaker.check_failed(confirms, &limits);
        } else if breaker.check_passed(&limits) {
            breaker.close(Instant::now(), &OutlierState::new(), false);
        }
        breaker.is_up()
    }

    /// The state after each check, from a backend that was never up.
    fn states(checks: &[bool]) -> Vec<bool> {
        let mut breaker = Breaker::default();
        checks.iter().map(|passed| check(&mut breaker, *passed, false)).collect()
    }

    #[test]
    fn the_first_success_of_all_brings_a_backend_up() {
        assert_eq!(states(&[false, false, true]), [false, false, true]);
    }

    #[test]
    fn it_takes_consecutive_failures_to_go_down_and_successes_to_return() {
        let (t, f) = (true, false);
        assert_eq!(states(&[t, f, f, t, f, f, f]), [t, t, t, t, t, t, f]);
        assert_eq!(states(&[t, f, f, f, t, f, t, t]), [t, t, t, f, f, f, f, t]);
    }

    #[test]
    fn failures_before_an_ejection_do_not_count_as_successes_after_it() {
        let mut breaker = Breaker::default();
        assert!(check(&mut breaker, true, false));
        assert!(check(&mut breaker, false, false));
        let limits = Eject { base: Duration::ZERO, ..Eject::default() };
        assert_eq!(breaker.eject(Instant::now(), DownCause::NoProgress, &limits), Some(Duration::ZERO));
        assert!(!check(&mut breaker, true, false), "first success since");
        assert!(check(&mut breaker, true, false));
        assert!(check(&mut breaker, true, false));
        assert!(!check(&mut breaker, false, true), "one failure is enough where a request failed too");
    }
}
