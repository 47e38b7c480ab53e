//! The process seen from outside: its memory and descriptors, second by second, and the state that it tells at the end.

use crate::faults::Site;
use crate::journal::Journal;
use serde_json::Value;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Time limit within which programs are forgotten, engines are found well, and connections are closed.
const QUIESCENCE: Duration = Duration::from_secs(60);

/// Number of second connections to engines. The proxy has one connection to each engine for checks, and a second one
/// when a reading of metrics falls together with a check.
const SECOND_CONNECTIONS: usize = crate::ENGINES;

/// Limit on the growth of memory over the second half of the last process's life: this share, or this number of
/// kilobytes, whichever is more.
const GROWTH: (f64, f64) = (0.05, 4096.0);

#[derive(Clone, Copy)]
pub struct Sample {
    process: u32,
    /// Time since the beginning, in seconds.
    at: f64,
    rss_kb: f64,
    descriptors: usize,
}

/// Takes a sample every second until the run is over.
pub async fn samples(process: watch::Receiver<u32>, journal: Arc<Journal>) -> Vec<Sample> {
    let mut samples = Vec::new();
    while !journal.is_over() {
        let process = *process.borrow();
        if let Some(rss_kb) = rss_kb(process) {
            let at = journal.began.elapsed().as_secs_f64();
            samples.push(Sample { process, at, rss_kb, descriptors: descriptors(process) });
        }
        sleep(Duration::from_secs(1)).await;
    }
    samples
}

pub fn descriptors(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count)
}

pub fn rss_kb(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Checks that memory stayed flat after the start. A straight line is fitted to the samples of the second half of the
/// life of the process that served last.
pub fn memory(samples: &[Sample], journal: &Journal) {
    let Some(last) = samples.last() else { return };
    let life: Vec<_> = samples.iter().filter(|sample| sample.process == last.process).collect();
    let warm = &life[life.len() / 2..];
    let n = warm.len() as f64;
    let mean = |of: fn(&Sample) -> f64| warm.iter().map(|sample| of(sample)).sum::<f64>() / n;
    let (at, rss) = (mean(|sample| sample.at), mean(|sample| sample.rss_kb));
    let spread: f64 = warm.iter().map(|sample| (sample.at - at).powi(2)).sum();
    let slope = warm.iter().map(|sample| (sample.at - at) * (sample.rss_kb - rss)).sum::<f64>() / spread.max(1.0);
    let span = last.at - warm[0].at;
    let (growth, bound) = (slope * span, GROWTH.1.max(rss * GROWTH.0));
    let most = life.iter().map(|sample| sample.descriptors).max().unwrap_or(0);
    println!(
        "memory of the last process: {:.1} MB, {:+.1} MB in its last {span:.0} s (at most {:.1}); at most {most} descriptors",
        rss / 1024.0,
        growth / 1024.0,
        bound / 1024.0,
    );
    if growth > bound {
        let seconds: Vec<_> = warm.iter().map(|sample| sample.rss_kb as u64).collect();
        journal.wrong(format!("memory grows: {seconds:?} kB, second by second"));
    }
}

/// Waits until the proxy has nothing left of any client: no program, step, charge or connection.
pub async fn quiescence(site: &Site, base: usize, journal: &Journal) {
    let since = Instant::now();
    loop {
        let Some(left) = left(site, base).await else {
            let time = since.elapsed().as_secs_f64();
            println!(
                "nothing was left after {time:.1} s; {} descriptors, {base} at the start",
                descriptors(site.current.id())
            );
            return;
        };
        if since.elapsed() > QUIESCENCE {
            return journal.wrong(format!("left at the end: {left}"));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn left(site: &Site, base: usize) -> Option<String> {
    let page = site.page("/metrics").await;
    let zero = ["inflight_requests", "held_steps", "backend_charged_tokens", "programs"];
    let zero = zero.map(|name| format!("thundergate_{name}"));
    let mine =
        |line: &&str| zero.iter().any(|name| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    let mut lines = page.lines().filter(mine);
    if let Some(line) = lines.find(|line| !line.ends_with(" 0") && !line.ends_with(" 0.0")) {
        return Some(line.to_owned());
    }
    let json = async |path: &str| serde_json::from_str::<Value>(&site.page(path).await).expect("JSON");
    let health = json("/health").await;
    let counts = ["programs_count", "reasoning_count", "acting_count", "paused_count"];
    if counts.iter().any(|count| health[count] != 0) {
        return Some(health.to_string());
    }
    let programs = json("/programs").await;
    if programs.as_object().is_none_or(|programs| !programs.is_empty()) {
        return Some(programs.to_string());
    }
    let backends = json("/backends").await;
    let busy = |backend: &&Value| backend["steps_in_flight"] != 0 || backend["healthy"] != true;
    if let Some(backend) = backends["backends"].as_array().into_iter().flatten().find(busy) {
        return Some(backend.to_string());
    }
    let open = descriptors(site.current.id());
    (open > base + SECOND_CONNECTIONS).then(|| format!("{open} descriptors, {base} at the start"))
}

/// Checks that the last process has counted as many requests as its access log has.
pub async fn counted(site: &Site, journal: &Journal) {
    let page = site.page("/metrics").await;
    let counts = page.lines().filter(|line| line.starts_with("thundergate_requests_total{"));
    let counted: f64 = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
    let logged = fs::read_to_string(site.access_log()).expect("its access log").lines().count();
    if counted as usize != logged {
        journal.wrong(format!("{counted} requests counted, {logged} in the access log"));
    }
}
