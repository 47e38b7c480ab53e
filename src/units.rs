//! Units that must not be mixed up, and the time of day.

pub use thundergate_scheduler::units::{BYTES_PER_TOKEN, Tokens};

use std::time::{Duration, SystemTime};

/// The time of day, for people, files and protocols. It may be set at any moment, backwards too: what is decided, held or
/// timed out goes by `Instant`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "its only place")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The same since 1970; zero before.
#[must_use]
pub fn unix_time() -> Duration {
    wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
