//! How programs begin and end, and all that happens because time has passed.

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
    /// Finds the program of this key, or begins a new one. If the program was inactive, its tool gap ends here.
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

    /// Ends the program. Its held steps are refused, its key is free at once, and its lease goes as soon as none of its
    /// steps runs.
    pub(crate) fn end_program(&mut self, pid: Pid, how: EndKind) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        if program.ended {
            // The program has ended already: a release came while its last step ran.
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

    /// Removes a program that has no step left. Its prefix stays in the shadow of a cache until newer ones push it out.
    pub(crate) fn forget(&mut self, pid: Pid) {
        self.unlease(pid, None);
        let Some(program) = known(self.programs.remove(&pid)) else { return };
        // Where the size of a cache is not known, nothing pushes a prefix out of the shadow.
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
        // Most clients never release a program. A program that is idle for far longer than tools take is taken for
        // gone.
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

    /// Counts each program as ended that has been idle for longer than tools take: most clients do not say so. Whether
    /// the program has a lease or was evicted makes no difference.
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

    /// The time before which a program must have gone idle to count as ended.
    pub(crate) fn over_since(&self) -> Duration {
        self.now.saturating_sub(self.learned.longest_gap() * OVER_FACTOR)
    }

    fn refuse_without_backend(&mut self) {
        let Some(since) = self.no_backend_since else {
            // A backend is usable.
            return;
        };
        let (now, wait) = (self.now, self.policy.settings.no_backend_wait);
        let late = |&&(arrived, _): &&(Duration, StepId)| now.saturating_sub(since.max(arrived)) >= wait;
        let late: Vec<StepId> = self.queue.steps.iter().take_while(late).map(|&(_, step)| step).collect();
        for step in late {
            self.refuse(step, RefuseReason::NoBackend);
        }
    }

    /// No step waits for ever. Past `scheduler.hold.max` a started program is forced in although it does not fit, one
    /// program at a time on each backend. Steps of new programs are refused; with `on_timeout: reject`, all are.
    fn end_long_holds(&mut self) {
        let (now, most) = (self.now, self.policy.settings.hold.max);
        let late = |&&(since, _): &&(Duration, StepId)| now.saturating_sub(since) >= most;
        let late: Vec<StepId> = self.queue.steps.iter().take_while(late).map(|&(_, step)| step).collect();
        for id in late {
            // A step that was dispatched together with another one of its program waits no longer.
            let Some(step) = self.steps.get(&id).filter(|step| step.run.is_none()) else { continue };
            // Only routing by program gives leases.
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
            // While dispatch is frozen, nothing goes. A leased program waits only for the end of a freeze.
            return;
        }
        let room = |backend: &BackendLedger| {
            let effective = self.effective(backend, None).map_or(i64::MAX, |tokens| tokens.0 as i64);
            effective - backend.claims().0 as i64
        };
        // A backend that a step could not be delivered to is the last choice.
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

    /// Stops all dispatch, or lets it go on. Held steps of leased programs then go first, because they need no room.
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

    /// Refuses all held steps. Steps in flight go on.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
        let held: Vec<StepId> = self.queue.steps.iter().map(|&(_, step)| step).collect();
        for step in held {
            self.refuse(step, RefuseReason::Draining);
        }
    }
}
