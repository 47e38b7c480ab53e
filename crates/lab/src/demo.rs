//! `thundergate demo`: simulated engines, agents, and the proxy between them. The first phase schedules by program; the
//! second runs the same agents on fresh engines with round robin.

mod agent;
mod engines;
mod proxy;
mod screen;

use agent::{Agent, Record};
use engines::Engines;
use proxy::ProxyProcess;
use screen::{Outcome, Screen};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Time between two updates of the picture.
const REFRESH: Duration = Duration::from_millis(500);

/// Show what scheduling by program does to an overloaded fleet, without a GPU
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

/// Reason why a demonstration broke off.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{what}: {error}")]
    Start { what: &'static str, error: std::io::Error },
    #[error("engine: {0}")]
    Engine(#[from] crate::engine::StartError),
    #[error("proxy did not get ready: {0}")]
    NotReady(String),
    #[error("no step was answered with `--router {router}`; the last error: {error}")]
    NoSteps { router: &'static str, error: String },
    #[error("interrupted")]
    Interrupted,
}

/// A way of routing, and its names.
#[derive(Clone, Copy, Debug)]
struct Phase {
    number: usize,
    /// Value of the proxy's `--router`.
    router: &'static str,
    /// Name in the tables.
    title: &'static str,
}

const PHASES: [Phase; 2] = [
    Phase { number: 1, router: "tr", title: "by program" },
    Phase { number: 2, router: "default", title: "round robin" },
];

/// Runs both phases and prints the comparison. The proxy is gone when this function returns.
///
/// # Errors
/// See [`DemoError`].
pub fn run(args: &Args) -> Result<(), DemoError> {
    let start = |error| DemoError::Start { what: "runtime", error };
    let runtime = tokio::runtime::Runtime::new().map_err(start)?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(start)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(start)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(start)?;
        // A signal drops the running phase, and a phase that is dropped kills its proxy.
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
    screen.introduce(args.agents * agent::MEAN_CONTEXT);
    let mut outcomes = Vec::new();
    for phase in PHASES {
        outcomes.push(one(args, phase, &mut screen).await?);
    }
    screen.compare(&outcomes);
    Ok(())
}

async fn one(args: &Args, phase: Phase, screen: &mut Screen) -> Result<Outcome, DemoError> {
    let mut engines = Engines::start(args.seed).await?;
    let mut proxy = ProxyProcess::start(&engines.urls(), phase.router).await?;
    let record = Arc::new(Record::default());
    let mut agents = JoinSet::new();
    for number in 0..args.agents {
        agents.spawn(Agent::new(args.seed, number, &proxy.url, &proxy.http, &record).work());
    }
    let whole = Duration::from_secs(args.seconds);
    let began = Instant::now();
    let mut warm = false;
    let mut refresh = tokio::time::interval(REFRESH);
    while began.elapsed() < whole {
        refresh.tick().await;
        let held = proxy.held().await;
        if !warm && began.elapsed() >= whole / 5 {
            warm = true;
            engines.mark();
            record.restart();
        }
        screen.show(phase, began.elapsed(), held, &engines, &record.counts());
    }
    screen.end_phase();
    let counts = record.counts().clone();
    if counts.steps.is_empty() {
        return Err(DemoError::NoSteps { router: phase.router, error: counts.last_error });
    }
    Ok(Outcome::new(phase, counts, &engines))
}
