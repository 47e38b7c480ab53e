//! A scheduler with a clock and a log of its decisions.

use super::*;
use crate::units::Tokens;

pub fn policy() -> Policy {
    with(|_| {})
}

/// The default policy, with some settings changed.
pub fn with(change: impl FnOnce(&mut Settings)) -> Policy {
    let mut settings = Settings::default();
    change(&mut settings);
    Policy {
        routing: Routing::Program,
        settings,
        idle_ttl: Duration::from_secs(1_800),
        max_programs: 1_000,
        slow_start: Duration::ZERO,
    }
}

/// A policy whose forecast never holds a program back.
pub fn unforeseen() -> Policy {
    with(|settings| settings.forecast.slack = 9.0)
}

pub fn usage(prompt: u64, completion: u64) -> Usage {
    Usage { prompt: Tokens(prompt), completion: Tokens(completion), cached: None }
}

pub fn key(id: &str) -> ProgramKey {
    ProgramKey { tenant: "".into(), id: id.into() }
}

pub struct World {
    pub scheduler: Scheduler,
    pub now: Duration,
    pub log: Vec<Decision>,
    next: u64,
}

impl World {
    pub fn one_backend(capacity: u64) -> Self {
        Self::new(policy(), &[Some(capacity)])
    }

    /// A world with backends 0, 1, … of these capacities. All are up and prefill 10,000 tokens/s.
    pub fn new(policy: Policy, capacities: &[Option<u64>]) -> Self {
        let backends: Vec<_> = capacities.iter().map(|&capacity| (1, capacity)).collect();
        Self::weighed(policy, &backends)
    }

    /// The same world, where each backend has its weight too.
    pub fn weighed(policy: Policy, backends: &[(u32, Option<u64>)]) -> Self {
        let mut world = Self { scheduler: Scheduler::new(policy), now: Duration::ZERO, log: Vec::new(), next: 0 };
        for (id, &(weight, capacity)) in (0..).zip(backends) {
            let backend = BackendId(id);
            world.handle(Event::BackendAdded { backend, weight, capacity: capacity.map(Tokens) });
            world.handle(Event::BackendUp(backend));
            world.report(id, BackendReport { prefill_rate: Some(10_000.0), ..Default::default() });
        }
        world
    }

    pub fn snapshot(&self) -> SchedulerSnapshot {
        snapshot(&self.scheduler)
    }

    /// Replaces the scheduler, as if the process had been killed and another one restored `snapshot`. Its backends have
    /// these capacities, and none is up.
    pub fn reborn(&mut self, snapshot: SchedulerSnapshot, capacities: &[Option<u64>]) {
        self.scheduler = Scheduler::new(policy());
        for (id, capacity) in (0..).zip(capacities) {
            let backend = BackendId(id);
            self.handle(Event::BackendAdded { backend, weight: 1, capacity: capacity.map(Tokens) });
        }
        self.scheduler.restore(self.now, Duration::ZERO, snapshot);
        assert_eq!(self.scheduler.check(), Ok(()));
    }

    pub fn handle(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        // `handle` checks every invariant.
        self.scheduler.handle(self.now, event, &mut self.log);
    }

    /// A step arrives with a prompt of `tokens`, at four bytes per token until another ratio is learned.
    pub fn arrive(&mut self, program: &str, tokens: u64) -> StepId {
        self.arrive_with(Some(key(program)), tokens, false)
    }

    pub fn arrive_last(&mut self, program: &str, tokens: u64) -> StepId {
        self.arrive_with(Some(key(program)), tokens, true)
    }

    pub fn arrive_unlabelled(&mut self) -> StepId {
        self.arrive_with(None, 100, false)
    }

    fn arrive_with(&mut self, program: Option<ProgramKey>, tokens: u64, last: bool) -> StepId {
        let step = StepId(self.next);
        self.next += 1;
        let max_output = Some(Tokens(100));
        let prompt_bytes = tokens * 4;
        self.handle(Event::Arrive(Arrival {
            step,
            program,
            class: 7,
            prompt_bytes,
            max_output,
            preferred: None,
            last,
        }));
        step
    }

    /// The step ends well.
    pub fn answer(&mut self, step: StepId, usage: Usage) {
        self.handle(Event::FirstToken(step));
        self.end(step, Outcome::Completed(Some(usage)));
    }

    pub fn end(&mut self, step: StepId, outcome: Outcome) {
        self.handle(Event::End { step, outcome });
    }

    pub fn release(&mut self, program: &str) {
        self.handle(Event::Release(key(program)));
    }

    pub fn undelivered(&mut self, step: StepId) {
        self.handle(Event::Undelivered(step));
    }

    pub fn up(&mut self, backend: u32) {
        self.handle(Event::BackendUp(BackendId(backend)));
    }

    pub fn down(&mut self, backend: u32) {
        self.handle(Event::BackendDown(BackendId(backend)));
    }

    pub fn report(&mut self, backend: u32, report: BackendReport) {
        self.handle(Event::Report { backend: BackendId(backend), report });
    }

    pub fn ticks(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.handle(Event::Tick);
        }
    }

    /// Kind of the step's last dispatch; `None`: it was not dispatched.
    pub fn went(&self, step: StepId) -> Option<DispatchKind> {
        self.log.iter().rev().find_map(|decision| match decision {
            Decision::Dispatch { step: of, kind, .. } if *of == step => Some(*kind),
            _ => None,
        })
    }

    /// Backend of the step's last dispatch.
    pub fn place(&self, step: StepId) -> Option<u32> {
        self.log.iter().rev().find_map(|decision| match decision {
            Decision::Dispatch { step: of, backend, .. } if *of == step => Some(backend.0),
            _ => None,
        })
    }

    pub fn held(&self, step: StepId) -> bool {
        self.scheduler.steps.get(&step).is_some_and(|step| step.run.is_none())
    }

    pub fn reason(&self, step: StepId) -> Option<HoldReason> {
        self.log.iter().rev().find_map(|decision| match decision {
            Decision::Held { step: of, reason } if *of == step => Some(*reason),
            _ => None,
        })
    }

    pub fn refused(&self, step: StepId) -> Option<RefuseReason> {
        self.log.iter().rev().find_map(|decision| match decision {
            Decision::Refuse { step: of, reason } if *of == step => Some(*reason),
            _ => None,
        })
    }

    pub fn paused(&self, program: &str) -> Option<PauseReason> {
        self.log.iter().rev().find_map(|decision| match decision {
            Decision::Paused { program: of, reason, .. } if *of == key(program) => Some(*reason),
            _ => None,
        })
    }

    pub fn moved(&self, program: &str) -> bool {
        self.log.iter().any(|decision| matches!(decision, Decision::Moved { program: of, .. } if *of == key(program)))
    }

    pub fn program(&self, program: &str) -> Option<ProgramView> {
        self.scheduler.program(&key(program))
    }

    pub fn load(&self, backend: usize) -> LoadView {
        self.scheduler.loads().remove(backend)
    }

    pub fn assert_as_if_nothing_had_been(&self) {
        assert_as_if_nothing_had_been(&self.scheduler);
    }
}

/// The whole snapshot, with its programs taken in portions.
pub fn snapshot(scheduler: &Scheduler) -> SchedulerSnapshot {
    let mut programs = Vec::new();
    let mut next = Some(0);
    while let Some(number) = next {
        next = scheduler.snapshot_programs(number, 2, &mut programs);
    }
    SchedulerSnapshot { programs, ..scheduler.snapshot() }
}

/// Checks that no program, step, claim or queue entry is left.
pub fn assert_as_if_nothing_had_been(scheduler: &Scheduler) {
    assert_eq!(scheduler.programs.len(), 0);
    assert_eq!(scheduler.keys.len(), 0);
    assert_eq!(scheduler.steps.len(), 0);
    assert_eq!(scheduler.inactive.len(), 0);
    assert_eq!(scheduler.queue.len(), 0);
    assert!(scheduler.queue.started.is_empty() && scheduler.queue.fresh.is_empty());
    for backend in scheduler.backends.values() {
        assert_eq!(backend.claims(), Tokens::ZERO);
        assert_eq!(backend.in_flight(), 0);
        assert_eq!(backend.promised(), Duration::ZERO);
        assert!(backend.leased().is_empty() && backend.idle().is_empty());
    }
}
