//! Step profiles: how long the parts of a program's steps took. Every step is a row of `step_profiles.csv`; averages by
//! program stay in memory for `GET /profiles`.

use super::writer::{Format, Writer};
use crate::scheduler::{ProgramKey, Usage};
use crate::units::wall_clock;
use lru::LruCache;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A finished step, as the proxy timed it.
#[derive(Clone, Copy, Debug)]
pub struct StepTimes {
    pub arrived: Instant,
    /// Time that the step was held before it was sent.
    pub pause: Duration,
    /// Time from sending the request to the first token.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
    pub ended: Instant,
    pub usage: Option<Usage>,
}

/// The profiles of all programs. Their number is bounded: the program that finished a step longest ago is forgotten first.
pub struct Profiles {
    programs: Mutex<LruCache<ProgramKey, History>>,
    max: usize,
    csv: Writer<Row>,
}

/// Averages over the steps of one program, in ThunderAgent's words: seconds and ratios to four decimals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProfileSummary {
    pub step_count: u64,
    pub avg_prefill_s: f64,
    pub avg_decode_s: f64,
    pub avg_pause_s: f64,
    /// Average over the steps that had one before them.
    pub avg_tool_call_s: f64,
    /// Average over the steps whose backend reported cached tokens.
    pub avg_kv_hit_rate: Option<f64>,
}

/// Sums over the steps of one program.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    steps: u64,
    prefill: Duration,
    decode: Duration,
    pause: Duration,
    tool_call: Duration,
    hit_rates: f64,
    hit_rate_steps: u64,
    last_end: Option<Instant>,
}

struct Row {
    program: Arc<str>,
    step: u64,
    prefill: Duration,
    decode: Duration,
    pause: Duration,
    tool_call: Duration,
    hit_rate: Option<f64>,
    completed_at: SystemTime,
}

struct Csv;

// === impl Profiles ===

impl Profiles {
    /// Writes `step_profiles.csv` in `dir`, which is created if need be, and remembers `max` programs.
    ///
    /// # Errors
    /// The directory or the writing thread could not be made.
    pub(super) fn new(dir: &Path, max: usize, dropped: Counter) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("step_profiles.csv");
        Ok(Self {
            // Bounded by hand: a bounded cache of this crate takes the room for all of them at once.
            programs: Mutex::new(LruCache::unbounded()),
            max: max.max(1),
            csv: Writer::spawn("step-profiles", path, Csv, dropped)?,
        })
    }

    /// Records a step of `program`. Never waits for the disk.
    pub fn step_finished(&self, program: &ProgramKey, times: &StepTimes) {
        let hit_rate = times.usage.and_then(hit_rate);
        let (step, tool_call) = {
            let mut programs = self.programs.lock();
            let history = programs.get_or_insert_mut_ref(program, History::default);
            let tool_call = history.add(times, hit_rate);
            let step = history.steps;
            if programs.len() > self.max {
                programs.pop_lru();
            }
            (step, tool_call)
        };
        self.csv.send(Row {
            program: Arc::clone(&program.id),
            step,
            prefill: times.prefill,
            decode: times.decode,
            pause: times.pause,
            tool_call,
            hit_rate,
            completed_at: wall_clock(),
        });
    }

    /// The averages of a program; `None` when the program has not finished a step.
    #[must_use]
    pub fn get(&self, program: &ProgramKey) -> Option<ProfileSummary> {
        self.programs.lock().peek(program).map(History::summary)
    }

    /// All programs, the most recently active first.
    #[must_use]
    pub fn all(&self) -> Vec<(ProgramKey, ProfileSummary)> {
        let programs = self.programs.lock();
        programs.iter().map(|(program, history)| (program.clone(), history.summary())).collect()
    }

    /// Forgets a program that has ended.
    pub fn forget(&self, program: &ProgramKey) {
        self.programs.lock().pop(program);
    }

    pub(super) fn flush(&self, limit: Duration) -> bool {
        self.csv.flush(limit)
    }

    pub(super) fn reopen(&self) {
        self.csv.reopen();
    }
}

// === impl History ===

impl History {
    /// Adds a step. Returns the time of the tool call before the step.
    fn add(&mut self, times: &StepTimes, hit_rate: Option<f64>) -> Duration {
        // Steps of one program may overlap: then no tool ran in between.
        let tool_call = self.last_end.map_or(Duration::ZERO, |end| times.arrived.saturating_duration_since(end));
        self.steps += 1;
        self.prefill += times.prefill;
        self.decode += times.decode;
        self.pause += times.pause;
        self.tool_call += tool_call;
        if let Some(rate) = hit_rate {
            self.hit_rates += rate;
            self.hit_rate_steps += 1;
        }
        self.last_end = self.last_end.max(Some(times.ended));
        tool_call
    }

    fn summary(&self) -> ProfileSummary {
        let average = |sum: Duration, steps: u64| round4(sum.as_secs_f64() / steps.max(1) as f64);
        ProfileSummary {
            step_count: self.steps,
            avg_prefill_s: average(self.prefill, self.steps),
            avg_decode_s: average(self.decode, self.steps),
            avg_pause_s: average(self.pause, self.steps),
            avg_tool_call_s: average(self.tool_call, self.steps.saturating_sub(1)),
            avg_kv_hit_rate: (self.hit_rate_steps > 0).then(|| round4(self.hit_rates / self.hit_rate_steps as f64)),
        }
    }
}

// === impl Csv ===

impl Format for Csv {
    type Item = Row;

    fn header(&self) -> &'static [u8] {
        b"program_id,step_id,prefill_s,decode_s,pause_s,tool_call_s,kv_hit_rate,completed_at\n"
    }

    fn render(&self, row: Row, out: &mut Vec<u8>) {
        let seconds = |duration: Duration| format!("{:.4}", duration.as_secs_f64());
        let since_epoch = row.completed_at.duration_since(UNIX_EPOCH);
        let mut csv = csv::Writer::from_writer(out);
        let written = csv.write_record([
            &row.program,
            row.step.to_string().as_str(),
            &seconds(row.prefill),
            &seconds(row.decode),
            &seconds(row.pause),
            &seconds(row.tool_call),
            &row.hit_rate.map_or_else(String::new, |rate| format!("{rate:.4}")),
            &seconds(since_epoch.unwrap_or_default()),
        ]);
        debug_assert!(written.is_ok(), "writing to memory");
    }
}

/// Cached over prompt tokens; `None` when the backend did not say.
fn hit_rate(usage: Usage) -> Option<f64> {
    let cached = usage.cached?;
    (usage.prompt.0 > 0).then(|| cached.as_f64() / usage.prompt.as_f64())
}

/// Four decimals, as ThunderAgent prints every time and ratio.
#[must_use]
pub fn round4(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests;
