//! How programs begin and end, and what the clock does to them.

use crate::backend::BackendLedger;
use crate::decision::{Decision, DispatchKind, EndKind, PauseReason, RefuseReason};
use crate::event::{BackendId, ProgramKey, StepId};
use crate::policy::{GONE_FACTOR, GONE_LIMITS, OVER_FACTOR};
use crate::program::{Pid, Program, known};
use crate::scheduler::Scheduler;
use crate::settings::{OnTimeout, Routing};
use std::cmp::Reverse;
use std::time::Duration;

impl Scheduler {
    /// The program of this key, made if it is not known. It is active from now on.
    pub(crate) fn program_of(&mut self, key: ProgramKey, class: u64) -> Pid {
        if let Some(&pid) = self.keys.get(&key) {
            if let Some(program) = self.programs.get_mut(&pid)
                && self.inactive.remove(&(program.last_active, pid))
            {
                self.learned.saw_gap(self.now.saturating_sub(program.last_active));
                if std::mem::take(&mut program.presumed_over) {
                    self.growth.saw_return(program.context);
                    self.learned.saw_return();
                }
            }
            return pid;
        }
        if self.keys.len() >= self.policy.max_programs
            && let Some(&(_, longest)) = self.inactive.first()
        {
            self.end_program(longest, EndKind::Displaced);
        }
        let pid = self.new_pid();
        self.programs.insert(pid, Program::new(key.clone(), class, self.now));
        self.by_start.insert(pid);
        self.keys.insert(key, pid);
        pid
    }

    pub(crate) fn new_pid(&mut self) -> Pid {
        let pid = Pid(self.next_pid);
        self.next_pid += 1;
        pid
    }

    pub(crate) fn release(&mut self, key: &ProgramKey) {
        if let Some(&pid) = self.keys.get(key) {
            self.end_program(pid, EndKind::Released);
        }
    }

    /// Ends the program: held steps are refused, its lease goes as soon as nothing of it runs, and its key
    /// is free at once.
    pub(crate) fn end_program(&mut self, pid: Pid, how: EndKind) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        if program.ended {
            // Released while its last step, which said so, was in flight.
            return;
        }
        program.ended = true;
        let key = program.key.clone();
        let waiting = program.waiting.clone();
        if program.started() && !program.presumed_over {
            self.growth.saw_final(program.context);
        }
        self.keys.remove(&key);
        self.decide(Decision::Ended { program: key, how });
        for step in waiting {
            self.refuse(step, RefuseReason::Released);
        }
        if self.programs.get(&pid).is_some_and(Program::inactive) {
            self.forget(pid);
        }
    }

    /// Removes a program that has no step left. What it leaves in the cache fades there by itself.
    pub(crate) fn forget(&mut self, pid: Pid) {
        self.unlease(pid, None);
        let Some(program) = known(self.programs.remove(&pid)) else { return };
        // Where the size of the cache is not known, nothing ever fades.
        for backend in self.backends.values_mut().filter(|backend| backend.capacity().is_none()) {
            backend.forget_prefix(pid);
        }
        self.by_start.remove(&pid);
        self.inactive.remove(&(program.last_active, pid));
        if !program.ended {
            self.keys.remove(&program.key);
        }
    }

    pub(crate) fn tick(&mut self) {
        self.dirty.all = true;
        for backend in self.backends.values_mut() {
            backend.tick(self.now, self.policy.slow_start);
        }
        self.expire_programs();
        self.presume_over();
        self.refuse_without_backend();
        self.end_long_holds();
    }

    fn expire_programs(&mut self) {
        let now = self.now;
        while let Some(&(since, pid)) = self.inactive.first() {
            if now.saturating_sub(since) <= self.policy.idle_ttl {
                break;
            }
            self.end_program(pid, EndKind::Expired);
        }
        // Most clients never release a program: one that is idle for far longer than tools take is gone.
        let (floor, ceiling) = GONE_LIMITS;
        let limit = self.learned.gap_p99().map_or(ceiling, |gap| (gap * GONE_FACTOR).clamp(floor, ceiling));
        let idle = |backend: &BackendLedger| {
            let late = backend.idle().iter().take_while(|(since, _)| now.saturating_sub(*since) > limit);
            late.map(|&(_, pid)| pid).collect::<Vec<_>>()
        };
        let gone: Vec<Pid> = self.backends.values().flat_map(idle).collect();
        for pid in gone {
            if self.programs.get(&pid).is_some_and(|program| program.waiting.is_empty()) {
                self.unlease(pid, Some(PauseReason::PresumedGone));
            }
        }
    }

    /// A program that is idle for longer than tools take has probably ended: most do not say so. Whether it has a lease
    /// or was evicted makes no difference.
    fn presume_over(&mut self) {
        let until = self.over_since();
        let from = self.presumed_over;
        if until <= from {
            return;
        }
        self.presumed_over = until;
        for (_, pid) in self.inactive.range((from, Pid(0))..(until, Pid(0))) {
            if let Some(program) = self.programs.get_mut(pid) {
                program.presumed_over = true;
                self.growth.saw_final(program.context);
                self.learned.saw_no_return();
            }
        }
    }

    /// The time since before which a program must be idle to count as ended.
    pub(crate) fn over_since(&self) -> Duration {
        self.now.saturating_sub(self.learned.longest_gap() * OVER_FACTOR)
    }

    fn refuse_without_backend(&mut self) {
        let Some(since) = self.no_backend_since else {
            // There is one.
            return;
        };
        let (now, wait) = (self.now, self.policy.settings.no_backend_wait);
        let late = |&&(arrived, _): &&(Duration, StepId)| now.saturating_sub(since.max(arrived)) >= wait;
        let late: Vec<StepId> = self.queue.steps.iter().take_while(late).map(|&(_, step)| step).collect();
        for step in late {
            self.refuse(step, RefuseReason::NoBackend);
        }
    }

    /// No step waits for ever: past `scheduler.hold.max` a started program is let in although it does not
    /// fit, one on a backend at a time; a new one is refused.
    fn end_long_holds(&mut self) {
        let (now, most) = (self.now, self.policy.settings.hold.max);
        let late = |&&(since, _): &&(Duration, StepId)| now.saturating_sub(since) >= most;
        let late: Vec<StepId> = self.queue.steps.iter().take_while(late).map(|&(_, step)| step).collect();
        for id in late {
            // One that went with another step of its program waits no longer.
            let Some(step) = self.steps.get(&id).filter(|step| step.run.is_none()) else { continue };
            // Leases are for routing by program alone.
            let pid = step.program.filter(|_| self.policy.routing == Routing::Program);
            let started = pid.filter(|pid| self.programs.get(pid).is_some_and(Program::started));
            match (started, self.policy.settings.hold.on_timeout) {
                (Some(pid), OnTimeout::Admit) => self.force(pid),
                _ => self.refuse(id, RefuseReason::HeldTooLong),
            }
        }
    }

    fn force(&mut self, pid: Pid) {
        let Some(program) = known(self.programs.get(&pid)) else { return };
        if program.lease.is_some() || self.frozen {
            // Frozen, nothing goes; a leased program waits for nothing else.
            return;
        }
        let room = |backend: &BackendLedger| {
            let effective = self.effective(backend, None).map_or(i64::MAX, |tokens| tokens.0 as i64);
            effective - backend.claims().0 as i64
        };
        // Where it could not be delivered it goes only when there is nowhere else.
        let open = self.backends.iter().filter(|(_, backend)| backend.usable() && backend.forced() == 0);
        let best =
            |&(&id, backend): &(&BackendId, &BackendLedger)| (!self.avoids(program, id), room(backend), Reverse(id));
        let Some((&on, _)) = open.max_by_key(best) else {
            // Each usable backend has a forced step already.
            return;
        };
        self.lease(pid, on);
        self.start_held(pid, DispatchKind::Forced);
    }

    /// Stops all dispatch, or lets it go on: leased programs first, for they never queue.
    pub(crate) fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
        self.dirty.all = true;
        if frozen {
            return;
        }
        let queued = self.queue.started.iter().chain(&self.queue.fresh).map(|&(_, pid)| pid);
        let leased = |pid: &Pid| self.programs.get(pid).is_some_and(|program| program.lease.is_some());
        let leased: Vec<Pid> = queued.filter(leased).collect();
        for pid in leased {
            self.start_held(pid, DispatchKind::Leased);
        }
    }

    /// Refuses everything held; steps in flight go on.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
        let held: Vec<StepId> = self.queue.steps.iter().map(|&(_, step)| step).collect();
        for step in held {
            self.refuse(step, RefuseReason::Draining);
        }
    }
}
