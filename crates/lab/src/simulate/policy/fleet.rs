//! The backends as a simple policy sees them: whether each is up, and how many steps run on it.

use std::collections::{BTreeMap, HashMap};
use thundergate_scheduler::units::Tokens;
use thundergate_scheduler::{BackendId, Event, Outcome, StepId};

#[derive(Debug, Default)]
pub(super) struct Fleet {
    backends: BTreeMap<BackendId, Backend>,
    /// Steps in flight, with their backends.
    running: HashMap<StepId, BackendId>,
}

#[derive(Debug, Default)]
struct Backend {
    up: bool,
    load: usize,
    capacity: Option<Tokens>,
}

impl Fleet {
    /// Takes in events of backends and ends of steps.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::BackendAdded { backend, .. } => {
                self.backends.entry(*backend).or_default();
            }
            Event::BackendUp(id) => self.set_up(*id, true),
            Event::BackendDown(id) | Event::BackendDraining(id) => self.set_up(*id, false),
            Event::BackendRemoved(id) => {
                self.backends.remove(id);
            }
            Event::Report { backend, report } => {
                if let Some(backend) = self.backends.get_mut(backend) {
                    backend.capacity = report.capacity.or(backend.capacity);
                }
            }
            Event::End { step, .. } | Event::Undelivered(step) => {
                let on = self.running.remove(step).and_then(|on| self.backends.get_mut(&on));
                if let Some(backend) = on {
                    backend.load -= 1;
                }
            }
            _ => {}
        }
    }

    pub(super) fn dispatched(&mut self, step: StepId, on: BackendId) {
        self.running.insert(step, on);
        if let Some(backend) = self.backends.get_mut(&on) {
            backend.load += 1;
        }
    }

    pub(super) fn usable(&self) -> impl Iterator<Item = BackendId> {
        self.backends.iter().filter(|(_, backend)| backend.up).map(|(&id, _)| id)
    }

    /// Number of steps in flight on a backend.
    pub(super) fn load(&self, id: BackendId) -> usize {
        self.backends.get(&id).map_or(0, |backend| backend.load)
    }

    pub(super) fn capacity(&self, id: BackendId) -> Option<Tokens> {
        self.backends.get(&id)?.capacity
    }

    pub(super) fn least_loaded(&self) -> Option<BackendId> {
        self.usable().min_by_key(|&id| (self.load(id), id))
    }

    fn set_up(&mut self, id: BackendId, up: bool) {
        if let Some(backend) = self.backends.get_mut(&id) {
            backend.up = up;
        }
    }
}

/// Tokens of the prompt, and of prompt and output together, if the step ended well and its usage is known.
pub(super) fn total(outcome: &Outcome) -> Option<(Tokens, Tokens)> {
    match outcome {
        Outcome::Completed(Some(usage)) => Some((usage.prompt, usage.prompt + usage.completion)),
        _ => None,
    }
}
