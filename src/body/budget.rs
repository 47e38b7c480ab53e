//! Bounds the memory that all request bodies take together.

use crate::error::Refusal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What is told to a client whose body does not fit: bodies leave with every answer that ends.
const RETRY: Duration = Duration::from_secs(1);

/// `limits.body_total`.
pub struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
}

/// What one body takes of it, until it is dropped. The default is charged to nobody.
#[derive(Default)]
pub struct Charge {
    budget: Option<Arc<Budget>>,
    bytes: usize,
}

// === impl Budget ===

impl Budget {
    /// `limit` in bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) })
    }

    #[must_use]
    pub fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: Some(Arc::clone(self)), bytes: 0 }
    }

    /// Another limit, in bytes. What is here already stays, beyond it too.
    pub fn resize(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

// === impl Charge ===

impl Charge {
    /// Whether so many bytes would fit now. Nothing is set aside: a client that only announces a body would take the
    /// room of those that send one.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn expect(&self, bytes: usize) -> Result<(), Refusal> {
        match &self.budget {
            Some(budget) if bytes > budget.limit().saturating_sub(budget.used()) => Err(overloaded()),
            _ => Ok(()),
        }
    }

    /// So many bytes more are here.
    ///
    /// # Errors
    /// `Overloaded`: they do not fit.
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
