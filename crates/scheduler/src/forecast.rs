//! The tokens that the programs of a backend will need at their worst moment ahead, if they grow and end as earlier
//! programs did.
//!
//! A program of context c ends at F(c) tokens. It grows by g tokens a second while it is leased, and so ends after
//! T = (F − c)/g. When program j ends, each program that ends later has grown for T_j. So the peak is
//! max_j Σ_{T_i ≥ T_j} (footprint_i + g·T_j).
//!
//! F is a survival estimate over the size of contexts (Kaplan and Meier 1958, with late entry). Contexts are cut into
//! bands, each a quarter of a doubling wide. Of the programs that were seen in band b, e ended there, with m tokens on
//! average, and s grew beyond it, whether or not they have ended since. The chance to end there is
//! h_b = e/(e + s + PRIOR), and F_b = h_b·m + (1 − h_b)·F_{b+1}. Above the largest known context, and before anything
//! is known, a cold-start guess takes the place of F.
//!
//! A program that nobody releases counts as ended while it is idle for longer than tools take. It no longer counts as
//! ended once it comes back. Bands keep sizes apart: a crowd of small programs tells nothing of large ones.

use crate::policy::LARGEST;
use crate::snapshot::Experience;
pub mod peak;

use crate::units::Tokens;
use std::cell::OnceCell;
use std::time::Duration;

/// Number of bands: enough for any number of tokens.
const BANDS: usize = 4 * 62;
/// Factor by which the counts of a band fade with each program that is seen there later, so that some 200 programs
/// count.
const BAND_FADE: f64 = 0.995;
/// Weight of each of the two neighbours of a band that knows nothing: estimates are off by a little. With `PRIOR`
/// programs of its own in the band, the weight is half of this, and so on.
const NEIGHBOUR: f64 = 0.5;
/// Number of programs that are taken to have grown beyond each band before any was seen.
const PRIOR: f64 = 5.0;
/// Number of known ends from which on `BEYOND` replaces `COLD_GROWTH` as the factor beyond the largest end.
const FINALS_NEEDED: f64 = 5.0;
/// Final context of a program before anything is known, as a factor on its present context …
const COLD_GROWTH: f64 = 1.3;
/// … and as a share of the capacity, whichever is more. Without this floor a cold start admits far too many programs,
/// which then wait on each other for half an hour. Twice as much of both values gains nothing over a simulated first
/// hour (OpenHands 1%, SWE-agent −1%), and costs a tenth of the steps of the first ten minutes where all would have
/// fitted.
const COLD_SHARE: f64 = 0.1;
/// Most that the share of the capacity may come to, as a multiple of the program's present context: agents end at 11 to
/// 16 times their first prompt (OpenHands, HLE, SWE-agent). So small programs are not held because a backend is large.
const COLD_LIFE: f64 = 16.0;
/// Factor by which a program still grows that is larger than any that ended before it: it is taken to be near its end.
const BEYOND: f64 = 1.1;
/// Factor by which a growth sample fades with each later one.
const FADE: f64 = 0.99;

/// Growth and ends of the programs of one model pool.
#[derive(Debug)]
pub struct Growth {
    bands: Box<[Band; BANDS]>,
    /// The estimate made from `bands`; empty when it has to be computed anew.
    lives: OnceCell<Lives>,
    /// Faded sums over turns: the tokens by which contexts grew, and the seconds that it took.
    tokens: f64,
    seconds: f64,
}

/// Faded counts of programs that were seen with a context in this band.
#[derive(Clone, Copy, Debug, Default)]
struct Band {
    /// Number of programs that grew beyond the band.
    beyond: f64,
    /// Number of programs that ended in the band, and the sum of their contexts in tokens.
    ended: f64,
    sum: f64,
}

#[derive(Debug)]
struct Lives {
    /// Two values for each band: the part of the expected final context that comes from known ends in this band and
    /// above, and the chance to outlive all of these ends.
    from: Box<[(f64, f64); BANDS]>,
    /// Largest known end in tokens, and the factor by which a larger program is taken to grow still.
    largest: f64,
    factor: f64,
}

/// A program in the forecast.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub context: Tokens,
    /// Tokens that it is charged with now.
    pub footprint: Tokens,
}

impl Growth {
    pub fn snapshot(&self, into: &mut Experience) {
        let seen = self.bands.iter().enumerate().filter(|(_, band)| band.beyond + band.ended > 0.0);
        into.lives = seen.map(|(at, band)| (at as u16, band.beyond, band.ended, band.sum)).collect();
        into.grown = (self.tokens, self.seconds);
    }

    pub fn restore(&mut self, from: &Experience) {
        let sound = |number: f64| number.is_finite() && (0.0..=LARGEST.as_f64()).contains(&number);
        for &(at, beyond, ended, sum) in &from.lives {
            if let Some(band) =
                self.bands.get_mut(usize::from(at)).filter(|_| [beyond, ended, sum].map(sound) == [true; 3])
            {
                *band = Band { beyond, ended, sum };
            }
        }
        self.lives.take();
        let (tokens, seconds) = from.grown;
        if tokens.is_finite() && seconds.is_finite() {
            (self.tokens, self.seconds) = (tokens, seconds);
        }
    }

    /// Notes that a program ended, or is taken to have ended, with this context.
    pub fn saw_final(&mut self, context: Tokens) {
        let band = &mut self.bands[band(context)];
        band.fade();
        band.ended += 1.0;
        band.sum += context.as_f64();
        self.lives.take();
    }

    /// Notes that a program has come back that was taken to have ended.
    pub fn saw_return(&mut self, context: Tokens) {
        let band = &mut self.bands[band(context)];
        let left = (band.ended - 1.0).max(0.0);
        band.sum *= if band.ended > 0.0 { left / band.ended } else { 0.0 };
        band.ended = left;
        self.lives.take();
    }

    /// Notes that a step made a context grow from `from` to `to`.
    pub fn saw_growth(&mut self, from: Tokens, to: Tokens) {
        let passed = band(from)..band(to);
        if passed.is_empty() {
            return;
        }
        for band in &mut self.bands[passed] {
            band.fade();
            band.beyond += 1.0;
        }
        self.lives.take();
    }

    /// Notes that a leased program grew by `grown` tokens from the end of one turn to the end of the next, in the time
    /// `over`.
    pub fn saw_turn(&mut self, grown: Tokens, over: Duration) {
        self.tokens = self.tokens * FADE + grown.as_f64();
        self.seconds = self.seconds * FADE + over.as_secs_f64();
    }

    /// Growth of a leased program in tokens a second; `None` before any was seen.
    pub fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.tokens > 0.0).then(|| self.tokens / self.seconds)
    }

    /// F(c): the final context to expect of a program that has `context` now, in tokens.
    fn expected_final(&self, context: Tokens, capacity: Tokens) -> Tokens {
        let lives = self.lives.get_or_init(|| Lives::new(&self.bands));
        let (known, outlives) = lives.from[band(context)];
        let c = context.as_f64();
        let cold = (capacity.as_f64() * COLD_SHARE).min(c * COLD_LIFE);
        let unknown = (c.max(lives.largest) * lives.factor).max(cold);
        context.max(Tokens((known + outlives * unknown).ceil() as u64))
    }

    /// Tokens that a program of this context will still grow by.
    pub fn left(&self, context: Tokens, capacity: Tokens) -> Tokens {
        self.expected_final(context, capacity) - context
    }
}

// === impl Band ===

/// The band of a context, by its highest three bits.
fn band(context: Tokens) -> usize {
    let tokens = context.0.max(4);
    let doublings = tokens.ilog2() - 2;
    4 * doublings as usize + (tokens >> doublings) as usize - 4
}

/// Smallest context of a band, in tokens.
fn least(band: usize) -> f64 {
    (4 + band % 4) as f64 * ((band / 4) as f64).exp2()
}

impl Band {
    fn fade(&mut self) {
        for weight in [&mut self.beyond, &mut self.ended, &mut self.sum] {
            *weight *= BAND_FADE;
        }
    }
}

// === impl Lives ===

impl Lives {
    fn new(bands: &[Band; BANDS]) -> Self {
        let near = |at: usize| {
            let beside = [at.wrapping_sub(1), at + 1].map(|at| bands.get(at).copied().unwrap_or_default());
            let weight = NEIGHBOUR * PRIOR / (PRIOR + bands[at].beyond + bands[at].ended);
            let all = |of: fn(&Band) -> f64| of(&bands[at]) + weight * beside.iter().map(of).sum::<f64>();
            (all(|band| band.beyond), all(|band| band.ended), all(|band| band.sum))
        };
        let mut from = Box::new([(0.0, 1.0); BANDS]);
        let (mut known, mut outlives) = (0.0, 1.0);
        for at in (0..BANDS).rev() {
            let (beyond, ended, sum) = near(at);
            if ended > 0.0 {
                let ends = ended / (beyond + ended + PRIOR);
                known = ends * (sum / ended).max(least(at)) + (1.0 - ends) * known;
                outlives *= 1.0 - ends;
            }
            from[at] = (known, outlives);
        }
        let largest = bands.iter().rev().find(|band| band.ended > 0.0).map_or(0.0, |band| band.sum / band.ended);
        let ended: f64 = bands.iter().map(|band| band.ended).sum();
        Self { from, largest, factor: if ended < FINALS_NEEDED { COLD_GROWTH } else { BEYOND } }
    }
}

impl Default for Growth {
    fn default() -> Self {
        let bands = Box::new([Band::default(); BANDS]);
        Self { bands, lives: OnceCell::new(), tokens: 0.0, seconds: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Tokens = Tokens(500_000);

    /// Lets programs grow from `from` to `to`, by a tenth with each step.
    fn lived(growth: &mut Growth, programs: usize, from: u64, to: u64) {
        for _ in 0..programs {
            let mut context = Tokens(from);
            while context < Tokens(to) {
                let next = context.scale(1.1).min(Tokens(to));
                growth.saw_growth(context, next);
                context = next;
            }
        }
    }

    fn lived_and_ended(growth: &mut Growth, programs: usize, from: u64, to: u64) {
        lived(growth, programs, from, to);
        (0..programs).for_each(|_| growth.saw_final(Tokens(to)));
    }

    fn near(growth: &Growth, context: u64, expected: u64) {
        let found = growth.expected_final(Tokens(context), CAPACITY).0;
        assert!(found.abs_diff(expected) * 10 <= expected, "{context} ends at {found}, not {expected}");
    }

    #[test]
    fn every_context_has_its_band() {
        let mut last = 0;
        for tokens in (0..10_000).chain([LARGEST.0, u64::MAX]) {
            let band = band(Tokens(tokens));
            assert!(band < BANDS && band >= last && least(band) <= tokens.max(4) as f64, "{tokens}");
            last = band;
        }
    }

    #[test]
    fn a_program_is_expected_to_end_like_those_that_grew_beyond_it() {
        let mut growth = Growth::default();
        for _ in 0..50 {
            for end in [10_000, 20_000, 30_000, 40_000, 50_000] {
                lived_and_ended(&mut growth, 1, 3_000, end);
            }
        }
        near(&growth, 3_000, 30_000);
        near(&growth, 25_000, 40_000);
        near(&growth, 60_000, 66_000);
    }

    #[test]
    fn programs_that_go_on_tell_of_their_lives_before_they_end() {
        let mut growth = Growth::default();
        lived_and_ended(&mut growth, 10, 3_000, 10_000);
        near(&growth, 3_000, 18_000);
        lived(&mut growth, 90, 3_000, 12_000);
        near(&growth, 3_000, 46_000);
    }

    #[test]
    fn a_crowd_of_small_programs_tells_nothing_of_large_ones() {
        let mut growth = Growth::default();
        lived_and_ended(&mut growth, 100, 3_000, 40_000);
        (0..10_000).for_each(|_| growth.saw_final(Tokens(250)));
        near(&growth, 3_000, 40_000);
        assert!(growth.left(Tokens(250), CAPACITY) < Tokens(100));
    }

    #[test]
    fn a_program_that_comes_back_has_not_ended() {
        let mut growth = Growth::default();
        lived_and_ended(&mut growth, 20, 3_000, 40_000);
        let before = growth.left(Tokens(3_000), CAPACITY);
        (0..50).for_each(|_| growth.saw_final(Tokens(3_000)));
        assert!(growth.left(Tokens(3_000), CAPACITY).0 * 2 < before.0);
        (0..50).for_each(|_| growth.saw_return(Tokens(3_000)));
        assert_eq!(growth.left(Tokens(3_000), CAPACITY), before);
    }

    #[test]
    fn before_anything_is_known_a_program_fills_a_tenth_of_the_room_or_becomes_sixteen_times_as_large() {
        let growth = Growth::default();
        for (context, expected) in [(250, 4_000), (4_000, 50_000), (100_000, 130_000)] {
            assert_eq!(growth.expected_final(Tokens(context), CAPACITY), Tokens(expected));
        }
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut growth = Growth::default();
        lived_and_ended(&mut growth, 200, 1_000, 9_000);
        near(&growth, 1_000, 9_000);
        lived_and_ended(&mut growth, 1_000, 1_000, 2_000);
        near(&growth, 1_000, 2_200);
    }
}
