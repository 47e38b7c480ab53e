//! One backend's ledger: capacity, claims, promises, and how fast it prefills.

use super::event::Life;
use super::feedback::CapacityFeedback;
use super::forecast::peak::PeakForecast;
use super::policy::{FOREIGN_REPORTS, LOAD_TICKS};
use super::program::Pid;
use super::restore::RestoredBackend;
use super::shadow::Shadow;
use crate::units::Tokens;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Prefill speed before any was measured, tokens/s: a mid-sized model on one datacentre GPU.
const FIRST_RATE: f64 = 10_000.0;
/// Share of its weight that a backend has at the moment of its return.
const FIRST_SHARE: f64 = 0.1;
/// Seconds. Whatever a backend says of itself, sums of such times are times.
const LONGEST: f64 = 1e9;
/// The best rate seen fades by this factor a window, so that a slower life after it is noticed.
const FADE: f64 = 0.995;

#[derive(Debug)]
pub struct BackendLedger {
    pub weight: u32,
    pub up: bool,
    /// It was down after it had been up, and returned then.
    returned: Option<Duration>,
    went: bool,
    /// The part of its weight that counts for load: below one for a while after a return.
    ramp: f64,
    pub draining: bool,
    /// Which life its last report came from.
    pub life: Option<Life>,
    /// What was known of it before this process began; until it comes up.
    pub restored: Option<RestoredBackend>,
    /// Given by hand: no report changes it.
    fixed: bool,
    capacity: Option<Tokens>,
    /// Σ footprints of the programs leased here.
    pub claims: Tokens,
    /// The part of it that belongs to idle programs.
    pub idle_claims: Tokens,
    pub leased: BTreeSet<Pid>,
    /// Leased programs without a step in flight, longest idle first.
    pub idle: BTreeSet<(Duration, Pid)>,
    /// Programs leased here by class: a shared prefix is there once.
    classes: BTreeMap<u64, usize>,
    /// Steps in flight, those without a program too.
    pub in_flight: usize,
    mean_in_flight: f64,
    /// Forced steps in flight.
    pub forced: usize,
    /// Prefill time of steps dispatched here and still without a first token.
    pub promised: Duration,
    pub shadow: Shadow,
    /// Empty when it has to be made anew.
    pub forecast: OnceCell<PeakForecast>,
    pub feedback: CapacityFeedback,
    /// What runs there and is not ours, in the last reports, tokens.
    foreign: VecDeque<Tokens>,
    rate: Option<f64>,
}

impl BackendLedger {
    pub fn new(weight: u32, capacity: Option<Tokens>) -> Self {
        Self {
            weight: weight.max(1),
            up: false,
            returned: None,
            went: false,
            ramp: 1.0,
            draining: false,
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

    /// New programs and unlabelled steps may go here.
    pub fn usable(&self) -> bool {
        self.up && !self.draining
    }

    /// Nothing is leased or runs here.
    pub fn empty(&self) -> bool {
        self.leased.is_empty() && self.in_flight == 0
    }

    pub fn capacity(&self) -> Option<Tokens> {
        self.capacity
    }

    /// Weight and capacity as given by hand; without a capacity, the next report counts.
    pub fn configure(&mut self, weight: u32, capacity: Option<Tokens>) {
        self.weight = weight.max(1);
        self.fixed = capacity.is_some();
        self.capacity = capacity.or(self.capacity);
    }

    pub fn reported_capacity(&mut self, capacity: Tokens) {
        if !self.fixed && capacity > Tokens::ZERO {
            self.capacity = Some(capacity);
        }
    }

    /// Tokens that programs may claim, with `class` among them: capacity less headroom and shared prefixes.
    /// `None` while the capacity is not known: then everything fits.
    pub fn effective(&self, headroom: f64, shared: impl Fn(u64) -> Tokens, with: Option<u64>) -> Option<Tokens> {
        let usable = self.capacity?.scale((1.0 - headroom) * self.feedback.factor()) - self.foreign();
        let mut prefixes: Tokens = self.classes.keys().map(|&class| shared(class)).sum();
        if let Some(class) = with.filter(|class| !self.classes.contains_key(class)) {
            prefixes += shared(class);
        }
        Some(usable - prefixes)
    }

    /// The forecast follows a lease that came, with what its program needs in the end, or one that went.
    pub fn lease_changed(&mut self, came: Option<Tokens>) {
        if self.forecast.get_mut().is_some_and(|forecast| !forecast.absorbs_change(came)) {
            self.forecast.take();
        }
    }

    pub fn has_class(&self, class: u64) -> bool {
        self.classes.contains_key(&class)
    }

    pub fn enter_class(&mut self, class: u64) {
        *self.classes.entry(class).or_default() += 1;
    }

    pub fn leave_class(&mut self, class: u64) {
        if let Some(count) = self.classes.get_mut(&class) {
            *count -= 1;
            if *count == 0 {
                self.classes.remove(&class);
            }
        }
    }

    /// Cuts the shadow to what running steps leave of the cache.
    pub fn shrink_shadow(&mut self, shared: impl Fn(u64) -> Tokens) {
        let Some(capacity) = self.capacity else {
            return;
        };
        let capacity = capacity.scale(self.feedback.factor()) - self.foreign();
        let prefixes: Tokens = self.classes.keys().map(|&class| shared(class)).sum();
        self.shadow.shrink(capacity - prefixes - (self.claims - self.idle_claims));
    }

    /// A report says that running requests use this share of the cache. Single readings lag an iteration and
    /// lie: what is above our own running steps in each of the last reports is taken for somebody else's.
    pub fn saw_usage(&mut self, share: f64, shared: impl Fn(u64) -> Tokens) {
        let Some(capacity) = self.capacity.filter(|_| share.is_finite()) else {
            return;
        };
        if self.foreign.len() == FOREIGN_REPORTS {
            self.foreign.pop_front();
        }
        let prefixes: Tokens = self.classes.keys().map(|&class| shared(class)).sum();
        let running = self.claims - self.idle_claims + prefixes;
        self.foreign.push_back(capacity.scale(share) - running);
    }

    /// Tokens of the cache that requests which are not ours hold.
    fn foreign(&self) -> Tokens {
        let known = self.foreign.len() == FOREIGN_REPORTS;
        self.foreign.iter().min().copied().filter(|_| known).unwrap_or_default()
    }

    /// Steps that a recomputation would stall: those in flight now, or their mean over the last 30 s (steps
    /// run in lockstep, so that the present number alone falls to none at times), and never less than the
    /// step that comes back itself.
    pub fn crowd(&self) -> f64 {
        self.mean_in_flight.max(self.in_flight as f64).max(1.0)
    }

    pub fn rise(&mut self, now: Duration, slow_start: Duration) {
        if !self.up && self.went {
            self.returned = Some(now);
            self.climb(now, slow_start);
        }
        self.up = true;
    }

    pub fn fall(&mut self) {
        self.went |= self.up;
        self.up = false;
    }

    fn climb(&mut self, now: Duration, slow_start: Duration) {
        let Some(returned) = self.returned else { return };
        let since = now.saturating_sub(returned);
        if since >= slow_start {
            self.returned = None;
            self.ramp = 1.0;
        } else {
            self.ramp = (since.as_secs_f64() / slow_start.as_secs_f64()).max(FIRST_SHARE);
        }
    }

    pub fn tick(&mut self, now: Duration, slow_start: Duration) {
        self.climb(now, slow_start);
        self.forecast.take();
        self.mean_in_flight += (self.in_flight as f64 - self.mean_in_flight) / LOAD_TICKS;
    }

    /// Prefill ran at this many tokens/s over a window; the fastest window is the nearest to its true speed.
    pub fn saw_rate(&mut self, rate: f64) {
        // A window in which it mostly idled tells nothing; and what is recomputed at no speed takes longer than time.
        if rate.is_finite() && rate >= 1.0 {
            self.rate = Some(self.rate.map_or(rate, |best| rate.max(best * FADE)));
        }
    }

    /// Prompt tokens a second; `None` before any was measured or reported.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Whether a rate was measured or reported.
    pub fn rate_known(&self) -> bool {
        self.rate.is_some()
    }

    /// Time to compute `tokens` of prompt here.
    pub fn recompute(&self, tokens: Tokens) -> Duration {
        Duration::from_secs_f64((tokens.as_f64() / self.rate.unwrap_or(FIRST_RATE)).min(LONGEST))
    }

    /// Load for the choice between backends: what runs here, in shares of its weight. Just after a return what would
    /// run here counts: none is not yet less than a few elsewhere.
    pub fn load(&self) -> f64 {
        let next = if self.ramp < 1.0 { 1.0 } else { 0.0 };
        (self.in_flight as f64 + next) / (f64::from(self.weight) * self.ramp)
    }

    /// The server started anew: its cache is empty.
    pub fn restarted(&mut self) {
        self.shadow.clear();
        self.promised = Duration::ZERO;
        self.rate = None;
        self.feedback = CapacityFeedback::default();
        self.foreign.clear();
    }
}
