//! The policy of a scheduler: its settings, and its constants with their reasons.

use crate::settings::{Routing, Settings};
use crate::units::Tokens;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Promised prefill time from which on a backend lets no heavy step in: that step's first token would wait for all of
/// it.
pub const PREFILL_GATE: Duration = Duration::from_secs(1);
/// Longest prefill time of a step that passes the gate anyway: it delays nobody.
pub const PREFILL_LIGHT: Duration = Duration::from_millis(200);
/// Time after which a started program that waits passes the gate too.
pub const PREFILL_PATIENCE: Duration = Duration::from_secs(30);
/// Time to compute a lost prefix again above which its program goes back to the queue.
pub const CACHE_LOSS: Duration = Duration::from_millis(500);
/// Share of a backend that must be free for a program that is larger than the backend.
pub const GIANT: f64 = 0.95;
/// Number of started programs that one fill looks at. It bounds the work of an event when thousands are held.
pub const LOOK_AHEAD: usize = 64;
/// Multiple of the 99th percentile of tool gaps after which an idle program counts as ended, until it comes back. At
/// twice the percentile 94% have ended where steps end a program in one of 20 to 50 cases (SWE-agent, HLE: log-normal
/// gaps).
pub const OVER_FACTOR: u32 = 2;
/// Multiple of the 99th percentile of tool gaps after which an idle program is taken for gone; and the limits of that
/// time.
pub const GONE_FACTOR: u32 = 5;
pub const GONE_LIMITS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// Number of reports that must agree before KV use of others is believed.
pub const FOREIGN_REPORTS: usize = 3;
/// Number of ticks over which the mean of steps in flight is taken.
pub const LOAD_TICKS: f64 = 30.0;
/// Largest number of tokens that is believed of a prompt, output or context. Sums of such numbers cannot overflow.
pub const LARGEST: Tokens = Tokens(1 << 40);

/// Settings and limits of the scheduler of one pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The way in which a step finds its backend; fixed for the life of a scheduler.
    pub routing: Routing,
    /// Settings that an operator can set.
    pub settings: Settings,
    /// Time without a step after which a program is forgotten.
    pub idle_ttl: Duration,
    /// Number of programs known at once. Beyond it, the longest idle program is forgotten for each new one.
    pub max_programs: usize,
    /// Time over which a backend that returns comes to its full share of the steps that are routed by load.
    pub slow_start: Duration,
}

impl Default for Policy {
    /// The server's defaults.
    fn default() -> Self {
        Self {
            routing: Routing::Program,
            settings: Settings::default(),
            idle_ttl: Duration::from_secs(30 * 60),
            max_programs: 200_000,
            slow_start: Duration::from_secs(30),
        }
    }
}
