//! Output for the user: in a terminal a picture that is redrawn, elsewhere a line every few seconds; a table at the
//! end.

use super::agent::Counts;
use super::engines::{CAPACITY_TOKENS, ENGINES, EngineReading, Engines};
use super::{Args, PHASES, Phase};
use comfy_table::{CellAlignment, Table, presets};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Time between two lines if the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(4);
/// Width of a bar, in characters.
const BAR: usize = 20;
/// Headings of the picture's columns. The picture is 77 characters wide.
const COLUMNS: &str = "engine   KV cache in use                      running   waiting   prefix hits";

/// State of the output.
pub(super) struct Screen {
    agents: u64,
    seconds: u64,
    /// Whether standard output is a terminal.
    live: bool,
    /// Number of lines of the picture on the terminal.
    drawn: usize,
    next_line: Duration,
}

/// Result of one phase.
pub(super) struct Outcome {
    phase: Phase,
    /// Counts of the agents; the step times are in ascending order and not empty.
    counts: Counts,
    steps_per_minute: f64,
    longest: Duration,
    hit_rate: f64,
    preemptions: u64,
}

// === impl Screen ===

impl Screen {
    pub(super) fn new(args: &Args) -> Self {
        let live = io::stdout().is_terminal();
        Self { agents: args.agents, seconds: args.seconds, live, drawn: 0, next_line: Duration::ZERO }
    }

    /// Prints the introduction. `wanted` is the number of tokens of all agents' contexts.
    pub(super) fn introduce(&self, wanted: u64) {
        let (agents, capacity) = (self.agents, CAPACITY_TOKENS * ENGINES as u64);
        say(&format!(
            "{agents} agents on {ENGINES} simulated engines.\n\
             Their contexts take about {wanted} tokens, the KV caches hold {capacity}."
        ));
    }

    pub(super) fn show(&mut self, phase: Phase, at: Duration, held: u64, engines: &Engines, counts: &Counts) {
        let status = self.status(phase, at, held, engines.hit_rate(), counts.steps_per_minute());
        if self.live {
            let rows: String = engines.readings().zip(1..).map(|(engine, number)| row(number, engine)).collect();
            self.draw(&format!("{status}\n{COLUMNS}\n{rows}"));
        } else if at >= self.next_line {
            self.next_line = at + LINE_EVERY;
            let engines = engines.readings().map(|engine| engine.gauges);
            let engines = engines
                .map(|now| format!("   kv {} running {} waiting {}", percent(now.kv_usage), now.running, now.waiting));
            say(&(status + &engines.collect::<String>()));
        }
    }

    fn status(&self, phase: Phase, at: Duration, held: u64, hit_rate: f64, steps_per_minute: f64) -> String {
        let (number, of, title) = (phase.number, PHASES.len(), phase.title);
        let (second, seconds, agents) = (at.as_secs().min(self.seconds), self.seconds, self.agents);
        let hits = percent(hit_rate);
        format!(
            "[{number}/{of}] {title} {second:>3}/{seconds} s   held {held} of {agents}   {steps_per_minute:.0} steps/min   \
             hits {hits}"
        )
    }

    /// Ends a phase. The next phase begins where this picture stood, or with a line of its own.
    pub(super) fn end_phase(&mut self) {
        self.draw("");
        self.next_line = Duration::ZERO;
    }

    /// Puts a picture in place of the one before. Lines too long for the terminal are cut, not wrapped.
    fn draw(&mut self, picture: &str) {
        if self.drawn > 0 {
            write(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        self.drawn = picture.lines().count();
        if self.drawn > 0 {
            write(&format!("\x1b[?7l{picture}\x1b[?7h"));
        }
    }

    /// Prints the table at the end.
    pub(super) fn compare(&self, outcomes: &[Outcome]) {
        let mut table = Table::new();
        let titles = outcomes.iter().map(|outcome| outcome.phase.title);
        table.load_preset(presets::UTF8_FULL_CONDENSED).set_header([""].into_iter().chain(titles));
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let mut row = |name: &str, cell: &dyn Fn(&Outcome) -> String| {
            table.add_row([name.to_owned()].into_iter().chain(outcomes.iter().map(cell)));
        };
        row("steps per minute", &|o| format!("{:.0}", o.steps_per_minute));
        row("prompt tokens found in cache", &|o| percent(o.hit_rate));
        row("answered step, median", &|o| seconds(o.step_time(0.5)));
        row("answered step, 95th percentile", &|o| seconds(o.step_time(0.95)));
        row("longest, unanswered ones too", &|o| seconds(o.longest));
        row("agents answered", &|o| format!("{} of {}", o.counts.served.len(), self.agents));
        row("programs finished", &|o| o.counts.programs.to_string());
        row("preemptions", &|o| o.preemptions.to_string());
        row("failed steps", &|o| o.counts.errors.to_string());
        say(&table.to_string());
        if let [ours, theirs] = outcomes {
            let (times, other) = (ours.steps_per_minute / theirs.steps_per_minute, theirs.phase.title);
            say(&format!(
                "{times:.2} times the steps of {other}: same agents, fresh engines, {} s each.",
                self.seconds
            ));
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// The result of a phase. `counts` must hold at least one step.
    pub(super) fn new(phase: Phase, mut counts: Counts, engines: &Engines) -> Self {
        counts.steps.sort_unstable();
        Self {
            phase,
            steps_per_minute: counts.steps_per_minute(),
            longest: counts.longest(),
            hit_rate: engines.hit_rate(),
            preemptions: engines.readings().map(|engine| engine.preemptions).sum(),
            counts,
        }
    }

    fn step_time(&self, share: f64) -> Duration {
        self.counts.steps[((self.counts.steps.len() - 1) as f64 * share).round() as usize]
    }
}

/// One engine's line of the picture.
fn row(number: usize, engine: EngineReading) -> String {
    let now = engine.gauges;
    let full = ((now.kv_usage * BAR as f64).round() as usize).min(BAR);
    let bar = "\u{2588}".repeat(full) + &"\u{2591}".repeat(BAR - full);
    let (used, hits) = (percent(now.kv_usage), percent(engine.hits as f64 / engine.queries.max(1) as f64));
    format!("{number:<8} {bar} {used:>4} of {CAPACITY_TOKENS} {:>9} {:>9} {hits:>13}\n", now.running, now.waiting)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

fn say(text: &str) {
    write(&format!("{text}\n"));
}

/// Writes to standard output. An output that nobody reads any more does not stop the demonstration, which ends by
/// itself.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Gauges;

    #[test]
    fn the_picture_fits_a_terminal_of_eighty_columns() {
        let screen = Screen { agents: 1000, seconds: 3600, live: true, drawn: 0, next_line: Duration::ZERO };
        let status = screen.status(PHASES[1], Duration::from_secs(3599), 1000, 1.0, 99_999.0);
        let gauges = Gauges { running: 1000, waiting: 1000, kv_usage: 1.0 };
        let row = row(ENGINES, EngineReading { gauges, queries: 1, hits: 1, preemptions: 0 });
        let width = |line: &str| line.trim_end().chars().count();
        assert_eq!(width(&row), COLUMNS.len(), "the columns stand below their heads");
        assert!(COLUMNS.len() <= 80 && width(&status) <= 80, "{status}");
    }
}
