//! The records that the scheduler keeps of programs and their steps.

use crate::decision::{HoldReason, PauseReason};
use crate::event::{BackendId, ProgramKey, StepId};
use crate::units::Tokens;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

/// Number of a program. A key that is used again after a release gets a new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u64);

/// A map whose keys are numbers that this code counts up itself. No client can choose keys that collide, so a
/// multiplication spreads them well enough, at a fraction of the cost of the standard hash.
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

/// Passes on a value that must be there. `None` is a bug: it stops a debug build, and a release build ignores it.
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
    /// Tokens of its conversation after the last step that ended, as the backend counted them; zero before the first.
    pub context: Tokens,
    /// Size of that step's prompt, in tokens and in bytes; the next estimate builds on both.
    pub last_prompt: Tokens,
    pub last_bytes: u64,
    /// Number of the dispatch that `context` comes from. It is needed because turns may overlap and end out of order.
    pub context_order: u64,
    pub lease: Option<BackendId>,
    pub leased_since: Duration,
    /// Backend that it ran on last; its prefix may still be in the cache there.
    pub home: Option<BackendId>,
    /// Tokens charged for its lease; zero without one.
    pub charge: Tokens,
    pub running: Vec<StepId>,
    pub waiting: Vec<StepId>,
    pub waiting_since: Option<Duration>,
    pub hold_reason: HoldReason,
    /// Time when its last step ended; before that, the time when it was first seen.
    pub last_active: Duration,
    /// Number of steps that ended with an answer.
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
    /// Backends that the step could not be delivered to and that have not come up since.
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
    /// Tokens of prompt and output: known ones, and expected ones where nothing is known yet.
    pub estimate: Tokens,
    pub output: Tokens,
    /// Prompt tokens that were probably not cached at the time of dispatch.
    pub uncached: Tokens,
    /// Prefill time promised to the backend; zero once the first token has come.
    pub promise: Duration,
    pub dispatched: Duration,
    /// Whether the backend ran no other step at the time of dispatch: then the TTFT is a clean measure of prefill
    /// speed.
    pub alone: bool,
    pub first_token: bool,
    /// Tokens of the program's previous prompt, if all of the program's context was believed to be in the cache; else
    /// `None`.
    pub resident: Option<Tokens>,
    /// Whether the lease was given for this step. If the step ends without an answer, the lease then goes too.
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

    /// Whether it has context to lose. Such a program is resumed; one without context is admitted as new.
    pub fn started(&self) -> bool {
        self.context > Tokens::ZERO
    }

    /// Time that the oldest of its held steps has waited.
    pub fn waited(&self, now: Duration) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// Whether no step of it is in flight or held.
    pub fn inactive(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Tokens that the program needs in the cache: its conversation after the last step, or the estimates of its steps
    /// in flight if they come to more. Steps that overlap are summed, because subagents that use the same id share
    /// little else.
    pub fn footprint(&self, steps: &ById<StepId, StepState>, shared: Tokens) -> Tokens {
        let runs = self.running.iter().filter_map(|id| steps.get(id)?.run.as_ref());
        let runs = runs.filter(|run| Some(run.backend) == self.lease);
        let running: Tokens = runs.map(|run| run.estimate).sum();
        self.context.max(running) - shared
    }
}
