//! Outlier detection: the health of a backend as its requests show it, beside the checks. The state is written on the
//! request path, so it consists of atomics only.

use crate::config::Eject;
use crate::units::BYTES_PER_TOKEN;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::time::Duration;
use tokio::time::Instant;

/// Prefill speed in tokens per second, below that of any GPU that serves agents. vLLM counts a prompt when all of the
/// prompt is computed. Until then only the KV usage grows, and without chunked prefill not even that.
const SLOWEST_PREFILL: u64 = 1_000;

/// Factor on the limit of a silence when no other backend makes progress: a trainer may have stopped them all.
const ALONE: u32 = 5;

/// Divisor of the limit of a silence. Another backend makes progress if it did so within the last `limit / LATELY`.
const LATELY: u32 = 4;

/// Sign in a request that its backend is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendFault {
    /// No connection could be made.
    Connect,
    /// The connection broke before the end of the answer.
    Reset,
    /// Status 500, 502, 503 or 504.
    Error,
}

/// Cause for which a backend is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// Failed health checks.
    Check,
    /// Failed requests.
    Fault(BackendFault),
    /// Lack of progress: the backend answers its checks and nothing else.
    NoProgress,
}

/// State that the requests to one backend have left.
#[derive(Debug)]
pub struct OutlierState {
    start: Instant,
    /// Number of requests that were sent and whose answers have not ended.
    pending: AtomicUsize,
    /// Time since which at least one request has been pending all the while. Like `last_progress`, the time is in
    /// milliseconds after `start`, counted from one; zero stands for never.
    pending_since: AtomicU64,
    /// Time of the last byte of an answer, or of the last movement in the backend's metrics.
    last_progress: AtomicU64,
    /// Size in bytes of the largest body among the requests since none was pending.
    largest_body: AtomicU64,
    /// Number of faults in a row, for each kind.
    faults: [AtomicU32; 3],
}

/// A request whose answer has not ended. The request counts as pending until this value is dropped.
#[derive(Debug)]
pub struct PendingAnswer(Arc<OutlierState>);

// === impl BackendFault ===

impl BackendFault {
    /// The fault that an answer with this status shows, if any. A 4xx is the client's own fault. A 501 or 505 only
    /// tells what a server cannot do.
    #[must_use]
    pub fn of_status(status: u16) -> Option<Self> {
        matches!(status, 500 | 502..=504).then_some(Self::Error)
    }

    pub(super) fn limit(self, eject: &Eject) -> u32 {
        match self {
            Self::Connect => eject.connect_failures,
            Self::Reset => eject.resets,
            Self::Error => eject.errors,
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Connect => "failed connections",
            Self::Reset => "broken connections",
            Self::Error => "answers with a 5xx",
        }
    }
}

// === impl DownCause ===

impl DownCause {
    pub(super) const ALL: [Self; 5] = [
        Self::Check,
        Self::Fault(BackendFault::Connect),
        Self::Fault(BackendFault::Reset),
        Self::Fault(BackendFault::Error),
        Self::NoProgress,
    ];

    /// The value of the metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Fault(BackendFault::Connect) => "connect",
            Self::Fault(BackendFault::Reset) => "reset",
            Self::Fault(BackendFault::Error) => "error",
            Self::NoProgress => "no_progress",
        }
    }
}

// === impl OutlierState ===

impl OutlierState {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            pending: AtomicUsize::new(0),
            pending_since: AtomicU64::new(0),
            last_progress: AtomicU64::new(0),
            largest_body: AtomicU64::new(0),
            faults: Default::default(),
        }
    }

    /// Counts a fault. Returns the number of such faults in a row.
    pub(super) fn count(&self, fault: BackendFault) -> u32 {
        self.faults[fault as usize].fetch_add(1, Relaxed).saturating_add(1)
    }

    /// Ends each row of faults: an answer came whole and without a fault.
    pub fn clear(&self) {
        [BackendFault::Connect, BackendFault::Reset, BackendFault::Error].into_iter().for_each(|kind| self.reset(kind));
    }

    /// Ends the row of errors, because part of a good answer came. Otherwise a single request that fails again and
    /// again by itself would fill the row while long answers to others are under way.
    pub fn clear_errors(&self) {
        self.reset(BackendFault::Error);
    }

    fn reset(&self, fault: BackendFault) {
        let faults = &self.faults[fault as usize];
        // There is mostly no fault. Without a write, all cores may share the cache line.
        if faults.load(Relaxed) != 0 {
            faults.store(0, Relaxed);
        }
    }

    pub(super) fn note_progress(&self) {
        self.last_progress.store(self.now(), Relaxed);
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.load(Relaxed) > 0
    }

    pub(super) fn progressed_since(&self, at: Instant) -> bool {
        self.at(&self.last_progress).is_some_and(|progress| progress > at)
    }

    /// How long requests have been pending without progress, if no working engine could take so long. Progress of one
    /// of the `others` shows that not all backends were stopped.
    pub(super) fn stalled<'a>(
        &self,
        no_progress: Duration,
        mut others: impl Iterator<Item = &'a Self>,
    ) -> Option<Duration> {
        if !self.has_pending() {
            return None;
        }
        let silent = self.at(&self.pending_since).max(self.at(&self.last_progress))?.elapsed();
        let prefill = Duration::from_secs(self.largest_body.load(Relaxed) / (BYTES_PER_TOKEN * SLOWEST_PREFILL));
        let limit = no_progress.max(prefill);
        let lately = Instant::now().checked_sub(limit / LATELY)?;
        let stalls = silent >= limit * ALONE || silent >= limit && others.any(|other| other.progressed_since(lately));
        stalls.then_some(silent)
    }

    /// The present time in milliseconds after `start`, counted from one.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The time that a field holds; `None` if the field holds zero, for never.
    fn at(&self, time: &AtomicU64) -> Option<Instant> {
        let after = time.load(Relaxed).checked_sub(1)?;
        self.start.checked_add(Duration::from_millis(after))
    }
}

// === impl PendingAnswer ===

impl PendingAnswer {
    /// Counts a request with a body of `bytes` bytes as sent.
    #[must_use]
    pub fn begin(outlier: &Arc<OutlierState>, bytes: usize) -> Self {
        if outlier.pending.fetch_add(1, Relaxed) == 0 {
            outlier.pending_since.store(outlier.now(), Relaxed);
            outlier.largest_body.store(bytes as u64, Relaxed);
        } else {
            outlier.largest_body.fetch_max(bytes as u64, Relaxed);
        }
        Self(Arc::clone(outlier))
    }

    /// Notes that some of the answer came.
    pub fn note_progress(&self) {
        self.0.note_progress();
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const LIMIT: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn backend() -> Arc<OutlierState> {
        Arc::new(OutlierState::new())
    }

    fn stalled(one: &OutlierState, other: &OutlierState) -> bool {
        one.stalled(LIMIT, [other].into_iter()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_only_while_a_step_waits_and_from_the_last_sign_of_life() {
        let (one, other) = (backend(), backend());
        advance(100 * LIMIT).await;
        assert!(!stalled(&one, &other), "nothing is awaited");
        let step = PendingAnswer::begin(&one, 1000);
        advance(LIMIT - SECOND).await;
        let later = PendingAnswer::begin(&one, 1000);
        other.note_progress();
        assert!(!stalled(&one, &other));
        advance(SECOND).await;
        assert!(stalled(&one, &other), "the later step does not excuse it");
        step.note_progress();
        assert!(!stalled(&one, &other));
        advance(LIMIT).await;
        other.note_progress();
        assert!(stalled(&one, &other), "mid-answer too");
        drop((step, later));
        assert!(!stalled(&one, &other));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_silent_it_takes_five_times_as_long() {
        let (one, other) = (backend(), backend());
        let (_step, _another) = (PendingAnswer::begin(&one, 1000), PendingAnswer::begin(&other, 1000));
        advance(SECOND).await;
        // This is the last byte before a trainer stopped them both.
        other.note_progress();
        advance(LIMIT * 5 - SECOND * 2).await;
        assert!(!stalled(&one, &other));
        advance(SECOND).await;
        assert!(stalled(&one, &other));
    }

    #[tokio::test(start_paused = true)]
    async fn a_giant_prompt_is_given_the_time_that_it_may_take() {
        let (one, other) = (backend(), backend());
        // The prompt has 400,000 tokens, which take 400 s at 1,000 tokens a second.
        let giant = PendingAnswer::begin(&one, 1_600_000);
        advance(Duration::from_secs(399)).await;
        other.note_progress();
        assert!(!stalled(&one, &other));
        advance(SECOND).await;
        assert!(stalled(&one, &other));
        drop(giant);
        let _small = PendingAnswer::begin(&one, 1000);
        advance(LIMIT).await;
        other.note_progress();
        assert!(stalled(&one, &other), "the giant is gone");
    }

    #[test]
    fn faults_are_the_backends_own_and_in_a_row() {
        let faulty = |status| BackendFault::of_status(status).is_some();
        assert!([500, 502, 503, 504].into_iter().all(faulty));
        assert!(![200, 301, 400, 404, 408, 429, 499, 501, 505].into_iter().any(faulty));
        let backend = backend();
        assert_eq!([0; 3].map(|_| backend.count(BackendFault::Error)), [1, 2, 3]);
        assert_eq!(backend.count(BackendFault::Reset), 1, "each kind for itself");
        backend.clear_errors();
        assert_eq!([BackendFault::Error, BackendFault::Reset].map(|fault| backend.count(fault)), [1, 2]);
        backend.clear();
        assert_eq!([BackendFault::Error, BackendFault::Reset].map(|fault| backend.count(fault)), [1, 1]);
    }
}
