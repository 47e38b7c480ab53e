//! The life of a step before it runs: it arrives, goes at once or is held, and leaves the queue.

use crate::decision::{Decision, DispatchKind, HoldReason, PauseReason, RefuseReason};
use crate::event::{Arrival, StepId};
use crate::policy::CACHE_LOSS;
use crate::program::{Pid, Program, StepState, known};
use crate::scheduler::Scheduler;
use crate::settings::Routing;
use std::time::Duration;

impl Scheduler {
    pub(crate) fn arrive(&mut self, arrival: Arrival) {
        if self.steps.contains_key(&arrival.step) {
            // A number given twice is the caller's mistake: the step that has it goes on.
            return;
        }
        if self.draining {
            self.decide(Decision::Refuse { step: arrival.step, reason: RefuseReason::Draining });
            return;
        }
        let program = arrival.program.map(|key| self.program_of(key, arrival.class));
        let step = StepState {
            program,
            arrived: self.now,
            prompt_bytes: arrival.prompt_bytes,
            max_output: arrival.max_output,
            preferred: arrival.preferred,
            avoid: Vec::new(),
            last: arrival.last,
            run: None,
        };
        let id = arrival.step;
        self.steps.insert(id, step);
        match program {
            Some(pid) if self.goes_at_once(pid, id) => self.dispatch(id, DispatchKind::Leased),
            _ => self.hold(id),
        }
    }

    /// Whether the step of a leased program goes past all that wait: it does if it fits or room can be made for it.
    fn goes_at_once(&mut self, pid: Pid, step: StepId) -> bool {
        if self.frozen || self.policy.routing != Routing::Program {
            return false;
        }
        let usable = |program: &Program| {
            let backend = self.backends.get(&program.lease?)?;
            (backend.up() && program.waiting.is_empty()).then_some(program.running.is_empty())
        };
        match self.programs.get(&pid).and_then(usable) {
            None => false,
            // Other steps of the program run there, so neither its prefix nor its lease is in doubt.
            Some(false) => true,
            Some(true) => {
                if self.cache_lost(pid) {
                    self.unlease(pid, Some(PauseReason::CacheLost));
                    return false;
                }
                self.make_room_for_turn(pid, step)
            }
        }
    }

    /// Whether more than half of the leased program's context has left the cache, and computing it again takes more
    /// than [`CACHE_LOSS`].
    fn cache_lost(&self, pid: Pid) -> bool {
        let Some(program) = known(self.programs.get(&pid)) else { return false };
        let Some(backend) = known(program.lease.and_then(|on| self.backends.get(&on))) else { return false };
        let missing = program.charge - backend.shadow().resident(pid);
        missing.0 * 2 > program.charge.0 && backend.recompute(missing) > CACHE_LOSS
    }

    /// Puts a step in the queue, or refuses it when the queue is full.
    pub(crate) fn hold(&mut self, id: StepId) {
        let Some(step) = known(self.steps.get(&id)) else { return };
        if self.queue.len() >= self.policy.settings.hold.queue {
            self.refuse(id, RefuseReason::QueueFull);
            return;
        }
        let (program, arrived) = (step.program, step.arrived);
        self.queue.steps.insert((arrived, id));
        self.queue.unannounced.push(id);
        if let Some(program) = program.and_then(|pid| known(self.programs.get_mut(&pid))) {
            program.waiting.push(id);
        }
        match program.filter(|_| self.policy.routing == Routing::Program) {
            Some(pid) => self.hold_program(pid, arrived),
            None => {
                self.queue.unlabelled.insert(id);
            }
        }
    }

    /// Puts a program in the queue, unless it already waits for an earlier step.
    fn hold_program(&mut self, pid: Pid, arrived: Duration) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        if program.waiting_since.is_some() {
            return;
        }
        program.waiting_since = Some(arrived);
        program.hold_reason = HoldReason::Queued;
        self.dirty.programs.push(pid);
        if program.started() {
            self.queue.started.insert((program.first_seen, pid));
            self.queue.longest.insert((arrived, pid));
        } else {
            self.queue.fresh.insert((program.first_seen, pid));
        }
    }

    /// Takes a step out of the queue, if it is there. Its program leaves the queue too when it waits for no other step.
    pub(crate) fn unhold(&mut self, id: StepId) {
        let Some(step) = self.steps.get(&id) else {
            // The caller reports the end of a refused step too.
            return;
        };
        self.queue.steps.remove(&(step.arrived, id));
        self.queue.unlabelled.remove(&id);
        let Some(pid) = step.program else { return };
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        program.waiting.retain(|&waiting| waiting != id);
        if program.waiting.is_empty() {
            if let Some(since) = program.waiting_since.take() {
                self.queue.longest.remove(&(since, pid));
            }
            self.queue.started.remove(&(program.first_seen, pid));
            self.queue.fresh.remove(&(program.first_seen, pid));
            self.cancel_reservation(pid);
        }
    }

    /// Ends a step that is not in flight with an error.
    pub(crate) fn refuse(&mut self, id: StepId, reason: RefuseReason) {
        self.unhold(id);
        let Some(step) = known(self.steps.remove(&id)) else { return };
        self.decide(Decision::Refuse { step: id, reason });
        self.dirty.all = true;
        if let Some(pid) = step.program {
            self.step_gone(pid);
        }
    }
}
