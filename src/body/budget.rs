//! Bounds the memory that all request bodies take together.

use crate::error::Refusal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Pause after which a client whose body does not fit may try again. Memory becomes free whenever an answer ends.
const RETRY: Duration = Duration::from_secs(1);

/// The memory for all request bodies: `limits.body_total`.
pub struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
}

/// Bytes of the budget that one body takes, given back on drop. The default charge belongs to no budget.
#[derive(Default)]
pub struct Charge {
    budget: Option<Arc<Budget>>,
    bytes: usize,
}

// === impl Budget ===

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) })
    }

    /// A charge of no bytes yet.
    #[must_use]
    pub fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: Some(Arc::clone(self)), bytes: 0 }
    }

    /// Sets another limit, in bytes. Bodies that were let in before stay, even beyond the limit.
    pub fn resize(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Bytes that all bodies take now, together.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

// === impl Charge ===

impl Charge {
    /// Whether a body of `bytes` would fit now. Nothing is reserved for the body: otherwise clients that only announce
    /// bodies would take the room of clients that send theirs.
    ///
    /// # Errors
    /// `Overloaded` when the body would not fit.
    pub fn expect(&self, bytes: usize) -> Result<(), Refusal> {
        match &self.budget {
            Some(budget) if bytes > budget.limit().saturating_sub(budget.used()) => Err(overloaded()),
            _ => Ok(()),
        }
    }

    /// Counts `bytes` bytes of the body that have arrived.
    ///
    /// # Errors
    /// `Overloaded` when the bytes do not fit.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        if let Some(budget) = &self.budget {
            self.bytes += bytes;
            if budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes > budget.limit() {
                return Err(overloaded());
            }
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

fn overloaded() -> Refusal {
    Refusal::Overloaded { retry_after: RETRY }
}
