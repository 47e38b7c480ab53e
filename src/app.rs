//! The state that all parts of a running proxy share.

mod live;
mod open;
mod reload;
mod retries;
mod sink;

pub use live::Live;
pub use open::{Open, OpenGuard};
pub use reload::ReloadError;
pub use retries::Retries;

use crate::body::budget::Budget;
use crate::config::{Config, Flags};
use crate::fleet::Fleet;
use crate::gate::{Gate, WeightSync};
use crate::identity::SourceError;
use crate::identity::fingerprint::Fingerprints;
use crate::telemetry::Telemetry;
use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The running proxy.
pub struct App {
    settings: ArcSwap<Live>,
    /// Command-line flags, from which a reload starts again.
    flags: Flags,
    reloading: Mutex<()>,
    pub gate: Gate,
    pub fleet: Fleet,
    pub telemetry: Arc<Telemetry>,
    pub started: Instant,
    pub weight_sync: WeightSync,
    /// Count of the requests between their arrival and the last byte of their answers.
    pub open: Arc<Open>,
    pub retries: Retries,
    /// Table of the programs whose clients send no id.
    pub fingerprints: Arc<Fingerprints>,
    /// Budget of the memory for request bodies.
    pub bodies: Arc<Budget>,
    draining: AtomicBool,
}

/// The reason why an app cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("identity.sources: {0}")]
    Identity(#[from] SourceError),
    #[error("logs and profiles: {0}")]
    Telemetry(#[from] io::Error),
}

// === impl App ===

impl App {
    /// An app without flags: a reload finds no file to read.
    ///
    /// # Errors
    /// Those of [`App::with_flags`].
    pub fn new(config: Arc<Config>) -> Result<Self, AppError> {
        Self::with_flags(config, Flags::default())
    }

    /// An app whose `config` was made from `flags`.
    ///
    /// # Errors
    /// An identity source that validation would refuse, or an error of [`Telemetry::new`].
    pub fn with_flags(config: Arc<Config>, flags: Flags) -> Result<Self, AppError> {
        let settings = Live::new(Arc::clone(&config))?;
        let telemetry = Arc::new(Telemetry::new(&config)?);
        let gate = Gate::new(&config, Arc::clone(&telemetry));
        let fleet = Fleet::new(&config.models, &config.metrics, gate.clone());
        fleet.confine(config.admin.as_ref());
        Ok(Self {
            weight_sync: WeightSync::new(gate.clone()),
            retries: Retries::new(config.models.len()),
            bodies: Budget::new(config.limits.body_total),
            settings: ArcSwap::from_pointee(settings),
            flags,
            reloading: Mutex::default(),
            gate,
            fleet,
            telemetry,
            started: Instant::now(),
            open: Arc::default(),
            fingerprints: Arc::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// The configuration as it is until the next reload. A caller must not hold the guard across an `await`.
    #[must_use]
    pub fn settings(&self) -> Guard<Arc<Live>> {
        self.settings.load()
    }

    /// Refuses held and new steps from now on. Readiness fails before the first refusal.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.gate.drain();
    }

    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
