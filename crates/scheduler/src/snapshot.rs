//! What is worth keeping across a restart, as plain data: programs, where their prefixes are, what was learned.
//!
//! Backends are named by the ids of the process that takes the snapshot. Ages are in milliseconds before that moment.

mod restore;
mod take;

use crate::event::{BackendId, Life, ProgramKey};
use crate::units::Tokens;
use serde::{Deserialize, Serialize};

/// What is worth keeping of one scheduler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SchedulerSnapshot {
    pub experience: Experience,
    pub backends: Vec<BackendSnapshot>,
    /// Programs in the order in which they began.
    pub programs: Vec<ProgramSnapshot>,
}

/// What was learned from the traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Experience {
    /// Mean output of a step, tokens.
    pub output: Option<f64>,
    pub bytes_per_token: Option<f64>,
    /// Tool gaps, the oldest first.
    pub gaps_ms: Vec<u64>,
    /// Bands of context sizes: number, programs that grew beyond it, programs that ended in it, sum of their contexts.
    pub lives: Vec<(u16, f64, f64, f64)>,
    /// Growth of leased programs: tokens, and the seconds that it took.
    pub grown: (f64, f64),
    /// Classes: hash, smallest cached prefix of a first step, programs that told of one.
    pub classes: Vec<(u64, Tokens, u32)>,
}

/// What is worth keeping of one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendSnapshot {
    pub backend: BackendId,
    /// The life of the server that the rest is about.
    pub life: Option<Life>,
    /// Prompt tokens a second.
    pub rate: Option<f64>,
    /// Factor on the capacity, and the share of recent prompts that was missing from the cache.
    pub feedback: (f64, f64),
    /// Prefixes in the cache: [`ProgramSnapshot::number`] (or that of a program which is gone), tokens, age.
    pub prefixes: Vec<(u64, Tokens, u64)>,
}

/// What is worth keeping of one program.
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
    /// Whether it held a lease there.
    pub leased: bool,
    /// Whether a step of it was in flight.
    pub running: bool,
    /// Time since its first step arrived.
    pub age_ms: u64,
    /// Time since its last step ended; zero while one runs.
    pub idle_ms: u64,
    /// Steps that were answered.
    pub steps: u64,
}
