//! What every part of a running proxy shares.

mod open;
mod retries;

pub use open::{Open, OpenGuard};
pub use retries::Retries;

use crate::body::budget::Budget;
use crate::config::Config;
use crate::control::WeightSync;
use crate::fleet::Fleet;
use crate::gate::Gate;
use crate::telemetry::Telemetry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The running proxy.
pub struct App {
    pub config: Arc<Config>,
    pub gate: Gate,
    pub fleet: Fleet,
    pub telemetry: Arc<Telemetry>,
    pub started: Instant,
    pub weight_sync: WeightSync,
    /// Requests on their way to a backend, and those that wait to be.
    pub open: Arc<Open>,
    pub retries: Retries,
    /// What their bodies take.
    pub bodies: Arc<Budget>,
    draining: AtomicBool,
}

// === impl App ===

impl App {
    /// # Errors
    /// What [`Telemetry::new`] says.
    pub fn new(config: Arc<Config>) -> std::io::Result<Self> {
        let telemetry = Arc::new(Telemetry::new(&config)?);
        let gate = Gate::new(&config, Arc::clone(&telemetry));
        let fleet = Fleet::new(&config.models, &config.metrics, gate.clone());
        Ok(Self {
            weight_sync: WeightSync::new(gate.clone()),
            retries: Retries::new(config.retry.budget, config.models.len()),
            bodies: Budget::new(config.limits.body_total),
            config,
            gate,
            fleet,
            telemetry,
            started: Instant::now(),
            open: Arc::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Refuses held and new steps from now on; readiness fails first.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.gate.drain();
    }

    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
