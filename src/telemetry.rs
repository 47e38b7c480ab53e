//! What operators see: metrics, access log, step profiles.

pub(crate) mod access;
mod exposition;
mod labels;
mod metrics;
mod mirror;
mod model;
mod profile;
mod register;
mod writer;

pub use access::AccessRecord;
pub use exposition::Exposition;
pub use labels::{HoldClass, MoveReason, Released, UpstreamError};
pub use metrics::{InFlight, Metrics, NO_IDENTITY};
pub use mirror::{BackendMirror, Mirror};
pub use model::ModelMetrics;
pub use profile::{ProfileSummary, Profiles, StepTimes, round4};

use crate::config::Config;
use std::io;
use std::time::Duration;
use writer::Writer;

/// Everything that is counted or written down. One per process.
pub struct Telemetry {
    pub metrics: Metrics,
    access: Option<Writer<Box<AccessRecord>>>,
    profiles: Option<Profiles>,
}

// === impl Telemetry ===

impl Telemetry {
    /// Starts the writing threads, so not before a fork.
    ///
    /// # Errors
    /// `profile.dir` cannot be created, or a thread cannot be started.
    pub fn new(config: &Config) -> io::Result<Self> {
        let models = config.models.iter().map(|pool| pool.name.clone());
        let metrics = Metrics::new(&models.collect::<Vec<_>>(), &config.identity.sources);
        let access = config.logging.access.as_ref().map(|access| {
            let dropped = metrics.access_lines_dropped.clone();
            Writer::spawn("access-log", access.path.clone(), access.format, dropped)
        });
        let profiles = config.profile.as_ref().map(|profile| {
            let dropped = metrics.profile_rows_dropped.clone();
            Profiles::new(&profile.dir, config.programs.max, dropped)
        });
        Ok(Self { access: access.transpose()?, profiles: profiles.transpose()?, metrics })
    }

    /// Logs a finished request; `record` is asked only when the log is on. Never waits.
    pub fn access(&self, record: impl FnOnce() -> AccessRecord) {
        if let Some(log) = &self.access {
            log.send(Box::new(record()));
        }
    }

    /// `None` unless profiling is on.
    #[must_use]
    pub fn profiles(&self) -> Option<&Profiles> {
        self.profiles.as_ref()
    }

    /// Opens the log files anew, after they were rotated.
    pub fn reopen(&self) {
        if let Some(log) = &self.access {
            log.reopen();
        }
        if let Some(profiles) = &self.profiles {
            profiles.reopen();
        }
    }

    /// Waits until every line so far is written; `false` when a file took longer than `limit`.
    /// Blocks: for the end of the process, not for a request.
    pub fn flush(&self, limit: Duration) -> bool {
        let logged = self.access.as_ref().is_none_or(|log| log.flush(limit));
        let profiled = self.profiles.as_ref().is_none_or(|p| p.flush(limit));
        logged && profiled
    }
}

impl Default for Telemetry {
    /// Counts for one unnamed pool; writes nothing.
    fn default() -> Self {
        Self { metrics: Metrics::new(&[String::new()], &[]), access: None, profiles: None }
    }
}

#[cfg(test)]
mod tests;
