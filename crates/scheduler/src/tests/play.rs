//! Random events for a scheduler, and a scheduler to which they happen while the oracle checks it.

use super::oracle::Oracle;
use super::world::{key, policy};
use crate::units::Tokens;
use crate::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Duration;

/// Number of places for backends. A new backend may take an empty place.
const SLOTS: u8 = 3;
const PROGRAMS: u8 = 10;
/// Longest hold. It is short, so that a run reaches it again and again.
const HOLD_MAX: Duration = Duration::from_secs(100);

/// One thing that happens. Its numbers choose among the steps, programs or backends that exist at the time.
#[derive(Clone, Debug)]
pub enum Act {
    Arrive {
        program: Option<u8>,
        tokens: u64,
        limit: Option<u64>,
        last: bool,
    },
    FirstToken(u16),
    Progress(u16, u64),
    /// The step is answered; `cached` is in hundredths of the prompt.
    Complete {
        of: u16,
        usage: Option<(u64, u64)>,
        cached: Option<u64>,
    },
    Fail(u16),
    Reject(u16),
    /// The client of a held or running step leaves.
    Leave(u16),
    Undelivered(u16),
    /// A message that comes too late, or twice.
    Stale(u16),
    Release(u8),
    Add {
        slot: u8,
        weight: u32,
        capacity: Option<u64>,
    },
    Remove(u8),
    Up(u8),
    Down(u8),
    Draining(u8),
    /// The metrics page reports: capacity, KV use in hundredths, and whether the server started anew.
    Report {
        slot: u8,
        capacity: Option<u64>,
        usage: Option<u64>,
        restarted: bool,
    },
    Freeze(bool),
    Drain,
    /// Milliseconds pass without a tick.
    Pause(u64),
    Tick(u64),
    Ticks(u64),
}

/// The start of a run.
#[derive(Clone, Debug)]
pub struct Start {
    pub policy: Policy,
    pub capacities: Vec<Option<u64>>,
}

pub fn start() -> impl Strategy<Value = Start> {
    let routing =
        prop_oneof![12 => Just(Routing::Program), 1 => Just(Routing::LeastLoad), 1 => Just(Routing::RoundRobin)];
    let timeout = prop_oneof![2 => Just(OnTimeout::Admit), 1 => Just(OnTimeout::Reject)];
    let queue = prop_oneof![4 => Just(10_000_usize), 1 => 1..8_usize];
    let most = prop_oneof![4 => Just(1_000_usize), 1 => 2..8_usize];
    let acting = prop_oneof![6 => Just((1.0, false)), 1 => Just((0.5, false)), 1 => Just((1.0, true))];
    let capacities = vec(option::weighted(0.9, 500..30_000_u64), 1..=usize::from(SLOTS));
    let all = (routing, timeout, queue, most, acting, capacities);
    all.prop_map(|(routing, on_timeout, queue, max_programs, (acting_weight, acting_decay), capacities)| {
        let hold = settings::Hold { max: HOLD_MAX, on_timeout, queue };
        let settings = Settings { hold, acting_weight, acting_decay, ..Settings::default() };
        Start { policy: Policy { routing, settings, max_programs, ..policy() }, capacities }
    })
}

pub fn acts(most: usize) -> impl Strategy<Value = Vec<Act>> {
    vec(act(), 1..most)
}

fn act() -> impl Strategy<Value = Act> {
    let tokens = || prop_oneof![20 => 10..6_000_u64, 1 => 0..40_000_u64];
    let usage = option::weighted(0.7, (0..8_000_u64, 0..500_u64));
    let number = any::<u16>;
    let slot = || 0..SLOTS;
    prop_oneof![
        12 => (option::weighted(0.9, 0..PROGRAMS), tokens(), option::of(0..400_u64), prop::bool::weighted(0.1))
            .prop_map(|(program, tokens, limit, last)| Act::Arrive { program, tokens, limit, last }),
        3 => number().prop_map(Act::FirstToken),
        2 => (number(), 0..3_000_u64).prop_map(|(of, tokens)| Act::Progress(of, tokens)),
        8 => (number(), usage, option::of(0..=100_u64))
            .prop_map(|(of, usage, cached)| Act::Complete { of, usage, cached }),
        1 => number().prop_map(Act::Fail),
        1 => number().prop_map(Act::Reject),
        3 => number().prop_map(Act::Leave),
        1 => number().prop_map(Act::Undelivered),
        1 => number().prop_map(Act::Stale),
        2 => (0..PROGRAMS).prop_map(Act::Release),
        1 => (slot(), 1..4_u32, option::of(0..30_000_u64))
            .prop_map(|(slot, weight, capacity)| Act::Add { slot, weight, capacity }),
        1 => slot().prop_map(Act::Remove),
        3 => slot().prop_map(Act::Up),
        1 => slot().prop_map(Act::Down),
        1 => slot().prop_map(Act::Draining),
        2 => (slot(), option::of(1..30_000_u64), option::of(0..120_u64), prop::bool::weighted(0.2)).prop_map(
            |(slot, capacity, usage, restarted)| Act::Report { slot, capacity, usage, restarted }
        ),
        1 => prop::bool::weighted(0.4).prop_map(Act::Freeze),
        2 => (0..5_000_u64).prop_map(Act::Pause),
        2 => (0..200_u64).prop_map(Act::Tick),
        3 => (1..12_u64).prop_map(Act::Ticks),
        // Now and then everything ends early, or hours pass.
        1 => prop_oneof![1 => Just(Act::Drain), 9 => (0..8_000_u64).prop_map(Act::Tick)],
    ]
}

pub struct Play {
    pub scheduler: Scheduler,
    /// The oracle; `None` after a restart, because it cannot know of the time before.
    oracle: Option<Oracle>,
    now: Duration,
    pub events: Vec<(Duration, Event)>,
    pub log: Vec<Decision>,
    /// Steps that have arrived and are neither over nor refused; and those of them that run.
    open: Vec<StepId>,
    running: BTreeSet<StepId>,
    slots: [Option<BackendId>; SLOTS as usize],
    next_step: u64,
    next_backend: u32,
}

impl Play {
    pub fn new(start: &Start) -> Self {
        let mut play = Self {
            scheduler: Scheduler::new(start.policy.clone()),
            oracle: Some(Oracle::new(start.policy.clone())),
            now: Duration::ZERO,
            events: Vec::new(),
            log: Vec::new(),
            open: Vec::new(),
            running: BTreeSet::new(),
            slots: [None; SLOTS as usize],
            next_step: 0,
            next_backend: 0,
        };
        for (slot, &capacity) in (0..).zip(&start.capacities) {
            play.act(Act::Add { slot, weight: 1, capacity: None });
            play.act(Act::Up(slot));
            play.act(Act::Report { slot, capacity, usage: None, restarted: false });
        }
        play
    }

    /// A second process that restores the snapshot of the process of `before`. Its backends come up with 10,000 tokens.
    pub fn after(start: &Start, before: &Self, snapshot: SchedulerSnapshot) -> Self {
        let mut play = Self::new(&Start { capacities: Vec::new(), ..start.clone() });
        (play.oracle, play.now) = (None, before.now);
        (play.slots, play.next_backend) = (before.slots, before.next_backend);
        for slot in (0..SLOTS).filter(|slot| before.slots[usize::from(*slot)].is_some()) {
            play.act(Act::Add { slot, weight: 1, capacity: Some(10_000) });
        }
        play.scheduler.restore(play.now, Duration::ZERO, snapshot);
        for slot in 0..SLOTS {
            play.act(Act::Up(slot));
        }
        play
    }

    /// Tells the scheduler an event, and checks its decisions against the oracle.
    pub fn tell(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        let before = self.log.len();
        self.scheduler.handle(self.now, event.clone(), &mut self.log);
        if let Some(oracle) = &mut self.oracle {
            oracle.follow(self.now, &event, &self.log[before..]);
            oracle.compare(&self.scheduler);
        }
        for decision in &self.log[before..] {
            match decision {
                Decision::Dispatch { step, .. } => drop(self.running.insert(*step)),
                Decision::Refuse { step, .. } => self.open.retain(|open| open != step),
                _ => {}
            }
        }
        self.events.push((self.now, event));
    }

    pub fn act(&mut self, act: Act) {
        match act {
            Act::Arrive { program, tokens, limit, last } => {
                let name = program.map(|number| number.to_string());
                let class = program.unwrap_or(0) % 3;
                self.arrive(name.as_deref(), class.into(), tokens, limit, last);
            }
            Act::FirstToken(of) => self.with(of, Event::FirstToken),
            Act::Progress(of, tokens) => self.with(of, |step| Event::Progress { step, output: Tokens(tokens) }),
            Act::Complete { of, usage, cached } => {
                let usage = usage.map(|(prompt, completion)| Usage {
                    prompt: Tokens(prompt),
                    completion: Tokens(completion),
                    cached: cached.map(|share| Tokens(prompt * share / 100)),
                });
                self.finish(of, Outcome::Completed(usage));
            }
            Act::Fail(of) => self.finish(of, Outcome::Failed),
            Act::Reject(of) => self.finish(of, Outcome::Rejected),
            Act::Leave(of) => {
                if let Some(step) = nth(self.open.iter(), of) {
                    self.end(step, Outcome::Abandoned);
                }
            }
            Act::Undelivered(of) => {
                if let Some(step) = nth(self.running.iter(), of) {
                    self.running.remove(&step);
                    self.tell(Event::Undelivered(step));
                }
            }
            Act::Stale(of) => self.stale(of),
            Act::Release(program) => self.tell(Event::Release(key(&program.to_string()))),
            Act::Add { slot, weight, capacity } => {
                let backend = self.slots[usize::from(slot)].unwrap_or(BackendId(self.next_backend));
                if self.slots[usize::from(slot)].replace(backend).is_none() {
                    self.next_backend += 1;
                }
                self.tell(Event::BackendAdded { backend, weight, capacity: capacity.map(Tokens) });
            }
            Act::Remove(slot) => {
                if let Some(backend) = self.slots[usize::from(slot)].take() {
                    self.tell(Event::BackendRemoved(backend));
                }
            }
            Act::Up(slot) => self.of_backend(slot, Event::BackendUp),
            Act::Down(slot) => self.of_backend(slot, Event::BackendDown),
            Act::Draining(slot) => self.of_backend(slot, Event::BackendDraining),
            Act::Report { slot, capacity, usage, restarted } => {
                let (capacity, kv_usage) = (capacity.map(Tokens), usage.map(|share| share as f64 / 100.0));
                let report = BackendReport { capacity, restarted, kv_usage, prefill_rate: Some(10_000.0), life: None };
                self.of_backend(slot, |backend| Event::Report { backend, report });
            }
            Act::Freeze(frozen) => self.tell(Event::Freeze(frozen)),
            Act::Drain => self.tell(Event::Drain),
            Act::Pause(millis) => self.now += Duration::from_millis(millis),
            Act::Tick(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.tell(Event::Tick);
            }
            Act::Ticks(count) => (0..count).for_each(|_| self.act(Act::Tick(1))),
        }
    }

    pub fn arrive(&mut self, name: Option<&str>, class: u64, tokens: u64, limit: Option<u64>, last: bool) -> StepId {
        let step = StepId(self.next_step);
        self.next_step += 1;
        self.open.push(step);
        self.tell(Event::Arrive(Arrival {
            step,
            program: name.map(key),
            class,
            prompt_bytes: tokens * 4,
            max_output: limit.map(Tokens),
            preferred: None,
            last,
        }));
        step
    }

    pub fn end(&mut self, step: StepId, outcome: Outcome) {
        self.open.retain(|open| *open != step);
        self.running.remove(&step);
        self.tell(Event::End { step, outcome });
    }

    fn of_backend(&mut self, slot: u8, event: impl FnOnce(BackendId) -> Event) {
        if let Some(backend) = self.slots[usize::from(slot)] {
            self.tell(event(backend));
        }
    }

    fn with(&mut self, of: u16, event: impl FnOnce(StepId) -> Event) {
        if let Some(step) = nth(self.running.iter(), of) {
            self.tell(event(step));
        }
    }

    fn finish(&mut self, of: u16, outcome: Outcome) {
        if let Some(step) = nth(self.running.iter(), of) {
            self.end(step, outcome);
        }
    }

    /// Sends messages about a step that do not fit its state: it is held, over, or was never there.
    fn stale(&mut self, of: u16) {
        let step = StepId(u64::from(of) % (self.next_step + 2));
        if self.open.contains(&step) {
            self.tell(Event::Arrive(Arrival {
                step,
                program: Some(key("twice")),
                class: 0,
                prompt_bytes: 1,
                max_output: None,
                preferred: None,
                last: true,
            }));
        }
        if !self.running.contains(&step) {
            self.tell(Event::FirstToken(step));
            self.tell(Event::Progress { step, output: Tokens(7_000) });
            self.tell(Event::Undelivered(step));
        }
        if !self.open.contains(&step) {
            self.tell(Event::End { step, outcome: Outcome::Completed(None) });
            self.tell(Event::Report { backend: BackendId(99), report: BackendReport::default() });
        }
    }

    /// Brings back all backends and ends each running step at once. Soon after the longest hold, no step may be held
    /// any more. Once all programs are released, nothing may be left.
    pub fn wind_up(&mut self) {
        for slot in 0..SLOTS {
            self.act(Act::Add { slot, weight: 1, capacity: Some(10_000) });
            self.act(Act::Up(slot));
        }
        self.act(Act::Freeze(false));
        let end = self.now + HOLD_MAX + Duration::from_secs(u64::from(PROGRAMS));
        while !self.open.is_empty() {
            assert!(self.now < end, "held for ever: {:?}", self.open);
            while let Some(&step) = self.running.first() {
                self.end(step, Outcome::Completed(None));
            }
            self.act(Act::Tick(1));
        }
        let programs: Vec<ProgramKey> = self.scheduler.programs().into_iter().map(|program| program.key).collect();
        for program in programs {
            self.tell(Event::Release(program));
        }
        super::world::assert_as_if_nothing_had_been(&self.scheduler);
    }
}

fn nth<'a>(steps: impl ExactSizeIterator<Item = &'a StepId>, number: u16) -> Option<StepId> {
    let count = steps.len().max(1);
    let mut steps = steps;
    steps.nth(usize::from(number) % count).copied()
}
