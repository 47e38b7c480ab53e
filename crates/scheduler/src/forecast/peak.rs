//! A backend's forecast, kept between events: the tokens that its programs will need at their worst moment, prepared so
//! that the question for one more program costs O(log n). The forecast is computed anew when a lease comes or goes, and
//! once a tick; programs grow too little in between to matter. Where many programs are leased, a few leases may change
//! first.

use crate::forecast::{Growth, Member};
use crate::units::Tokens;
use std::time::Duration;

/// Number of leases for each lease change that a forecast may take in before it is rebuilt. Until then, new leases
/// count at full size, and leases that are gone still count.
const LEASES_PER_CHANGE: usize = 64;

#[derive(Debug)]
pub struct PeakForecast {
    /// Tokens of idle programs that may be evicted.
    pub evictable: Tokens,
    /// Σ footprints of the programs that stay, and Σ of their growth to come; tokens.
    now: f64,
    grows: f64,
    members: usize,
    /// Number of leases when the forecast was computed, and number of leases that came or went since.
    leases: usize,
    changes: usize,
    /// Tokens that programs which came since will need at their ends.
    came: f64,
    /// Curves over whole lives, and up to the horizon; `None` before the speed of growth is known.
    lives: Option<Curve>,
    ahead: Option<Curve>,
}

/// The need of all programs together over time. The lists are in the order of the programs' ends, the last end first.
#[derive(Debug)]
struct Curve {
    /// Growth of each program, in tokens a second.
    rate: f64,
    horizon: f64,
    /// Seconds until each program ends.
    ends: Vec<f64>,
    /// Σ footprints of each program and those that end after it, in tokens.
    footprints: Vec<f64>,
    /// Largest need in tokens at the end of each program or at a later end.
    later: Vec<f64>,
    /// Largest need in tokens at the end of each program or at an earlier end, if one more program grows until then.
    earlier: Vec<f64>,
}

// === impl PeakForecast ===

impl PeakForecast {
    /// The forecast of a backend whose programs `members` stay. `evictable` is the number of tokens of the idle
    /// programs that may be evicted, `leases` the number of all leases.
    pub fn new(
        growth: &Growth,
        members: &[Member],
        (evictable, leases): (Tokens, usize),
        capacity: Tokens,
        horizon: Duration,
    ) -> Self {
        let ends = || members.iter().map(|m| (growth.left(m.context, capacity).as_f64(), m.footprint.as_f64()));
        let curve = |horizon| growth.rate().map(|rate| Curve::new(rate, horizon, ends().collect()));
        Self {
            evictable,
            now: members.iter().map(|member| member.footprint.as_f64()).sum(),
            grows: ends().map(|(left, _)| left).sum(),
            members: members.len(),
            leases,
            changes: 0,
            came: 0.0,
            lives: curve(f64::INFINITY),
            ahead: curve(horizon.as_secs_f64()),
        }
    }

    /// Whether no program stays leased.
    pub fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// Number of programs that stay leased.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Takes in a new lease, with the tokens that its program will need at its end, or a lease that went. False: the
    /// forecast has to be computed anew.
    pub fn absorbs_change(&mut self, came: Option<Tokens>) -> bool {
        self.changes += 1;
        self.members += usize::from(came.is_some());
        self.came += came.unwrap_or_default().as_f64();
        self.changes * LEASES_PER_CHANGE <= self.leases
    }

    /// Largest need in tokens of all programs and one more that will grow by `left`: at any time, or, if `started`,
    /// within the horizon. Before the speed of growth is known, all programs are taken to reach their full sizes at the
    /// same moment.
    pub fn peak_with(&self, footprint: Tokens, left: Tokens, started: bool) -> Tokens {
        let (footprint, left) = (footprint.as_f64(), left.as_f64());
        let curve = if started { &self.ahead } else { &self.lives };
        let peak = match curve {
            None => self.now + footprint + self.grows + left,
            Some(curve) => curve.peak_with(footprint, left).max(self.now + footprint),
        };
        Tokens((peak + self.came).ceil() as u64)
    }
}

// === impl Curve ===

impl Curve {
    /// Each of `programs` is the growth that is left and the footprint, in tokens.
    fn new(rate: f64, horizon: f64, mut programs: Vec<(f64, f64)>) -> Self {
        programs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let ends: Vec<f64> = programs.iter().map(|(left, _)| (left / rate).min(horizon)).collect();
        let add = |sum: &mut f64, (_, footprint): &(f64, f64)| {
            *sum += footprint;
            Some(*sum)
        };
        let footprints: Vec<f64> = programs.iter().scan(0.0, add).collect();
        let counts = 1..=programs.len();
        let needs: Vec<f64> =
            counts.zip(footprints.iter().zip(&ends)).map(|(n, (sum, end))| sum + rate * end * n as f64).collect();
        let most = |most: &mut f64, need: f64| {
            *most = most.max(need);
            Some(*most)
        };
        let later = needs.iter().copied().scan(0.0, most).collect();
        let with = needs.iter().zip(&ends).rev().map(|(need, end)| need + rate * end);
        let mut earlier: Vec<f64> = with.scan(0.0, most).collect();
        earlier.reverse();
        Self { rate, horizon, ends, footprints, later, earlier }
    }

    fn peak_with(&self, footprint: f64, left: f64) -> f64 {
        let end = (left / self.rate).min(self.horizon);
        let outlive = self.ends.partition_point(|&other| other >= end);
        let before = outlive.checked_sub(1);
        let beside = before.map_or(0.0, |at| self.footprints[at]);
        let own = beside + footprint + self.rate * end * (outlive + 1) as f64;
        let later = before.map_or(0.0, |at| self.later[at]);
        let earlier = self.earlier.get(outlive).map_or(0.0, |need| need + footprint);
        own.max(later).max(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: Tokens = Tokens(10_000);

    fn member(context: u64) -> Member {
        Member { context: Tokens(context), footprint: Tokens(context) }
    }

    /// The peak that the last of `contexts` makes together with the others.
    fn peak(growth: &Growth, contexts: &[u64], horizon: Option<u64>) -> u64 {
        let (last, others) = contexts.split_last().unwrap();
        let others: Vec<Member> = others.iter().copied().map(member).collect();
        let horizon_or_any = Duration::from_secs(horizon.unwrap_or(1));
        let forecast = PeakForecast::new(growth, &others, (Tokens::ZERO, 0), CAPACITY, horizon_or_any);
        let left = growth.left(Tokens(*last), CAPACITY);
        forecast.peak_with(Tokens(*last), left, horizon.is_some()).0
    }

    /// Growth at `rate`, with each of `finals` seen 200 times so that the estimate is sure of it.
    fn growth(finals: &[u64], rate: u64) -> Growth {
        let mut growth = Growth::default();
        for &context in finals {
            (0..200).for_each(|_| growth.saw_final(Tokens(context)));
        }
        growth.saw_turn(Tokens(rate), Duration::from_secs(1));
        growth
    }

    #[test]
    fn one_program_peaks_at_its_expected_end() {
        let growth = growth(&[1_000], 10);
        assert_eq!(peak(&growth, &[400], None), 400 + growth.left(Tokens(400), CAPACITY).0);
        assert!(growth.left(Tokens(400), CAPACITY).0.abs_diff(600) < 10);
    }

    #[test]
    fn programs_that_end_one_after_another_need_less_than_the_sum_of_their_ends() {
        // The first program ends in 13 s, when the second has 630 tokens: 1,630 together. The second alone reaches
        // 1,000.
        let peak = peak(&growth(&[1_000], 10), &[870, 500], None);
        assert!(peak.abs_diff(1_630) < 20, "{peak}");
    }

    #[test]
    fn among_many_leases_those_that_come_and_go_are_borne_for_a_while() {
        let growth = growth(&[1_000], 10);
        let mut forecast = PeakForecast::new(
            &growth,
            &[member(400); 2],
            (Tokens::ZERO, 4 * LEASES_PER_CHANGE),
            CAPACITY,
            Duration::ZERO,
        );
        let peak = |forecast: &PeakForecast| forecast.peak_with(Tokens(400), Tokens(600), false).0;
        let before = peak(&forecast);
        assert!(forecast.absorbs_change(Some(Tokens(1_000))) && forecast.absorbs_change(None));
        assert_eq!((forecast.members(), peak(&forecast)), (3, before + 1_000));
        assert_eq!([(); 3].map(|()| forecast.absorbs_change(None)), [true, true, false]);
    }

    #[test]
    fn a_horizon_looks_no_further() {
        assert_eq!(peak(&growth(&[1_000], 10), &[400], Some(5)), 450);
    }

    #[test]
    fn a_cold_start_expects_growth() {
        assert_eq!(peak(&Growth::default(), &[100], None), 1_000);
        assert_eq!(peak(&Growth::default(), &[2_000], None), 2_600);
        assert_eq!(peak(&Growth::default(), &[2_000, 100], None), 3_600);
    }

    proptest! {
        /// max over j of Σ_{T_i ≥ T_j} (footprint_i + g·T_j), as it is written.
        #[test]
        fn it_is_the_formula(
            contexts in prop::collection::vec(1u64..2_000, 1..12),
            finals in prop::collection::vec(1u64..2_000, 5..20),
            rate in 1u64..50,
            horizon in prop::option::of(1u64..60),
        ) {
            let growth = growth(&finals, rate);
            let end = |context: u64| {
                let end = growth.left(Tokens(context), CAPACITY).as_f64() / rate as f64;
                horizon.map_or(end, |horizon| end.min(horizon as f64))
            };
            let needs = contexts.iter().map(|&j| {
                let alive = contexts.iter().filter(|&&i| end(i) >= end(j));
                alive.map(|&i| i as f64 + rate as f64 * end(j)).sum::<f64>()
            });
            let now = contexts.iter().sum::<u64>() as f64;
            let expected = needs.fold(now, f64::max);
            let found = peak(&growth, &contexts, horizon) as f64;
            prop_assert!((found - expected).abs() <= 1.0 + expected * 1e-9, "{found} {expected}");
        }
    }
}
