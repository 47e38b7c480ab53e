//! Backends that come, go, start anew and report.

use super::*;
use crate::units::Tokens;

impl Scheduler {
    pub(super) fn backend_added(&mut self, id: BackendId, weight: u32, capacity: Option<Tokens>) {
        let backend = self.backends.entry(id).or_insert_with(|| BackendLedger::new(weight, capacity));
        backend.configure(weight, capacity);
        backend.forecast.take();
        self.dirty.backends.insert(id);
        backend.shrink_shadow(|class| self.classes.shared(class));
    }

    pub(super) fn backend_up(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(&id) else {
            return;
        };
        backend.rise(self.now, self.policy.slow_start);
        backend.draining = false;
        // Also of those that run elsewhere by now: should that fail as well, they may return here.
        self.steps.values_mut().for_each(|step| step.avoid.retain(|&avoided| avoided != id));
        self.restore_cache(id);
        self.note_no_backend();
    }

    /// Its leases are dropped at once: held steps may go elsewhere, and so may every next turn.
    pub(super) fn backend_down(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(&id) else {
            return;
        };
        backend.fall();
        let leased: Vec<Pid> = backend.leased.iter().copied().collect();
        for pid in leased {
            self.unlease(pid, Some(PauseReason::BackendDown));
        }
        self.reservations.remove(&id);
        self.note_no_backend();
    }

    pub(super) fn backend_draining(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(&id) else {
            return;
        };
        backend.draining = true;
        let idle: Vec<Pid> = backend.idle.iter().map(|&(_, pid)| pid).collect();
        for pid in idle {
            self.unlease(pid, Some(PauseReason::Draining));
        }
        self.reservations.remove(&id);
        self.note_no_backend();
    }

    pub(super) fn backend_removed(&mut self, id: BackendId) {
        self.backend_down(id);
        self.backends.remove(&id);
        self.note_no_backend();
    }

    pub(super) fn report(&mut self, id: BackendId, report: BackendReport) {
        let Some(backend) = self.backends.get_mut(&id) else {
            return;
        };
        self.dirty.backends.insert(id);
        backend.forecast.take();
        if report.restarted {
            backend.restarted();
            let runs = self.steps.values_mut().filter_map(|step| step.run.as_mut());
            for run in runs.filter(|run| run.backend == id) {
                run.promise = Duration::ZERO;
            }
        }
        backend.life = report.life.or(backend.life);
        if let Some(capacity) = report.capacity {
            backend.reported_capacity(capacity);
        }
        if let Some(share) = report.kv_usage {
            backend.saw_usage(share, |class| self.classes.shared(class));
        }
        if let Some(rate) = report.prefill_rate {
            backend.saw_rate(rate);
        }
        backend.shrink_shadow(|class| self.classes.shared(class));
    }

    /// The wait for a backend counts from when the last one went.
    fn note_no_backend(&mut self) {
        self.dirty.all = true;
        if self.backends.values().any(BackendLedger::usable) {
            self.no_backend_since = None;
        } else if self.no_backend_since.is_none() {
            self.no_backend_since = Some(self.now);
        }
    }
}
