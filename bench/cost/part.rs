//! The parts of the measurement: for each target, round by round, and how the result is printed.

use super::load::{Client, Crowd, Request, requests, streams, times};
use super::mock::{Mock, Pace};
use super::numbers::{Durations, Report};
use super::stock;
use super::target::{Kind, Target};
use clap::ValueEnum;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of programs that take turns.
const PROGRAMS: usize = 64;
/// Numbers of known programs, for measuring whether the cost depends on them. The last is the largest number that is
/// kept by default.
const KNOWN: [usize; 3] = [PROGRAMS, 20_000, 200_000];

/// Number of streams at the same time when their cost is measured.
const STREAMS: usize = 50;
/// Number of streams at the same time when their memory is measured.
const OPEN: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Bodies of 2 kB
    Small,
    /// Of 100 kB
    Medium,
    /// Of 1 MB
    Large,
    /// Of 2 kB, as many as go
    Busy,
    /// An event a write, every 20 ms
    Streams,
    /// 32 events a write
    Bulk,
    /// One connection
    Latency,
    /// Memory at rest and of open streams
    Rest,
    /// The cost with 64, 20,000 and 200,000 known programs
    Known,
    /// Memory over a million requests
    Million,
}

/// CPU time of one target for each request or event in µs, one value for each round.
struct Costs(Vec<f64>);

// === impl Part ===

impl Part {
    pub async fn run(self, report: &mut Report, mock: &Mock, targets: &[Target], rounds: usize, connections: usize) {
        let every = |millis| Crowd { connections, pause: Duration::from_millis(millis) };
        match self {
            Self::Small => costs(report, "µs a request of 2 kB", targets, rounds, sized(2_000, 2000, every(10))).await,
            Self::Medium => {
                costs(report, "µs a request of 100 kB", targets, rounds, sized(100_000, 1000, every(20))).await
            }
            Self::Large => {
                costs(report, "µs a request of 1 MB", targets, rounds, sized(1_000_000, 100, every(200))).await
            }
            Self::Busy => {
                let title = "µs a request of 2 kB, one after the other";
                costs(report, title, targets, rounds, sized(2_000, 4000, every(0))).await
            }
            Self::Streams => {
                mock.set(Pace { events: 200, burst: 1, gap: Duration::from_millis(20) });
                costs(report, "µs an event, one a write", targets, rounds, Work::Events(200)).await;
            }
            Self::Bulk => {
                mock.set(Pace { events: 3200, burst: 32, gap: Duration::from_millis(20) });
                costs(report, "µs an event, 32 a write", targets, rounds, Work::Events(3200)).await;
            }
            Self::Latency => latency(report, mock, targets, rounds).await,
            Self::Rest => memory(report, mock, targets).await,
            Self::Known => known(report, targets, rounds, connections).await,
            Self::Million => million(report, targets, every(0)).await,
        }
    }
}

/// Work of one round.
#[derive(Clone)]
enum Work {
    Requests {
        request: Arc<Request>,
        /// Size of a body in bytes.
        size: usize,
        count: usize,
        crowd: Crowd,
    },
    /// Streams with this number of events each.
    Events(usize),
}

fn sized(size: usize, count: usize, crowd: Crowd) -> Work {
    Work::Requests { request: Arc::new(Request::new(size, PROGRAMS, false)), size, count, crowd }
}

impl Work {
    fn is_for(&self, kind: Kind) -> bool {
        !matches!(self, Self::Requests { size, .. } if kind == Kind::Stock && *size > stock::LARGEST)
    }

    /// Does the work, divided by `share`. Returns the number of requests or events done, and reports any that are
    /// missing.
    async fn run(&self, target: &Target, share: usize, report: &mut Report) -> usize {
        match self {
            Self::Requests { request, count, crowd, .. } => {
                let failed = requests(target.address, request, *crowd, count / share).await;
                report.check(failed == 0, format!("{}: {failed} of {} requests failed", target.name, count / share));
                count / share
            }
            Self::Events(each) => {
                let request = Arc::new(Request::new(2_000, PROGRAMS, true));
                let events = streams(target.address, &request, STREAMS).await;
                // Two more events are the last one and `[DONE]`.
                let expected = STREAMS * (each + 2);
                report.check(events == expected, format!("{}: {events} events of {expected}", target.name));
                expected
            }
        }
    }
}

/// Measures every target in each round.
async fn measure(report: &mut Report, targets: &[&Target], rounds: usize, work: &Work) -> Vec<Costs> {
    for target in targets {
        work.run(target, 4, report).await;
    }
    let mut costs: Vec<Costs> = targets.iter().map(|_| Costs(Vec::new())).collect();
    for _ in 0..rounds {
        for (target, costs) in targets.iter().zip(&mut costs) {
            let before = target.process.cpu();
            let done = work.run(target, 1, report).await;
            // The work after the answer, such as the log line, belongs to the cost too.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let spent = target.process.cpu() - before;
            costs.0.push(spent.as_secs_f64() * 1e6 / done as f64);
        }
    }
    costs
}

async fn costs(report: &mut Report, title: &str, targets: &[Target], rounds: usize, work: Work) {
    report.title(title);
    let targets: Vec<&Target> = targets.iter().filter(|target| work.is_for(target.kind)).collect();
    let costs = measure(report, &targets, rounds, &work).await;
    let base = targets.iter().position(|target| target.kind == Kind::Nginx).unwrap_or(0);
    for (target, cost) in targets.iter().zip(&costs) {
        let ratio = cost.ratio(&costs[base]);
        report.line(&target.name, format!("{}  {ratio:.2} of {}", cost.summary(), targets[base].name));
    }
}

/// Measures the cost with few and with many programs. A program becomes known by one short step, and nobody releases
/// it.
async fn known(report: &mut Report, targets: &[Target], rounds: usize, connections: usize) {
    report.title("µs a request of 2 kB, with so many known programs");
    for target in targets.iter().filter(|target| target.kind == Kind::Thundergate) {
        let mut first = None;
        for count in KNOWN {
            let start = Instant::now();
            let crowd = Crowd { connections, pause: Duration::ZERO };
            let failed = requests(target.address, &Arc::new(Request::new(300, count, false)), crowd, count).await;
            report.check(failed == 0, format!("{failed} of {count} requests failed"));
            let took = start.elapsed().as_secs_f64();
            let request = Arc::new(Request::new(2_000, count, false));
            let work = Work::Requests {
                request,
                size: 2_000,
                count: 2000,
                crowd: Crowd { connections, pause: Duration::from_millis(10) },
            };
            let cost = measure(report, &[target], rounds, &work).await.remove(0);
            let first = first.get_or_insert_with(|| cost.0.clone());
            let told = format!("{}  {:.2} of the first", cost.summary(), cost.ratio(&Costs(first.clone())));
            let memory = target.process.resident() as f64 / 1e3;
            report.line(&format!("{}, {count}", target.name), format!("{told}; {memory:.1} MB; in {took:.0} s"));
        }
    }
}

async fn million(report: &mut Report, targets: &[Target], crowd: Crowd) {
    report.title("resident memory, MB: after 100,000, 200,000, … 1,000,000 requests of 2 kB");
    for target in targets.iter().filter(|target| target.kind == Kind::Thundergate) {
        let request = Arc::new(Request::new(2_000, PROGRAMS, false));
        let mut sizes = Vec::new();
        for _ in 0..10 {
            let failed = requests(target.address, &request, crowd, 100_000).await;
            report.check(failed == 0, format!("{failed} requests failed"));
            sizes.push(format!("{:.1}", target.process.resident() as f64 / 1e3));
        }
        report.line(&target.name, sizes.join(" "));
    }
}

async fn memory(report: &mut Report, mock: &Mock, targets: &[Target]) {
    report.title("resident memory");
    mock.set(Pace { events: 60, burst: 1, gap: Duration::from_millis(100) });
    for target in targets {
        let before = target.process.resident();
        let request = Arc::new(Request::new(2_000, PROGRAMS, true));
        let address = target.address;
        let open = tokio::spawn(async move { streams(address, &request, OPEN).await });
        let mut most = 0;
        while !open.is_finished() {
            most = target.process.resident().max(most);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let events = open.await.unwrap_or(0);
        report.check(events == OPEN * 62, format!("{}: {events} events of {}", target.name, OPEN * 62));
        let each = most.saturating_sub(before) as f64 / OPEN as f64;
        report.line(&target.name, format!("{:.1} MB before, {each:.1} kB for each open stream", before as f64 / 1e3));
    }
}

async fn latency(report: &mut Report, mock: &Mock, targets: &[Target], rounds: usize) {
    report.title("one connection, 2 kB");
    let request = Request::new(2_000, PROGRAMS, false);
    let addresses = std::iter::once(mock.address).chain(targets.iter().map(|target| target.address));
    let mut clients: Vec<_> = addresses.map(|address| (Client::new(address), Durations::default())).collect();
    for (client, _) in &mut clients {
        times(client, &request, 300).await;
    }
    for _ in 0..rounds {
        for (client, all) in &mut clients {
            all.extend(times(client, &request, 500).await);
        }
    }
    let direct = clients[0].1.percentile(0.5);
    report.line("straight to the backend", clients[0].1.summary());
    for (target, (_, times)) in targets.iter().zip(&mut clients[1..]) {
        let added = (times.percentile(0.5) - direct) * 1e3;
        report.line(&target.name, format!("{}; adds {added:.0} µs", times.summary()));
    }
}

// === impl Costs ===

impl Costs {
    fn summary(&self) -> String {
        let [least, median, most] = [0.0, 0.5, 1.0].map(|share| percentile(self.0.clone(), share));
        format!("{median:8.2} ({least:.2}–{most:.2})")
    }

    /// The median of the ratios, round by round: a disturbance in a round disturbs both targets.
    fn ratio(&self, base: &Self) -> f64 {
        percentile(self.0.iter().zip(&base.0).map(|(cost, base)| cost / base).collect(), 0.5)
    }
}

fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len().saturating_sub(1) as f64 * share).round();
    values.get(rank as usize).copied().unwrap_or(f64::NAN)
}
