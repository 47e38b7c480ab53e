//! Token counts in a unit of their own, and the time of day.

pub use thundergate_scheduler::units::{BYTES_PER_TOKEN, Tokens};

use std::time::{Duration, SystemTime};

/// The time of day, for people, files and protocols. It may be set to another value at any moment, even to an earlier
/// one. So decisions, holds and timeouts go by `Instant`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "its only place")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The time of day as a duration since 1970; zero before then.
#[must_use]
pub fn unix_time() -> Duration {
    wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
