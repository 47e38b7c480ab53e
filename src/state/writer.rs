//! Keeps the file behind the running schedulers, in the background.

use super::store::{Store, StoreError};
use super::{Restored, Snapshot, decode, encode};
use crate::fleet::Fleet;
use crate::gate::Gate;
use crate::telemetry::Telemetry;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Time between two looks for changes. With the time to write them it must stay below 2 s.
const PERIOD: Duration = Duration::from_secs(1);

/// Writes the file of one running proxy.
pub struct SnapshotWriter {
    gate: Gate,
    fleet: Fleet,
    telemetry: Arc<Telemetry>,
    store: Store,
    written: Mutex<Written>,
}

/// State of the file. The lock is held while the file is written, so that one write follows another.
#[derive(Default)]
struct Written {
    /// [`Gate::revision`] of what the file has; `None` if that is not known.
    revision: Option<u64>,
    /// Whether the last write failed.
    fails: bool,
    retired: bool,
}

// === impl SnapshotWriter ===

impl SnapshotWriter {
    /// # Errors
    /// `file` cannot be read, or nothing can be written beside it.
    pub fn open(file: &Path, gate: Gate, fleet: Fleet, telemetry: Arc<Telemetry>) -> Result<Self, StoreError> {
        Ok(Self { gate, fleet, telemetry, store: Store::open(file)?, written: Mutex::default() })
    }

    /// Restores what the file has, before the fleet runs. A damaged file is set aside.
    pub fn load(&self) {
        let file = self.store.file.display();
        match self.read() {
            Ok(None) => {}
            Ok(Some(snapshot)) => {
                let Restored { programs, age } = snapshot.restore(&self.gate, &self.fleet);
                self.written.lock().revision = Some(self.gate.revision());
                log::info!("state: {programs} programs of {age:.0?} ago taken up from {file}");
            }
            Err(damage) => {
                let fate = match self.store.set_aside() {
                    Ok(aside) => format!("set aside as {}", aside.display()),
                    Err(error) => format!("it stays in place ({error})"),
                };
                log::warn!("state: {file} is damaged ({damage}): {fate}, starting afresh");
            }
        }
    }

    fn read(&self) -> Result<Option<Snapshot>, String> {
        let bytes = self.store.read().map_err(|error| error.to_string())?;
        bytes.map(|bytes| decode(&bytes)).transpose().map_err(|damage| damage.to_string())
    }

    /// Writes what has changed, again and again; ends with the process.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let writer = Arc::clone(&self);
            // An error is a panic of one write: the next may do better.
            let _ = tokio::task::spawn_blocking(move || writer.save()).await;
        }
    }

    /// Writes the file if anything has changed since the last time. Blocks.
    pub fn save(&self) {
        let mut written = self.written.lock();
        let revision = Some(self.gate.revision());
        if written.retired || revision == written.revision {
            return;
        }
        let outcome = self.store.write(&encode(&Snapshot::take(&self.gate, &self.fleet)));
        self.telemetry.metrics.state_written(outcome.is_ok());
        let file = self.store.file.display();
        match &outcome {
            Ok(()) if written.fails => log::info!("state: {file} is written again"),
            Err(error) if !written.fails => {
                log::warn!("state: {file} cannot be written, what changes now does not outlive this process: {error}");
            }
            _ => {}
        }
        written.fails = outcome.is_err();
        if outcome.is_ok() {
            written.revision = revision;
        }
    }

    /// Ends all writing before it returns: another process has taken over.
    pub fn retire(&self) {
        self.written.lock().retired = true;
    }
}
