//! How much the programs of a backend will need at the worst moment ahead, if all go on as programs did.
//!
//! A program of context c ends at F(c) tokens, the mean of the final contexts above c that were seen; it
//! grows by g tokens a second while it is leased, and so ends in T = (F − c)/g. When the j-th ends, all
//! that end later have grown for T_j: the peak is max_j Σ_{T_i ≥ T_j} (footprint_i + g·T_j).

use super::memory::Experience;
use crate::units::Tokens;
use std::collections::VecDeque;
use std::time::Duration;

/// Final contexts remembered.
const FINALS: usize = 200;
/// Fewer finals than this say nothing: then a program is taken to grow well beyond what was seen.
const FINALS_NEEDED: usize = 5;
/// What a program is taken to grow to before anything is known, as a factor …
const COLD_GROWTH: f64 = 1.3;
/// … and as a share of the capacity: without this floor a cold start admits far too many, and they then
/// wait on each other for half an hour. Twice as much of both gains nothing over a simulated first hour (OpenHands
/// 1%, SWE-agent −1%) and costs a tenth of the steps of the first ten minutes where all would have fitted.
const COLD_SHARE: f64 = 0.1;
/// A program larger than any that ended before it is taken to be near its end.
const BEYOND: f64 = 1.1;
/// Weight that a growth sample loses with each later one.
const FADE: f64 = 0.99;

/// What is learned of how programs grow. One pool per model.
#[derive(Debug, Default)]
pub struct Growth {
    recent: VecDeque<Tokens>,
    /// The same, ascending, for a search by size; and the sums from each to the last.
    sorted: Vec<Tokens>,
    sums: Vec<Tokens>,
    tokens: f64,
    seconds: f64,
}

/// A program in the forecast.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub context: Tokens,
    /// What it is charged with now.
    pub footprint: Tokens,
}

impl Growth {
    pub fn remember(&self, into: &mut Experience) {
        into.finals = self.recent.iter().copied().collect();
        into.grown = (self.tokens, self.seconds);
    }

    pub fn recall(&mut self, from: &Experience) {
        for &context in &from.finals {
            self.saw_final(context);
        }
        let (tokens, seconds) = from.grown;
        if tokens.is_finite() && seconds.is_finite() {
            (self.tokens, self.seconds) = (tokens, seconds);
        }
    }

    /// A program ended, or is taken to have ended, with this context.
    pub fn saw_final(&mut self, context: Tokens) {
        if self.recent.len() == FINALS
            && let Some(old) = self.recent.pop_front()
            && let Ok(at) = self.sorted.binary_search(&old)
        {
            self.sorted.remove(at);
        }
        self.recent.push_back(context);
        let at = self.sorted.partition_point(|&seen| seen < context);
        self.sorted.insert(at, context);
        let add = |sum: &mut Tokens, seen: &Tokens| {
            *sum += *seen;
            Some(*sum)
        };
        self.sums = self.sorted.iter().rev().scan(Tokens::ZERO, add).collect();
        self.sums.reverse();
    }

    /// A leased program went from one turn's end to the next.
    pub fn saw_turn(&mut self, grown: Tokens, over: Duration) {
        self.tokens = self.tokens * FADE + grown.as_f64();
        self.seconds = self.seconds * FADE + over.as_secs_f64();
    }

    /// Tokens a second of a leased program; `None` before any was seen.
    pub fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.tokens > 0.0).then(|| self.tokens / self.seconds)
    }

    /// F(c): the context with which a program ends that has `context` now.
    fn expected_final(&self, context: Tokens, capacity: Tokens) -> Tokens {
        let largest = self.sorted.last().copied().unwrap_or_default();
        if self.sorted.len() < FINALS_NEEDED {
            let cold = largest.max(context).scale(COLD_GROWTH);
            return cold.max(capacity.scale(COLD_SHARE));
        }
        let above = self.sorted.partition_point(|&seen| seen <= context);
        match self.sums.get(above) {
            None => context.scale(BEYOND),
            Some(sum) => sum.scale(1.0 / (self.sorted.len() - above) as f64),
        }
    }

    /// What a program of this context will still grow by.
    pub fn left(&self, context: Tokens, capacity: Tokens) -> Tokens {
        self.expected_final(context, capacity) - context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_expected_to_end_like_those_that_grew_beyond_it() {
        let mut growth = Growth::default();
        for context in [1_000, 2_000, 3_000, 4_000, 5_000] {
            growth.saw_final(Tokens(context));
        }
        assert_eq!(growth.expected_final(Tokens(10), Tokens(10_000)), Tokens(3_000));
        assert_eq!(growth.expected_final(Tokens(3_000), Tokens(10_000)), Tokens(4_500));
        assert_eq!(growth.expected_final(Tokens(6_000), Tokens(10_000)), Tokens(6_600));
    }

    #[test]
    fn old_finals_are_forgotten() {
        let mut growth = Growth::default();
        for _ in 0..FINALS {
            growth.saw_final(Tokens(9_000));
        }
        for _ in 0..FINALS {
            growth.saw_final(Tokens(1_000));
        }
        assert_eq!(growth.expected_final(Tokens(10), Tokens(10_000)), Tokens(1_000));
    }
}
