//! Leases and charges. Claims change here and nowhere else, always together with what they are the sum of.

use super::*;
use crate::units::Tokens;

impl Scheduler {
    pub(super) fn shared(&self, class: u64) -> Tokens {
        self.classes.shared(class)
    }

    /// Tokens that programs may claim on the backend, with `class` among them; `None`: no limit known.
    pub(super) fn effective(&self, backend: &BackendLedger, with: Option<u64>) -> Option<Tokens> {
        backend.effective(self.policy.settings.headroom, |class| self.classes.shared(class), with)
    }

    /// Gives the program a lease; its steps must be started next.
    pub(super) fn lease(&mut self, pid: Pid, on: BackendId) {
        let came =
            self.programs.get(&pid).zip(self.backends.get(&on)).filter(|(_, backend)| backend.forecast.get().is_some());
        let came = came.map(|(program, backend)| {
            let need = self.need_on(program, on, self.need(program).1);
            let capacity = self.effective(backend, None).unwrap_or_default();
            need - self.shared(program.class) + self.growth.left(need, capacity)
        });
        let (Some(program), Some(backend)) = (self.programs.get_mut(&pid), self.backends.get_mut(&on)) else {
            return;
        };
        program.lease = Some(on);
        program.leased_since = self.now;
        backend.leased.insert(pid);
        backend.lease_changed(came);
        backend.enter_class(program.class);
        backend.idle.insert((program.last_active, pid));
        self.recharge(pid);
    }

    /// Takes the program's lease and its charge. What it leaves in the cache stays in the shadow.
    pub(super) fn unlease(&mut self, pid: Pid, reason: Option<PauseReason>) {
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        let Some(on) = program.lease.take() else {
            return;
        };
        let charge = std::mem::take(&mut program.charge);
        if let Some(backend) = self.backends.get_mut(&on) {
            backend.leased.remove(&pid);
            backend.lease_changed(None);
            backend.claims -= charge;
            if backend.idle.remove(&(program.last_active, pid)) {
                backend.idle_claims -= charge;
            }
            backend.leave_class(program.class);
            self.dirty.backends.insert(on);
        }
        if let Some(reason) = reason {
            program.last_pause = Some(reason);
            let program = program.key.clone();
            self.decide(Decision::Paused { program, backend: on, reason });
        }
    }

    /// Brings the program's charge in line with its footprint.
    pub(super) fn recharge(&mut self, pid: Pid) {
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        let Some(backend) = program.lease.and_then(|on| self.backends.get_mut(&on)) else {
            return;
        };
        let charge = program.footprint(&self.steps, self.classes.shared(program.class));
        let before = std::mem::replace(&mut program.charge, charge);
        backend.claims = backend.claims + charge - before;
        if charge < before {
            self.dirty.backends.extend(program.lease);
        }
        if backend.idle.contains(&(program.last_active, pid)) {
            backend.idle_claims = backend.idle_claims + charge - before;
        } else {
            backend.shrink_shadow(|class| self.classes.shared(class));
        }
    }

    /// The program's first step on its lease starts: it is idle no longer, its blocks are pinned.
    pub(super) fn mark_busy(&mut self, pid: Pid) {
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        let Some(backend) = program.lease.and_then(|on| self.backends.get_mut(&on)) else {
            return;
        };
        if backend.idle.remove(&(program.last_active, pid)) {
            backend.idle_claims -= program.charge;
        }
        backend.shadow.take(pid);
    }

    /// The program's last step on its lease is over: it is idle from now on.
    pub(super) fn mark_idle(&mut self, pid: Pid) {
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        program.last_active = self.now;
        let Some(backend) = program.lease.and_then(|on| self.backends.get_mut(&on)) else {
            return;
        };
        backend.idle.insert((program.last_active, pid));
        backend.idle_claims += program.charge;
        backend.shadow.leave(pid, program.charge, self.now);
        backend.shrink_shadow(|class| self.classes.shared(class));
    }

    /// A class has learned its shared prefix: every charge that it is part of follows.
    pub(super) fn recharge_class(&mut self, class: u64) {
        self.dirty.all = true;
        let leased: Vec<Pid> = self.backends.values().flat_map(|backend| backend.leased.iter().copied()).collect();
        for pid in leased {
            if self.programs.get(&pid).is_some_and(|program| program.class == class) {
                self.recharge(pid);
            }
        }
    }
}
