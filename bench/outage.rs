//! The price of a backend's death for its clients, and the time until the death and the return are noticed. The real
//! binary with its default health checks runs in front of simulated engines. The benchmark prints a table; the exit
//! code is that of the checks.
//!
//! `cargo bench --bench outage -- [--kills 6] [--hangs 3] [--clients 64]`

#[path = "soak/engines.rs"]
mod engines;
#[allow(dead_code, reason = "the other benchmarks print more")]
mod numbers;
#[path = "../tests/support/mod.rs"]
mod support;

use clap::Parser;
use engines::{BLOCKS, Engine};
use numbers::{Durations, Report};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::process::Process;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Number of engines in the idle fleet for each kind of death, and the time from one death to the next. So the deaths
/// fall on different moments between two checks.
const IDLE: usize = 6;
const APART: Duration = Duration::from_millis(700);

/// Time limit for noticing. A hung backend is noticed after 17 s at most: see docs/reliability.md.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Args {
    /// Each keeps its backend out for twice as long as the one before: with more than six that is over a minute
    #[arg(long, default_value_t = 6)]
    kills: usize,
    #[arg(long, default_value_t = 3)]
    hangs: usize,
    /// Each has an answer streamed all the time
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// The proxy, in front of several engines.
struct Site {
    engines: Vec<Engine>,
    address: SocketAddr,
    http: reqwest::Client,
    _process: Process,
    _directory: tempfile::TempDir,
}

/// One step, as the client saw it.
struct Step {
    began: Instant,
    /// Backend of the step; `None` if the client was not told.
    backend: Option<String>,
    whole: bool,
}

#[derive(Default)]
struct Seen {
    steps: Mutex<Vec<Step>>,
    stop: AtomicBool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut report = Report::new();
    let mut rows = Vec::new();
    under_load(&args, &mut report, &mut rows).await;
    idle(&mut rows).await;
    println!("\nthundergate {}, default health checks\n", env!("CARGO_PKG_VERSION"));
    println!("| what | result |\n|---|---|");
    for (what, result) in rows {
        println!("| {what} | {result} |");
    }
    report.verdict()
}

async fn under_load(args: &Args, report: &mut Report, rows: &mut Vec<(String, String)>) {
    let mut site = Site::start(2).await;
    let (seen, mut clients) = (Arc::<Seen>::default(), JoinSet::new());
    for n in 0..args.clients {
        clients.spawn(client(site.address, n, Arc::clone(&seen)));
    }
    let (mut failed, mut on_it, mut strangers) = (0, 0, 0);
    let (mut dead, mut back) = (Durations::default(), Durations::default());
    for n in 0..args.kills {
        let victim = n % 2;
        site.everyone_is_at_work(args.clients).await;
        let url = site.engines[victim].url.clone();
        on_it += site.backends().await[&url].1;
        seen.steps.lock().clear();
        let at = Instant::now();
        site.engines[victim].kill().await;
        dead.push(site.until(&url, false, at).await);
        // After this pause, no step is under way any more.
        sleep(Duration::from_secs(1)).await;
        for step in seen.steps.lock().iter().filter(|step| !step.whole) {
            failed += 1;
            let there = step.backend.as_ref().is_none_or(|backend| *backend == url);
            strangers += usize::from(step.began > at || !there);
        }
        site.engines[victim].again(BLOCKS).await;
        back.push(site.until(&url, true, Instant::now()).await);
    }
    report.check(strangers == 0, format!("{strangers} steps failed that were not on the backend that died"));
    let what = format!("`kill -9` of one of two backends under {} streams, {} times", args.clients, args.kills);
    let result =
        format!("{failed} steps cut or 502, {on_it} were on it at its death; of all others {strangers} failed");
    rows.push((what, result));
    rows.push(("a killed backend is noticed, under load".to_owned(), spread(&mut dead)));
    rows.push((
        "one that is started again at once is back; each kill keeps it out for longer".to_owned(),
        spread(&mut back),
    ));

    let (mut hung, mut back) = (Durations::default(), Durations::default());
    seen.steps.lock().clear();
    for n in 0..args.hangs {
        let engine = &site.engines[n % 2];
        site.everyone_is_at_work(args.clients).await;
        let at = Instant::now();
        engine.signal(Signal::STOP);
        hung.push(site.until(&engine.url, false, at).await);
        engine.signal(Signal::CONT);
        back.push(site.until(&engine.url, true, Instant::now()).await);
    }
    seen.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }
    let failed = seen.steps.lock().iter().filter(|step| !step.whole).count();
    report.check(failed == 0, format!("{failed} steps failed while a backend hung"));
    let what = format!("a hung backend (`SIGSTOP`) is noticed, under load, {} times", args.hangs);
    rows.push((what, format!("{}; {failed} steps failed", spread(&mut hung))));
    rows.push(("one that goes on is back, under load".to_owned(), spread(&mut back)));
}

async fn idle(rows: &mut Vec<(String, String)>) {
    let mut site = Site::start(2 * IDLE + 1).await;
    let mut at = HashMap::new();
    for n in 0..2 * IDLE {
        let engine = &mut site.engines[n];
        at.insert(engine.url.clone(), Instant::now());
        if n < IDLE {
            engine.kill().await
        } else {
            engine.signal(Signal::STOP)
        }
        sleep(APART).await;
    }
    let noticed = site.until_each(&at, false).await;
    let mut at = HashMap::new();
    for n in 0..2 * IDLE {
        let engine = &mut site.engines[n];
        if n < IDLE {
            engine.again(BLOCKS).await
        } else {
            engine.signal(Signal::CONT)
        }
        at.insert(engine.url.clone(), Instant::now());
    }
    let back = site.until_each(&at, true).await;
    let mut row = |what: &str, times: &HashMap<String, Duration>, which: std::ops::Range<usize>| {
        let mut durations = Durations::default();
        site.engines[which].iter().for_each(|engine| durations.push(times[&engine.url]));
        rows.push((what.to_owned(), spread(&mut durations)));
    };
    row("a killed backend is noticed, idle", &noticed, 0..IDLE);
    row("one that is started again is back, idle", &back, 0..IDLE);
    row("a hung backend (`SIGSTOP`) is noticed, idle", &noticed, IDLE..2 * IDLE);
    row("one that goes on is back, idle", &back, IDLE..2 * IDLE);
}

/// Runs a client that asks for one streamed answer after another.
async fn client(proxy: SocketAddr, n: usize, seen: Arc<Seen>) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let message = json!({"role": "user", "content": format!("{n} ").repeat(200)});
    let mut body = json!({"model": "sim", "messages": [message], "stream": true, "max_tokens": 50, "ignore_eos": true});
    for count in 0.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        // Each step has a program of its own, so that steps spread over the backends again when one returns.
        body["program_id"] = format!("{n}-{count}").into();
        let began = Instant::now();
        let (mut backend, mut whole) = (None, false);
        let request = http.post(format!("http://{proxy}/v1/chat/completions")).header("x-program-final", "true");
        let request = request.json(&body);
        if let Ok(Ok(answer)) = timeout(PATIENCE, request.send()).await {
            let header = answer.headers().get("x-thundergate-backend");
            backend = header.and_then(|url| url.to_str().ok()).map(str::to_owned);
            let text = timeout(PATIENCE, answer.text()).await;
            whole = text.is_ok_and(|text| text.is_ok_and(|text| text.ends_with("data: [DONE]\n\n")));
        }
        if !whole {
            sleep(Duration::from_millis(50)).await;
        }
        seen.steps.lock().push(Step { began, backend, whole });
    }
}

/// Median and maximum of the times, as text.
fn spread(times: &mut Durations) -> String {
    let [median, most] = [0.5, 1.0].map(|share| match times.percentile(share) {
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    });
    format!("median {median}, at most {most} ({} times)", times.len())
}

// === impl Site ===

impl Site {
    async fn start(count: usize) -> Self {
        let mut engines = Vec::new();
        for n in 0..count {
            engines.push(Engine::start(n).await);
        }
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("outage.yaml");
        let urls: Vec<_> = engines.iter().map(|engine| engine.url.as_str()).collect();
        let text = format!("listen: 127.0.0.1:0\nbackends: [{}]\n", urls.join(", "));
        std::fs::write(&file, text).expect("a file");
        let process = Process::serve(&file, &[]);
        let address = process.ready().await;
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let site = Self { engines, address, http, _process: process, _directory: directory };
        let at: HashMap<_, _> = site.engines.iter().map(|engine| (engine.url.clone(), Instant::now())).collect();
        site.until_each(&at, true).await;
        site
    }

    /// State of each backend by URL: whether it is up, and its number of steps in flight.
    async fn backends(&self) -> HashMap<String, (bool, usize)> {
        let page = self.http.get(format!("http://{}/backends", self.address)).send().await.expect("an answer");
        let page: Value = page.json().await.expect("JSON");
        let backend = |backend: &Value| {
            let steps = backend["steps_in_flight"].as_u64().expect("a number") as usize;
            let url = backend["url"].as_str().expect("a URL").to_owned();
            (url, (backend["healthy"] == true, steps))
        };
        page["backends"].as_array().expect("a list").iter().map(backend).collect()
    }

    async fn until(&self, url: &str, up: bool, since: Instant) -> Duration {
        let at = HashMap::from([(url.to_owned(), since)]);
        self.until_each(&at, up).await[url]
    }

    /// The time that each backend took to be up, or down, since the instant in `at`.
    async fn until_each(&self, at: &HashMap<String, Instant>, up: bool) -> HashMap<String, Duration> {
        let mut took = HashMap::new();
        let all = async {
            while took.len() < at.len() {
                for (url, (is_up, _)) in self.backends().await {
                    if let Some(since) = at.get(&url).filter(|_| is_up == up) {
                        took.entry(url).or_insert_with(|| since.elapsed());
                    }
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, all).await.expect("it is noticed");
        took
    }

    /// Waits until both backends have steps and more than half of the clients have one.
    async fn everyone_is_at_work(&self, clients: usize) {
        let all = async {
            loop {
                let backends = self.backends().await;
                let steps: usize = backends.values().map(|(_, steps)| steps).sum();
                if steps * 2 > clients && backends.values().all(|(_, steps)| steps * 5 > clients) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, all).await.expect("both backends have work");
    }
}
