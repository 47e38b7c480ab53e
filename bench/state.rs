//! The cost of keeping the state of 200,000 programs: the time and size of a snapshot, and the time for which each
//! portion of it holds the scheduler. Dispatch waits for that time.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thundergate::app::App;
use thundergate::config::{self, Config};
use thundergate::gate::PORTION;
use thundergate::scheduler::{BackendId, ProgramKey, ProgramSnapshot, Scheduler, SchedulerSnapshot};
use thundergate::state::{self, PoolSnapshot, Snapshot};
use thundergate::units::Tokens;

const PROGRAMS: u64 = 200_000;
const ROUNDS: usize = 5;

fn main() {
    let config = Config { models: vec![config::Pool::unnamed(Vec::new())], ..Config::default() };
    let memory = SchedulerSnapshot { programs: (0..PROGRAMS).map(program).collect(), ..SchedulerSnapshot::default() };
    let policy = config.policy(&config.models[0]);
    let mut scheduler = Scheduler::new(policy);
    scheduler.restore(Duration::from_secs(3600), Duration::ZERO, memory.clone());

    let app = App::new(Arc::new(config)).expect("an app");
    let bytes =
        state::encode(&Snapshot { taken_ms: 0, pools: vec![PoolSnapshot { memory, ..PoolSnapshot::default() }] });
    let start = Instant::now();
    let restored = state::decode(&bytes).expect("sound bytes").restore(&app.gate, &app.fleet);
    println!("{} programs taken up in {:.0?}", restored.programs, start.elapsed());

    let file = std::env::temp_dir().join("thundergate-state-bench");
    for _ in 0..ROUNDS {
        let portions = portions(&scheduler);
        let start = Instant::now();
        let bytes = state::encode(&Snapshot::take(&app.gate, &app.fleet));
        let captured = start.elapsed();
        let mut out = File::create(&file).expect("a temporary file");
        out.write_all(&bytes).and_then(|()| out.sync_all()).expect("room for it");
        let written = start.elapsed() - captured;
        println!("a portion: {portions}; all: {captured:.0?}; {} bytes written in {written:.0?}", bytes.len());
    }
    let _ = fs::remove_file(file);
}

/// The time for which a portion holds the scheduler, as text.
fn portions(scheduler: &Scheduler) -> String {
    let mut programs = Vec::with_capacity(PROGRAMS as usize);
    let mut took = Vec::new();
    let mut next = Some(0);
    while let Some(number) = next {
        let start = Instant::now();
        next = scheduler.snapshot_programs(number, PORTION, &mut programs);
        took.push(start.elapsed());
    }
    took.sort_unstable();
    let [p50, p99, max] = [took.len() / 2, took.len() * 99 / 100, took.len() - 1].map(|rank| took[rank]);
    format!("p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}")
}

fn program(number: u64) -> ProgramSnapshot {
    ProgramSnapshot {
        number,
        key: ProgramKey { tenant: "team-a".into(), id: format!("swe-bench-{number:024}").into() },
        class: 0x1234_5678_9abc_def0,
        context: Tokens(20_000 + number),
        last_prompt: Tokens(19_000 + number),
        last_bytes: 80_000 + number,
        home: Some(BackendId(0)),
        leased: false,
        running: false,
        age_ms: 100_000 + number,
        idle_ms: 1_000 + number,
        steps: 20,
    }
}
