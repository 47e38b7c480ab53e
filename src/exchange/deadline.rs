//! The deadline of a client's connection between two requests. Pingora has no timeout for a head that trickles in; but
//! Pingora reads the head through the connection, and that read can be made to fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

tokio::task_local! {
    /// The deadline of the HTTP/1.1 connection that this task serves.
    pub static CONNECTION: Arc<HeadDeadline>;
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

/// The reason for which there is no head to run hooks on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    /// The bytes are no head, or nobody can tell where its request ends.
    Unreadable,
    /// The client asks for a tunnel to a host of its choice.
    Connect,
    /// The head did not come within this time.
    Late(Duration),
    /// The head has more than this many bytes.
    TooLarge(usize),
}

/// Shared by a connection and the request on it.
#[derive(Debug)]
pub struct HeadDeadline {
    start: Instant,
    /// Time that the connection is kept between two requests.
    idle: Duration,
    /// Time that a head may take from its first byte.
    head: Duration,
    phase: AtomicU8,
    /// Milliseconds after `start`; zero means no deadline.
    deadline: AtomicU64,
    /// The limit on a head's bytes, once the head has more; zero before that.
    too_large: AtomicU64,
}

/// Marks the connection as busy with a request, until it is dropped.
pub struct Busy(Arc<HeadDeadline>);

// === impl HeadDeadline ===

impl HeadDeadline {
    /// The first head has to come within `head` from now.
    #[must_use]
    pub fn new(idle: Duration, head: Duration) -> Self {
        let (phase, zero) = (AtomicU8::new(Phase::Idle as u8), AtomicU64::new(0));
        let (start, too_large) = (Instant::now(), AtomicU64::new(0));
        let deadline = Self { start, idle, head, phase, deadline: zero, too_large };
        deadline.expect_within(head);
        deadline
    }

    /// A request begins on this task's connection; `None` over HTTP/2, whose streams share theirs.
    #[must_use]
    pub fn busy() -> Option<Busy> {
        let deadline = CONNECTION.try_with(Arc::clone).ok()?;
        deadline.enter(Phase::Busy);
        Some(Busy(deadline))
    }

    /// What is wrong with the head that this task's connection waits for.
    #[must_use]
    pub fn fault() -> Option<HeadFault> {
        CONNECTION.try_with(|deadline| deadline.head_fault()).ok().flatten()
    }

    /// What is wrong with the head that the connection waits for.
    #[must_use]
    pub fn head_fault(&self) -> Option<HeadFault> {
        let limit = self.too_large.load(Ordering::Relaxed);
        match self.phase() {
            Phase::Head if limit > 0 => Some(HeadFault::TooLarge(usize::try_from(limit).unwrap_or(usize::MAX))),
            Phase::Head if self.is_overdue() => Some(HeadFault::Late(self.head)),
            _ => None,
        }
    }

    /// A new phase, in which nothing is expected yet, save the rest of a head.
    pub fn enter(&self, phase: Phase) {
        self.deadline.store(0, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
        if phase == Phase::Head {
            self.expect_within(self.head);
        }
    }

    /// The head has more bytes than `limit`.
    pub fn note_too_large(&self, limit: usize) {
        self.too_large.store(limit as u64, Ordering::Relaxed);
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        let phases = [Phase::Idle, Phase::Head, Phase::Busy, Phase::Off];
        phases[usize::from(self.phase.load(Ordering::Relaxed))]
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

    fn expect_within(&self, limit: Duration) {
        let at = self.start.elapsed().saturating_add(limit);
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.deadline.store(at.max(1), Ordering::Relaxed);
    }
}

// === impl Busy ===

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
        self.0.expect_within(self.0.idle);
    }
}
