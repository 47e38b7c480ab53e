//! Counts of a run, and the figures computed from them.

use serde::Serialize;
use std::time::Duration;

/// Counts of one run. Only events after the warm-up count, except in `series`.
#[derive(Debug)]
pub struct Tally {
    warmup: Duration,
    end: Duration,
    steps: Vec<Duration>,
    programs: Vec<Duration>,
    steps_on: Vec<u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    preemptions: u64,
    longest_wait: Duration,
    longest_started_wait: Duration,
    series: Vec<Minute>,
}

/// One minute of a run, for plots.
#[derive(Clone, Debug, Default)]
pub struct Minute {
    pub steps: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Times to first token of the steps whose first token came in this minute.
    pub waits: Vec<Duration>,
    /// Sums over samples, first of the share of KV blocks that running steps use, then of held steps; and the number of
    /// samples.
    pub kv_usage: f64,
    pub held: u64,
    pub samples: u64,
}

/// Figures of a run. Times are in seconds and rates per minute. A figure is `null` if there was nothing to measure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    pub policy: String,
    pub seed: u64,
    pub steps_per_min: f64,
    /// Number of programs that ended, per minute.
    pub programs_per_min: f64,
    /// Share of the prompt tokens of finished steps that were found in the prefix cache.
    pub hit_rate: Option<f64>,
    /// Time from a step's arrival at the proxy to its last token.
    pub step_p50_s: Option<f64>,
    pub step_p95_s: Option<f64>,
    pub step_p99_s: Option<f64>,
    /// Time from a program's first arrival to its last token.
    pub completion_p50_s: Option<f64>,
    pub completion_p95_s: Option<f64>,
    /// Longest time from arrival to first token. Steps that still wait at the end are included.
    pub longest_wait_s: f64,
    /// Longest such time, the first steps of programs left out.
    pub longest_started_wait_s: f64,
    pub preemptions: u64,
    /// Ratio of the steps finished on the busiest engine to the mean of all engines.
    pub imbalance: Option<f64>,
    /// Steps per minute of the same programs if no token ever had to be computed twice.
    pub bound_steps_per_min: f64,
}

// === impl Tally ===

impl Tally {
    #[must_use]
    pub fn new(engines: usize, warmup: Duration, end: Duration) -> Self {
        Self {
            warmup,
            end,
            steps: Vec::new(),
            programs: Vec::new(),
            steps_on: vec![0; engines],
            prompt_tokens: 0,
            cached_tokens: 0,
            preemptions: 0,
            longest_wait: Duration::ZERO,
            longest_started_wait: Duration::ZERO,
            series: Vec::new(),
        }
    }

    fn counts(&self, now: Duration) -> bool {
        now >= self.warmup
    }

    fn minute(&mut self, now: Duration) -> &mut Minute {
        let at = (now.as_secs() / 60) as usize;
        if self.series.len() <= at {
            self.series.resize_with(at + 1, Minute::default);
        }
        &mut self.series[at]
    }

    pub fn step(&mut self, now: Duration, engine: usize, latency: Duration, prompt: u64, cached: u64) {
        let minute = self.minute(now);
        minute.steps += 1;
        minute.prompt_tokens += prompt;
        minute.cached_tokens += cached;
        if self.counts(now) {
            self.steps.push(latency);
            self.steps_on[engine] += 1;
            self.prompt_tokens += prompt;
            self.cached_tokens += cached;
        }
    }

    pub fn program(&mut self, now: Duration, completion: Duration) {
        if self.counts(now) {
            self.programs.push(completion);
        }
    }

    /// Notes the wait of a step that has its first token.
    pub fn waited(&mut self, now: Duration, wait: Duration, started: bool) {
        self.minute(now).waits.push(wait);
        self.still_waits(now, wait, started);
    }

    /// Notes the wait so far of a step that may go on waiting.
    pub fn still_waits(&mut self, now: Duration, wait: Duration, started: bool) {
        if self.counts(now) {
            self.longest_wait = self.longest_wait.max(wait);
            if started {
                self.longest_started_wait = self.longest_started_wait.max(wait);
            }
        }
    }

    pub fn preempted(&mut self, now: Duration) {
        self.preemptions += u64::from(self.counts(now));
    }

    pub fn sample(&mut self, now: Duration, kv_usage: f64, held: usize) {
        let minute = self.minute(now);
        minute.kv_usage += kv_usage;
        minute.held += held as u64;
        minute.samples += 1;
    }

    /// The whole minutes of the run. A partial minute would look like a fall.
    #[must_use]
    pub fn series(&self) -> &[Minute] {
        let whole = (self.end.as_secs() / 60) as usize;
        &self.series[..whole.min(self.series.len())]
    }

    #[must_use]
    pub fn steps_per_min(&self) -> f64 {
        rounded(self.steps.len() as f64 / self.minutes())
    }

    fn minutes(&self) -> f64 {
        (self.end - self.warmup).as_secs_f64() / 60.0
    }

    #[must_use]
    pub fn figures(&self, policy: String, seed: u64, bound_steps_per_min: f64) -> Figures {
        let most = self.steps_on.iter().max().copied().unwrap_or(0);
        let mean = self.steps.len() as f64 / self.steps_on.len() as f64;
        let ratio = |part: f64, whole: f64| (whole > 0.0).then(|| rounded(part / whole));
        let (steps, programs) = (sorted(&self.steps), sorted(&self.programs));
        Figures {
            policy,
            seed,
            steps_per_min: self.steps_per_min(),
            programs_per_min: rounded(self.programs.len() as f64 / self.minutes()),
            hit_rate: ratio(self.cached_tokens as f64, self.prompt_tokens as f64),
            step_p50_s: percentile(&steps, 0.50),
            step_p95_s: percentile(&steps, 0.95),
            step_p99_s: percentile(&steps, 0.99),
            completion_p50_s: percentile(&programs, 0.50),
            completion_p95_s: percentile(&programs, 0.95),
            longest_wait_s: rounded(self.longest_wait.as_secs_f64()),
            longest_started_wait_s: rounded(self.longest_started_wait.as_secs_f64()),
            preemptions: self.preemptions,
            imbalance: ratio(most as f64, mean),
            bound_steps_per_min,
        }
    }
}

fn sorted(times: &[Duration]) -> Vec<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted
}

/// A percentile in seconds, by nearest rank.
pub(super) fn percentile(sorted: &[Duration], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map(|time| rounded(time.as_secs_f64()))
}

/// The value rounded to thousandths. Further digits would be noise.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let times: Vec<Duration> = (1..=20).map(Duration::from_secs).collect();
        assert_eq!(percentile(&times, 0.5), Some(10.0));
        assert_eq!(percentile(&times, 0.95), Some(19.0));
        assert_eq!(percentile(&times, 0.99), Some(20.0));
        assert_eq!(percentile(&times[..1], 0.5), Some(1.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn the_warm_up_does_not_count() {
        let minute = Duration::from_secs(60);
        let mut tally = Tally::new(2, minute, 3 * minute);
        tally.step(minute / 2, 0, minute, 100, 100);
        tally.step(2 * minute, 1, minute / 60, 100, 50);
        tally.waited(minute / 2, minute, true);
        tally.waited(2 * minute, minute / 30, false);
        let figures = tally.figures("x".to_owned(), 1, 1.0);
        assert_eq!((figures.steps_per_min, figures.hit_rate), (0.5, Some(0.5)));
        assert_eq!((figures.longest_wait_s, figures.longest_started_wait_s), (2.0, 0.0));
        assert_eq!(figures.imbalance, Some(2.0));
        assert_eq!(tally.series().len(), 3);
    }
}
