//! Feedback from the prefix cache: it shows whether a backend really has the capacity that it reports.
//!
//! A step whose program was believed to be fully cached ought to find its whole previous prompt in the cache. Where
//! prompts come back short again and again, the cache is smaller than reported, or others use it. Then the factor f on
//! the capacity falls. While all is well it recovers slowly.

use crate::units::Tokens;

/// Least size of a context that counts. A smaller one says little, because the last block of a prompt is always
/// computed again.
const LEAST: Tokens = Tokens(64 * BLOCK);
/// Tokens in a block of the KV cache: vLLM's default on GPUs.
const BLOCK: u64 = 16;
/// Weight of a new sample.
const EWMA: f64 = 0.05;
/// Missing share of prompts above which the factor falls, the samples that this takes, the factor of one fall, and the
/// lowest value.
const SHORT: f64 = 0.05;
const SAMPLES: u32 = 10;
const FALL: f64 = 0.97;
const FLOOR: f64 = 0.3;
/// Missing share of prompts below which the factor rises, and the rise with each sample.
const WELL: f64 = 0.02;
const RISE: f64 = 0.0001;

#[derive(Debug)]
pub struct CapacityFeedback {
    factor: f64,
    short: f64,
    samples: u32,
}

impl Default for CapacityFeedback {
    fn default() -> Self {
        Self { factor: 1.0, short: 0.0, samples: 0 }
    }
}

impl CapacityFeedback {
    /// The feedback of a [`CapacityFeedback::snapshot`]; impossible values are replaced.
    pub fn restore((factor, short): (f64, f64)) -> Self {
        let new = Self::default();
        let factor = if factor.is_finite() { factor.clamp(FLOOR, 1.0) } else { new.factor };
        Self { factor, short: if short.is_finite() { short } else { new.short }, ..new }
    }

    /// The factor, and the share of prompts that was missing of late.
    pub fn snapshot(&self) -> (f64, f64) {
        (self.factor, self.short)
    }

    /// Factor on the reported capacity, 0.3–1.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Takes in the `cached` tokens of a step whose `previous` prompt was believed to be resident.
    pub fn saw(&mut self, previous: Tokens, cached: Tokens) {
        if previous < LEAST {
            return;
        }
        let missing = (previous - Tokens(BLOCK) - cached).as_f64() / previous.as_f64();
        self.short += EWMA * (missing - self.short);
        self.samples += 1;
        if self.short > SHORT && self.samples >= SAMPLES {
            self.factor = (self.factor * FALL).max(FLOOR);
            self.samples = 0;
        } else if self.short < WELL {
            self.factor = (self.factor + RISE).min(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_come_back_short_again_and_again_lower_the_capacity() {
        let mut feedback = CapacityFeedback::default();
        for _ in 0..200 {
            feedback.saw(Tokens(10_000), Tokens(7_000));
        }
        assert!(feedback.factor() < 0.7, "{}", feedback.factor());
        for _ in 0..100_000 {
            feedback.saw(Tokens(10_000), Tokens(0));
        }
        assert_eq!(feedback.factor(), FLOOR);
    }

    #[test]
    fn a_full_cache_hit_and_a_single_miss_change_nothing() {
        let mut feedback = CapacityFeedback::default();
        for _ in 0..100 {
            feedback.saw(Tokens(10_000), Tokens(9_984));
        }
        feedback.saw(Tokens(10_000), Tokens(0));
        assert_eq!(feedback.factor(), 1.0);
    }

    #[test]
    fn it_recovers_slowly() {
        let mut feedback = CapacityFeedback::default();
        for _ in 0..100 {
            feedback.saw(Tokens(10_000), Tokens(0));
        }
        for _ in 0..200 {
            feedback.saw(Tokens(10_000), Tokens(9_984));
        }
        let low = feedback.factor();
        for _ in 0..1_000 {
            feedback.saw(Tokens(10_000), Tokens(9_984));
        }
        assert!(feedback.factor() > low + 0.05 && feedback.factor() < low + 0.11);
    }
}
