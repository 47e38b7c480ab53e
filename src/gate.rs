//! The async face of the scheduler: one lock, one waker per held step, guards that give every charge back.

use crate::config::Scheduler as SchedulerConfig;
use crate::error::Refusal;
use crate::scheduler::{Arrival, BackendId, DispatchKind, Event, Outcome, ProgramKey, StepId, Usage};
use crate::telemetry::Telemetry;
use crate::units::Tokens;
use std::sync::Arc;
use std::time::Duration;

/// Which model pool: the index into `Config::models`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub usize);

/// A step that may be sent to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    pub backend: BackendId,
    pub kind: DispatchKind,
    pub held: Duration,
}

/// What the proxy knows of a step when it arrives; the gate gives it its `StepId` and the time.
#[derive(Clone, Debug, Default)]
pub struct StepInfo {
    pub program: Option<ProgramKey>,
    pub class: u64,
    pub prompt_bytes: u64,
    pub max_output: Option<Tokens>,
    pub preferred: Option<BackendId>,
    pub last: bool,
}

/// All pools. Cheap to clone.
#[derive(Clone)]
pub struct Gate {}

impl Gate {
    pub fn new(_pools: usize, _scheduler: &SchedulerConfig, _telemetry: Arc<Telemetry>) -> Self {
        unimplemented!()
    }
    /// Registers the step. Dropping the returned guard at any time gives everything back.
    pub fn enter(&self, _pool: PoolId, _info: StepInfo) -> Step {
        unimplemented!()
    }
    /// Backend events of the fleet (`BackendAdded`, `BackendUp`, `Report`, …), and `Freeze`.
    pub fn tell(&self, _pool: PoolId, _event: Event) {
        unimplemented!()
    }
    /// Ends the program in every pool of the tenant where it is known.
    pub fn release(&self, _program: &ProgramKey) -> bool {
        unimplemented!()
    }
    /// Refuses held and new steps with `Draining`, in every pool.
    pub fn drain(&self) {
        unimplemented!()
    }
    pub fn programs(&self) -> Vec<ProgramView> {
        unimplemented!()
    }
    pub fn program(&self, _key: &ProgramKey) -> Vec<ProgramView> {
        unimplemented!()
    }
    pub fn loads(&self) -> Vec<LoadView> {
        unimplemented!()
    }
    /// Steps in flight or held, all pools.
    pub fn open_steps(&self) -> usize {
        unimplemented!()
    }
    /// Scheduler decisions from now on, one JSON object each (for `GET /events`).
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<Arc<str>> {
        unimplemented!()
    }
    /// One-second ticks; runs until the process ends.
    pub async fn run_ticks(&self) {
        unimplemented!()
    }
}

/// A guard for one step, from arrival to end. Dropped without `finish`: the client has gone.
pub struct Step {}

impl Step {
    /// Waits until the step may go. Cancel-safe: may be called again after a cancelled wait.
    pub async fn admitted(&mut self) -> Result<Admission, Refusal> {
        unimplemented!()
    }
    pub fn first_token(&mut self) {
        unimplemented!()
    }
    /// Output tokens seen so far; cheap (reported to the scheduler only every 64 tokens).
    pub fn progress(&mut self, _output: u64) {
        unimplemented!()
    }
    /// Nothing reached the backend: wait for another with `admitted`.
    pub fn undelivered(&mut self) {
        unimplemented!()
    }
    pub fn finish(&mut self, _outcome: Outcome) {
        unimplemented!()
    }
}

/// One program, for the control API.
#[derive(Clone, Debug)]
pub struct ProgramView {
    pub pool: PoolId,
    pub key: ProgramKey,
    /// Where its lease is, or where its prefix was last.
    pub backend: Option<BackendId>,
    pub leased: bool,
    /// Last exact total of tokens (prompt and completion).
    pub context: Tokens,
    /// What it is charged with now.
    pub footprint: Tokens,
    pub steps: u64,
    pub in_flight: usize,
    pub held: usize,
    /// Why it is held, and for how long so far.
    pub hold: Option<(crate::scheduler::HoldReason, Duration)>,
    pub last_pause: Option<crate::scheduler::PauseReason>,
    pub idle: Option<Duration>,
}

/// One backend's ledger, for the control API.
#[derive(Clone, Debug)]
pub struct LoadView {
    pub pool: PoolId,
    pub backend: BackendId,
    pub up: bool,
    pub draining: bool,
    /// Capacity after headroom, tokens; `None` while unknown.
    pub effective_capacity: Option<Tokens>,
    pub charged_running: Tokens,
    pub charged_idle: Tokens,
    pub leased_running: usize,
    pub leased_idle: usize,
    /// Steps in flight, those without a program too.
    pub in_flight: usize,
}

const _: fn(Arrival, StepId, Usage) = |_, _, _| {};
