//! Figures for the reader, and the checks that failed.

use std::process::ExitCode;
use std::time::Duration;

/// A report that prints each line at once, and remembers the failed checks.
pub struct Report {
    failures: Vec<String>,
}

/// Durations from which percentiles are taken.
#[derive(Clone, Debug, Default)]
pub struct Durations(Vec<Duration>);

// === impl Report ===

impl Report {
    pub fn new() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        println!("machine: {}, {cores} cores", model.trim_start_matches([' ', '\t', ':']));
        Self { failures: Vec::new() }
    }

    pub fn title(&mut self, title: &str) {
        println!("\n{title}");
    }

    pub fn line(&mut self, what: &str, value: impl std::fmt::Display) {
        println!("  {what:<46}{value}");
    }

    /// Notes a check of correctness, which holds or fails.
    pub fn check(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            let what = what.into();
            println!("  FAILED: {what}");
            self.failures.push(what);
        }
    }

    pub fn verdict(&self) -> ExitCode {
        match self.failures.len() {
            0 => {
                println!("\nevery check held");
                ExitCode::SUCCESS
            }
            n => {
                println!("\n{n} checks failed");
                ExitCode::FAILURE
            }
        }
    }
}

// === impl Durations ===

impl Durations {
    pub fn push(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The percentile `share`, from 0 to 1, in milliseconds.
    pub fn percentile(&mut self, share: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        let rank = ((self.0.len() - 1) as f64 * share).round() as usize;
        self.0.select_nth_unstable(rank).1.as_secs_f64() * 1e3
    }

    /// Median, 99th percentile and maximum, in milliseconds.
    pub fn summary(&mut self) -> String {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.percentile(share));
        format!("p50 {p50:.3} ms, p99 {p99:.3} ms, max {max:.3} ms")
    }
}
