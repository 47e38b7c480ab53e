//! Policies that only choose a backend and never make a step wait, as plain load balancers do.

use super::Policy;
use super::fleet::Fleet;
use crate::engine::chain::mix;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use thundergate_scheduler::{Arrival, BackendId, Decision, DispatchKind, Event, ProgramKey, RefuseReason, StepId};

/// The way in which a backend is chosen.
pub(super) trait Choose {
    fn choose(&mut self, step: &Arrival, fleet: &Fleet) -> Option<BackendId>;
    /// Notes that the step went to this backend.
    fn sent(&mut self, _step: &Arrival, _on: BackendId) {}
    fn ended(&mut self, _program: &ProgramKey) {}
}

pub(super) struct Router<C> {
    fleet: Fleet,
    choose: C,
    /// Steps in flight, kept in case one must be sent again.
    steps: HashMap<StepId, Arrival>,
}

/// Choice of each backend in turn.
#[derive(Default)]
pub(super) struct RoundRobin(Option<BackendId>);

/// Choice of the backend with the fewest steps in flight.
pub(super) struct LeastConnections;

/// Choice by a hash of the program: a program stays on its backend.
pub(super) struct Sticky;

/// Choice of the backend that has seen the longest part of the prompt, unless this backend is much busier than another.
/// If hardly anything is known of the prompt, the backend that was sent the least is chosen. As in cache-aware routers,
/// the choice uses the text alone: such routers do not know what the engines have evicted.
#[derive(Default)]
pub(super) struct PrefixAware {
    /// Number of bytes of the program's conversation that each backend has seen.
    seen: HashMap<ProgramKey, BTreeMap<BackendId, u64>>,
    /// Number of bytes of prompts that each backend was sent.
    sent: BTreeMap<BackendId, u64>,
}

/// Share of the prompt that a prefix must cover to count (SGLang's router: `--cache-threshold`).
const MATCH: f64 = 0.5;
/// Difference and ratio of steps between two backends, beyond both of which the load is out of balance (SGLang's
/// router: `--balance-abs-threshold`, `--balance-rel-threshold`).
const APART: (usize, f64) = (32, 1.1);

// === impl Router ===

impl<C: Choose> Router<C> {
    pub(super) fn new(choose: C) -> Self {
        Self { fleet: Fleet::default(), choose, steps: HashMap::new() }
    }

    fn send(&mut self, arrival: Arrival, decisions: &mut Vec<Decision>) {
        let step = arrival.step;
        let Some(backend) = self.choose.choose(&arrival, &self.fleet) else {
            decisions.push(Decision::Refuse { step, reason: RefuseReason::NoBackend });
            return;
        };
        self.choose.sent(&arrival, backend);
        self.fleet.dispatched(step, backend);
        self.steps.insert(step, arrival);
        decisions.push(Decision::Dispatch { step, backend, kind: DispatchKind::Unlabelled });
    }
}

impl<C: Choose> Policy for Router<C> {
    fn handle(&mut self, _now: Duration, event: Event, decisions: &mut Vec<Decision>) {
        self.fleet.note(&event);
        match event {
            Event::Arrive(arrival) => self.send(arrival, decisions),
            Event::Undelivered(step) => {
                if let Some(arrival) = self.steps.remove(&step) {
                    self.send(arrival, decisions);
                }
            }
            Event::End { step, .. } => {
                self.steps.remove(&step);
            }
            Event::Release(program) => self.choose.ended(&program),
            _ => {}
        }
    }
}

// === impl Choose ===

impl Choose for RoundRobin {
    fn choose(&mut self, _: &Arrival, fleet: &Fleet) -> Option<BackendId> {
        let after = fleet.usable().find(|&id| self.0.is_none_or(|last| id > last));
        self.0 = after.or_else(|| fleet.usable().next());
        self.0
    }
}

impl Choose for LeastConnections {
    fn choose(&mut self, _: &Arrival, fleet: &Fleet) -> Option<BackendId> {
        fleet.least_loaded()
    }
}

impl Choose for Sticky {
    fn choose(&mut self, step: &Arrival, fleet: &Fleet) -> Option<BackendId> {
        let hash = |seed| {
            let bytes = step.program.iter().flat_map(|program| program.id.bytes());
            bytes.fold(seed, |hash, byte| mix(hash ^ u64::from(byte)))
        };
        // The choice uses rendezvous hashing: when a backend goes, only its own programs move.
        fleet.usable().max_by_key(|id| hash(u64::from(id.0)))
    }
}

impl Choose for PrefixAware {
    fn choose(&mut self, step: &Arrival, fleet: &Fleet) -> Option<BackendId> {
        let most = fleet.usable().map(|id| fleet.load(id)).max()?;
        let least = fleet.usable().map(|id| fleet.load(id)).min()?;
        if most - least > APART.0 && most as f64 > least as f64 * APART.1 {
            return fleet.least_loaded();
        }
        let seen = step.program.as_ref().and_then(|program| self.seen.get(program));
        let known =
            |id: &BackendId| seen.and_then(|seen| seen.get(id)).map_or(0, |&bytes| bytes.min(step.prompt_bytes));
        let best = fleet.usable().max_by_key(|id| (known(id), std::cmp::Reverse(*id)))?;
        if known(&best) as f64 > MATCH * step.prompt_bytes as f64 {
            return Some(best);
        }
        fleet.usable().min_by_key(|id| (self.sent.get(id).copied().unwrap_or(0), *id))
    }

    fn sent(&mut self, step: &Arrival, on: BackendId) {
        let Some(program) = &step.program else { return };
        let seen = self.seen.entry(program.clone()).or_default().entry(on).or_default();
        *self.sent.entry(on).or_default() += step.prompt_bytes.saturating_sub(*seen);
        *seen = step.prompt_bytes;
    }

    fn ended(&mut self, program: &ProgramKey) {
        self.seen.remove(program);
    }
}
