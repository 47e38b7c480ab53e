//! Views of programs and backends, for the control API.

use crate::backend::BackendLedger;
use crate::decision::{HoldReason, PauseReason};
use crate::event::{BackendId, ProgramKey};
use crate::program::Pid;
use crate::scheduler::Scheduler;
use crate::units::Tokens;
use std::time::Duration;

/// A program as it is now.
#[derive(Clone, Debug)]
pub struct ProgramView {
    pub key: ProgramKey,
    /// Backend of its lease; without a lease, the backend that it ran on last.
    pub backend: Option<BackendId>,
    pub leased: bool,
    /// Tokens of its conversation after its last step, as the backend counted them.
    pub context: Tokens,
    /// Tokens that it is charged with; while it is held, the tokens that its held steps need.
    pub footprint: Tokens,
    /// Number of steps that were answered.
    pub steps: u64,
    pub in_flight: usize,
    pub held: usize,
    /// Reason for its hold, and the time held so far; `None` while no step of it is held.
    pub hold: Option<(HoldReason, Duration)>,
    pub last_pause: Option<PauseReason>,
    /// Time since its last step ended; `None` while one is in flight or held.
    pub idle: Option<Duration>,
}

/// The ledger of one backend.
#[derive(Clone, Debug)]
pub struct LoadView {
    pub backend: BackendId,
    pub up: bool,
    pub draining: bool,
    /// Tokens that programs may claim; `None` while the capacity is unknown.
    pub effective_capacity: Option<Tokens>,
    pub charged_running: Tokens,
    pub charged_idle: Tokens,
    pub leased_running: usize,
    pub leased_idle: usize,
    /// Number of steps in flight, including those without a program.
    pub in_flight: usize,
}

impl Scheduler {
    /// All programs, by key.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramView> {
        let mut views: Vec<_> = self.keys.values().filter_map(|&pid| self.view(pid)).collect();
        views.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        views
    }

    /// Whether the program is known: it has sent a step, and has neither ended nor been forgotten.
    #[must_use]
    pub fn knows(&self, key: &ProgramKey) -> bool {
        self.keys.contains_key(key)
    }

    /// One program; `None`: it is not known.
    #[must_use]
    pub fn program(&self, key: &ProgramKey) -> Option<ProgramView> {
        self.view(*self.keys.get(key)?)
    }

    fn view(&self, pid: Pid) -> Option<ProgramView> {
        let program = self.programs.get(&pid)?;
        let waited = program.waiting_since.map(|since| self.now.saturating_sub(since));
        let footprint =
            if program.waiting.is_empty() { program.charge } else { self.need(program).1.max(program.context) };
        Some(ProgramView {
            key: program.key.clone(),
            backend: program.lease.or(program.home),
            leased: program.lease.is_some(),
            context: program.context,
            footprint,
            steps: program.steps,
            in_flight: program.running.len(),
            held: program.waiting.len(),
            hold: waited.map(|waited| (self.reason(Some(program)), waited)),
            last_pause: program.last_pause,
            idle: program.inactive().then(|| self.now.saturating_sub(program.last_active)),
        })
    }

    /// All backends, by id.
    #[must_use]
    pub fn loads(&self) -> Vec<LoadView> {
        let load = |(&id, backend): (&BackendId, &BackendLedger)| LoadView {
            backend: id,
            up: backend.up(),
            draining: backend.draining(),
            effective_capacity: self.effective(backend, None),
            charged_running: backend.claims() - backend.idle_claims(),
            charged_idle: backend.idle_claims(),
            leased_running: backend.leased().len() - backend.idle().len(),
            leased_idle: backend.idle().len(),
            in_flight: backend.in_flight(),
        };
        self.backends.iter().map(load).collect()
    }

    /// Number of steps in flight or held.
    #[must_use]
    pub fn open_steps(&self) -> usize {
        self.steps.len()
    }

    /// Number of held steps.
    #[must_use]
    pub fn held_steps(&self) -> usize {
        self.queue.len()
    }
}
