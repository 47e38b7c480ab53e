//! Thundergate's laboratory: a simulated inference server ([`engine`]), a simulator that replays workloads through the
//! scheduler and its rivals ([`simulate`]), and a demonstration ([`demo`]).
//!
//! `thundergate engine`, `thundergate simulate` and `thundergate demo` run the program `thundergate-lab`, which is
//! built from this crate. No code of this crate serves requests.

pub mod demo;
pub mod engine;
pub mod simulate;

use std::process::Command;

/// The command line of `thundergate-lab`.
#[derive(Debug, clap::Parser)]
#[command(name = "thundergate-lab", bin_name = "thundergate", version)]
pub enum Cli {
    /// Show what it does, without a GPU: simulated engines, agents, and the proxy between them
    Demo(demo::Args),
    /// Run one simulated vLLM server, for tests, demonstrations and benchmarks
    Engine(engine::Args),
    /// Replay a workload through the scheduler and through others, in virtual time
    Simulate(simulate::Args),
}

/// A command that runs the program `name` of the same build: the program beside this one, else the one in PATH.
fn beside(name: &str) -> Command {
    let here = std::env::current_exe().ok().map(|program| program.with_file_name(name));
    here.filter(|path| path.exists()).map_or_else(|| Command::new(name), Command::new)
}
