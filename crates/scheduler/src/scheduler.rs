//! The state of a scheduler. Each other file adds one concern of its behaviour.

use crate::backend::BackendLedger;
use crate::decision::Decision;
use crate::estimate::{Classes, Learned};
use crate::event::{BackendId, ProgramKey, StepId};
use crate::forecast::Growth;
use crate::policy::Policy;
use crate::program::{ById, Pid, Program, StepState};
use crate::queue::{Dirty, Queue};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// The scheduler of one model pool. Times are durations since a start of the caller's choice.
///
/// Its methods are of four kinds:
///
/// - [`Scheduler::handle`] takes in an [`Event`](crate::Event) and gives [`Decision`]s; nothing else schedules.
/// - Views show the state: [`programs`](Scheduler::programs), [`loads`](Scheduler::loads),
///   [`held_steps`](Scheduler::held_steps), and [`check`](Scheduler::check), which checks the sums of the ledgers.
/// - [`set_policy`](Scheduler::set_policy) changes the settings from the next event on.
/// - [`snapshot`](Scheduler::snapshot) and [`restore`](Scheduler::restore) carry what was learned over a restart.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) policy: Policy,
    /// Time of the last event.
    pub(crate) now: Duration,
    pub(crate) backends: BTreeMap<BackendId, BackendLedger>,
    /// Keys of known programs. The key of a released program is no longer among them, even while a step of it still
    /// runs.
    pub(crate) keys: HashMap<ProgramKey, Pid>,
    pub(crate) programs: ById<Pid, Program>,
    /// All of `programs` in the order in which they began, so that they can be walked in portions.
    pub(crate) by_start: BTreeSet<Pid>,
    /// Programs without a step in flight or held, longest idle first.
    pub(crate) inactive: BTreeSet<(Duration, Pid)>,
    /// Time before which an inactive program must have gone idle to count as ended.
    pub(crate) presumed_over: Duration,
    pub(crate) steps: ById<StepId, StepState>,
    pub(crate) queue: Queue,
    /// Changes that the next fill has to look at.
    pub(crate) dirty: Dirty,
    /// Reserved backends, each with the program that has waited too long.
    pub(crate) reservations: BTreeMap<BackendId, Pid>,
    pub(crate) learned: Learned,
    pub(crate) growth: Growth,
    pub(crate) classes: Classes,
    pub(crate) frozen: bool,
    pub(crate) draining: bool,
    /// Time since which no backend has been usable; `None` while one is.
    pub(crate) no_backend_since: Option<Duration>,
    /// Last choice of routing by load or in turn; round robin takes the backend after it.
    pub(crate) last_choice: Option<BackendId>,
    pub(crate) next_pid: u64,
    pub(crate) next_order: u64,
    /// Count of the changes to the content of [`Scheduler::snapshot`].
    pub(crate) revision: u64,
    /// Time of the last [`Scheduler::restore`].
    pub(crate) restored_at: Option<Duration>,
    /// Decisions of the event under way.
    pub(crate) out: Vec<Decision>,
}

impl Scheduler {
    /// A scheduler that knows no backend and no program yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            now: Duration::ZERO,
            backends: BTreeMap::new(),
            keys: HashMap::new(),
            programs: ById::default(),
            by_start: BTreeSet::new(),
            inactive: BTreeSet::new(),
            presumed_over: Duration::ZERO,
            steps: ById::default(),
            queue: Queue::default(),
            dirty: Dirty::default(),
            reservations: BTreeMap::new(),
            learned: Learned::new(),
            growth: Growth::default(),
            classes: Classes::default(),
            frozen: false,
            draining: false,
            no_backend_since: Some(Duration::ZERO),
            last_choice: None,
            next_pid: 0,
            next_order: 0,
            revision: 0,
            restored_at: None,
            out: Vec::new(),
        }
    }

    /// Sets other settings, from the next event on. `routing` stays as it was, because the ledgers are built on it.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = Policy { routing: self.policy.routing, ..policy };
        self.dirty.all = true;
        self.backends.values_mut().for_each(BackendLedger::forget_forecast);
    }

    pub(crate) fn decide(&mut self, decision: Decision) {
        self.out.push(decision);
    }
}
