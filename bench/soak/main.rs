//! Everything at once, for a given time: the real binary in front of simulated engines that are killed, stopped and
//! restarted, clients of every kind, reloads, upgrades. At the end, no client may have seen an error that cannot be
//! explained, and no state may be left. Loopback only.
//!
//! `cargo bench --bench soak -- [--minutes 10] [--seed 1] [--clients 48]`. The seed determines the actions of the
//! clients and the order of the faults, but not the times. The exit code says whether all was well.

mod agent;
mod engines;
mod faults;
mod journal;
mod plan;
#[path = "../../tests/support/mod.rs"]
mod support;
mod watch;

use agent::Agent;
use clap::Parser;
use engines::Engine;
use faults::{GREEDY, KEYS, Site};
use journal::Journal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Number of engines. The last one is a spare, which is added and removed at run time.
const ENGINES: usize = 5;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Half as many again ask for more than their key may
    #[arg(long, default_value_t = 48)]
    clients: u64,
    #[arg(long, default_value_t = 4)]
    upgrades: u32,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut engines = Vec::new();
    for n in 0..ENGINES {
        engines.push(Engine::start(n).await);
    }
    let urls = engines.iter().map(|engine| engine.url.clone()).collect();
    let journal = Arc::new(Journal::new());
    let site = Site::start(urls, &journal).await;
    let base = watch::descriptors(site.current.id());
    let address = site.current.address(0).await;

    let length = Duration::from_secs_f64(args.minutes * 60.0);
    let samples = tokio::spawn(watch::samples(site.id.subscribe(), Arc::clone(&journal)));
    let mut clients = JoinSet::new();
    for n in 0..args.clients + args.clients / 2 {
        let greedy = n >= args.clients;
        let key = if greedy { GREEDY.to_owned() } else { format!("key-{}", n % KEYS) };
        clients.spawn(Agent::new(n, address, key, greedy, &journal).work(args.seed));
    }
    let engines = tokio::spawn(faults::of_engines(engines, args.seed, Arc::clone(&journal)));
    let site = tokio::spawn(site.changes(args.seed, length, args.upgrades));
    tokio::time::sleep(length).await;
    journal.stop();

    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }
    let _engines = engines.await.expect("no panic");
    let site = site.await.expect("no panic");
    let samples = samples.await.expect("no panic");
    println!("\nsoak: {} min, seed {}, {} clients", args.minutes, args.seed, args.clients + args.clients / 2);
    watch::quiescence(&site, base, &journal).await;
    watch::memory(&samples, &journal);
    watch::counted(&site, &journal).await;
    finish(site, &journal).await;
    if journal.verdict() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends the process, and audits the logs that it has written.
async fn finish(mut site: Site, journal: &Journal) {
    site.current.signal(rustix::process::Signal::TERM);
    let ended = site.current.ended().await;
    if !ended.success() {
        journal.wrong(format!("the last process: {ended}"));
    }
    journal.audit(site.directory.path());
}
