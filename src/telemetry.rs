//! Metrics, access log and step profiles: all that operators see of requests.

mod access;
mod current;
mod exposition;
mod labels;
mod metrics;
mod model;
mod profile;
mod register;
mod writer;

pub use access::AccessRecord;
pub use current::{BackendMetrics, CurrentMetrics};
pub use exposition::Exposition;
pub use labels::{HoldClass, MoveReason, Released, UpstreamError};
pub use metrics::{FINGERPRINT, InFlight, Metrics, NO_IDENTITY};
pub use model::ModelMetrics;
pub use profile::{ProfileSummary, Profiles, StepTimes, round4};

use crate::config::{Access, Config, Profile};
use arc_swap::ArcSwapOption;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use writer::Writer;

/// The metrics and logs of a process.
pub struct Telemetry {
    pub metrics: Metrics,
    access: ArcSwapOption<AccessLog>,
    profiles: ArcSwapOption<Profiles>,
}

type AccessLog = Writer<Box<AccessRecord>>;

// === impl Telemetry ===

impl Telemetry {
    /// Starts the writing threads, so not before a fork.
    ///
    /// # Errors
    /// `profile.dir` cannot be created, or a thread cannot be started.
    pub fn new(config: &Config) -> io::Result<Self> {
        let models = config.models.iter().map(|pool| pool.name.clone());
        let metrics = Metrics::new(&models.collect::<Vec<_>>(), &config.identity.sources);
        let telemetry = Self { metrics, access: ArcSwapOption::empty(), profiles: ArcSwapOption::empty() };
        telemetry.write_to(config.logging.access.as_ref(), config.profile.as_ref(), config)?;
        Ok(telemetry)
    }

    /// Applies the differences between `old` and `new`, and opens the log files anew, since they may have been rotated.
    ///
    /// # Errors
    /// Those of [`Telemetry::new`]; then nothing has changed.
    pub fn reload(&self, old: &Config, new: &Config) -> io::Result<()> {
        let access = Some(&new.logging.access).filter(|access| **access != old.logging.access);
        let profile = Some(&new.profile).filter(|profile| **profile != old.profile);
        self.write_to(access.and_then(Option::as_ref), profile.and_then(Option::as_ref), new)?;
        if new.logging.access.is_none() {
            self.access.store(None);
        }
        if new.profile.is_none() {
            self.profiles.store(None);
        }
        self.metrics.count_sources(&new.identity.sources);
        self.reopen();
        Ok(())
    }

    /// Starts the logs that are given here: all of them, or on an error none.
    fn write_to(&self, access: Option<&Access>, profile: Option<&Profile>, config: &Config) -> io::Result<()> {
        let log = access.map(|access| {
            let dropped = self.metrics.access_lines_dropped.clone();
            Writer::spawn("access-log", access.path.clone(), access.format, dropped)
        });
        let profiles = profile.map(|profile| {
            let dropped = self.metrics.profile_rows_dropped.clone();
            Profiles::new(&profile.dir, config.programs.max, dropped)
        });
        let (log, profiles) = (log.transpose()?, profiles.transpose()?);
        if let Some(log) = log {
            self.access.store(Some(Arc::new(log)));
        }
        if let Some(profiles) = profiles {
            self.profiles.store(Some(Arc::new(profiles)));
        }
        Ok(())
    }

    /// Logs a finished request. `record` is called only when the log is on. Never waits.
    pub fn access(&self, record: impl FnOnce() -> AccessRecord) {
        if let Some(log) = &*self.access.load() {
            log.send(Box::new(record()));
        }
    }

    /// The step profiles; `None` unless profiling is on.
    #[must_use]
    pub fn profiles(&self) -> Option<Arc<Profiles>> {
        self.profiles.load_full()
    }

    /// Opens the log files anew, after they were rotated.
    pub fn reopen(&self) {
        if let Some(log) = &*self.access.load() {
            log.reopen();
        }
        if let Some(profiles) = &*self.profiles.load() {
            profiles.reopen();
        }
    }

    /// Waits until every line so far is written; `false` when a file took longer than `limit`. Blocks the thread, so it is
    /// for the end of the process and not for a request.
    pub fn flush(&self, limit: Duration) -> bool {
        let logged = self.access.load().as_ref().is_none_or(|log| log.flush(limit));
        let profiled = self.profiles.load().as_ref().is_none_or(|p| p.flush(limit));
        logged && profiled
    }
}

impl Default for Telemetry {
    /// Counts for one unnamed pool; writes nothing.
    fn default() -> Self {
        let metrics = Metrics::new(&[String::new()], &[]);
        Self { metrics, access: ArcSwapOption::empty(), profiles: ArcSwapOption::empty() }
    }
}

#[cfg(test)]
mod tests;
