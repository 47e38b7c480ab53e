//! The invariants, checked after every event in debug builds and tests.

use crate::backend::BackendLedger;
use crate::event::BackendId;
use crate::program::{Pid, Program};
use crate::scheduler::Scheduler;
use crate::settings::Routing;
use crate::units::Tokens;
use std::time::Duration;

impl Scheduler {
    /// Checks all invariants of the ledgers.
    ///
    /// # Errors
    /// A sentence that names the first broken invariant and the program, step or backend that breaks it.
    pub fn check(&self) -> Result<(), String> {
        for (id, backend) in &self.backends {
            self.check_backend(*id, backend)?;
        }
        for (pid, program) in &self.programs {
            self.check_program(*pid, program)?;
        }
        ensure(self.by_start.len() == self.programs.len(), || format!("{} on the roll", self.by_start.len()))?;
        self.check_queue()
    }

    fn check_backend(&self, id: BackendId, backend: &BackendLedger) -> Result<(), String> {
        let charge = |pid: &Pid| self.programs.get(pid).map_or(Tokens::ZERO, |program| program.charge);
        let claims: Tokens = backend.leased().iter().map(charge).sum();
        ensure(backend.claims() == claims, || {
            format!("{id:?}: claims {} are not Σ charges {claims}", backend.claims())
        })?;
        let idle: Tokens = backend.idle().iter().map(|(_, pid)| charge(pid)).sum();
        ensure(backend.idle_claims() == idle, || format!("{id:?}: idle claims {} != {idle}", backend.idle_claims()))?;
        let runs = || self.steps.values().filter_map(|step| step.run.as_ref()).filter(|run| run.backend == id);
        ensure(backend.in_flight() == runs().count(), || format!("{id:?}: in flight {}", backend.in_flight()))?;
        ensure(backend.forced() == runs().filter(|run| run.forced).count(), || format!("{id:?}: forced"))?;
        let promised: Duration = runs().map(|run| run.promise).sum();
        ensure(backend.promised() == promised, || {
            format!("{id:?}: promised {:?} != {promised:?}", backend.promised())
        })?;
        ensure(backend.up() || backend.leased().is_empty(), || format!("{id:?} is down and holds leases"))?;
        if let Some(capacity) = backend.capacity() {
            ensure(backend.shadow().total() <= capacity, || format!("{id:?}: the shadow exceeds the cache"))?;
        }
        for pid in backend.leased() {
            let lease = self.programs.get(pid).and_then(|program| program.lease);
            ensure(lease == Some(id), || format!("{id:?} leases {pid:?}, which says {lease:?}"))?;
        }
        Ok(())
    }

    fn check_program(&self, pid: Pid, program: &Program) -> Result<(), String> {
        let leased = program.lease.and_then(|on| self.backends.get(&on));
        ensure(program.lease.is_none() || leased.is_some_and(|b| b.leased().contains(&pid)), || {
            format!("{pid:?}: lease")
        })?;
        let footprint = program.footprint(&self.steps, self.shared(program.class));
        let charge = if leased.is_some() { footprint } else { Tokens::ZERO };
        ensure(program.charge == charge, || format!("{pid:?}: charge {} != {charge}", program.charge))?;
        if let Some(backend) = leased {
            let idle = backend.idle().contains(&(program.last_active, pid));
            ensure(idle == program.running.is_empty(), || format!("{pid:?}: idle {idle}"))?;
            let waits = !program.waiting.is_empty() && self.policy.routing == Routing::Program;
            ensure(!waits || self.frozen, || format!("{pid:?} is leased and waits"))?;
        }
        ensure(program.ended != self.keys.contains_key(&program.key) || self.reused(pid, program), || {
            format!("{pid:?}: key")
        })?;
        ensure(self.by_start.contains(&pid), || format!("{pid:?} is not on the roll"))?;
        let inactive = self.inactive.contains(&(program.last_active, pid));
        ensure(inactive == program.inactive(), || format!("{pid:?}: inactive {inactive}"))?;
        let over = inactive && program.last_active < self.presumed_over;
        ensure(over || !program.presumed_over, || format!("{pid:?} counts as ended and is not idle"))
    }

    /// Whether the program has ended and its key belongs to a later program by now.
    fn reused(&self, pid: Pid, program: &Program) -> bool {
        program.ended && self.keys.get(&program.key).is_some_and(|&other| other != pid)
    }

    fn check_queue(&self) -> Result<(), String> {
        let held = self.steps.iter().filter(|(_, step)| step.run.is_none()).count();
        ensure(held == self.queue.steps.len(), || format!("{held} steps held, {} queued", self.queue.steps.len()))?;
        let waiting: usize = self.programs.values().map(|program| program.waiting.len()).sum();
        let without = self.queue.unlabelled.iter().filter(|id| self.steps.get(id).is_some_and(|s| s.program.is_none()));
        let without = without.count();
        ensure(held == waiting + without, || format!("{held} held, {waiting} + {without} in their places"))?;
        let (longest, started) = (self.queue.longest.len(), self.queue.started.len());
        ensure(longest == started, || {
            format!("{started} started programs wait, {longest} by the length of their wait")
        })?;
        for (on, pid) in &self.reservations {
            let waits = self.programs.get(pid).is_some_and(|program| program.waiting_since.is_some());
            let usable = self.backends.get(on).is_some_and(BackendLedger::usable);
            ensure(waits && usable, || format!("{on:?} is reserved for {pid:?}: it waits {waits}, usable {usable}"))?;
        }
        for &(_, pid) in self.queue.started.iter().chain(&self.queue.fresh) {
            let waits = self.programs.get(&pid).is_some_and(|program| !program.waiting.is_empty());
            ensure(waits, || format!("{pid:?} is queued and waits for nothing"))?;
        }
        Ok(())
    }
}

fn ensure(holds: bool, else_say: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(else_say()) }
}
