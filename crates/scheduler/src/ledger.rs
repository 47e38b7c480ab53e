//! Leases and charges. A program and the ledger of its backend both record them; the functions here change both
//! together.

use crate::backend::BackendLedger;
use crate::decision::{Decision, PauseReason};
use crate::event::BackendId;
use crate::program::{Pid, known};
use crate::scheduler::Scheduler;
use crate::units::Tokens;

impl Scheduler {
    pub(crate) fn shared(&self, class: u64) -> Tokens {
        self.classes.shared(class)
    }

    /// Tokens that programs may claim on the backend if a program of class `with` joins them. `None`: no limit is
    /// known.
    pub(crate) fn effective(&self, backend: &BackendLedger, with: Option<u64>) -> Option<Tokens> {
        backend.effective(self.policy.settings.headroom, &self.classes, with)
    }

    /// Gives the program a lease. The caller starts its held steps next.
    pub(crate) fn lease(&mut self, pid: Pid, on: BackendId) {
        let comes_to = self.comes_to(pid, on);
        let (Some(program), Some(backend)) = (known(self.programs.get_mut(&pid)), known(self.backends.get_mut(&on)))
        else {
            return;
        };
        program.lease = Some(on);
        program.leased_since = self.now;
        backend.lease((program.last_active, pid), program.class, comes_to);
        self.recharge(pid);
    }

    /// Tokens that the program is expected to need on this backend at its end. `None`: the backend has no forecast that
    /// must be told.
    fn comes_to(&self, pid: Pid, on: BackendId) -> Option<Tokens> {
        let backend = self.backends.get(&on).filter(|backend| backend.has_forecast())?;
        let program = self.programs.get(&pid)?;
        let need = self.need_on(program, on, self.need(program).1);
        let capacity = self.effective(backend, None).unwrap_or_default();
        Some(need - self.shared(program.class) + self.growth.left(need, capacity))
    }

    /// Takes the program's lease, if it has one, and its charge. Its prefix stays in the shadow of the cache.
    pub(crate) fn unlease(&mut self, pid: Pid, reason: Option<PauseReason>) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        let Some(on) = program.lease.take() else {
            // The program has no lease to take.
            return;
        };
        let charge = std::mem::take(&mut program.charge);
        if let Some(backend) = known(self.backends.get_mut(&on)) {
            backend.unlease((program.last_active, pid), program.class, charge);
            self.dirty.backends.insert(on);
        }
        if let Some(reason) = reason {
            program.last_pause = Some(reason);
            let program = program.key.clone();
            self.decide(Decision::Paused { program, backend: on, reason });
        }
    }

    /// Brings the charge of a program with a lease in line with its footprint.
    pub(crate) fn recharge(&mut self, pid: Pid) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        let Some(on) = program.lease else {
            // Without a lease nothing is charged.
            return;
        };
        let Some(backend) = known(self.backends.get_mut(&on)) else { return };
        let charge = program.footprint(&self.steps, self.classes.shared(program.class));
        let before = std::mem::replace(&mut program.charge, charge);
        if charge < before {
            self.dirty.backends.insert(on);
        }
        backend.recharge((program.last_active, pid), before, charge, &self.classes);
    }

    /// Notes that the program runs a step. If it has a lease, it is no longer idle there.
    pub(crate) fn mark_busy(&mut self, pid: Pid) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        if let Some(backend) = program.lease.and_then(|on| known(self.backends.get_mut(&on))) {
            backend.mark_busy((program.last_active, pid), program.charge);
        }
    }

    /// Notes that the program runs no step any more: it is idle from now on.
    pub(crate) fn mark_idle(&mut self, pid: Pid) {
        let Some(program) = known(self.programs.get_mut(&pid)) else { return };
        program.last_active = self.now;
        if let Some(backend) = program.lease.and_then(|on| known(self.backends.get_mut(&on))) {
            backend.mark_idle((program.last_active, pid), program.charge, &self.classes);
        }
    }

    /// Recharges all leased programs of a class whose shared prefix has changed.
    pub(crate) fn recharge_class(&mut self, class: u64) {
        self.dirty.all = true;
        let leased: Vec<Pid> = self.backends.values().flat_map(|backend| backend.leased().iter().copied()).collect();
        for pid in leased {
            if self.programs.get(&pid).is_some_and(|program| program.class == class) {
                self.recharge(pid);
            }
        }
    }
}
