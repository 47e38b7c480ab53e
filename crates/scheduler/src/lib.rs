//! The heart: decides when and where each step runs. Sans I/O: events with a timestamp go in,
//! decisions come out, and the same events always give the same decisions.
//!
//! A program that is *leased* has its KV cache on a backend and is charged there with its footprint; its
//! steps go at once. A program without a lease is *held* until it fits ([`fill`]). Room is made by taking
//! the lease of idle programs ([`reclaim`]). One scheduler serves one model pool.

mod backend;
mod check;
mod class;
mod dirty;
pub mod duration;
mod estimate;
pub mod event;
mod expiry;
mod fairness;
mod feedback;
mod fill;
mod forecast;
mod ledger;
mod membership;
mod policy;
mod program;
mod queue;
mod reclaim;
mod restore;
pub mod settings;
mod shadow;
mod snapshot;
mod step;
pub mod units;
mod view;

#[cfg(test)]
mod tests;

pub use event::*;
pub use policy::Policy;
pub use settings::{Feedback, OnTimeout, Routing, Settings};
pub use snapshot::{BackendSnapshot, Experience, ProgramSnapshot, SchedulerSnapshot};
pub use view::{LoadView, ProgramView};

use backend::BackendLedger;
use class::Classes;
use dirty::{Candidates, Dirty};
use estimate::Learned;
use forecast::Growth;
use program::{ById, Pid, Program, StepState};
use queue::Queue;
use reclaim::Evictable;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// The scheduler of one model pool. Times are durations since a start of the caller's choice.
#[derive(Debug)]
pub struct Scheduler {
    policy: Policy,
    now: Duration,
    backends: BTreeMap<BackendId, BackendLedger>,
    /// Known keys; a released program whose step still runs is no longer among them.
    keys: HashMap<ProgramKey, Pid>,
    programs: ById<Pid, Program>,
    /// The same, in the order in which they began: to be walked in portions.
    by_start: BTreeSet<Pid>,
    /// Programs without a step in flight or held, longest idle first.
    inactive: BTreeSet<(Duration, Pid)>,
    /// Those among them that are idle since before this time count as ended.
    presumed_over: Duration,
    steps: ById<StepId, StepState>,
    queue: Queue,
    dirty: Dirty,
    /// Backends kept free for a program that has waited too long.
    reservations: BTreeMap<BackendId, Pid>,
    learned: Learned,
    growth: Growth,
    classes: Classes,
    frozen: bool,
    draining: bool,
    /// Since when no backend has been usable.
    no_backend_since: Option<Duration>,
    /// Round robin goes on after this one.
    last_choice: Option<BackendId>,
    next_pid: u64,
    next_order: u64,
    /// Counts changes of what [`Scheduler::snapshot`] gives.
    revision: u64,
    /// When a snapshot was restored.
    restored_at: Option<Duration>,
    out: Vec<Decision>,
}

impl Scheduler {
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

    /// Takes in what happened at `now` and appends what is to be done. A time before the last event's
    /// counts as the last event's.
    pub fn handle(&mut self, now: Duration, event: Event, decisions: &mut Vec<Decision>) {
        self.now = self.now.max(now);
        let touched = self.touches(&event);
        match event {
            Event::Arrive(arrival) => self.arrive(arrival),
            Event::FirstToken(step) => self.first_token(step),
            Event::Progress { step, output } => self.progress(step, output),
            Event::End { step, outcome } => self.end(step, outcome),
            Event::Undelivered(step) => self.undelivered(step),
            Event::Release(key) => self.release(&key),
            Event::BackendAdded { backend, weight, capacity } => self.backend_added(backend, weight, capacity),
            Event::BackendUp(backend) => self.backend_up(backend),
            Event::BackendDown(backend) => self.backend_down(backend),
            Event::BackendDraining(backend) => self.backend_draining(backend),
            Event::BackendRemoved(backend) => self.backend_removed(backend),
            Event::Report { backend, report } => self.report(backend, report),
            Event::Freeze(frozen) => self.freeze(frozen),
            Event::Drain => self.drain(),
            Event::Tick => self.tick(),
        }
        self.fill();
        self.note_held();
        self.revision += u64::from(touched || self.out.iter().any(snapshot::tells_of_change));
        decisions.append(&mut self.out);
        debug_assert_eq!(self.check(), Ok(()));
    }

    /// Other settings, from the next event on. Not another `routing`: the ledgers follow from it.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = Policy { routing: self.policy.routing, ..policy };
        self.dirty.all = true;
        for backend in self.backends.values_mut() {
            backend.forecast.take();
        }
    }

    fn decide(&mut self, decision: Decision) {
        self.out.push(decision);
    }
}
