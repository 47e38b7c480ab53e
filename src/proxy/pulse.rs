//! By when something has to happen on a client's connection between two requests. Pingora has no timeout for a head
//! that trickles in; but it reads it through the connection, and that read can be made to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

tokio::task_local! {
    /// The pulse of the HTTP/1.1 connection that this task serves.
    pub static CONNECTION: Arc<Pulse>;
}

/// `Idle ─▶ Head ─▶ Busy ─▶ Idle`, or `Off` for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Between two requests.
    Idle,
    /// Some of a request's head is here.
    Head,
    /// A request is being served.
    Busy,
    /// HTTP/2, which keeps its own time.
    Off,
}

/// Shared by a connection and the request on it.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// How long the connection is kept between two requests.
    idle: Duration,
    phase: AtomicU8,
    /// Milliseconds after `start`; zero is never.
    deadline: AtomicU64,
}

/// A request is on the connection, until this is dropped.
pub struct Busy(Arc<Pulse>);

// === impl Pulse ===

impl Pulse {
    #[must_use]
    pub fn new(idle: Duration) -> Self {
        Self { start: Instant::now(), idle, phase: AtomicU8::new(Phase::Idle as u8), deadline: AtomicU64::new(0) }
    }

    /// A request begins on this task's connection; `None` over HTTP/2, whose streams share theirs.
    #[must_use]
    pub fn begin() -> Option<Busy> {
        let pulse = CONNECTION.try_with(Arc::clone).ok()?;
        pulse.enter(Phase::Busy);
        Some(Busy(pulse))
    }

    /// A new phase, in which nothing is expected yet.
    pub fn enter(&self, phase: Phase) {
        self.deadline.store(0, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        let phases = [Phase::Idle, Phase::Head, Phase::Busy, Phase::Off];
        phases[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    pub fn expect_within(&self, limit: Duration) {
        let at = self.start.elapsed().saturating_add(limit);
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.deadline.store(at.max(1), Ordering::Relaxed);
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.deadline.load(Ordering::Relaxed) {
            0 => None,
            at => self.start.checked_add(Duration::from_millis(at)),
        }
    }

    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= Instant::now())
    }
}

// === impl Busy ===

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
        self.0.expect_within(self.0.idle);
    }
}
