//! A state from disk: whatever can be decoded can be taken up, and served with.

use std::time::Duration;
use thundergate::config::{Config, Pool};
use thundergate::scheduler::{
    Arrival, BackendId, BackendReport, Event, Outcome, Scheduler, SchedulerSnapshot, StepId, Usage,
};
use thundergate::state::{Snapshot, decode, encode};
use thundergate::units::Tokens;
use xxhash_rust::xxh3::xxh3_64;

/// Steps that come afterwards, a program each.
const STEPS: usize = 8;

/// Each to be followed by a check.
struct Served {
    scheduler: Scheduler,
    now: Duration,
}

pub fn check(data: &[u8]) {
    let _ = decode(data);
    let Ok(snapshot) = decode(&sealed(data)) else { return };
    let bytes = encode(&snapshot);
    let again = decode(&bytes).expect("what was encoded can be decoded");
    assert_eq!(encode(&again), bytes, "another state came back");
    let passed = Duration::from_millis(snapshot.taken_ms);
    for pool in snapshot.pools {
        serve(pool.memory, passed);
    }
}

/// With a header that fits: a fuzzer does not guess checksums.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = encode(&Snapshot::default());
    bytes.truncate(12);
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn scheduler() -> Scheduler {
    Scheduler::new(Config::default().policy(&Pool::default()))
}

fn serve(memory: SchedulerSnapshot, passed: Duration) {
    let mut served = Served { scheduler: scheduler(), now: Duration::ZERO };
    let mut backends: Vec<_> = memory.backends.iter().map(|record| (record.backend, record.life)).collect();
    backends.truncate(STEPS);
    backends.push((BackendId(u32::MAX), None));
    for &(backend, _) in &backends {
        served.tell(Event::BackendAdded { backend, weight: 1, capacity: None });
    }
    let programs: Vec<_> =
        memory.programs.iter().take(STEPS).map(|record| (record.key.clone(), record.class)).collect();
    served.scheduler.restore(served.now, passed, memory);
    served.sound();
    for (n, (key, class)) in programs.iter().enumerate() {
        served.tell(Event::Arrive(Arrival {
            step: StepId(n as u64),
            program: Some(key.clone()),
            class: *class,
            prompt_bytes: 40_000,
            max_output: None,
            preferred: None,
            last: n == 0,
        }));
    }
    for (backend, life) in backends {
        let report = BackendReport { capacity: Some(Tokens(50_000)), life, ..BackendReport::default() };
        served.tell(Event::Report { backend, report });
        served.tell(Event::BackendUp(backend));
    }
    for n in 0..programs.len() {
        served.tell(Event::Tick);
        // A backend may say anything.
        let absurd = Tokens(u64::MAX >> n);
        let usage = Usage { prompt: absurd, completion: absurd, cached: Some(absurd) };
        served.tell(Event::Progress { step: StepId(n as u64), output: absurd });
        served.tell(Event::End { step: StepId(n as u64), outcome: Outcome::Completed(Some(usage)) });
    }
    // And once more.
    let mut remembered = served.scheduler.snapshot();
    let _ = served.scheduler.snapshot_programs(0, usize::MAX, &mut remembered.programs);
    let mut heir = scheduler();
    heir.restore(Duration::ZERO, Duration::ZERO, remembered);
    assert_eq!(heir.check(), Ok(()));
    for (key, _) in programs {
        served.tell(Event::Release(key));
    }
}

// === impl Served ===

impl Served {
    fn tell(&mut self, event: Event) {
        self.now += Duration::from_secs(1);
        self.scheduler.handle(self.now, event, &mut Vec::new());
        self.sound();
    }

    fn sound(&self) {
        assert_eq!(self.scheduler.check(), Ok(()));
    }
}
