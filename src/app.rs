//! What every request may reach: the settings, the gate, the fleet, the counters.

use crate::config::Config;
use crate::control::WeightSync;
use crate::fleet::Fleet;
use crate::gate::Gate;
use crate::telemetry::Telemetry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// One per process, shared by the proxy, the control API and the background tasks.
pub struct App {
    pub config: Config,
    pub gate: Gate,
    pub fleet: Fleet,
    pub telemetry: Arc<Telemetry>,
    pub weight_sync: WeightSync,
    /// Requests that a drain waits for: those that go to a backend.
    pub open: Arc<Open>,
    draining: AtomicBool,
}

/// Counts requests from arrival to the last byte of the answer.
#[derive(Default)]
pub struct Open {
    count: AtomicUsize,
    idle: Notify,
}

/// One of them; counted until it is dropped.
pub struct OpenGuard(Arc<Open>);

// === impl App ===

impl App {
    #[must_use]
    pub fn new(config: Config, gate: Gate, fleet: Fleet, telemetry: Arc<Telemetry>) -> Self {
        Self {
            weight_sync: WeightSync::new(gate.clone()),
            config,
            gate,
            fleet,
            telemetry,
            open: Arc::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// Refuses new and held steps from now on, and turns readiness off; steps in flight go on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.gate.drain();
    }

    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

// === impl Open ===

impl Open {
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> OpenGuard {
        self.count.fetch_add(1, Ordering::Relaxed);
        OpenGuard(Arc::clone(self))
    }

    /// Waits until none is open.
    pub async fn idle(&self) {
        loop {
            // Registered before the count is read, so that no last one is missed.
            let idle = self.idle.notified();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
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
