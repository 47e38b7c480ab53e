//! How much the programs of a backend will need at the worst moment ahead, if all go on as programs did.
//!
//! A program of context c ends at F(c) tokens, the mean of the final contexts above c that were seen; it
//! grows by g tokens a second while it is leased, and so ends in T = (F − c)/g. When the j-th ends, all
//! that end later have grown for T_j: the peak is max_j Σ_{T_i ≥ T_j} (footprint_i + g·T_j).

use crate::units::Tokens;
use std::collections::VecDeque;
use std::time::Duration;

/// Final contexts remembered.
const FINALS: usize = 200;
/// Fewer finals than this say nothing: then a program is taken to grow well beyond what was seen.
const FINALS_NEEDED: usize = 5;
/// What a program is taken to grow to before anything is known: what has lasted so long will last as long again …
const COLD_GROWTH: f64 = 2.0;
/// … and at least this share of the capacity: without it a cold start admits far too many, and they then wait on
/// each other for half an hour. Against a growth of 1.3 and a tenth, simulated OpenHands makes 9% more steps in
/// its first hour, SWE-agent as many.
const COLD_SHARE: f64 = 0.2;
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
    fn rate(&self) -> Option<f64> {
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

    /// The most that `members` will need together, at any time ahead, or within `horizon`. Before anything
    /// is known of their speed they are taken to end all at once, each at its full size.
    pub fn peak(&self, members: &[Member], capacity: Tokens, horizon: Option<Duration>) -> Tokens {
        let now: Tokens = members.iter().map(|member| member.footprint).sum();
        let grows = |member: &Member| self.expected_final(member.context, capacity) - member.context;
        let Some(rate) = self.rate() else {
            return now + members.iter().map(grows).sum();
        };
        let horizon = horizon.map_or(f64::INFINITY, |horizon| horizon.as_secs_f64());
        let ends = |member: &Member| ((grows(member).as_f64() / rate).min(horizon), member.footprint.as_f64());
        let mut ends: Vec<(f64, f64)> = members.iter().map(ends).collect();
        ends.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let (mut peak, mut footprints) = (now.as_f64(), 0.0);
        for (count, (end, footprint)) in (1..).zip(ends) {
            footprints += footprint;
            peak = f64::max(peak, footprints + rate * end * f64::from(count));
        }
        Tokens(peak.ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(context: u64) -> Member {
        Member { context: Tokens(context), footprint: Tokens(context) }
    }

    fn growth(finals: &[u64], rate: u64) -> Growth {
        let mut growth = Growth::default();
        for &context in finals {
            growth.saw_final(Tokens(context));
        }
        growth.saw_turn(Tokens(rate), Duration::from_secs(1));
        growth
    }

    #[test]
    fn one_program_peaks_at_its_expected_end() {
        let growth = growth(&[1_000; 5], 10);
        assert_eq!(growth.peak(&[member(400)], Tokens(10_000), None), Tokens(1_000));
    }

    #[test]
    fn programs_that_end_one_after_another_need_less_than_the_sum_of_their_ends() {
        let growth = growth(&[1_000; 5], 10);
        // The first ends in 10 s, when the second has 600: 1,600; the second alone reaches 1,000.
        assert_eq!(growth.peak(&[member(900), member(500)], Tokens(10_000), None), Tokens(1_600));
    }

    #[test]
    fn a_horizon_looks_no_further() {
        let growth = growth(&[1_000; 5], 10);
        assert_eq!(growth.peak(&[member(400)], Tokens(10_000), Some(Duration::from_secs(5))), Tokens(450));
    }

    #[test]
    fn a_cold_start_expects_growth() {
        let growth = Growth::default();
        assert_eq!(growth.peak(&[member(100)], Tokens(10_000), None), Tokens(2_000));
        assert_eq!(growth.peak(&[member(2_000)], Tokens(10_000), None), Tokens(4_000));
    }

    #[test]
    fn old_finals_are_forgotten() {
        let mut growth = growth(&[9_000; FINALS], 10);
        for _ in 0..FINALS {
            growth.saw_final(Tokens(1_000));
        }
        assert_eq!(growth.expected_final(Tokens(10), Tokens(10_000)), Tokens(1_000));
    }
}
