//! The life of a step while it runs: it starts, reports progress, or turns out not to have been delivered.

use crate::backend::BackendLedger;
use crate::decision::{Decision, DispatchKind, PauseReason, RefuseReason};
use crate::event::{BackendId, StepId};
use crate::policy::LARGEST;
use crate::program::{Program, Run, StepState, known};
use crate::scheduler::Scheduler;
use crate::units::Tokens;
use std::time::Duration;

/// Least number of uncached prompt tokens whose prefill tells the speed well: a shorter prefill is mostly overhead.
const TELLING_PROMPT: u64 = 512;

impl Scheduler {
    /// Starts a step of a leased program on the backend of the lease.
    pub(crate) fn dispatch(&mut self, id: StepId, kind: DispatchKind) {
        let pid = self.steps.get(&id).and_then(|step| step.program);
        let lease = pid.and_then(|pid| self.programs.get(&pid)).and_then(|program| program.lease);
        let Some(on) = known(lease) else { return };
        self.start(id, on, kind);
    }

    /// Starts a step on a backend: counts the step, charges it, and adds its prefill to the promises.
    pub(crate) fn start(&mut self, id: StepId, on: BackendId, kind: DispatchKind) {
        self.unhold(id);
        let (Some(step), Some(backend)) = (known(self.steps.get(&id)), known(self.backends.get(&on))) else { return };
        let run = self.run_of(step, on, backend, kind);
        self.next_order += 1;
        self.enter(id, on, run);
        self.decide(Decision::Dispatch { step: id, backend: on, kind });
    }

    /// The expected tokens and times of the step on this backend.
    fn run_of(&self, step: &StepState, on: BackendId, backend: &BackendLedger, kind: DispatchKind) -> Run {
        let program = step.program.and_then(|pid| self.programs.get(&pid));
        let prompt = self.learned.prompt(program, step.prompt_bytes);
        let shared = program.filter(|p| backend.has_class(p.class)).map_or(Tokens::ZERO, |p| self.shared(p.class));
        let left = |pid| backend.shadow().resident(pid).max(pinned(program, on));
        let there = step.program.map_or(Tokens::ZERO, left);
        let whole = |program: &&Program| program.started() && there + shared >= program.context;
        let resident = program.filter(|_| kind == DispatchKind::Leased).filter(whole);
        let uncached = prompt - shared - there;
        Run {
            backend: on,
            order: self.next_order,
            prompt,
            estimate: prompt + self.learned.output(step.max_output),
            output: Tokens::ZERO,
            uncached,
            promise: backend.recompute(uncached),
            dispatched: self.now,
            alone: backend.in_flight() == 0,
            first_token: false,
            resident: resident.map(|program| program.last_prompt),
            brought_lease: kind != DispatchKind::Leased,
            forced: kind == DispatchKind::Forced,
        }
    }

    fn enter(&mut self, id: StepId, on: BackendId, run: Run) {
        let (Some(step), Some(backend)) = (known(self.steps.get_mut(&id)), known(self.backends.get_mut(&on))) else {
            return;
        };
        backend.step_began(&run);
        step.run = Some(run);
        let Some(pid) = step.program else {
            // An unlabelled step is charged to nobody.
            return;
        };
        self.mark_busy(pid);
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        program.running.push(id);
        let from = program.home.replace(on).filter(|&from| from != on && program.context > Tokens::ZERO);
        if let Some(from) = from {
            let program = program.key.clone();
            let lost = !self.backends.get(&from).is_some_and(BackendLedger::usable);
            self.decide(Decision::Moved { program, from, to: on, lost });
        }
        self.recharge(pid);
    }

    pub(crate) fn first_token(&mut self, id: StepId) {
        let Some(run) = self.steps.get_mut(&id).and_then(|step| step.run.as_mut()) else {
            // The step is held again, or over: two events crossed.
            return;
        };
        if std::mem::replace(&mut run.first_token, true) {
            return;
        }
        let promise = std::mem::take(&mut run.promise);
        let Some(backend) = self.backends.get_mut(&run.backend) else {
            // The backend was removed while the step ran there.
            return;
        };
        if backend.promise_kept(promise) {
            self.dirty.backends.insert(run.backend);
        }
        // A backend without a prefill counter shows its speed in the TTFT of a lone step.
        let taken = self.now.saturating_sub(run.dispatched);
        if run.alone && backend.rate().is_none() && run.uncached.0 >= TELLING_PROMPT && taken > Duration::ZERO {
            backend.saw_rate(run.uncached.as_f64() / taken.as_secs_f64());
        }
    }

    pub(crate) fn progress(&mut self, id: StepId, output: Tokens) {
        let Some(step) = self.steps.get_mut(&id) else {
            // The step is over: two events crossed.
            return;
        };
        let Some(run) = step.run.as_mut() else {
            // The step is held again: two events crossed.
            return;
        };
        run.output = run.output.max(output.min(LARGEST));
        if run.prompt + run.output > run.estimate {
            run.estimate = run.prompt + run.output;
            if let Some(pid) = step.program {
                self.recharge(pid);
            }
        }
    }

    /// Nothing reached the backend: the step goes back to the queue, in its old place.
    pub(crate) fn undelivered(&mut self, id: StepId) {
        let Some(run) = self.steps.get_mut(&id).and_then(|step| step.run.take()) else {
            // The step is not in flight, so there is nothing to take back.
            return;
        };
        self.leave(&run);
        let Some(step) = known(self.steps.get_mut(&id)) else { return };
        step.avoid.push(run.backend);
        if let Some(pid) = step.program {
            if let Some(program) = known(self.programs.get_mut(&pid)) {
                program.running.retain(|&running| running != id);
            }
            // The program's other steps there will fail soon as well, and this step must be free to go elsewhere.
            self.cancel_reservation(pid);
            self.unlease(pid, Some(PauseReason::BackendDown));
        }
        if self.draining {
            self.refuse(id, RefuseReason::Draining);
        } else {
            self.hold(id);
        }
    }

    /// Gives back what the step took on its backend: its place in flight and its promised prefill.
    pub(crate) fn leave(&mut self, run: &Run) {
        let Some(backend) = self.backends.get_mut(&run.backend) else {
            // The backend was removed while the step ran there.
            return;
        };
        backend.step_left(run);
        self.dirty.backends.insert(run.backend);
    }
}

/// Tokens that the program's own running steps keep in the backend's cache.
fn pinned(program: Option<&Program>, on: BackendId) -> Tokens {
    program.filter(|p| p.lease == Some(on) && !p.running.is_empty()).map_or(Tokens::ZERO, |p| p.charge)
}
