//! `thundergate demo`: simulated engines, agents, and the proxy between them; first with program-aware
//! scheduling, then the same agents on the same engines, started anew, with round robin.

mod agent;
mod process;
mod screen;
mod watch;

use agent::{Agent, Record};
use process::{Engines, Proxy};
use screen::{Outcome, Screen};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use watch::Watcher;

/// How often the picture is brought up to date.
const REFRESH: Duration = Duration::from_millis(500);

/// Shows, without a GPU, what scheduling by program does to an overloaded fleet.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Seconds for each of the two phases; the first fifth of each warms up and is not counted
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=3600))]
    pub seconds: u64,
    /// Agents that run at the same time
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub agents: u64,
    /// Seed of the agents' work and of the engines' answers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Why a demonstration broke off.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{what}: {error}")]
    Start { what: &'static str, error: std::io::Error },
    #[error("{what} did not get ready: {why}")]
    NotReady { what: &'static str, why: String },
    #[error("no step was answered with `--router {router}`; the last error: {error}")]
    NoSteps { router: &'static str, error: String },
    #[error("interrupted")]
    Interrupted,
}

/// One way to route, and how it is called in the tables.
#[derive(Clone, Copy, Debug)]
struct Phase {
    number: usize,
    router: &'static str,
    title: &'static str,
}

const PHASES: [Phase; 2] = [
    Phase { number: 1, router: "tr", title: "by program" },
    Phase { number: 2, router: "default", title: "round robin" },
];

/// Runs both phases and prints the comparison. All child processes are gone when it returns.
///
/// # Errors
/// See [`DemoError`].
pub fn run(args: &Args) -> Result<(), DemoError> {
    let start = |error| DemoError::Start { what: "runtime", error };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(start)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(start)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(start)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(start)?;
        // Dropping the phase kills its processes.
        tokio::select! {
            done = both(args) => done,
            _ = interrupt.recv() => Err(DemoError::Interrupted),
            _ = terminate.recv() => Err(DemoError::Interrupted),
            _ = hangup.recv() => Err(DemoError::Interrupted),
        }
    })
}

async fn both(args: &Args) -> Result<(), DemoError> {
    let mut screen = Screen::new(args);
    screen.introduce(process::CAPACITY_TOKENS * process::ENGINES as u64, args.agents * agent::MEAN_CONTEXT);
    let mut outcomes = Vec::new();
    for phase in PHASES {
        outcomes.push(one(args, phase, &mut screen).await?);
    }
    screen.compare(&outcomes);
    Ok(())
}

async fn one(args: &Args, phase: Phase, screen: &mut Screen) -> Result<Outcome, DemoError> {
    let engines = Engines::start(args.seed).await?;
    let proxy = Proxy::start(&engines.urls, phase.router).await?;
    let record = Arc::new(Record::default());
    let http = reqwest::Client::builder().no_proxy().build();
    let http = http.map_err(|error| DemoError::NotReady { what: "HTTP client", why: error.to_string() })?;
    let mut agents = JoinSet::new();
    for number in 0..args.agents {
        let agent = Agent::new(args.seed, number, &proxy.url, http.clone(), Arc::clone(&record));
        agents.spawn(agent.work());
    }
    let mut watcher = Watcher::new(http, &proxy.url, &engines.urls);
    let whole = Duration::from_secs(args.seconds);
    let began = Instant::now();
    let mut warm = false;
    let mut refresh = tokio::time::interval(REFRESH);
    while began.elapsed() < whole {
        refresh.tick().await;
        watcher.look().await;
        if !warm && began.elapsed() >= whole / 5 {
            warm = true;
            watcher.mark();
            record.restart();
        }
        screen.show(phase, began.elapsed(), &watcher, &record);
    }
    let steps = record.steps();
    if steps.is_empty() {
        return Err(DemoError::NoSteps { router: phase.router, error: record.last_error() });
    }
    let outcome = Outcome::new(phase, steps, &watcher, &record);
    agents.shutdown().await;
    screen.end_phase();
    Ok(outcome)
}
