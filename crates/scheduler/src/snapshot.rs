//! The state that is worth keeping across a restart, as plain data: programs, the places of their prefixes, learned
//! values.
//!
//! Backends are named by their ids in the process that takes the snapshot. Ages are in milliseconds before that moment.

mod restore;
mod take;

use crate::event::{BackendId, Life, ProgramKey};
use crate::units::Tokens;
use serde::{Deserialize, Serialize};

/// State of one scheduler that is worth keeping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SchedulerSnapshot {
    pub experience: Experience,
    pub backends: Vec<BackendSnapshot>,
    /// Programs in the order in which they began.
    pub programs: Vec<ProgramSnapshot>,
}

/// Values that were learned from the traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Experience {
    /// Mean output of a step, in tokens.
    pub output: Option<f64>,
    pub bytes_per_token: Option<f64>,
    /// Tool gaps in milliseconds, the oldest first.
    pub gaps_ms: Vec<u64>,
    /// Bands of context sizes: number of the band, programs that grew beyond it, programs that ended in it, sum of the
    /// contexts of the latter.
    pub lives: Vec<(u16, f64, f64, f64)>,
    /// Growth of leased programs: the tokens, and the seconds that the growth took.
    pub grown: (f64, f64),
    /// Classes: hash, smallest cached prefix of a first step, number of programs that reported one.
    pub classes: Vec<(u64, Tokens, u32)>,
}

/// State of one backend that is worth keeping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendSnapshot {
    pub backend: BackendId,
    /// Life of the server that the other values belong to.
    pub life: Option<Life>,
    /// Prefill speed, prompt tokens a second.
    pub rate: Option<f64>,
    /// Factor on the capacity, and share of recent prompts that was missing from the cache.
    pub feedback: (f64, f64),
    /// Prefixes in the cache: the program's number (see [`ProgramSnapshot::number`]; the program may be gone), tokens,
    /// age in milliseconds.
    pub prefixes: Vec<(u64, Tokens, u64)>,
}

/// State of one program that is worth keeping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramSnapshot {
    /// Number of the program, for [`BackendSnapshot::prefixes`].
    pub number: u64,
    pub key: ProgramKey,
    pub class: u64,
    pub context: Tokens,
    pub last_prompt: Tokens,
    pub last_bytes: u64,
    /// Backend that it ran on last.
    pub home: Option<BackendId>,
    /// Whether it held a lease on that backend.
    pub leased: bool,
    /// Whether a step of it was in flight.
    pub running: bool,
    /// Time since its first step arrived.
    pub age_ms: u64,
    /// Time since its last step ended; zero while one runs.
    pub idle_ms: u64,
    /// Number of steps that were answered.
    pub steps: u64,
}
