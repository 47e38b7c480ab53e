//! A program and its steps, as the scheduler keeps them.

use crate::decision::{HoldReason, PauseReason};
use crate::event::{BackendId, ProgramKey, StepId};
use crate::units::Tokens;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

/// A program's number; a release and a reuse of its key make a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u64);

/// A map by numbers that we count ourselves: nobody can choose them so that they collide, so a multiplication
/// spreads them well enough, at a fraction of the price of the standard hash.
pub type ById<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;

#[derive(Debug, Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 over the golden ratio (Knuth, The Art of Computer Programming, 6.4).
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Takes what must be there. `None` is a bug: it stops a debug build, and a release build passes over it.
#[track_caller]
pub fn known<T>(found: Option<T>) -> Option<T> {
    debug_assert!(found.is_some(), "the ledgers name what is not there");
    found
}

#[derive(Debug)]
pub struct Program {
    pub key: ProgramKey,
    pub first_seen: Duration,
    pub class: u64,
    /// Tokens of its conversation after the last step that ended, as the backend counted them; zero before.
    pub context: Tokens,
    /// Prompt of that step in tokens and, below, in bytes: the next estimate builds on them.
    pub last_prompt: Tokens,
    pub last_bytes: u64,
    /// Number of the dispatch that `context` comes from: turns may overlap and end out of order.
    pub context_order: u64,
    pub lease: Option<BackendId>,
    pub leased_since: Duration,
    /// Backend that it ran on last: its prefix may still be there.
    pub home: Option<BackendId>,
    /// Charge on its lease, tokens; zero without one.
    pub charge: Tokens,
    pub running: Vec<StepId>,
    pub waiting: Vec<StepId>,
    pub waiting_since: Option<Duration>,
    pub hold_reason: HoldReason,
    /// Time when its last step ended, or when it was first seen.
    pub last_active: Duration,
    /// Steps that ended with an answer.
    pub steps: u64,
    pub last_pause: Option<PauseReason>,
    /// Whether it has been idle for so long that it counts as ended, until it comes back.
    pub presumed_over: bool,
    /// Whether it ended while a step was in flight: it is forgotten as soon as that step is over.
    pub ended: bool,
}

#[derive(Debug)]
pub struct StepState {
    pub program: Option<Pid>,
    pub arrived: Duration,
    pub prompt_bytes: u64,
    pub max_output: Option<Tokens>,
    pub preferred: Option<BackendId>,
    /// Backends that it could not be delivered to and that have not come up since.
    pub avoid: Vec<BackendId>,
    pub last: bool,
    pub run: Option<Run>,
}

/// A step in flight.
#[derive(Debug)]
pub struct Run {
    pub backend: BackendId,
    pub order: u64,
    pub prompt: Tokens,
    /// Tokens of prompt and output, as far as is known or expected.
    pub estimate: Tokens,
    pub output: Tokens,
    /// Prompt tokens that were probably not cached when it was dispatched.
    pub uncached: Tokens,
    /// Prefill time promised to the backend; zero once the first token has come.
    pub promise: Duration,
    pub dispatched: Duration,
    /// Whether the backend was empty when the step was dispatched: its TTFT is a clean measure of prefill speed then.
    pub alone: bool,
    pub first_token: bool,
    /// Previous prompt, where all of it was believed to be in the cache.
    pub resident: Option<Tokens>,
    /// Whether the lease was given for this step: should the client leave, the lease goes too.
    pub brought_lease: bool,
    pub forced: bool,
}

impl Program {
    pub fn new(key: ProgramKey, class: u64, now: Duration) -> Self {
        Self {
            key,
            first_seen: now,
            class,
            context: Tokens::ZERO,
            last_prompt: Tokens::ZERO,
            last_bytes: 0,
            context_order: 0,
            lease: None,
            leased_since: Duration::ZERO,
            home: None,
            charge: Tokens::ZERO,
            running: Vec::new(),
            waiting: Vec::new(),
            waiting_since: None,
            hold_reason: HoldReason::Queued,
            last_active: now,
            steps: 0,
            last_pause: None,
            presumed_over: false,
            ended: false,
        }
    }

    /// Whether it has context to lose: such a program is resumed, not admitted.
    pub fn started(&self) -> bool {
        self.context > Tokens::ZERO
    }

    /// Time that its oldest held step has waited.
    pub fn waited(&self, now: Duration) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// Whether no step of it is in flight or held.
    pub fn inactive(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Tokens that the program needs in the cache: the conversation as it was, or what its steps in flight make of it.
    /// Steps that overlap are charged each, for subagents that share an id share little else.
    pub fn footprint(&self, steps: &ById<StepId, StepState>, shared: Tokens) -> Tokens {
        let runs = self.running.iter().filter_map(|id| steps.get(id)?.run.as_ref());
        let runs = runs.filter(|run| Some(run.backend) == self.lease);
        let running: Tokens = runs.map(|run| run.estimate).sum();
        self.context.max(running) - shared
    }
}
