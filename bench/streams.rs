//! The cost of the proxy, and a check that it loses nothing: many streams at the same time, requests that are held,
//! clients that leave, one connection. The release binary runs in front of a scripted backend; `bench/REPORT.md` has
//! the numbers.
//!
//! `cargo bench --bench streams -- [--streams 500] [--seconds 20] [--only streams|held|aborts|latency]`. The exit code
//! is that of the correctness checks; times and sizes never fail it.

mod aborts;
mod caller;
mod gate;
mod held;
mod latency;
mod numbers;
mod sse;
#[path = "../tests/support/mod.rs"]
mod support;

use caller::Wire;
use clap::{Parser, ValueEnum};
use numbers::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Parser)]
struct Args {
    /// The binary to measure
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_thundergate"))]
    gate: PathBuf,
    /// Streams at once
    #[arg(long, default_value_t = 500)]
    streams: usize,
    /// How long they run
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Milliseconds from one event of a stream to the next
    #[arg(long, default_value_t = 20)]
    token_ms: u64,
    /// Requests held with a body of 2 kB
    #[arg(long, default_value_t = 1000)]
    held_small: usize,
    /// Requests held with a body of 100 kB
    #[arg(long, default_value_t = 300)]
    held_large: usize,
    /// How often they are held and released
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Clients that leave, for each way to leave
    #[arg(long, default_value_t = 50)]
    aborts: usize,
    /// Requests on one connection, for each size
    #[arg(long, default_value_t = 3000)]
    requests: usize,
    /// One part only
    #[arg(long)]
    only: Option<Part>,
    /// Over one protocol only
    #[arg(long)]
    wire: Option<Wire>,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Streams,
    Held,
    Aborts,
    Latency,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let report = runtime.expect("a runtime").block_on(run(&args));
    report.verdict()
}

async fn run(args: &Args) -> Report {
    let mut report = Report::new();
    let wires: Vec<Wire> = args.wire.map_or_else(|| vec![Wire::H1, Wire::H2c], |wire| vec![wire]);
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Streams) {
        let events = (args.seconds * 1000 / args.token_ms) as usize;
        let load = sse::Load { streams: args.streams, events, gap: Duration::from_millis(args.token_ms) };
        sse::direct(&mut report, load).await;
        for &wire in &wires {
            sse::through(&mut report, &args.gate, load, wire).await;
        }
    }
    if wanted(Part::Held) {
        for &wire in &wires {
            held::run(&mut report, &args.gate, wire, args.held_small, 2_000, args.rounds).await;
            held::run(&mut report, &args.gate, wire, args.held_large, 100_000, args.rounds).await;
        }
    }
    if wanted(Part::Aborts) {
        for &wire in &wires {
            aborts::run(&mut report, &args.gate, wire, args.aborts).await;
        }
    }
    if wanted(Part::Latency) {
        for size in [2_000, 100_000] {
            latency::run(&mut report, &args.gate, args.requests, size).await;
        }
    }
    report
}
