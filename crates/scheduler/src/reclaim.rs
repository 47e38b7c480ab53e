//! Making room: which leases may be taken, and in which order.

use crate::backend::BackendLedger;
use crate::decision::PauseReason;
use crate::event::StepId;
use crate::program::{Pid, known};
use crate::scheduler::Scheduler;
use crate::units::Tokens;
use std::time::Duration;

/// Idle programs whose leases may be taken, the tokens that this frees, and the time that it costs.
#[derive(Default)]
pub(crate) struct Evictable {
    pub programs: Vec<Pid>,
    pub tokens: Tokens,
    /// Time to compute the contexts of these programs again.
    pub recompute: Duration,
}

impl Scheduler {
    /// Idle programs that cost more to keep than to recompute, longest idle first, until `wanted` is reached. The
    /// program `but`, for which the room is made, is never among them.
    pub(crate) fn evictable(&self, backend: &BackendLedger, wanted: Tokens, but: Option<Pid>) -> Evictable {
        let mut found = Evictable::default();
        for &(since, pid) in backend.idle().iter().filter(|(_, pid)| Some(*pid) != but) {
            if found.tokens >= wanted {
                break;
            }
            let Some(program) = known(self.programs.get(&pid)) else { continue };
            if program.waiting.is_empty() && self.worth_evicting(backend, since, program.charge) {
                found.programs.push(pid);
                found.tokens += program.charge;
                found.recompute += backend.recompute(program.charge);
            }
        }
        found
    }

    /// Whether a program may lose its lease that has been idle since `since` and holds `tokens`. This is ski rental
    /// (Karlin et al., Competitive snoopy caching, 1988: at most twice the cost of knowing the future): a lease is kept
    /// as long as holding it has cost less than losing it would. Losing it stalls every step in flight for as long as
    /// the context takes to compute again: idle > `evict.cost_factor` · steps · tokens / prefill speed. A program that
    /// has been idle for longer than nearly all tools take may lose its lease too: idle > `evict.idle_factor` · p99 of
    /// tool gaps.
    pub(crate) fn worth_evicting(&self, backend: &BackendLedger, since: Duration, tokens: Tokens) -> bool {
        let idle = self.now.saturating_sub(since);
        let stall = backend.recompute(tokens).as_secs_f64() * backend.crowd() * self.policy.settings.evict.cost_factor;
        let gap = self.learned.gap_p99().map(|gap| gap.mul_f64(self.policy.settings.evict.idle_factor));
        idle.as_secs_f64() > stall || gap.is_some_and(|gap| idle > gap)
    }

    /// Makes room for the turn that a leased, idle program begins, if it does not fit as it is. False: there is not
    /// enough room to be had and an older program is leased there, so this one was paused. Running steps are never
    /// interrupted.
    pub(crate) fn make_room_for_turn(&mut self, pid: Pid, step: StepId) -> bool {
        let (Some(program), Some(step)) = (known(self.programs.get(&pid)), known(self.steps.get(&step))) else {
            return false;
        };
        let Some(backend) = known(program.lease.and_then(|on| self.backends.get(&on))) else { return false };
        let Some(effective) = self.effective(backend, None) else {
            // Where no limit is known, everything fits.
            return true;
        };
        let turn = self.learned.prompt(Some(program), step.prompt_bytes) + self.learned.output(step.max_output);
        let charge = program.context.max(turn) - self.shared(program.class);
        let over = self.weighed_claims(backend) + charge - program.charge - effective;
        if over == Tokens::ZERO {
            return true;
        }
        let mut victims = self.evictable(backend, over, Some(pid));
        let oldest =
            || backend.leased().iter().filter_map(|other| Some((self.programs.get(other)?.first_seen, *other))).min();
        if victims.tokens < over {
            self.add_younger(backend, pid, over, &mut victims);
        }
        if victims.tokens < over && oldest().is_some_and(|(_, oldest)| oldest != pid) {
            self.unlease(pid, Some(PauseReason::OverCapacity));
            return false;
        }
        for victim in victims.programs {
            self.unlease(victim, Some(PauseReason::OverCapacity));
        }
        true
    }

    /// Adds idle programs younger than `pid`, youngest first, until `wanted` is reached.
    fn add_younger(&self, backend: &BackendLedger, pid: Pid, wanted: Tokens, found: &mut Evictable) {
        let age = |pid: Pid| self.programs.get(&pid).map(|program| (program.first_seen, pid));
        let mut younger: Vec<_> = backend.idle().iter().filter_map(|&(_, other)| age(other)).collect();
        younger.retain(|&other| Some(other) > age(pid) && !found.programs.contains(&other.1));
        younger.sort_unstable_by(|a, b| b.cmp(a));
        self.add(&younger, wanted, found);
    }

    /// Adds these programs in their order until `wanted` is reached.
    pub(crate) fn add(&self, these: &[(Duration, Pid)], wanted: Tokens, found: &mut Evictable) {
        for &(_, pid) in these {
            if found.tokens >= wanted {
                return;
            }
            found.tokens += self.programs.get(&pid).map_or(Tokens::ZERO, |program| program.charge);
            found.programs.push(pid);
        }
    }

    /// Claims on the backend, in which an idle program may count for less: `scheduler.acting_weight` and
    /// `scheduler.acting_decay` set its weight. By default it counts in full.
    pub(crate) fn weighed_claims(&self, backend: &BackendLedger) -> Tokens {
        let (weight, decay) = (self.policy.settings.acting_weight, self.policy.settings.acting_decay);
        if !decay {
            return backend.claims() - backend.idle_claims().scale(1.0 - weight);
        }
        let weigh = |&(since, pid): &(Duration, Pid)| {
            let idle = self.now.saturating_sub(since).as_secs_f64();
            self.programs.get(&pid).map_or(Tokens::ZERO, |p| p.charge.scale(weight * (-idle).exp2()))
        };
        backend.claims() - backend.idle_claims() + backend.idle().iter().map(weigh).sum()
    }
}
