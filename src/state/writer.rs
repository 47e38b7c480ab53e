//! Keeps the file behind the running schedulers, in the background.

use super::store::{Store, StoreError};
use super::{Restored, capture, restore};
use crate::app::App;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Between two looks for changes. With the time to write them it must stay below 2 s.
const PERIOD: Duration = Duration::from_secs(1);

/// The file of one running proxy.
pub struct SnapshotWriter {
    app: Arc<App>,
    store: Store,
    written: Mutex<Written>,
}

/// Held while the file is written, so that one write follows another.
#[derive(Default)]
struct Written {
    /// What the file has, by [`crate::gate::Gate::revision`]; `None`: not known.
    revision: Option<u64>,
    fails: bool,
    retired: bool,
}

// === impl SnapshotWriter ===

impl SnapshotWriter {
    /// # Errors
    /// `file` cannot be read, or nothing can be written beside it.
    pub fn open(file: &Path, app: &Arc<App>) -> Result<Self, StoreError> {
        Ok(Self { app: Arc::clone(app), store: Store::open(file)?, written: Mutex::default() })
    }

    /// Takes up what the file has, before the fleet of `app` runs. One that is damaged is set aside.
    pub fn load(&self) {
        let file = self.store.file.display();
        match self.read() {
            Ok(None) => {}
            Ok(Some(Restored { programs, age })) => {
                self.written.lock().revision = Some(self.app.gate.revision());
                log::info!("state: {programs} programs of {age:.0?} ago taken up from {file}");
            }
            Err(damage) => match self.store.set_aside() {
                Ok(aside) => {
                    log::warn!("state: {file} is damaged ({damage}): set aside as {}, starting afresh", aside.display())
                }
                Err(error) => {
                    log::warn!("state: {file} is damaged ({damage}) and stays in place ({error}): starting afresh")
                }
            },
        }
    }

    fn read(&self) -> Result<Option<Restored>, String> {
        let Some(bytes) = self.store.read().map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        restore(&bytes, &self.app).map(Some).map_err(|damage| damage.to_string())
    }

    /// Writes what has changed, again and again; ends with the process.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let writer = Arc::clone(&self);
            // It ends by a panic of its own at worst: the next may do better.
            let _ = tokio::task::spawn_blocking(move || writer.save()).await;
        }
    }

    /// Writes the file if anything has changed since the last time. Blocks.
    pub fn save(&self) {
        let mut written = self.written.lock();
        let revision = Some(self.app.gate.revision());
        if written.retired || revision == written.revision {
            return;
        }
        let outcome = self.store.write(&capture(&self.app));
        self.app.telemetry.metrics.state_written(outcome.is_ok());
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

    /// Writes no more, from its return on: another process has taken over.
    pub fn retire(&self) {
        self.written.lock().retired = true;
    }
}
