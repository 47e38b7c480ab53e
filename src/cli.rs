//! The command line.

use crate::config::Flags;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// A program-aware load balancer for vLLM fleets.
///
/// Without a command it serves: `thundergate --backends http://gpu1:8000,http://gpu2:8000`.
#[derive(Debug, Parser)]
#[command(name = "thundergate", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read a YAML file and list every mistake in it, with line and column
    Check(Check),
    /// Print the JSON Schema of the YAML, for editors
    Schema,
    /// Show what it does, without a GPU: simulated engines, agents, and the proxy between them
    #[command(disable_help_flag = true, after_help = "More: thundergate demo --help")]
    Demo(LabArgs),
    /// Run one simulated vLLM server, for tests, demonstrations and benchmarks
    #[command(disable_help_flag = true, after_help = "More: thundergate engine --help")]
    Engine(LabArgs),
    /// Replay a workload through the scheduler and through others, in virtual time
    #[command(disable_help_flag = true, after_help = "More: thundergate simulate --help")]
    Simulate(LabArgs),
}

#[derive(Debug, Args)]
pub struct Check {
    /// The file to check
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print the scheduler's settings as JSON, as `thundergate simulate` reads them
    #[arg(long)]
    pub print_policy: bool,
}

/// Arguments that are passed on, unread, to `thundergate-lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub args: Vec<OsString>,
}
