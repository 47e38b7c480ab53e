//! What the steps sent to a backend tell of it, beside its own checks. Written on the request path: atomics only.

use super::Backend;
use crate::config::Eject;
use crate::units::BYTES_PER_TOKEN;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::time::Duration;
use tokio::time::Instant;

/// Tokens/s: slower than any GPU that serves agents. vLLM counts a prompt when all of it is computed; in between only
/// its KV usage grows, and without chunked prefill not even that.
const SLOWEST_PREFILL: u64 = 1_000;

/// How much longer a silence must be when no other backend speaks: a trainer may have stopped them all.
const ALONE: u32 = 5;

/// Another backend speaks if it did so within this part of the silence that is looked for.
const LATELY: u32 = 4;

/// How a request can show that its backend is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendFault {
    /// No connection could be made.
    Connect,
    /// The connection broke before the end of the answer.
    Reset,
    /// Status 500, 502, 503 or 504.
    Error,
}

/// Why a backend is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// Its checks fail.
    Check,
    Fault(BackendFault),
    /// It answers its checks and nothing else.
    NoProgress,
}

#[derive(Debug)]
pub struct OutlierState {
    start: Instant,
    /// Steps sent whose answers have not ended.
    pending: AtomicUsize,
    /// When the first of them was sent; like `heard` in milliseconds after `start`, from one: zero is never.
    pending_since: AtomicU64,
    /// The last byte of an answer, or movement in the backend's metrics.
    last_progress: AtomicU64,
    /// Largest body of a step since none was awaited, bytes.
    largest_body: AtomicU64,
    /// Faults in a row, by kind.
    faults: [AtomicU32; 3],
}

/// A step that was sent; counted until this is dropped.
#[derive(Debug)]
pub struct PendingAnswer(Arc<Backend>);

// === impl BackendFault ===

impl BackendFault {
    /// Of an answer with this status. A 4xx is the client's, 501 and 505 tell what a server cannot do.
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

    /// The metric label.
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

    /// One more in a row; how many it is now.
    pub(super) fn count(&self, fault: BackendFault) -> u32 {
        self.faults[fault as usize].fetch_add(1, Relaxed).saturating_add(1)
    }

    /// An answer came whole, and was no fault.
    pub fn clear(&self) {
        [BackendFault::Connect, BackendFault::Reset, BackendFault::Error]
            .into_iter()
            .for_each(|fault| self.reset(fault));
    }

    /// Part of an answer came that is no fault. One request may fail ever again by itself, while long answers to
    /// others are under way.
    pub fn clear_errors(&self) {
        self.reset(BackendFault::Error);
    }

    fn reset(&self, fault: BackendFault) {
        let faults = &self.faults[fault as usize];
        // Mostly there is none, and then all cores may share the line.
        if faults.load(Relaxed) != 0 {
            faults.store(0, Relaxed);
        }
    }

    /// A sign of life.
    pub(super) fn note_progress(&self) {
        self.last_progress.store(self.now(), Relaxed);
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.load(Relaxed) > 0
    }

    /// There was a sign of life after `at`.
    pub(super) fn progressed_since(&self, at: Instant) -> bool {
        self.at(&self.last_progress).is_some_and(|heard| heard > at)
    }

    /// How long steps have been waiting without a sign of life, if that is longer than is possible for a living
    /// engine; `others` are the backends that may show that there is nothing wrong with all of them.
    pub(super) fn stalled<'a>(
        &self,
        no_progress: Duration,
        mut others: impl Iterator<Item = &'a Self>,
    ) -> Option<Duration> {
        if !self.has_pending() {
            return None;
        }
        let since = self.at(&self.pending_since).max(self.at(&self.last_progress))?;
        let silent = since.elapsed();
        let prefill = Duration::from_secs(self.largest_body.load(Relaxed) / (BYTES_PER_TOKEN * SLOWEST_PREFILL));
        let patience = no_progress.max(prefill);
        let lately = Instant::now().checked_sub(patience / LATELY)?;
        let enough =
            silent >= patience * ALONE || silent >= patience && others.any(|other| other.progressed_since(lately));
        enough.then_some(silent)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn at(&self, time: &AtomicU64) -> Option<Instant> {
        let after = time.load(Relaxed).checked_sub(1)?;
        self.start.checked_add(Duration::from_millis(after))
    }
}

// === impl PendingAnswer ===

impl PendingAnswer {
    /// A step with a body of so many bytes goes to the backend.
    #[must_use]
    pub fn begin(backend: &Arc<Backend>, bytes: usize) -> Self {
        let outlier = &backend.outlier;
        if outlier.pending.fetch_add(1, Relaxed) == 0 {
            outlier.pending_since.store(outlier.now(), Relaxed);
            outlier.largest_body.store(bytes as u64, Relaxed);
        } else {
            outlier.largest_body.fetch_max(bytes as u64, Relaxed);
        }
        Self(Arc::clone(backend))
    }

    /// Some of the answer came.
    pub fn note_progress(&self) {
        self.0.outlier.note_progress();
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        self.0.outlier.pending.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::gate::PoolId;
    use crate::scheduler::BackendId;
    use tokio::time::advance;

    const LIMIT: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn backend() -> Arc<Backend> {
        let config = config::Backend::at("http://gpu:1").unwrap();
        Arc::new(Backend::new(BackendId(0), PoolId(0), &config, None, crate::fleet::Origin::File).unwrap())
    }

    fn stalled(one: &Backend, other: &Backend) -> bool {
        one.outlier.stalled(LIMIT, [&other.outlier].into_iter()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_only_while_a_step_waits_and_from_the_last_sign_of_life() {
        let (one, other) = (backend(), backend());
        advance(100 * LIMIT).await;
        assert!(!stalled(&one, &other), "nothing is awaited");
        let step = PendingAnswer::begin(&one, 1000);
        advance(LIMIT - SECOND).await;
        let later = PendingAnswer::begin(&one, 1000);
        other.outlier.note_progress();
        assert!(!stalled(&one, &other));
        advance(SECOND).await;
        assert!(stalled(&one, &other), "the later step does not excuse it");
        step.note_progress();
        assert!(!stalled(&one, &other));
        advance(LIMIT).await;
        other.outlier.note_progress();
        assert!(stalled(&one, &other), "mid-answer too");
        drop((step, later));
        assert!(!stalled(&one, &other));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_silent_it_takes_five_times_as_long() {
        let (one, other) = (backend(), backend());
        let (_step, _another) = (PendingAnswer::begin(&one, 1000), PendingAnswer::begin(&other, 1000));
        advance(SECOND).await;
        // The last byte before a trainer stopped them both.
        other.outlier.note_progress();
        advance(LIMIT * 5 - SECOND * 2).await;
        assert!(!stalled(&one, &other));
        advance(SECOND).await;
        assert!(stalled(&one, &other));
    }

    #[tokio::test(start_paused = true)]
    async fn a_giant_prompt_is_given_the_time_that_it_may_take() {
        let (one, other) = (backend(), backend());
        // 400,000 tokens: 400 s at 1,000 a second.
        let giant = PendingAnswer::begin(&one, 1_600_000);
        advance(Duration::from_secs(399)).await;
        other.outlier.note_progress();
        assert!(!stalled(&one, &other));
        advance(SECOND).await;
        assert!(stalled(&one, &other));
        drop(giant);
        let _small = PendingAnswer::begin(&one, 1000);
        advance(LIMIT).await;
        other.outlier.note_progress();
        assert!(stalled(&one, &other), "the giant is gone");
    }

    #[test]
    fn faults_are_the_backends_own_and_in_a_row() {
        let faulty = |status| BackendFault::of_status(status).is_some();
        assert!([500, 502, 503, 504].into_iter().all(faulty));
        assert!(![200, 301, 400, 404, 408, 429, 499, 501, 505].into_iter().any(faulty));
        let backend = backend();
        assert_eq!([0; 3].map(|_| backend.outlier.count(BackendFault::Error)), [1, 2, 3]);
        assert_eq!(backend.outlier.count(BackendFault::Reset), 1, "each kind for itself");
        backend.outlier.clear_errors();
        assert_eq!([BackendFault::Error, BackendFault::Reset].map(|fault| backend.outlier.count(fault)), [1, 2]);
        backend.outlier.clear();
        assert_eq!([BackendFault::Error, BackendFault::Reset].map(|fault| backend.outlier.count(fault)), [1, 1]);
    }
}
