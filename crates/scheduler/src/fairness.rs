//! The bound on waiting. A started program that has waited for nearly `scheduler.fair.bound` gets a backend reserved.
//! Nothing else is admitted to that backend until the program fits, and idle programs there make way, the youngest
//! first.

use crate::backend::BackendLedger;
use crate::decision::{DispatchKind, PauseReason};
use crate::event::BackendId;
use crate::policy::GIANT;
use crate::program::{Pid, Program, known};
use crate::reclaim::Evictable;
use crate::scheduler::Scheduler;
use crate::units::Tokens;
use std::cmp::Reverse;
use std::time::Duration;

/// Share of the bound after which a backend is reserved. In simulation, most programs are then admitted within seconds,
/// and the slowest within a tenth of the bound.
const RESERVE_AFTER: f64 = 0.9;
/// Age of a lease that has been worth the prefill that it cost. A program with an older lease may be asked to make way.
const LEASE_SETTLED: Duration = Duration::from_secs(60);

impl Scheduler {
    /// Reserves a backend for each program that has waited too long, longest wait first, and admits each of these
    /// programs that fits by now.
    pub(crate) fn serve_overdue(&mut self) {
        let limit = self.policy.settings.fair.bound.mul_f64(RESERVE_AFTER);
        let late = |&&(since, _): &&(Duration, Pid)| self.now.saturating_sub(since) >= limit;
        let overdue: Vec<Pid> =
            self.queue.longest.iter().take_while(late).take(self.backends.len()).map(|&(_, pid)| pid).collect();
        for pid in overdue {
            let reserved = self.reservations.iter().find(|(_, of)| **of == pid).map(|(&on, _)| on);
            if let Some(on) = reserved.or_else(|| self.reserve(pid))
                && self.make_way(pid, on)
            {
                self.lease(pid, on);
                self.start_held(pid, DispatchKind::Resumed);
            }
        }
    }

    /// Reserves the backend with the most room to gain: its free tokens, its evictable tokens, and half of the tokens
    /// that its cache still holds of the program.
    fn reserve(&mut self, pid: Pid) -> Option<BackendId> {
        let program = self.programs.get(&pid)?;
        let room = |backend: &BackendLedger| {
            let effective = self.effective(backend, Some(program.class)).map_or(i64::MAX / 2, |tokens| tokens.0 as i64);
            let evictable = self.evictable(backend, Tokens(u64::MAX), Some(pid)).tokens.0 as i64;
            effective - backend.claims().0 as i64 + evictable + backend.shadow().resident(pid).0 as i64 / 2
        };
        let open = |id: &BackendId| !self.reservations.contains_key(id) && !self.avoids(program, *id);
        let open = self.backends.iter().filter(|(id, backend)| backend.usable() && open(id));
        let on = open.max_by_key(|(id, backend)| (room(backend), Reverse(**id))).map(|(&id, _)| id)?;
        self.reservations.insert(on, pid);
        Some(on)
    }

    /// Ends the program's reservation: it no longer waits, or it has to go to another backend.
    pub(crate) fn cancel_reservation(&mut self, pid: Pid) {
        for (&on, _) in self.reservations.iter().filter(|(_, of)| **of == pid) {
            self.dirty.backends.insert(on);
        }
        self.reservations.retain(|_, of| *of != pid);
    }

    /// Frees room on the backend that is reserved for the program. True: the program fits. It only has to fit now:
    /// neither the forecast nor promised prefill keeps it out.
    fn make_way(&mut self, pid: Pid, on: BackendId) -> bool {
        let (Some(program), Some(backend)) = (known(self.programs.get(&pid)), known(self.backends.get(&on))) else {
            return false;
        };
        let Some(missing) = self.missing(program, on, backend) else {
            return true;
        };
        let mut found = self.evictable(backend, missing, None);
        if found.tokens < missing {
            self.add_settled(backend, missing, &mut found, |_| true);
        }
        let fits = found.tokens >= missing;
        if !fits {
            // The program does not fit yet, but room that is freed now stays free for it. So younger programs that are
            // idle make way now; past the bound, older ones do too.
            let patient = program.waited(self.now) < self.policy.settings.fair.bound;
            let age = (program.first_seen, pid);
            found = Evictable::default();
            self.add_settled(backend, missing, &mut found, |other| !patient || other > age);
        }
        for victim in found.programs {
            self.unlease(victim, Some(PauseReason::MadeWay));
        }
        fits || self.backends.get(&on).is_some_and(BackendLedger::empty)
    }

    /// Tokens that the program's held steps need on the backend beyond its free ones. `None`: they fit, the backend is
    /// empty, or its limit is not known.
    fn missing(&self, program: &Program, on: BackendId, backend: &BackendLedger) -> Option<Tokens> {
        let effective = self.effective(backend, Some(program.class)).filter(|_| !backend.empty())?;
        let need = self.need_on(program, on, self.need(program).1);
        let wanted = (need - self.shared(program.class)).min(effective.scale(GIANT));
        Some(wanted + backend.claims() - effective).filter(|&missing| missing > Tokens::ZERO)
    }

    /// Adds idle programs whose leases are at least [`LEASE_SETTLED`] old, youngest program first, until `wanted` is
    /// reached.
    fn add_settled(
        &self,
        backend: &BackendLedger,
        wanted: Tokens,
        found: &mut Evictable,
        may_go: impl Fn((Duration, Pid)) -> bool,
    ) {
        let settled = |program: &Program| self.now.saturating_sub(program.leased_since) >= LEASE_SETTLED;
        let idle = backend.idle().iter().filter_map(|&(_, pid)| Some((pid, self.programs.get(&pid)?)));
        let able = idle
            .filter(|(pid, program)| settled(program) && program.waiting.is_empty() && !found.programs.contains(pid));
        let mut ages: Vec<_> =
            able.map(|(pid, program)| (program.first_seen, pid)).filter(|&age| may_go(age)).collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        self.add(&ages, wanted, found);
    }
}
