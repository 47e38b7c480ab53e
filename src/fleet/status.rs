//! The state of a backend that the control API shows.

use super::backend::Backend;
use super::outlier::DownCause;
use super::reading::Gauges;
use std::sync::Arc;
use std::time::Duration;

/// State of one backend at the present time.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    pub backend: Arc<Backend>,
    pub healthy: bool,
    pub draining: bool,
    /// Reason why the backend is not healthy, in words; `None` before the first check.
    pub down_reason: Option<String>,
    /// Cause why the backend is not healthy, as a label; `None` before the backend was up for the first time.
    pub down_cause: Option<DownCause>,
    /// Time that is left of an ejection. After that time, checks have to pass before the backend returns.
    pub returns_in: Option<Duration>,
    /// Number of times that the backend went down, for each cause.
    pub downs: [(DownCause, u64); DownCause::ALL.len()],
    /// KV cache in tokens, as configured or else as the engine tells it; `None` while the size is not known.
    pub capacity: Option<u64>,
    /// Last reading; `None` before the first reading, and for an engine that does not tell its load.
    pub gauges: Option<Gauges>,
    /// Age of the last reading.
    pub scrape_age: Option<Duration>,
}
