//! Backends that come, go, start anew and report. An unknown backend may have been removed while an event about it was
//! under way, so such an event changes nothing.

use crate::backend::BackendLedger;
use crate::decision::PauseReason;
use crate::event::{BackendId, BackendReport};
use crate::program::Pid;
use crate::scheduler::Scheduler;
use crate::units::Tokens;
use std::time::Duration;

impl Scheduler {
    pub(crate) fn backend_added(&mut self, id: BackendId, weight: u32, capacity: Option<Tokens>) {
        let backend = self.backends.entry(id).or_insert_with(|| BackendLedger::new(weight, capacity));
        backend.configure(weight, capacity);
        backend.forget_forecast();
        self.dirty.backends.insert(id);
        backend.shrink_shadow(&self.classes);
    }

    pub(crate) fn backend_up(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(&id) else { return };
        backend.rise(self.now, self.policy.slow_start);
        // Steps that run elsewhere by now may return here too, should their present backend fail.
        self.steps.values_mut().for_each(|step| step.avoid.retain(|&avoided| avoided != id));
        self.restore_cache(id);
        self.note_no_backend();
    }

    /// Marks the backend as down and drops its leases at once: held steps may go elsewhere, and so may every next turn.
    pub(crate) fn backend_down(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(&id) else { return };
        backend.fall();
        let leased: Vec<Pid> = backend.leased().iter().copied().collect();
        for pid in leased {
            self.unlease(pid, Some(PauseReason::BackendDown));
        }
        self.reservations.remove(&id);
        self.note_no_backend();
    }

    /// Marks the backend as draining. Its idle programs lose their leases at once, the others as their turns end.
    pub(crate) fn backend_draining(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(&id) else { return };
        backend.drain();
        let idle: Vec<Pid> = backend.idle().iter().map(|&(_, pid)| pid).collect();
        for pid in idle {
            self.unlease(pid, Some(PauseReason::Draining));
        }
        self.reservations.remove(&id);
        self.note_no_backend();
    }

    pub(crate) fn backend_removed(&mut self, id: BackendId) {
        self.backend_down(id);
        self.backends.remove(&id);
        self.note_no_backend();
    }

    pub(crate) fn report(&mut self, id: BackendId, report: BackendReport) {
        let Some(backend) = self.backends.get_mut(&id) else { return };
        self.dirty.backends.insert(id);
        backend.forget_forecast();
        if report.restarted {
            backend.restarted();
            let runs = self.steps.values_mut().filter_map(|step| step.run.as_mut());
            for run in runs.filter(|run| run.backend == id) {
                run.promise = Duration::ZERO;
            }
        }
        backend.reported_life(report.life);
        if let Some(capacity) = report.capacity {
            backend.reported_capacity(capacity);
        }
        if let Some(share) = report.kv_usage {
            backend.saw_usage(share, &self.classes);
        }
        if let Some(rate) = report.prefill_rate {
            backend.saw_rate(rate);
        }
        backend.shrink_shadow(&self.classes);
    }

    /// Notes since when no backend has been usable: the wait of held steps for one counts from then.
    fn note_no_backend(&mut self) {
        self.dirty.all = true;
        if self.backends.values().any(BackendLedger::usable) {
            self.no_backend_since = None;
        } else if self.no_backend_since.is_none() {
            self.no_backend_since = Some(self.now);
        }
    }
}
