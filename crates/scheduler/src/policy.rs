//! The settings of the policy, and its constants with their reasons.

use crate::settings::{Routing, Settings};
use crate::units::Tokens;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A promise of this much prefill on a backend lets nothing heavy in: the next first token would wait for it.
pub const PREFILL_GATE: Duration = Duration::from_secs(1);
/// Steps that prefill less than this pass the gate: they delay nobody.
pub const PREFILL_LIGHT: Duration = Duration::from_millis(200);
/// A started head that has waited this long passes the gate too.
pub const PREFILL_PATIENCE: Duration = Duration::from_secs(30);
/// A lost prefix that takes longer than this to compute again is worth a place in the queue.
pub const CACHE_LOSS: Duration = Duration::from_millis(500);
/// What is asked to be free for a program that is larger than a backend.
pub const GIANT: f64 = 0.95;
/// Started programs looked at in one fill: bounds the work of an event when thousands are held.
pub const LOOK_AHEAD: usize = 64;
/// A program counts as ended, until it comes back, after this many times the 99th percentile of tool gaps. At twice it
/// 94% have ended where steps end a program in one of 20 to 50 cases (SWE-agent, HLE: log-normal gaps).
pub const OVER_FACTOR: u32 = 2;
/// A program is taken for gone after this many times the 99th percentile of tool gaps, within the limits.
pub const GONE_FACTOR: u32 = 5;
pub const GONE_LIMITS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// Reports that must agree before KV use that is not ours is believed.
pub const FOREIGN_REPORTS: usize = 3;
/// The mean of steps in flight is taken over this many ticks.
pub const LOAD_TICKS: f64 = 30.0;
/// More tokens are no prompt, output or context, whoever says so: sums of such numbers stay sums.
pub const LARGEST: Tokens = Tokens(1 << 40);

/// What the scheduler of one pool goes by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// How a step finds its backend; fixed for the life of a scheduler.
    pub routing: Routing,
    /// What an operator sets.
    pub settings: Settings,
    /// A program without a step for this long is forgotten.
    pub idle_ttl: Duration,
    /// Programs known at once; beyond that the longest idle one is forgotten for each new one.
    pub max_programs: usize,
    /// A backend that returns gets its full share of the steps that are routed by load after this time only.
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
