//! What the user sees: a picture that is redrawn in a terminal, a line every few seconds elsewhere, and the
//! comparison at the end.

use super::agent::Record;
use super::process::{CAPACITY_TOKENS, ENGINES};
use super::watch::Watcher;
use super::{Args, PHASES, Phase};
use comfy_table::{CellAlignment, Table, presets};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Where the output is no terminal, this long between two lines.
const LINE_EVERY: Duration = Duration::from_secs(4);
/// Width of a bar, in characters.
const BAR: usize = 20;

/// The terminal.
pub(super) struct Screen {
    agents: u64,
    seconds: u64,
    live: bool,
    /// Lines of the picture that is on the screen now.
    drawn: usize,
    next_line: Duration,
}

/// What one phase came to.
pub(super) struct Outcome {
    phase: Phase,
    steps_per_minute: f64,
    programs: u64,
    hit_rate: f64,
    median: Duration,
    p95: Duration,
    longest: Duration,
    served: usize,
    preemptions: f64,
    errors: u64,
}

// === impl Screen ===

impl Screen {
    pub(super) fn new(args: &Args) -> Self {
        Self {
            agents: args.agents,
            seconds: args.seconds,
            live: io::stdout().is_terminal(),
            drawn: 0,
            next_line: Duration::ZERO,
        }
    }

    pub(super) fn introduce(&self, capacity: u64, wanted: u64) {
        say(&format!(
            "{} agents on {ENGINES} simulated engines: their contexts take about {wanted} tokens, the caches hold \
             {capacity}.",
            self.agents
        ));
    }

    pub(super) fn show(&mut self, phase: Phase, at: Duration, watcher: &Watcher, record: &Record) {
        if self.live {
            self.clear();
            let picture = self.picture(phase, at, watcher, record);
            self.drawn = picture.lines().count();
            say(&picture);
        } else if at >= self.next_line {
            self.next_line = at + LINE_EVERY;
            say(&self.line(phase, at, watcher, record));
        }
    }

    /// Ends a phase: the next one begins where its picture stood, or with a line of its own.
    pub(super) fn end_phase(&mut self) {
        self.clear();
        self.next_line = Duration::ZERO;
    }

    fn clear(&mut self) {
        if self.live && self.drawn > 0 {
            // Up to the picture's first line, and erase from there.
            print_raw(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        self.drawn = 0;
    }

    fn head(&self, phase: Phase, at: Duration) -> String {
        let seconds = at.as_secs().min(self.seconds);
        format!("[{}/{}] {:<11} {seconds:>3}/{} s", phase.number, PHASES.len(), phase.title, self.seconds)
    }

    fn line(&self, phase: Phase, at: Duration, watcher: &Watcher, record: &Record) -> String {
        let mut line = format!(
            "{}  {:>5.0} steps/min  {:>3.0}% hits  held {}",
            self.head(phase, at),
            record.steps_per_minute(),
            100.0 * watcher.hit_rate(),
            watcher.held.unwrap_or(0),
        );
        for (at, engine) in watcher.engines.iter().enumerate() {
            let now = &engine.now;
            line += &format!(
                "  | engine {}: kv {:>3.0}% running {} waiting {}",
                at + 1,
                100.0 * now.kv_usage,
                now.running,
                now.waiting
            );
        }
        line
    }

    fn picture(&self, phase: Phase, at: Duration, watcher: &Watcher, record: &Record) -> String {
        let mut table = plain_table(&["engine", "KV cache in use", "", "running", "waiting", "prefix hits"]);
        for (at, engine) in watcher.engines.iter().enumerate() {
            let now = &engine.now;
            table.add_row([
                (at + 1).to_string(),
                bar(now.kv_usage),
                format!("{:.0}% of {CAPACITY_TOKENS}", 100.0 * now.kv_usage),
                now.running.to_string(),
                now.waiting.to_string(),
                percent(engine.hit_rate()),
            ]);
        }
        format!(
            "{}   programs {}   held {}   {:.0} steps/min   hits {}\n{table}",
            self.head(phase, at),
            self.agents,
            watcher.held.unwrap_or(0),
            record.steps_per_minute(),
            percent(watcher.hit_rate()),
        )
    }

    /// The table at the end.
    pub(super) fn compare(&self, outcomes: &[Outcome]) {
        let mut titles = vec![""];
        titles.extend(outcomes.iter().map(|outcome| outcome.phase.title));
        let mut table = plain_table(&titles);
        let mut row = |name: &str, cell: &dyn Fn(&Outcome) -> String| {
            table.add_row([name.to_owned()].into_iter().chain(outcomes.iter().map(cell)));
        };
        row("steps per minute", &|o| format!("{:.0}", o.steps_per_minute));
        row("prompt tokens found in cache", &|o| percent(o.hit_rate));
        row("answered step, median", &|o| format!("{:.2} s", o.median.as_secs_f64()));
        row("answered step, 95th percentile", &|o| format!("{:.2} s", o.p95.as_secs_f64()));
        row("longest, unanswered ones too", &|o| format!("{:.2} s", o.longest.as_secs_f64()));
        row("agents answered", &|o| format!("{} of {}", o.served, self.agents));
        row("programs finished", &|o| o.programs.to_string());
        row("preemptions", &|o| o.preemptions.to_string());
        row("failed steps", &|o| o.errors.to_string());
        say(&table.to_string());
        if let [ours, theirs] = outcomes {
            say(&format!(
                "{:.2} times the steps of {}: same agents, same engines started anew, {} s each.",
                ours.steps_per_minute / theirs.steps_per_minute,
                theirs.phase.title,
                self.seconds
            ));
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// `steps` must not be empty.
    pub(super) fn new(phase: Phase, mut steps: Vec<Duration>, watcher: &Watcher, record: &Record) -> Self {
        steps.sort_unstable();
        let at = |share: f64| steps[((steps.len() - 1) as f64 * share).round() as usize];
        Self {
            phase,
            steps_per_minute: record.steps_per_minute(),
            programs: record.programs(),
            hit_rate: watcher.hit_rate(),
            median: at(0.5),
            p95: at(0.95),
            longest: record.longest(),
            served: record.served(),
            preemptions: watcher.preemptions(),
            errors: record.errors(),
        }
    }
}

fn plain_table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(titles);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn bar(share: f64) -> String {
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    "\u{2588}".repeat(full) + &"\u{2591}".repeat(BAR - full)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

/// A reader that has gone is no reason to stop: the demonstration ends by itself.
fn say(text: &str) {
    print_raw(&format!("{text}\n"));
}

fn print_raw(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
