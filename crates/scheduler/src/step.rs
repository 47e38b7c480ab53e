//! The life of a step: arrival, dispatch, progress, end.

use super::policy::LARGEST;
use super::program::Run;
use super::*;
use crate::settings::Routing;
use crate::units::Tokens;

impl Scheduler {
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        if self.steps.contains_key(&arrival.step) {
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

    /// A leased program's step goes past every waiter, if it fits or room can be made for it.
    fn goes_at_once(&mut self, pid: Pid, step: StepId) -> bool {
        if self.frozen || self.policy.routing != Routing::Program {
            return false;
        }
        let usable = |program: &Program| {
            let backend = self.backends.get(&program.lease?)?;
            (backend.up && program.waiting.is_empty()).then_some(program.running.is_empty())
        };
        match self.programs.get(&pid).and_then(usable) {
            None => false,
            // Its other steps run on: neither its prefix nor its lease is in doubt.
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

    /// More than half of its context, worth more than a moment's prefill, has left the cache.
    fn cache_lost(&self, pid: Pid) -> bool {
        let Some(program) = self.programs.get(&pid) else {
            return false;
        };
        let Some(backend) = program.lease.and_then(|on| self.backends.get(&on)) else {
            return false;
        };
        let missing = program.charge - backend.shadow.resident(pid);
        missing.0 * 2 > program.charge.0 && backend.recompute(missing) > policy::CACHE_LOSS
    }

    /// Puts a step in the queue, or refuses it when the queue is full.
    pub(super) fn hold(&mut self, id: StepId) {
        let Some(step) = self.steps.get(&id) else {
            return;
        };
        if self.queue.len() >= self.policy.settings.hold.queue {
            self.refuse(id, RefuseReason::QueueFull);
            return;
        }
        self.queue.steps.insert((step.arrived, id));
        self.queue.unannounced.push(id);
        let Some(pid) = step.program.filter(|_| self.policy.routing == Routing::Program) else {
            self.queue.unlabelled.insert(id);
            if let Some(program) = step.program.and_then(|pid| self.programs.get_mut(&pid)) {
                program.waiting.push(id);
            }
            return;
        };
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        program.waiting.push(id);
        if program.waiting_since.is_none() {
            program.waiting_since = Some(step.arrived);
            program.hold_reason = HoldReason::Queued;
            self.dirty.programs.push(pid);
            if program.started() {
                self.queue.started.insert((program.first_seen, pid));
                self.queue.longest.insert((step.arrived, pid));
            } else {
                self.queue.fresh.insert((program.first_seen, pid));
            }
        }
    }

    /// Takes a step out of the queue, and its program when it waits for nothing else.
    pub(super) fn unhold(&mut self, id: StepId) {
        let Some(step) = self.steps.get(&id) else {
            return;
        };
        self.queue.steps.remove(&(step.arrived, id));
        self.queue.unlabelled.remove(&id);
        let Some(pid) = step.program else { return };
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
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

    /// Starts a step of a leased program there.
    pub(super) fn dispatch(&mut self, id: StepId, kind: DispatchKind) {
        let Some(pid) = self.steps.get(&id).and_then(|step| step.program) else {
            return;
        };
        let Some(on) = self.programs.get(&pid).and_then(|program| program.lease) else {
            return;
        };
        self.start(id, on, kind);
    }

    /// Starts a step on a backend: counts it, charges it, promises its prefill.
    pub(super) fn start(&mut self, id: StepId, on: BackendId, kind: DispatchKind) {
        self.unhold(id);
        let Some(step) = self.steps.get(&id) else {
            return;
        };
        let program = step.program.and_then(|pid| self.programs.get(&pid));
        let Some(backend) = self.backends.get(&on) else {
            return;
        };
        let prompt = self.learned.prompt(program, step.prompt_bytes);
        let shared = program.filter(|p| backend.has_class(p.class)).map_or(Tokens::ZERO, |p| self.shared(p.class));
        let there = step.program.map_or(Tokens::ZERO, |pid| backend.shadow.resident(pid).max(pinned(program, on)));
        let whole = |program: &&Program| program.started() && there + shared >= program.context;
        let resident =
            program.filter(|_| kind == DispatchKind::Leased).filter(whole).map(|program| program.last_prompt);
        let uncached = prompt - shared - there;
        let run = Run {
            backend: on,
            order: self.next_order,
            prompt,
            estimate: prompt + self.learned.output(step.max_output),
            output: Tokens::ZERO,
            uncached,
            promise: backend.recompute(uncached),
            dispatched: self.now,
            alone: backend.in_flight == 0,
            first_token: false,
            resident,
            brought_lease: !matches!(kind, DispatchKind::Leased),
            forced: kind == DispatchKind::Forced,
        };
        self.next_order += 1;
        self.enter(id, on, run);
        self.decide(Decision::Dispatch { step: id, backend: on, kind });
    }

    fn enter(&mut self, id: StepId, on: BackendId, run: Run) {
        let (Some(step), Some(backend)) = (self.steps.get_mut(&id), self.backends.get_mut(&on)) else {
            return;
        };
        backend.in_flight += 1;
        backend.forced += usize::from(run.forced);
        backend.promised += run.promise;
        step.run = Some(run);
        let Some(pid) = step.program else { return };
        self.mark_busy(pid);
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        program.running.push(id);
        let from = program.home.replace(on).filter(|&from| from != on && program.context > Tokens::ZERO);
        if let Some(from) = from {
            let program = program.key.clone();
            let lost = !self.backends.get(&from).is_some_and(BackendLedger::usable);
            self.decide(Decision::Moved { program, from, to: on, lost });
        }
        self.recharge(pid);
    }

    pub(super) fn first_token(&mut self, id: StepId) {
        let Some(run) = self.steps.get_mut(&id).and_then(|step| step.run.as_mut()) else {
            return;
        };
        if std::mem::replace(&mut run.first_token, true) {
            return;
        }
        let promise = std::mem::take(&mut run.promise);
        let Some(backend) = self.backends.get_mut(&run.backend) else {
            return;
        };
        let closed = backend.promised >= policy::PREFILL_GATE;
        backend.promised = backend.promised.saturating_sub(promise);
        if closed && backend.promised < policy::PREFILL_GATE {
            self.dirty.backends.insert(run.backend);
        }
        // Without a counter to read, the TTFT of a lone step tells the speed; only a long prompt tells it well.
        let taken = self.now.saturating_sub(run.dispatched).as_secs_f64();
        if run.alone && !backend.rate_known() && run.uncached.0 >= 512 && taken > 0.0 {
            backend.saw_rate(run.uncached.as_f64() / taken);
        }
    }

    pub(super) fn progress(&mut self, id: StepId, output: Tokens) {
        let Some(step) = self.steps.get_mut(&id) else {
            return;
        };
        let Some(run) = step.run.as_mut() else { return };
        run.output = run.output.max(output.min(LARGEST));
        if run.prompt + run.output > run.estimate {
            run.estimate = run.prompt + run.output;
            if let Some(pid) = step.program {
                self.recharge(pid);
            }
        }
    }

    pub(super) fn end(&mut self, id: StepId, outcome: Outcome) {
        self.unhold(id);
        let Some(step) = self.steps.remove(&id) else {
            return;
        };
        match (step.program, &step.run) {
            (None, Some(run)) => self.leave(run),
            (Some(pid), Some(run)) => {
                self.leave(run);
                self.apply_outcome(pid, id, &step, run, outcome);
            }
            (Some(pid), None) => {
                self.dirty.all = true;
                self.step_gone(pid);
            }
            (None, None) => {}
        }
    }

    /// Gives back what the step took of its backend.
    pub(super) fn leave(&mut self, run: &Run) {
        let Some(backend) = self.backends.get_mut(&run.backend) else {
            return;
        };
        backend.in_flight -= 1;
        backend.forced -= usize::from(run.forced);
        backend.promised = backend.promised.saturating_sub(run.promise);
        self.dirty.backends.insert(run.backend);
    }

    /// Turns the step's estimate into what its outcome made of the program.
    fn apply_outcome(&mut self, pid: Pid, id: StepId, step: &StepState, run: &Run, outcome: Outcome) {
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        program.running.retain(|&running| running != id);
        let over = program.running.is_empty();
        let mut class_changed = false;
        match outcome {
            Outcome::Completed(usage) => class_changed = self.completed(pid, step, run, usage),
            Outcome::Failed if over => self.unlease(pid, Some(PauseReason::Error)),
            // As if it had never been: the lease that it brought goes with it.
            Outcome::Rejected | Outcome::Abandoned if run.brought_lease && over => {
                self.unlease(pid, None);
            }
            Outcome::Failed | Outcome::Rejected | Outcome::Abandoned => {}
        }
        let class = self.programs.get(&pid).map(|program| program.class).filter(|_| class_changed);
        self.recharge(pid);
        if let Some(class) = class {
            self.recharge_class(class);
        }
        self.turn_ended(pid);
        if step.last && matches!(outcome, Outcome::Completed(_)) {
            self.end_program(pid, EndKind::Final);
        }
        self.step_gone(pid);
    }

    /// The program's conversation is now what the backend counted, or what was expected of it; and what the
    /// step tells of others is learned. True when the class's shared prefix has changed.
    fn completed(&mut self, pid: Pid, step: &StepState, run: &Run, usage: Option<Usage>) -> bool {
        let Some(program) = self.programs.get_mut(&pid) else { return false };
        let first = !program.started();
        let usage = usage.map(Usage::bounded);
        let (prompt, total) = match usage {
            Some(usage) => (usage.prompt, usage.prompt + usage.completion),
            None => (run.prompt, run.prompt + run.output.max(Tokens(1))),
        };
        program.steps += 1;
        if run.order >= program.context_order || first {
            // Grown on one lease, tool time included: what the forecast counts with.
            if !run.brought_lease && !first {
                let since = self.now.saturating_sub(program.last_active);
                self.growth.saw_turn(total - program.context, since);
            }
            if !first {
                self.growth.saw_growth(program.context, total);
            }
            program.context_order = run.order;
            program.context = total;
            program.last_prompt = prompt;
            program.last_bytes = step.prompt_bytes;
            if self.queue.fresh.remove(&(program.first_seen, pid)) {
                self.queue.started.insert((program.first_seen, pid));
                self.queue.longest.extend(program.waiting_since.map(|since| (since, pid)));
                self.dirty.programs.push(pid);
            }
        } else {
            program.context = program.context.max(total);
        }
        let class = program.class;
        let Some(usage) = usage else {
            // Every event that carried output was counted as a token.
            if run.output > Tokens::ZERO {
                self.learned.saw_output(run.output);
            }
            return false;
        };
        self.out.push(Decision::Measured { estimate: run.estimate, reported: total });
        self.learned.saw_output(usage.completion);
        self.learned.saw_prompt(step.prompt_bytes, usage.prompt);
        let Some(cached) = usage.cached else { return false };
        let resident = run.resident.filter(|_| self.policy.settings.feedback == settings::Feedback::Auto);
        if let (Some(previous), Some(backend)) = (resident, self.backends.get_mut(&run.backend)) {
            backend.feedback.saw(previous, cached);
        }
        first && self.classes.saw_first_step(class, cached)
    }

    /// After a step in flight has left its program: idle, if that was the last.
    fn turn_ended(&mut self, pid: Pid) {
        let Some(program) = self.programs.get(&pid).filter(|program| program.running.is_empty()) else {
            return;
        };
        let draining = program.lease.and_then(|on| self.backends.get(&on)).is_some_and(|b| b.draining);
        self.mark_idle(pid);
        if draining {
            self.unlease(pid, Some(PauseReason::Draining));
        }
    }

    /// After a step has left its program: forgotten if nothing is left of it, else open to the idle limits.
    pub(super) fn step_gone(&mut self, pid: Pid) {
        let Some(program) = self.programs.get(&pid).filter(|program| program.inactive()) else {
            return;
        };
        if program.ended || !program.started() {
            self.forget(pid);
        } else {
            self.inactive.insert((program.last_active, pid));
        }
    }

    /// Nothing reached the backend: the step goes back to the queue, in its old place.
    pub(super) fn undelivered(&mut self, id: StepId) {
        let Some(run) = self.steps.get_mut(&id).and_then(|step| step.run.take()) else {
            return;
        };
        self.leave(&run);
        let Some(step) = self.steps.get_mut(&id) else {
            return;
        };
        step.avoid.push(run.backend);
        if let Some(pid) = step.program {
            if let Some(program) = self.programs.get_mut(&pid) {
                program.running.retain(|&running| running != id);
            }
            // Whoever else runs there will end soon as well; the step must be free to go elsewhere.
            self.cancel_reservation(pid);
            self.unlease(pid, Some(PauseReason::BackendDown));
        }
        if self.draining {
            self.refuse(id, RefuseReason::Draining);
        } else {
            self.hold(id);
        }
    }

    /// Ends a step that is not in flight, with an error.
    pub(super) fn refuse(&mut self, id: StepId, reason: RefuseReason) {
        self.unhold(id);
        let Some(step) = self.steps.remove(&id) else {
            return;
        };
        self.decide(Decision::Refuse { step: id, reason });
        self.dirty.all = true;
        if let Some(pid) = step.program {
            self.step_gone(pid);
        }
    }
}

/// What the program's own running steps keep in the cache of the backend.
fn pinned(program: Option<&Program>, on: BackendId) -> Tokens {
    program.filter(|p| p.lease == Some(on) && !p.running.is_empty()).map_or(Tokens::ZERO, |p| p.charge)
}
