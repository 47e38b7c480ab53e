//! The cost of a request and of an event in the proxy, beside nginx and others. The mock backend and the load generator
//! run in this process. CPU times of the proxies come from the kernel's nanosecond accounting. In each round the
//! proxies are measured one after the other. `bench/REPORT.md` has the numbers.
//!
//! `cargo bench --bench cost -- [--targets thundergate,nginx] [--rounds 5] [--only small,streams]`. The variables
//! `VLLM_ROUTER`, `SGLANG_ROUTER` and `SMG` name the directories of the virtual environments in which routers from PyPI
//! are installed.

#[path = "cost/load.rs"]
mod load;
#[path = "cost/mock.rs"]
mod mock;
#[allow(dead_code, reason = "the streams benchmark uses the rest")]
mod numbers;
#[path = "cost/part.rs"]
mod part;
#[path = "cost/process.rs"]
mod process;
#[path = "cost/stock.rs"]
mod stock;
#[path = "cost/target.rs"]
mod target;

use clap::Parser;
use mock::Mock;
use numbers::Report;
use part::Part;
use std::path::PathBuf;
use std::process::ExitCode;
use target::{Kind, Target};

/// Allocator, the same as the proxy's: this binary serves the target `stock` itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Debug, Parser)]
struct Args {
    /// What is measured; the others are set in relation to nginx, or else to the first
    #[arg(long, value_delimiter = ',', default_value = "thundergate,nginx")]
    targets: Vec<Kind>,
    /// All that is installed
    #[arg(long)]
    all: bool,
    /// The binary to measure; each one given more is a target of its own
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_thundergate"))]
    gate: Vec<PathBuf>,
    /// Each target in turn, so many times
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, value_delimiter = ',', default_value = "small,medium,large,busy,streams,bulk,latency,rest")]
    only: Vec<Part>,
    /// Connections that have a request each under way
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Serve this configuration by Pingora's own executor, as the target `stock`
    #[arg(long, hide = true)]
    serve_stock: Option<PathBuf>,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let Some(file) = &args.serve_stock {
        runtime.block_on(stock::serve(file));
        return ExitCode::FAILURE;
    }
    let report = runtime.block_on(run(&args));
    report.verdict()
}

async fn run(args: &Args) -> Report {
    let mut report = Report::new();
    let mock = Mock::start().await;
    let mut targets = Vec::new();
    for kind in if args.all { Kind::installed() } else { args.targets.clone() } {
        let gates = if kind == Kind::Thundergate { args.gate.as_slice() } else { &args.gate[..1] };
        for gate in gates {
            targets.push(Target::start(kind, gate, &mock).await);
        }
    }
    report.title("targets");
    for target in &targets {
        report.line(&target.name, &target.version);
    }
    for part in &args.only {
        part.run(&mut report, &mock, &targets, args.rounds, args.connections).await;
    }
    report
}
