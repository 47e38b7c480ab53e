//! The price of changes for clients: upgrades and reloads under load, on loopback. The benchmark prints the number of
//! lost requests and cut streams; the exit code says whether there were any.
//!
//! `cargo bench --bench upgrade -- [--upgrades 20] [--reloads 50] [--streams 20]`

#[path = "../tests/support/mod.rs"]
mod support;

use clap::Parser;
use rustix::process::Signal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;
use support::backend::Backend;
use support::load::{self, Load};
use support::process::Process;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 20)]
    upgrades: usize,
    #[arg(long, default_value_t = 50)]
    reloads: usize,
    /// Streams at once, each of 60 events in 1.2 s
    #[arg(long, default_value_t = 20)]
    streams: usize,
    /// Clients that keep a connection, and as many that make one for each request
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Writes the configuration. The second backend is in the file only if `with` is true, which is every other time.
fn write(file: &Path, always: &str, sometimes: &str, with: bool) {
    let more = if with { format!(", {sometimes}") } else { String::new() };
    let health = "health: {interval: 100ms}";
    let text = format!("listen: 127.0.0.1:0\nmodels: [{{backends: [{always}{more}], {health}}}]\n");
    std::fs::write(file, text).expect("a file");
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("thundergate.yaml");
    let (one, two) = (Backend::start().await, Backend::start().await);
    let (always, sometimes) = (one.url(), two.url());
    let _backends = [load::answer(one), load::answer(two)];
    write(&file, &always, &sometimes, true);

    let mut current = Process::serve(&file, &["--log-level", "info"]);
    let address = current.ready().await;
    let load = Load::start(address, args.clients, args.clients, args.streams);
    load.goes_on().await;

    let started = Instant::now();
    for n in 0..args.reloads {
        write(&file, &always, &sometimes, n % 2 == 1);
        let said = current.lines();
        current.signal(Signal::HUP);
        current.says_after(said, "loaded anew").await;
        load.goes_on().await;
    }
    println!("{} reloads in {:.1} s", args.reloads, started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut old = Vec::new();
    for _ in 0..args.upgrades {
        let new = Process::serve(&file, &["--upgrade"]);
        new.says("waiting at").await;
        current.signal(Signal::QUIT);
        current.says("another process serves").await;
        load.goes_on().await;
        old.push(std::mem::replace(&mut current, new));
    }
    println!("{} upgrades in {:.1} s", args.upgrades, started.elapsed().as_secs_f64());
    for mut process in old {
        process.ended().await;
    }
    let seen = load.stop().await;
    let (lost, cut) = (seen.lost.load(SeqCst), seen.cut.load(SeqCst));
    println!("requests: {}, lost: {lost}", seen.requests.load(SeqCst));
    println!("streams: {}, cut: {cut}", seen.streams.load(SeqCst));
    if lost + cut == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
