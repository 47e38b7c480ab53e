//! What the control API shows of a backend.

use super::backend::Backend;
use super::outlier::DownCause;
use super::reading::Gauges;
use std::sync::Arc;
use std::time::Duration;

/// One backend as it is now.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    pub backend: Arc<Backend>,
    pub healthy: bool,
    pub draining: bool,
    /// Why the backend is not healthy, in words; `None` before the first check.
    pub down_reason: Option<String>,
    /// The same as a label; `None` before the backend was up for the first time.
    pub down_cause: Option<DownCause>,
    /// Time that is left of an ejection. After it, checks have to pass as well.
    pub returns_in: Option<Duration>,
    /// How often the backend went down.
    pub downs: [(DownCause, u64); DownCause::ALL.len()],
    /// KV cache in tokens, as configured, or else as the engine says; `None` while it is not known.
    pub capacity: Option<u64>,
    /// Last reading; `None` before the first, and of an engine that does not tell its load.
    pub gauges: Option<Gauges>,
    /// Age of the last reading.
    pub scrape_age: Option<Duration>,
}
