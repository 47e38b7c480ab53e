//! The end of a step: its effect on its program, and the values that are learned from it.

use crate::decision::{Decision, EndKind, PauseReason};
use crate::event::{Outcome, StepId, Usage};
use crate::program::{Pid, Run, StepState, known};
use crate::scheduler::Scheduler;
use crate::settings::Feedback;
use crate::units::Tokens;

impl Scheduler {
    pub(crate) fn end(&mut self, id: StepId, outcome: Outcome) {
        self.unhold(id);
        let Some(step) = self.steps.remove(&id) else {
            // The step was refused earlier, and its client has left since.
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

    /// Replaces the step's estimate with the effect of its outcome on the program.
    fn apply_outcome(&mut self, pid: Pid, id: StepId, step: &StepState, run: &Run, outcome: Outcome) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        program.running.retain(|&running| running != id);
        let (over, class) = (program.running.is_empty(), program.class);
        let mut class_changed = false;
        match outcome {
            Outcome::Completed(usage) => class_changed = self.completed(pid, step, run, usage.map(Usage::bounded)),
            Outcome::Failed if over => self.unlease(pid, Some(PauseReason::Error)),
            // All is as if the step had never been: the lease that was given for it goes too.
            Outcome::Rejected | Outcome::Abandoned if run.brought_lease && over => self.unlease(pid, None),
            Outcome::Failed | Outcome::Rejected | Outcome::Abandoned => {}
        }
        self.recharge(pid);
        if class_changed {
            self.recharge_class(class);
        }
        self.turn_ended(pid);
        if step.last && matches!(outcome, Outcome::Completed(_)) {
            self.end_program(pid, EndKind::Final);
        }
        self.step_gone(pid);
    }

    /// Sets the program's context to the tokens that the backend counted or, without usage, to the estimated prompt and
    /// the counted output; and learns from the step. True: the shared prefix of the program's class has changed.
    fn completed(&mut self, pid: Pid, step: &StepState, run: &Run, usage: Option<Usage>) -> bool {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return false };
        let (first, class) = (!program.started(), program.class);
        let (prompt, total) = match usage {
            Some(usage) => (usage.prompt, usage.prompt + usage.completion),
            None => (run.prompt, run.prompt + run.output.max(Tokens(1))),
        };
        program.steps += 1;
        if run.order >= program.context_order || first {
            program.last_prompt = prompt;
            program.last_bytes = step.prompt_bytes;
            program.context_order = run.order;
            self.grow(pid, run, total);
        } else {
            program.context = program.context.max(total);
        }
        let Some(usage) = usage else {
            // The count of output events stands for the missing count of tokens.
            if run.output > Tokens::ZERO {
                self.learned.saw_output(run.output);
            }
            return false;
        };
        self.decide(Decision::Measured { estimate: run.estimate, reported: total });
        self.learn(step, run, usage);
        first && usage.cached.is_some_and(|cached| self.classes.saw_first_step(class, cached))
    }

    /// Sets the program's context to `total`, and tells the forecast how it grew.
    fn grow(&mut self, pid: Pid, run: &Run, total: Tokens) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        if program.started() {
            // The forecast counts with growth under one lease, tool time included.
            if !run.brought_lease {
                let since = self.now.saturating_sub(program.last_active);
                self.growth.saw_turn(total - program.context, since);
            }
            self.growth.saw_growth(program.context, total);
        }
        program.context = total;
        if self.queue.fresh.remove(&(program.first_seen, pid)) {
            self.queue.started.insert((program.first_seen, pid));
            self.queue.longest.extend(program.waiting_since.map(|since| (since, pid)));
            self.dirty.programs.push(pid);
        }
    }

    /// Learns from the step's usage for the estimates of other steps, and for the capacity of its backend.
    fn learn(&mut self, step: &StepState, run: &Run, usage: Usage) {
        self.learned.saw_output(usage.completion);
        self.learned.saw_prompt(step.prompt_bytes, usage.prompt);
        let resident = run.resident.filter(|_| self.policy.settings.feedback == Feedback::Auto);
        if let (Some(previous), Some(cached)) = (resident, usage.cached)
            && let Some(backend) = self.backends.get_mut(&run.backend)
        {
            backend.saw_cached(previous, cached);
        }
    }

    /// Makes the program idle after one of its steps in flight has ended, if no other one runs.
    fn turn_ended(&mut self, pid: Pid) {
        let Some(program) = known(self.programs.get(&pid)) else { return };
        if !program.running.is_empty() {
            return;
        }
        let draining = program.lease.and_then(|on| self.backends.get(&on)).is_some_and(|backend| backend.draining());
        self.mark_idle(pid);
        if draining {
            self.unlease(pid, Some(PauseReason::Draining));
        }
    }

    /// Closes up after a step has left its program. If no other step is open, a program that ended or has no context is
    /// forgotten; any other becomes inactive and may expire.
    pub(crate) fn step_gone(&mut self, pid: Pid) {
        let Some(program) = self.programs.get(&pid).filter(|program| program.inactive()) else {
            // Other steps of the program go on, or it was forgotten with its last step.
            return;
        };
        if program.ended || !program.started() {
            self.forget(pid);
        } else {
            self.inactive.insert((program.last_active, pid));
        }
    }
}
