//! Synthetic workloads: agents as they were seen in the field, described by a few numbers each.

use super::rng::Rng;
use super::script::{Script, Step};
use crate::engine::chain::mix;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// SWE-agent: many short tools, contexts to 60k.
    Swe,
    /// OpenHands: a long system prompt, contexts beyond 100k.
    Openhands,
    /// Research questions: tools that take minutes at times.
    Hle,
    /// A third of each.
    Mixed,
    /// People who ask a few short questions.
    Chat,
}

/// Numbers of a workload. Ranges are uniform; numbers are token counts unless said otherwise.
struct Shape {
    steps: (usize, usize),
    /// Tokens at the start of every prompt.
    shared: usize,
    /// Tokens of the first prompt, its shared part included.
    start: (usize, usize),
    /// Growth of the context from one step to the next, the output included.
    growth: (usize, usize),
    /// Output tokens of a step: a median, and limits. Most answers are a thought and a command; few are long.
    output_median: f64,
    output_limits: (f64, f64),
    /// Tool time: its median in seconds, and a range from which each program draws its 95th percentile.
    tool_median: f64,
    tool_p95: (f64, f64),
    tool_limits: (f64, f64),
}

const SWE: Shape = Shape {
    steps: (30, 60),
    shared: 1_500,
    start: (2_000, 4_000),
    growth: (600, 1_500),
    output_median: 200.0,
    output_limits: (150.0, 400.0),
    tool_median: 1.0,
    tool_p95: (5.0, 5.0),
    tool_limits: (0.05, 120.0),
};

const OPENHANDS: Shape = Shape {
    steps: (40, 80),
    shared: 8_000,
    start: (9_000, 11_000),
    growth: (1_000, 2_200),
    output_median: 250.0,
    output_limits: (150.0, 500.0),
    tool_median: 1.5,
    tool_p95: (12.0, 12.0),
    tool_limits: (0.2, 30.0),
};

const HLE: Shape = Shape {
    steps: (10, 30),
    shared: 2_000,
    start: (2_500, 4_000),
    growth: (1_000, 3_000),
    output_median: 500.0,
    output_limits: (300.0, 1_000.0),
    tool_median: 8.0,
    tool_p95: (80.0, 240.0),
    tool_limits: (0.2, 900.0),
};

const CHAT: Shape = Shape {
    steps: (1, 5),
    shared: 100,
    start: (150, 800),
    growth: (50, 600),
    output_median: 150.0,
    output_limits: (20.0, 400.0),
    tool_median: 10.0,
    tool_p95: (50.0, 50.0),
    tool_limits: (1.0, 300.0),
};

/// Standard deviation of the logarithm of an answer's length.
const OUTPUT_SIGMA: f64 = 0.4;
/// The 95th percentile of a normal distribution, in standard deviations.
const Z95: f64 = 1.645;

// === impl Workload ===

impl Workload {
    /// The script of program number `number`, which depends on the seed and the number alone.
    #[must_use]
    pub fn script(self, seed: u64, number: u64) -> Script {
        let mut rng = Rng::new(seed, number);
        let shape = match self {
            Self::Swe => &SWE,
            Self::Openhands => &OPENHANDS,
            Self::Hle => &HLE,
            Self::Chat => &CHAT,
            Self::Mixed => [&SWE, &OPENHANDS, &HLE][rng.whole((0, 2))],
        };
        shape.script(&mut rng)
    }
}

// === impl Shape ===

impl Shape {
    fn script(&self, rng: &mut Rng) -> Script {
        let mut prompt = rng.whole(self.start);
        let sigma = (rng.between(self.tool_p95) / self.tool_median).ln() / Z95;
        let steps = (0..rng.whole(self.steps)).map(|_| {
            let mut drawn = |median, sigma, (low, high)| rng.log_normal(median, sigma).clamp(low, high);
            let output = drawn(self.output_median, OUTPUT_SIGMA, self.output_limits) as usize;
            let tool = drawn(self.tool_median, sigma, self.tool_limits);
            let step = Step { gap: Duration::from_secs_f64(tool), prompt, shared: self.shared, output, bytes: 0 };
            prompt += rng.whole(self.growth).max(output + 1);
            step
        });
        let mut script = Script { class: mix(self.shared as u64), steps: steps.collect() };
        script.write_bytes(rng);
        script
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swe_agents_are_as_they_are_described() {
        let scripts: Vec<Script> = (0..200).map(|number| Workload::Swe.script(7, number)).collect();
        let finals = scripts.iter().map(|script| script.steps.last().unwrap().prompt);
        let mean = finals.sum::<usize>() / scripts.len();
        assert!((40_000..60_000).contains(&mean), "{mean}");
        let mut tools: Vec<Duration> = scripts.iter().flat_map(|s| s.steps.iter().map(|step| step.gap)).collect();
        tools.sort_unstable();
        let (median, p95) = (tools[tools.len() / 2].as_secs_f64(), tools[tools.len() * 95 / 100].as_secs_f64());
        assert!((0.9..1.1).contains(&median) && (4.5..5.5).contains(&p95), "{median} {p95}");
        let bytes = scripts.iter().map(|s| s.steps[20].bytes as f64 / s.steps[20].prompt as f64);
        assert!(bytes.fold(0.0, f64::max) < 5.0);
    }

    #[test]
    fn a_script_depends_on_seed_and_number_alone_and_only_grows() {
        for workload in [Workload::Swe, Workload::Openhands, Workload::Hle, Workload::Mixed, Workload::Chat] {
            let script = workload.script(3, 5);
            assert_eq!(script, workload.script(3, 5));
            assert_ne!(script, workload.script(3, 6));
            assert_ne!(script, workload.script(4, 5));
            assert!(script.steps.windows(2).all(|pair| pair[1].prompt > pair[0].prompt + pair[0].output));
            assert!(script.steps.windows(2).all(|pair| pair[1].bytes > pair[0].bytes));
        }
    }

    #[test]
    fn mixed_has_all_three() {
        let classes: std::collections::BTreeSet<u64> =
            (0..50).map(|number| Workload::Mixed.script(1, number).class).collect();
        assert_eq!(classes.len(), 3);
    }
}
