//! The tokens that fit into a backend: its capacity, corrected by its reports and answers.

use super::BackendLedger;
use crate::estimate::Classes;
use crate::policy::FOREIGN_REPORTS;
use crate::units::Tokens;

impl BackendLedger {
    /// Tokens of KV cache, as given by hand or reported; `None` while unknown.
    pub fn capacity(&self) -> Option<Tokens> {
        self.capacity
    }

    /// Sets the weight and capacity that were given by hand. Without a capacity, the next report sets it.
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

    /// Tokens that programs may claim if one of class `with` joins them: capacity · (1 − headroom) · f, less the use of
    /// others and the shared prefixes. `None` while the capacity is not known: then everything fits.
    pub fn effective(&self, headroom: f64, classes: &Classes, with: Option<u64>) -> Option<Tokens> {
        let usable = self.capacity?.scale((1.0 - headroom) * self.feedback.factor()) - self.foreign();
        let mut prefixes = self.prefixes(classes);
        if let Some(class) = with.filter(|class| !self.classes.contains_key(class)) {
            prefixes += classes.shared(class);
        }
        Some(usable - prefixes)
    }

    /// Cuts the shadow to the tokens that running steps leave free in the cache.
    pub fn shrink_shadow(&mut self, classes: &Classes) {
        let Some(capacity) = self.capacity else {
            // The shadow of a cache of unknown size is not cut: nobody knows when that cache is full.
            return;
        };
        let capacity = capacity.scale(self.feedback.factor()) - self.foreign();
        self.shadow.shrink(capacity - self.prefixes(classes) - (self.claims - self.idle_claims));
    }

    /// Takes in a report of the share of the cache that running requests use. Single readings lag an iteration behind
    /// and are wrong at times. So the use of others is the least excess over our own running steps in the last reports.
    pub fn saw_usage(&mut self, share: f64, classes: &Classes) {
        let Some(capacity) = self.capacity.filter(|_| share.is_finite()) else {
            // A share means nothing where the whole is not known.
            return;
        };
        if self.foreign.len() == FOREIGN_REPORTS {
            self.foreign.pop_front();
        }
        let running = self.claims - self.idle_claims + self.prefixes(classes);
        self.foreign.push_back(capacity.scale(share) - running);
    }

    /// Takes in the `cached` tokens of a step whose previous prompt was believed to be resident.
    pub fn saw_cached(&mut self, previous: Tokens, cached: Tokens) {
        self.feedback.saw(previous, cached);
    }

    /// Tokens of the cache that the requests of others hold.
    fn foreign(&self) -> Tokens {
        let known = self.foreign.len() == FOREIGN_REPORTS;
        self.foreign.iter().min().copied().filter(|_| known).unwrap_or_default()
    }

    /// Tokens of the shared prefixes of all classes that are leased here.
    fn prefixes(&self, classes: &Classes) -> Tokens {
        self.classes.keys().map(|&class| classes.shared(class)).sum()
    }
}
