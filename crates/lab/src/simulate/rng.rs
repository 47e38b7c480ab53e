//! Random numbers that are the same on every run: SplitMix64 (Steele, Lea and Flood 2014), with the few distributions
//! that workloads need.

use crate::engine::chain::mix;
use std::f64::consts::TAU;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator number `stream` of a seed; streams are independent of each other.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream)))
    }

    fn next(&mut self) -> u64 {
        let value = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        value
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A uniform number in [low, high).
    pub fn between(&mut self, (low, high): (f64, f64)) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A uniform whole number from `low` to `high`, both included.
    pub fn whole(&mut self, (low, high): (usize, usize)) -> usize {
        low + (self.unit() * (high - low + 1) as f64) as usize
    }

    /// An exponential number, for gaps between independent arrivals.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// A log-normal number with this median; `sigma` is the standard deviation of its logarithm.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        // This is the method of Box and Muller.
        let normal = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_normal_has_its_median_and_its_tail() {
        let mut rng = Rng::new(1, 2);
        let mut samples: Vec<f64> = (0..20_001).map(|_| rng.log_normal(3.0, 1.0)).collect();
        samples.sort_by(f64::total_cmp);
        assert!((samples[10_000] - 3.0).abs() < 0.1);
        let p95 = 3.0 * 1.645f64.exp();
        assert!((samples[19_000] / p95 - 1.0).abs() < 0.1);
    }

    #[test]
    fn whole_numbers_reach_both_ends_and_streams_differ() {
        let mut rng = Rng::new(1, 1);
        let drawn: std::collections::BTreeSet<usize> = (0..200).map(|_| rng.whole((3, 6))).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert_ne!(Rng::new(1, 1).next(), Rng::new(1, 2).next());
        assert_ne!(Rng::new(1, 1).next(), Rng::new(2, 1).next());
    }
}
