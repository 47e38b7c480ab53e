//! What operators see: metrics, access log, step profiles.

/// Everything that is counted. One per process.
#[derive(Default)]
pub struct Telemetry {}
