//! What operators see: metrics, access log, step profiles.

mod labels;
mod metrics;

pub use labels::{HoldClass, MoveReason, Released, UpstreamError};
pub use metrics::{InFlight, Metrics, ModelMetrics};

/// Everything that is counted or written down. One per process.
pub struct Telemetry {
    pub metrics: Metrics,
}

// === impl Telemetry ===

impl Default for Telemetry {
    /// Counts for one unnamed pool; writes nothing.
    fn default() -> Self {
        Self {
            metrics: Metrics::new(&[String::new()]),
        }
    }
}
