//! The cost of a decision: the time that the scheduler takes for one event, by kind of event, while a crowd of agents
//! lives on four backends that hold a part of them; and the memory of a known program.
//!
//! `cargo bench --bench decision` prints a table of each crowd's first seconds, then criterion's figures, compared with
//! those of the last run. With `-- tables` (a filter that fits nothing) only the tables are printed. Nothing here fails
//! a build.

mod crowd;

use criterion::Criterion;
use crowd::{Crowd, Kind, Scene};
use std::time::Duration;

/// Scenes to measure. In the first two, about three in five agents fit; in the third, the queue is as long as it may be
/// by default.
const SCENES: [Scene; 3] = [
    Scene { name: "100 programs", known: 100, active: 100, capacity: 500_000 },
    Scene { name: "2,000 programs", known: 2_000, active: 2_000, capacity: 10_000_000 },
    Scene { name: "200,000 programs, 10,000 held", known: 200_000, active: 11_000, capacity: 8_000_000 },
];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    for scene in &SCENES {
        let before = resident();
        let mut crowd = Crowd::known(scene);
        if scene.known >= 10_000 {
            println!("{} bytes resident for each known program", resident().saturating_sub(before) / scene.known);
        }
        crowd.gather(scene);
        println!("{}: {}", scene.name, crowd.census());
        table(&mut crowd);
        let mut group = criterion.benchmark_group(scene.name);
        for kind in Kind::ALL {
            group.bench_function(kind.name(), |bencher| bencher.iter_custom(|events| crowd.live(kind, events)));
        }
        group.finish();
    }
    criterion.final_summary();
}

/// Prints the time in microseconds that the events of the next seconds take.
fn table(crowd: &mut Crowd) {
    let mut spent = crowd.live_for(Duration::from_secs(3));
    println!("{:20}{:>10}{:>10}{:>10}{:>10}{:>10}", "µs", "events", "mean", "p50", "p99", "max");
    for (kind, times) in Kind::ALL.iter().zip(&mut spent) {
        times.sort_unstable();
        let micros = |time: &Duration| time.as_secs_f64() * 1e6;
        let rank = |share: usize| times.get(times.len() * share / 100).map_or(0.0, micros);
        let mean = times.iter().map(micros).sum::<f64>() / times.len().max(1) as f64;
        let max = times.last().map_or(0.0, micros);
        let (name, count) = (kind.name(), times.len());
        println!("{name:20}{count:>10}{mean:>10.2}{:>10.2}{:>10.2}{max:>10.2}", rank(50), rank(99));
    }
}

/// Resident memory of this process in bytes; zero if there is no `/proc`.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).map_or(0, |kilobytes: u64| kilobytes * 1024)
}
