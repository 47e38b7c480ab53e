//! The ledger of one backend: the programs leased and charged there, the steps that run there, and the prefill promised
//! to them. Its fields change through its own methods only, so a sum and its parts change together.

mod capacity;
mod speed;

use crate::estimate::Classes;
use crate::event::Life;
use crate::feedback::CapacityFeedback;
use crate::forecast::peak::PeakForecast;
use crate::policy::PREFILL_GATE;
use crate::program::{Pid, Run};
use crate::shadow::Shadow;
use crate::units::Tokens;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

#[derive(Debug)]
pub struct BackendLedger {
    weight: u32,
    up: bool,
    draining: bool,
    /// Whether the backend has been down after it had been up.
    went: bool,
    /// Time of its return after that; `None` when it has its full share again.
    returned: Option<Duration>,
    /// Part of its weight that counts for load, 0–1. It is below 1 for a while after a return.
    ramp: f64,
    /// Life of the server that the last report came from.
    life: Option<Life>,
    /// Knowledge of the backend from before this process began; `None` once the backend is up.
    restored: Option<RestoredBackend>,
    /// Whether the capacity was given by hand. Then no report changes it.
    fixed: bool,
    capacity: Option<Tokens>,
    /// Σ charges of the programs leased here.
    claims: Tokens,
    /// Part of `claims` that belongs to idle programs.
    idle_claims: Tokens,
    leased: BTreeSet<Pid>,
    /// Leased programs without a step in flight, longest idle first.
    idle: BTreeSet<(Duration, Pid)>,
    /// Number of programs leased here per class. A shared prefix is in the cache only once.
    classes: BTreeMap<u64, usize>,
    /// Number of steps in flight, including those without a program.
    in_flight: usize,
    /// Moving average of `in_flight` over [`LOAD_TICKS`](crate::policy::LOAD_TICKS) ticks.
    mean_in_flight: f64,
    /// Number of forced steps in flight.
    forced: usize,
    /// Prefill time of the steps that were dispatched here and have no first token yet.
    promised: Duration,
    shadow: Shadow,
    /// The forecast; empty when it has to be computed anew.
    forecast: OnceCell<PeakForecast>,
    feedback: CapacityFeedback,
    /// Tokens of the cache that others used, in each of the last reports.
    foreign: VecDeque<Tokens>,
    /// Prefill speed, prompt tokens a second.
    rate: Option<f64>,
}

/// Knowledge of a backend from before this process began.
#[derive(Debug)]
pub struct RestoredBackend {
    pub life: Option<Life>,
    pub rate: Option<f64>,
    pub feedback: CapacityFeedback,
    pub shadow: Shadow,
    pub leases: BTreeSet<Pid>,
}

impl BackendLedger {
    pub fn new(weight: u32, capacity: Option<Tokens>) -> Self {
        Self {
            weight: weight.max(1),
            up: false,
            draining: false,
            went: false,
            returned: None,
            ramp: 1.0,
            life: None,
            restored: None,
            fixed: capacity.is_some(),
            capacity,
            claims: Tokens::ZERO,
            idle_claims: Tokens::ZERO,
            leased: BTreeSet::new(),
            idle: BTreeSet::new(),
            classes: BTreeMap::new(),
            in_flight: 0,
            mean_in_flight: 0.0,
            forced: 0,
            promised: Duration::ZERO,
            shadow: Shadow::default(),
            forecast: OnceCell::new(),
            feedback: CapacityFeedback::default(),
            foreign: VecDeque::new(),
            rate: None,
        }
    }

    // === what is ===

    pub fn weight(&self) -> f64 {
        f64::from(self.weight)
    }

    pub fn up(&self) -> bool {
        self.up
    }

    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Whether new programs and unlabelled steps may go to this backend.
    pub fn usable(&self) -> bool {
        self.up && !self.draining
    }

    /// Whether no program is leased and no step runs here.
    pub fn empty(&self) -> bool {
        self.leased.is_empty() && self.in_flight == 0
    }

    pub fn claims(&self) -> Tokens {
        self.claims
    }

    pub fn idle_claims(&self) -> Tokens {
        self.idle_claims
    }

    pub fn leased(&self) -> &BTreeSet<Pid> {
        &self.leased
    }

    /// Leased programs without a step in flight, longest idle first.
    pub fn idle(&self) -> &BTreeSet<(Duration, Pid)> {
        &self.idle
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub fn forced(&self) -> usize {
        self.forced
    }

    pub fn promised(&self) -> Duration {
        self.promised
    }

    pub fn life(&self) -> Option<Life> {
        self.life
    }

    pub fn feedback(&self) -> &CapacityFeedback {
        &self.feedback
    }

    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    pub fn restored(&self) -> Option<&RestoredBackend> {
        self.restored.as_ref()
    }

    pub fn has_class(&self, class: u64) -> bool {
        self.classes.contains_key(&class)
    }

    // === leases ===

    /// Records the program's lease. The program is idle until [`BackendLedger::mark_busy`]. `comes_to` is the number of
    /// tokens that it will need at its end; only a ledger that has a forecast asks for it.
    pub fn lease(&mut self, (idle_since, pid): (Duration, Pid), class: u64, comes_to: Option<Tokens>) {
        self.leased.insert(pid);
        self.lease_changed(comes_to);
        *self.classes.entry(class).or_default() += 1;
        self.idle.insert((idle_since, pid));
    }

    /// Takes the program's lease and `charge` out of the ledger.
    pub fn unlease(&mut self, (idle_since, pid): (Duration, Pid), class: u64, charge: Tokens) {
        let leased = self.leased.remove(&pid);
        debug_assert!(leased, "{pid:?} is not leased here");
        self.lease_changed(None);
        self.claims -= charge;
        if self.idle.remove(&(idle_since, pid)) {
            self.idle_claims -= charge;
        }
        if let Some(count) = self.classes.get_mut(&class) {
            *count -= 1;
            if *count == 0 {
                self.classes.remove(&class);
            }
        }
    }

    /// Charges a leased program with `charge` instead of `before`.
    pub fn recharge(&mut self, program: (Duration, Pid), before: Tokens, charge: Tokens, classes: &Classes) {
        self.claims = self.claims + charge - before;
        if self.idle.contains(&program) {
            self.idle_claims = self.idle_claims + charge - before;
        } else {
            self.shrink_shadow(classes);
        }
    }

    /// Marks a leased program as busy: a step of it starts, and pins its blocks in the cache.
    pub fn mark_busy(&mut self, (idle_since, pid): (Duration, Pid), charge: Tokens) {
        if self.idle.remove(&(idle_since, pid)) {
            self.idle_claims -= charge;
        }
        self.shadow.take(pid);
    }

    /// Marks a leased program as idle: its last step is over, and its blocks may be evicted.
    pub fn mark_idle(&mut self, (now, pid): (Duration, Pid), charge: Tokens, classes: &Classes) {
        self.idle.insert((now, pid));
        self.idle_claims += charge;
        self.shadow.leave(pid, charge, now);
        self.shrink_shadow(classes);
    }

    /// Forgets the program's prefix: nobody will use it again.
    pub fn forget_prefix(&mut self, pid: Pid) {
        self.shadow.take(pid);
    }

    // === steps ===

    pub fn step_began(&mut self, run: &Run) {
        self.in_flight += 1;
        self.forced += usize::from(run.forced);
        self.promised += run.promise;
    }

    pub fn step_left(&mut self, run: &Run) {
        debug_assert!(self.in_flight > 0, "a step leaves that never began");
        self.in_flight -= 1;
        self.forced -= usize::from(run.forced);
        self.promised = self.promised.saturating_sub(run.promise);
    }

    /// Subtracts `promise`, because the step's first token has come. True: this opens the prefill gate.
    pub fn promise_kept(&mut self, promise: Duration) -> bool {
        let closed = self.promised >= PREFILL_GATE;
        self.promised = self.promised.saturating_sub(promise);
        closed && self.promised < PREFILL_GATE
    }

    // === coming and going ===

    /// Marks the backend as up and no longer draining.
    pub fn rise(&mut self, now: Duration, slow_start: Duration) {
        if !self.up && self.went {
            self.returned = Some(now);
            self.climb(now, slow_start);
        }
        self.up = true;
        self.draining = false;
    }

    pub fn fall(&mut self) {
        self.went |= self.up;
        self.up = false;
    }

    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Forgets all that was true of the server before it started anew, with an empty cache.
    pub fn restarted(&mut self) {
        self.shadow.clear();
        self.promised = Duration::ZERO;
        self.rate = None;
        self.feedback = CapacityFeedback::default();
        self.foreign.clear();
    }

    pub fn reported_life(&mut self, life: Option<Life>) {
        self.life = life.or(self.life);
    }

    /// Keeps the knowledge from before this process until the backend is up.
    pub fn keep_restored(&mut self, restored: RestoredBackend) {
        self.restored = Some(restored);
    }

    /// Takes over the knowledge from before this process, if the server is still in the same life: then its cache holds
    /// what it held. Gives the programs that had leases then.
    pub fn take_restored(&mut self, classes: &Classes) -> Option<BTreeSet<Pid>> {
        let restored = self.restored.take()?;
        let same = match (self.life, restored.life) {
            (Some(now), Some(before)) => now.continues(before),
            // A server that reports nothing of its life gets the benefit of the doubt.
            (None, None) => true,
            _ => false,
        };
        if !same {
            return None;
        }
        if let Some(rate) = restored.rate {
            self.saw_rate(rate);
        }
        self.feedback = restored.feedback;
        self.shadow = restored.shadow;
        self.forget_forecast();
        self.shrink_shadow(classes);
        Some(restored.leases)
    }

    // === the forecast ===

    /// The forecast, computed anew if need be.
    pub fn forecast(&self, compute: impl FnOnce() -> PeakForecast) -> &PeakForecast {
        self.forecast.get_or_init(compute)
    }

    pub fn has_forecast(&self) -> bool {
        self.forecast.get().is_some()
    }

    pub fn forget_forecast(&mut self) {
        self.forecast.take();
    }

    /// Tells the forecast of a new lease, with the tokens that its program will need at its end, or of a lease that
    /// went.
    fn lease_changed(&mut self, came: Option<Tokens>) {
        if self.forecast.get_mut().is_some_and(|forecast| !forecast.absorbs_change(came)) {
            self.forecast.take();
        }
    }
}
