//! Values learned from the traffic (output lengths, bytes per token, tool gaps, shared prefixes), and the estimates
//! made from them.

use crate::policy::LARGEST;
use crate::program::Program;
use crate::snapshot::Experience;
use crate::units::{BYTES_PER_TOKEN, Tokens};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Weight of a new sample in a moving average.
const EWMA: f64 = 0.05;
/// Output of a step in tokens, used before any was seen: agents write a thought and a command.
const FIRST_OUTPUT: f64 = 200.0;
/// Number of tool gaps that are remembered; and the number of samples from which on a percentile means something. A
/// program that did not come back is a sample too, because it had the time to.
const GAPS: usize = 500;
const GAPS_NEEDED: usize = 100;
/// Least value of the 99th percentile of tool gaps: a tool may always take this long.
const GAP_FLOOR: Duration = Duration::from_secs(5);

/// Largest number of known classes. More are not worth the space: programs of a further class share nothing.
const MOST_CLASSES: usize = 4096;

/// Values learned from the traffic of one model pool.
#[derive(Debug)]
pub struct Learned {
    output: Option<f64>,
    bytes_per_token: Option<f64>,
    gaps: VecDeque<Duration>,
    gap_p99: Option<Duration>,
    gaps_since: usize,
    /// Number of programs that have not come back.
    over: usize,
}

impl Learned {
    pub fn new() -> Self {
        Self { output: None, bytes_per_token: None, gaps: VecDeque::new(), gap_p99: None, gaps_since: 0, over: 0 }
    }

    pub fn snapshot(&self, into: &mut Experience) {
        into.output = self.output;
        into.bytes_per_token = self.bytes_per_token;
        into.gaps_ms = self.gaps.iter().map(|gap| gap.as_millis() as u64).collect();
    }

    pub fn restore(&mut self, from: &Experience) {
        let sound = |mean: &f64| mean.is_finite() && *mean > 0.0;
        self.output = from.output.filter(sound);
        self.bytes_per_token = from.bytes_per_token.filter(sound);
        for &gap in &from.gaps_ms {
            self.saw_gap(Duration::from_millis(gap));
        }
    }

    pub fn saw_output(&mut self, tokens: Tokens) {
        average(&mut self.output, tokens.as_f64());
    }

    pub fn saw_prompt(&mut self, bytes: u64, tokens: Tokens) {
        if bytes > 0 && tokens > Tokens::ZERO {
            average(&mut self.bytes_per_token, bytes as f64 / tokens.as_f64());
        }
    }

    /// Notes that a program came back `gap` after its last step.
    pub fn saw_gap(&mut self, gap: Duration) {
        if self.gaps.len() == GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap);
        self.gaps_since += 1;
        // The gaps are ranked anew only when a tenth of them is new: the percentile of 500 gaps moves slowly.
        if self.gaps_since * 10 >= self.gaps.len() {
            self.rank_gaps();
        }
    }

    /// Notes that a program has not come back in all the time that tools take.
    pub fn saw_no_return(&mut self) {
        self.over += 1;
        if self.gap_p99.is_none() {
            self.rank_gaps();
        }
    }

    /// Notes that a program of [`Learned::saw_no_return`] has come back after all.
    pub fn saw_return(&mut self) {
        self.over = self.over.saturating_sub(1);
    }

    fn rank_gaps(&mut self) {
        if self.gaps.len() + self.over < GAPS_NEEDED {
            return;
        }
        self.gaps_since = 0;
        let mut sorted: Vec<_> = self.gaps.iter().copied().collect();
        let rank = sorted.len() * 99 / 100;
        let p99 = if sorted.is_empty() { GAP_FLOOR } else { *sorted.select_nth_unstable(rank).1 };
        self.gap_p99 = Some(p99.max(GAP_FLOOR));
    }

    /// 99th percentile of tool gaps; `None` until 100 programs were seen to come back or to stay away.
    pub fn gap_p99(&self) -> Option<Duration> {
        self.gap_p99
    }

    /// Time that hardly any tool exceeds.
    pub fn longest_gap(&self) -> Duration {
        self.gap_p99.unwrap_or(GAP_FLOOR)
    }

    /// Tokens of output to expect of a step whose request allows `limit` tokens.
    pub fn output(&self, limit: Option<Tokens>) -> Tokens {
        let mean = Tokens(self.output.unwrap_or(FIRST_OUTPUT).ceil() as u64).min(LARGEST);
        limit.map_or(mean, |limit| mean.min(limit))
    }

    /// Tokens of the prompt of a step, estimated from its `bytes`. Where the start of the conversation is known, only
    /// the new part is estimated.
    pub fn prompt(&self, program: Option<&Program>, bytes: u64) -> Tokens {
        let known = program.filter(|program| program.last_prompt > Tokens::ZERO && program.last_bytes > 0);
        let Some(program) = known else {
            return at(bytes, self.bytes_per_token.unwrap_or(BYTES_PER_TOKEN as f64));
        };
        let own = program.last_bytes as f64 / program.last_prompt.as_f64();
        match bytes.checked_sub(program.last_bytes) {
            Some(new) => program.context.max(program.last_prompt + at(new, own)),
            // The prompt is shorter than the one before: the history was edited, or a subagent speaks.
            None => at(bytes, own),
        }
    }
}

fn at(bytes: u64, bytes_per_token: f64) -> Tokens {
    Tokens((bytes as f64 / bytes_per_token).ceil() as u64).min(LARGEST)
}

fn average(mean: &mut Option<f64>, sample: f64) {
    *mean = Some(mean.map_or(sample, |mean| mean + EWMA * (sample - mean)));
}

#[derive(Debug, Default)]
struct Class {
    /// Smallest non-zero `cached_tokens` that a first step of a program reported; and the number of programs that
    /// reported any.
    smallest: Tokens,
    told: u32,
}

/// All classes. The programs of one class have the same model and system message, and so share the start of their
/// prompts.
#[derive(Debug, Default)]
pub struct Classes {
    classes: HashMap<u64, Class>,
}

impl Classes {
    /// Tokens of the prefix that all programs of the class share. One program alone proves nothing: if its conversation
    /// was replayed, all of its context is cached.
    pub fn shared(&self, class: u64) -> Tokens {
        self.classes.get(&class).filter(|class| class.told >= 2).map_or(Tokens::ZERO, |class| class.smallest)
    }

    pub fn snapshot(&self, into: &mut Experience) {
        into.classes = self.classes.iter().map(|(&id, class)| (id, class.smallest, class.told)).collect();
    }

    pub fn restore(&mut self, from: &Experience) {
        let classes = from.classes.iter().take(MOST_CLASSES);
        self.classes.extend(classes.map(|&(id, smallest, told)| (id, Class { smallest, told })));
    }

    /// Notes that the first step of a program of this class found `cached` tokens in the cache. True: `shared` has
    /// changed.
    pub fn saw_first_step(&mut self, class: u64, cached: Tokens) -> bool {
        if cached == Tokens::ZERO || (self.classes.len() >= MOST_CLASSES && !self.classes.contains_key(&class)) {
            return false;
        }
        let before = self.shared(class);
        let entry = self.classes.entry(class).or_default();
        entry.smallest = if entry.told == 0 { cached } else { entry.smallest.min(cached) };
        entry.told = entry.told.saturating_add(1);
        self.shared(class) != before
    }
}
