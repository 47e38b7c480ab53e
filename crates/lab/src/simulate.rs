//! `thundergate simulate`: the proxy's scheduler and its rivals against engine models, in virtual time.
//!
//! [`world`] runs one simulation. A [`policy`] sees only what a proxy sees. [`tally`] counts; [`report`] and [`plot`]
//! show the counts.

mod demand;
mod faults;
mod plot;
mod policy;
mod profile;
mod report;
mod rng;
mod script;
mod tally;
mod trace;
mod workload;
mod world;

#[cfg(test)]
mod tests;

pub use faults::Fault;
pub use policy::{Choice, Policy};
pub use profile::Profile;
pub use report::Format;
pub use tally::{Figures, Tally};
pub use workload::Workload;

use demand::{Arrivals, Demand, Source};
use faults::Faults;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use trace::Trace;
use world::Setup;

/// Replay a workload through the scheduler and through others, in virtual time.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the programs do
    #[arg(long, value_enum, default_value = "swe", conflicts_with = "trace")]
    pub workload: Workload,
    /// Recorded programs instead: JSON lines of {program, step, arrive_gap_s, prompt_tokens, shared_tokens,
    /// output_tokens}
    ///
    /// One line a step; the steps of a program count up by one. arrive_gap_s: seconds since the end of the step
    /// before (a tool ran), and for a first step since the start of the program before it in the file.
    /// shared_tokens: how much of the start of the prompt every program has; programs with an optional "class"
    /// share it with their class only. With --programs or --rate the programs are taken in turn, again and again.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Number of engines
    #[arg(long, default_value = "4", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub engines: u16,
    /// What each of them is
    #[arg(long, value_enum, default_value = "glm", conflicts_with = "engine_file")]
    pub profile: Profile,
    /// A profile of your own: JSON of {t0_ms, tp_us, tq_ns, td_ms, tkv_ns, kv_tokens, block_size, max_num_seqs,
    /// max_num_batched_tokens}
    #[arg(long, value_name = "FILE")]
    pub engine_file: Option<PathBuf>,
    /// So many programs at any time, a new one as one ends [default: 160; with --trace as recorded]
    #[arg(long, value_name = "N", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub programs: Option<u32>,
    /// So many new programs a minute instead
    #[arg(long, value_name = "PER_MIN", value_parser = positive)]
    pub rate: Option<f64>,
    /// Whom to compare: ours, thunderagent, thunderagent-fixed (either with -decay), round-robin,
    /// least-connections, sticky, prefix-aware, cap:K; and the bounds infinite-cache and zero-recompute
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_values_t = DEFAULT_POLICIES)]
    pub policies: Vec<Choice>,
    /// YAML with the settings of `ours`, as for the server [default: the server's defaults]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Virtual minutes, the warm-up included
    #[arg(long, default_value = "60", value_parser = positive)]
    pub minutes: f64,
    /// Minutes at the start that do not count
    #[arg(long, default_value = "10", value_parser = not_negative)]
    pub warmup: f64,
    /// Same seed and arguments, same output
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// What goes wrong: restart:300s, estimate:0.7, no-usage, no-release, capacity:1.3, giant:450k, burst:1000
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub faults: Vec<Fault>,
    /// How the outcome is printed
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// Write plots (SVG) here
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

const DEFAULT_POLICIES: [Choice; 7] = [
    Choice::Ours,
    Choice::ThunderAgent { fixed: false, decay: false },
    Choice::ThunderAgent { fixed: true, decay: false },
    Choice::RoundRobin,
    Choice::LeastConnections,
    Choice::Sticky,
    Choice::PrefixAware,
];

/// Number of programs in a closed loop, unless the user gives one.
const PROGRAMS: u64 = 160;

/// Runs what the arguments ask for, and prints the outcome.
///
/// # Errors
/// A text that says what is wrong with the arguments or a file.
pub fn run(args: &Args) -> Result<(), String> {
    let setup = Setup::new(args)?;
    let tallies = simulate(&setup, &args.policies, args.quiet);
    let bound = tallies.last().map_or(0.0, Tally::steps_per_min);
    let named = || args.policies.iter().zip(&tallies);
    let figures: Vec<Figures> =
        named().map(|(choice, tally)| tally.figures(choice.to_string(), args.seed, bound)).collect();
    if let Some(dir) = &args.plots {
        let runs: Vec<_> = named().map(|(choice, tally)| (choice.to_string(), tally)).collect();
        plot::write(dir, &runs).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    match io::stdout().write_all(args.format.render(&figures).as_bytes()) {
        // The reader has closed the pipe, and so has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|error| error.to_string()),
    }
}

/// Tallies, one for each policy; the bound's is the last. Runs share nothing, so they take all cores there are.
fn simulate(setup: &Setup, policies: &[Choice], quiet: bool) -> Vec<Tally> {
    let all: Vec<Choice> = policies.iter().copied().chain([Choice::ZeroRecompute]).collect();
    let bar = progress_bar(setup, all.len(), quiet);
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Tally)>> = Mutex::new(Vec::new());
    let work = || {
        while let Some((at, &choice)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, all.get(at)?)))
        {
            let tally = world::run(setup, choice, &|_| bar.inc(1));
            done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((at, tally));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(all.len());
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    bar.finish_and_clear();
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|&(at, _)| at);
    done.into_iter().map(|(_, tally)| tally).collect()
}

/// A bar that counts the reports of all runs. Nothing is drawn if stderr is no terminal.
fn progress_bar(setup: &Setup, runs: usize, quiet: bool) -> ProgressBar {
    let reports = (setup.length.as_secs() / world::REPORT.as_secs() + 1) * runs as u64;
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(reports), target);
    if let Ok(style) = ProgressStyle::with_template("simulating {wide_bar} {percent}%, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn positive(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| *value > 0.0 && *value <= 1e6);
    value.ok_or_else(|| "expected a number above 0, at most a million".to_owned())
}

fn not_negative(text: &str) -> Result<f64, String> {
    if text.parse() == Ok(0.0) { Ok(0.0) } else { positive(text) }
}

/// The scheduler's settings in a server's configuration. The server itself reads the file, so both understand the same
/// settings and report the same mistakes.
fn settings(file: &Path) -> Result<thundergate_scheduler::Policy, String> {
    let name = "thundergate";
    let output = crate::beside(name).args(["check", "--print-policy", "--config"]).arg(file).output();
    let output = output.map_err(|error| format!("{name}, which reads {}: {error}", file.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned());
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{name} and thundergate-lab differ in version: {error}"))
}

// === impl Setup ===

impl Setup {
    fn new(args: &Args) -> Result<Self, String> {
        if args.warmup >= args.minutes {
            return Err(format!("--warmup {} leaves nothing of --minutes {}", args.warmup, args.minutes));
        }
        let source = match &args.trace {
            Some(path) => Source::Trace(Trace::read(path)?),
            None => Source::Workload(args.workload),
        };
        let arrivals = match (args.programs, args.rate, &source) {
            (Some(programs), ..) => Arrivals::Closed(programs.into()),
            (_, Some(rate), _) => Arrivals::Rate(rate),
            (None, None, Source::Trace(_)) => Arrivals::Recorded,
            (None, None, Source::Workload(_)) => Arrivals::Closed(PROGRAMS),
        };
        Ok(Self {
            demand: Demand { source, arrivals, seed: args.seed },
            engines: args.engines.into(),
            shape: match &args.engine_file {
                Some(path) => profile::read(path)?,
                None => args.profile.shape(),
            },
            policy: args.config.as_deref().map_or_else(|| Ok(thundergate_scheduler::Policy::default()), settings)?,
            length: Duration::from_secs_f64(args.minutes * 60.0),
            warmup: Duration::from_secs_f64(args.warmup * 60.0),
            faults: Faults::new(&args.faults),
        })
    }
}
