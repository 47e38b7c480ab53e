//! The count of open requests, for which a drain waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Count of requests between arrival and the last byte of the answer.
#[derive(Default)]
pub struct Open {
    count: AtomicUsize,
    idle: Notify,
    busy: Notify,
}

/// One open request, counted until the guard is dropped.
pub struct OpenGuard(Arc<Open>);

// === impl Open ===

impl Open {
    /// Counts one more request.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> OpenGuard {
        if self.count.fetch_add(1, Ordering::AcqRel) == 0 {
            self.busy.notify_waiters();
        }
        OpenGuard(Arc::clone(self))
    }

    /// Number of requests that are open now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until no request is open.
    pub async fn idle(&self) {
        self.until(&self.idle, |count| count == 0).await;
    }

    /// Waits until a request is open.
    pub async fn busy(&self) {
        self.until(&self.busy, |count| count > 0).await;
    }

    async fn until(&self, change: &Notify, holds: impl Fn(usize) -> bool) {
        loop {
            // The waiter is registered before the count is read, so that it misses no change.
            let changed = change.notified();
            if holds(self.count.load(Ordering::Acquire)) {
                return;
            }
            changed.await;
        }
    }
}

// === impl OpenGuard ===

impl Drop for OpenGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
