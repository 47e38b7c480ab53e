//! Which held program goes next, and to which backend: started programs by age, then new ones in the order of their
//! arrival.

use crate::backend::BackendLedger;
use crate::decision::{Decision, DispatchKind, HoldReason, PauseReason};
use crate::event::{BackendId, StepId};
use crate::forecast::Member;
use crate::forecast::peak::PeakForecast;
use crate::policy::{GIANT, LOOK_AHEAD, PREFILL_GATE, PREFILL_LIGHT, PREFILL_PATIENCE};
use crate::program::{Pid, Program, known};
use crate::queue::Candidates;
use crate::reclaim::Evictable;
use crate::scheduler::Scheduler;
use crate::settings::Routing;
use crate::units::Tokens;
use std::time::Duration;

/// A backend for a program, and the price of placing it there.
struct Placement {
    backend: BackendId,
    /// Seconds of prefill, with a share for free room and balance; the lowest wins.
    cost: f64,
    /// Idle programs that lose their leases to make room.
    victims: Vec<Pid>,
}

impl Scheduler {
    /// Dispatches all held steps that fit now.
    pub(crate) fn fill(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        if self.frozen || self.draining || self.queue.len() == 0 {
            return;
        }
        self.fill_unlabelled();
        // No backend may stand empty while a step waits. So all waiting programs are looked at again when one is empty.
        dirty.all |= self.backends.values().any(|backend| backend.usable() && backend.empty());
        if dirty.is_empty() {
            return;
        }
        self.serve_overdue();
        // A program that does not fit lets smaller ones behind it pass, because it is looked at first whenever
        // something ends. After `fair.after` it lets none pass any more: then all programs behind it wait until it
        // fits.
        let started: Vec<Pid> = self.queue.started.iter().take(LOOK_AHEAD).map(|&(_, pid)| pid).collect();
        for pid in started {
            if self.admit(pid, dirty.candidates(pid)) {
                // The programs behind this one may never have been looked at: one that waits too long hides them, and
                // so does `LOOK_AHEAD`.
                dirty.all = true;
            } else if self.waited(pid) >= self.policy.settings.fair.after {
                return;
            }
        }
        // New programs wait until every started one runs: to let them in would only push started ones out again.
        while self.queue.started.is_empty()
            && let Some(&(_, head)) = self.queue.fresh.first()
        {
            if !self.admit(head, dirty.candidates(head)) {
                break;
            }
            dirty.all = true;
        }
    }

    fn fill_unlabelled(&mut self) {
        if !self.backends.values().any(BackendLedger::usable) {
            return;
        }
        let waiting: Vec<StepId> = self.queue.unlabelled.iter().copied().collect();
        for id in waiting {
            // A step that must avoid the only usable backend does not stop the others.
            if let Some(on) = self.by_load(id) {
                self.last_choice = Some(on);
                self.start(id, on, DispatchKind::Unlabelled);
            }
        }
    }

    /// The backend for a step that is not bound to one. By round robin: the next usable backend in turn. Otherwise the
    /// least loaded one; a tie goes to the consistent hash's choice, then to the first backend.
    fn by_load(&self, id: StepId) -> Option<BackendId> {
        let step = self.steps.get(&id)?;
        let usable = || self.backends.iter().filter(|(id, backend)| backend.usable() && !step.avoid.contains(id));
        if self.policy.routing == Routing::RoundRobin {
            let next = usable().map(|(&id, _)| id).find(|&id| self.last_choice.is_none_or(|last| id > last));
            return next.or_else(|| usable().map(|(&id, _)| id).next());
        }
        let rank = |id: BackendId, backend: &BackendLedger| (backend.load(), step.preferred != Some(id));
        let least = usable().min_by(|a, b| {
            let (a, b) = (rank(*a.0, a.1), rank(*b.0, b.1));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        });
        least.map(|(&id, _)| id)
    }

    /// Gives the program a lease and starts all its held steps, if there is room. True: the steps went.
    fn admit(&mut self, pid: Pid, candidates: Candidates<'_>) -> bool {
        let looked_at = |program: &&Program| !candidates.is_empty() && !self.awaits_home(pid, program);
        let Some(program) = known(self.programs.get(&pid)).filter(looked_at) else { return false };
        let kind = if program.started() { DispatchKind::Resumed } else { DispatchKind::New };
        match self.choose(pid, candidates) {
            Ok(place) => {
                for victim in place.victims {
                    self.unlease(victim, Some(PauseReason::Evicted));
                }
                self.lease(pid, place.backend);
                self.start_held(pid, kind);
                true
            }
            // None of the changed backends is one for it, so the reason for its wait stays the same.
            Err(HoldReason::NoBackend) if matches!(candidates, Candidates::Only(_)) => false,
            Err(reason) => {
                if let Some(program) = self.programs.get_mut(&pid) {
                    program.hold_reason = reason;
                }
                false
            }
        }
    }

    pub(crate) fn start_held(&mut self, pid: Pid, kind: DispatchKind) {
        let waiting = self.programs.get(&pid).map(|program| program.waiting.clone()).unwrap_or_default();
        for step in waiting {
            self.dispatch(step, kind);
        }
    }

    /// The cheapest of the candidate backends that can take the program, or the reason why none can.
    fn choose(&self, pid: Pid, candidates: Candidates<'_>) -> Result<Placement, HoldReason> {
        let program = self.programs.get(&pid).ok_or(HoldReason::Queued)?;
        let usable: Vec<_> = self.backends.iter().filter(|(id, b)| b.usable() && !self.avoids(program, **id)).collect();
        let weight: f64 = usable.iter().map(|(_, backend)| backend.weight()).sum();
        let leased: usize = usable.iter().map(|(_, backend)| self.forecast(backend).members()).sum();
        let mean = leased as f64 / weight;
        let mut best: Result<Placement, HoldReason> = Err(HoldReason::NoBackend);
        for (&id, backend) in usable.into_iter().filter(|(id, _)| candidates.contains(**id)) {
            match (self.consider(pid, program, id, backend, mean), &best) {
                (Ok(place), Ok(than)) if place.cost >= than.cost => {}
                (Ok(place), _) => best = Ok(place),
                (Err(_), Ok(_)) => {}
                // A backend that has room now, and only lacks prefill time or room ahead, is nearer to taking the
                // program than one without room. So its reason is reported.
                (
                    Err(HoldReason::NoRoom | HoldReason::Reserved),
                    Err(HoldReason::PrefillBusy | HoldReason::NoRoomAhead),
                ) => {}
                (Err(reason), Err(_)) => best = Err(reason),
            }
        }
        best
    }

    /// Whether one of the program's held steps could not be delivered to the backend.
    pub(crate) fn avoids(&self, program: &Program, on: BackendId) -> bool {
        program.waiting.iter().any(|step| self.steps.get(step).is_some_and(|step| step.avoid.contains(&on)))
    }

    /// Whether the program may go to this backend now, and at what cost. The cost is in seconds of prefill, with a
    /// share for free room and balance.
    fn consider(
        &self,
        pid: Pid,
        program: &Program,
        id: BackendId,
        backend: &BackendLedger,
        mean: f64,
    ) -> Result<Placement, HoldReason> {
        if self.reservations.get(&id).is_some_and(|&of| of != pid) {
            return Err(HoldReason::Reserved);
        }
        let shared = self.shared(program.class);
        let effective = self.effective(backend, Some(program.class));
        let free = effective.map(|effective| effective.0 as i64 - self.weighed_claims(backend).0 as i64);
        let limits = effective.zip(free).filter(|_| !backend.empty());
        let missing = |need: Tokens, (effective, free): (Tokens, i64)| {
            (need - shared).min(effective.scale(GIANT)).0 as i64 - free
        };
        // A program needs at least room for its context. This cheap test alone turns away most of a long queue.
        if limits.is_some_and(|limits| missing(program.context, limits) > self.forecast(backend).evictable.0 as i64) {
            return Err(HoldReason::NoRoom);
        }
        let (prompt, held) = self.need(program);
        let need = self.need_on(program, id, held);
        let present = if backend.has_class(program.class) { shared } else { Tokens::ZERO };
        let recompute = backend.recompute(prompt - present - backend.shadow().resident(pid));
        let mut victims = Evictable::default();
        if let Some(limits) = limits {
            if !self.passes_prefill_gate(program, backend, recompute) {
                return Err(HoldReason::PrefillBusy);
            }
            let missing = missing(need, limits);
            if missing > 0 {
                victims = self.evictable(backend, Tokens(missing as u64), None);
            }
            if (victims.tokens.0 as i64) < missing {
                return Err(HoldReason::NoRoom);
            }
            if !self.fits_ahead(program, backend, need, limits.0) {
                return Err(HoldReason::NoRoomAhead);
            }
        }
        let crowding = self.forecast(backend).members() as f64 / backend.weight() / mean.max(f64::MIN_POSITIVE);
        let balance = if mean > 0.0 { 0.5 * crowding } else { 0.0 };
        let room = effective.zip(free).map_or(0.0, |(effective, free)| free as f64 / effective.as_f64().max(1.0));
        let cost = (recompute + victims.recompute).as_secs_f64() - 0.5 * room + balance;
        Ok(Placement { backend: id, cost, victims: victims.programs })
    }

    /// Whether this program and those that stay leased will still fit as they grow. For a new program its whole life
    /// counts, for a started one only the time within `forecast.horizon`.
    fn fits_ahead(&self, program: &Program, backend: &BackendLedger, need: Tokens, effective: Tokens) -> bool {
        let forecast = self.forecast(backend);
        // On a backend without other programs it goes in, however large it is or may become: no backend will ever suit
        // it better.
        if forecast.is_empty() {
            return true;
        }
        let limit = if program.started() { effective } else { effective.scale(self.policy.settings.forecast.slack) };
        let left = self.growth.left(need, effective);
        forecast.peak_with(need - self.shared(program.class), left, program.started()) <= limit
    }

    /// The backend's forecast, computed anew if need be.
    fn forecast<'a>(&self, backend: &'a BackendLedger) -> &'a PeakForecast {
        backend.forecast(|| {
            let mut evictable = Tokens::ZERO;
            let leaves = |program: &Program| {
                program.inactive() && self.worth_evicting(backend, program.last_active, program.charge)
            };
            let mut members = Vec::with_capacity(backend.leased().len());
            for program in backend.leased().iter().filter_map(|pid| self.programs.get(pid)) {
                if leaves(program) {
                    evictable += program.charge;
                } else {
                    // Until the program's first step ends, the charge of that step is all that is known of the program.
                    let alone = program.charge + self.shared(program.class);
                    let context = if program.started() { program.context } else { alone };
                    members.push(Member { context, footprint: program.charge });
                }
            }
            let capacity = self.effective(backend, None).unwrap_or_default();
            let evictable = (evictable, backend.leased().len());
            PeakForecast::new(&self.growth, &members, evictable, capacity, self.policy.settings.forecast.horizon)
        })
    }

    fn waited(&self, pid: Pid) -> Duration {
        self.programs.get(&pid).map_or(Duration::ZERO, |program| program.waited(self.now))
    }

    /// Whether the prefill gate lets the program in. A step with much to prefill waits while enough prefill is
    /// promised: its first token would come after all of it.
    fn passes_prefill_gate(&self, program: &Program, backend: &BackendLedger, recompute: Duration) -> bool {
        let waited = program.waited(self.now);
        backend.promised() < PREFILL_GATE
            || recompute <= PREFILL_LIGHT
            || (program.started() && waited >= PREFILL_PATIENCE)
    }

    /// Tokens that the program would be charged with on this backend, before its shared prefix is subtracted. Its steps
    /// that run there count too, even if the lease was lost.
    pub(crate) fn need_on(&self, program: &Program, on: BackendId, held: Tokens) -> Tokens {
        let runs = program.running.iter().filter_map(|id| self.steps.get(id)?.run.as_ref());
        let running: Tokens = runs.filter(|run| run.backend == on).map(|run| run.estimate).sum();
        program.context.max(held + running)
    }

    /// Prompt tokens of the program's largest held step, and the sum of prompts and outputs over all its held steps.
    pub(crate) fn need(&self, program: &Program) -> (Tokens, Tokens) {
        let mut prompt = Tokens::ZERO;
        let mut all = Tokens::ZERO;
        for step in program.waiting.iter().filter_map(|id| self.steps.get(id)) {
            let tokens = self.learned.prompt(Some(program), step.prompt_bytes);
            prompt = prompt.max(tokens);
            all += tokens + self.learned.output(step.max_output);
        }
        (prompt, all)
    }

    /// Announces each step that the event under way has put in the queue and that is still there.
    pub(crate) fn note_held(&mut self) {
        for id in std::mem::take(&mut self.queue.unannounced) {
            let Some(step) = self.steps.get(&id).filter(|step| step.run.is_none()) else {
                continue;
            };
            let program = step.program.and_then(|pid| self.programs.get(&pid));
            let reason = self.reason(program);
            self.decide(Decision::Held { step: id, reason });
        }
    }

    /// Why a step waits now.
    pub(crate) fn reason(&self, program: Option<&Program>) -> HoldReason {
        if self.frozen {
            HoldReason::Frozen
        } else if !self.backends.values().any(BackendLedger::usable) {
            HoldReason::NoBackend
        } else {
            program.map_or(HoldReason::Queued, |program| program.hold_reason)
        }
    }
}
