//! `thundergate-lab`: the commands `engine`, `simulate` and `demo` of `thundergate`.

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;
use thundergate_lab::{Cli, demo, engine, simulate};

/// The allocator, the same as the proxy's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let done: Result<(), Box<dyn Error>> = match Cli::parse() {
        Cli::Demo(args) => demo::run(&args).map_err(Into::into),
        Cli::Engine(args) => engine::run(args).map_err(Into::into),
        Cli::Simulate(args) => simulate::run(&args).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
