//! Random interleavings: whatever happens in whatever order, the ledger balances and nothing is lost.

use super::world::{World, policy, usage};
use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// One thing that happens. Numbers choose among what is there at the time.
#[derive(Clone, Debug)]
enum Act {
    Arrive {
        program: u8,
        tokens: u64,
    },
    ArriveLast {
        program: u8,
        tokens: u64,
    },
    ArriveUnlabelled,
    FirstToken(u16),
    Progress(u16, u64),
    Complete {
        of: u16,
        usage: bool,
        cached: u64,
    },
    Fail(u16),
    Reject(u16),
    /// The client leaves: a held step or one in flight.
    Leave(u16),
    Undelivered(u16),
    Release(u8),
    Down(u8),
    Up(u8),
    Restart(u8),
    Capacity(u8, u64),
    Draining(u8),
    Freeze(bool),
    /// The proxy is killed and started anew; the backends have restarted meanwhile, or not.
    Reborn(bool),
    Ticks(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..12_u8, 10..6_000_u64).prop_map(|(program, tokens)| Act::Arrive { program, tokens }),
        1 => (0..12_u8, 10..6_000_u64).prop_map(|(program, tokens)| Act::ArriveLast { program, tokens }),
        1 => Just(Act::ArriveUnlabelled),
        3 => any::<u16>().prop_map(Act::FirstToken),
        2 => (any::<u16>(), 0..3_000_u64).prop_map(|(of, tokens)| Act::Progress(of, tokens)),
        6 => (any::<u16>(), any::<bool>(), 0..500_u64)
            .prop_map(|(of, usage, cached)| Act::Complete { of, usage, cached }),
        1 => any::<u16>().prop_map(Act::Fail),
        1 => any::<u16>().prop_map(Act::Reject),
        3 => any::<u16>().prop_map(Act::Leave),
        1 => any::<u16>().prop_map(Act::Undelivered),
        2 => (0..12_u8).prop_map(Act::Release),
        1 => (0..3_u8).prop_map(Act::Down),
        2 => (0..3_u8).prop_map(Act::Up),
        1 => (0..3_u8).prop_map(Act::Restart),
        1 => (0..3_u8, 1..30_000_u64).prop_map(|(of, tokens)| Act::Capacity(of, tokens)),
        1 => (0..3_u8).prop_map(Act::Draining),
        1 => any::<bool>().prop_map(Act::Freeze),
        1 => any::<bool>().prop_map(Act::Reborn),
        3 => (1..90_u64).prop_map(Act::Ticks),
    ]
}

/// Steps that have neither ended nor been refused, by what the decisions said.
#[derive(Default)]
struct Ledger {
    open: Vec<StepId>,
    running: HashSet<StepId>,
    read: usize,
}

impl Ledger {
    /// Follows the decisions and checks what must hold of each.
    fn follow(&mut self, world: &World, down: &HashSet<u8>) {
        for decision in &world.log[self.read..] {
            match decision {
                Decision::Dispatch { step, backend, .. } => {
                    assert!(self.open.contains(step), "{step:?} is dispatched but not open");
                    assert!(self.running.insert(*step), "{step:?} is dispatched twice");
                    assert!(!down.contains(&(backend.0 as u8)), "{step:?} is dispatched to a backend that is down");
                }
                Decision::Refuse { step, .. } => {
                    assert!(!self.running.contains(step), "{step:?} is refused while it runs");
                    self.open.retain(|open| open != step);
                }
                _ => {}
            }
        }
        self.read = world.log.len();
    }

    fn pick(&self, number: u16) -> Option<StepId> {
        (!self.open.is_empty()).then(|| self.open[usize::from(number) % self.open.len()])
    }

    fn pick_running(&self, number: u16) -> Option<StepId> {
        let running: Vec<_> = self.open.iter().filter(|step| self.running.contains(step)).collect();
        (!running.is_empty()).then(|| *running[usize::from(number) % running.len()])
    }
}

struct Play {
    world: World,
    ledger: Ledger,
    down: HashSet<u8>,
}

impl Play {
    fn new() -> Self {
        let world = World::new(policy(), &[Some(12_000), None, None]);
        let mut play = Self { world, ledger: Ledger::default(), down: HashSet::new() };
        play.world.report(1, BackendReport { capacity: Some(Tokens(20_000)), ..Default::default() });
        play
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Arrive { program, tokens } => {
                let step = self.reserve();
                assert_eq!(step, self.world.arrive(&program.to_string(), tokens));
            }
            Act::ArriveLast { program, tokens } => {
                let step = self.reserve();
                assert_eq!(step, self.world.arrive_last(&program.to_string(), tokens));
            }
            Act::ArriveUnlabelled => {
                let step = self.reserve();
                assert_eq!(step, self.world.arrive_unlabelled());
            }
            Act::FirstToken(of) => self.with_running(of, Event::FirstToken),
            Act::Progress(of, tokens) => {
                self.with_running(of, |step| Event::Progress { step, output: Tokens(tokens) });
            }
            Act::Complete { of, usage: known, cached } => {
                let count = Usage { cached: Some(Tokens(cached)), ..usage(500 + cached, 50) };
                self.finish(of, Outcome::Completed(known.then_some(count)));
            }
            Act::Fail(of) => self.finish(of, Outcome::Failed),
            Act::Reject(of) => self.finish(of, Outcome::Rejected),
            Act::Leave(of) => {
                if let Some(step) = self.ledger.pick(of) {
                    self.close(step, Outcome::Abandoned);
                }
            }
            Act::Undelivered(of) => {
                if let Some(step) = self.ledger.pick_running(of) {
                    self.ledger.running.remove(&step);
                    self.world.undelivered(step);
                }
            }
            Act::Release(program) => self.world.release(&program.to_string()),
            Act::Down(backend) => {
                self.down.insert(backend);
                self.world.down(backend.into());
            }
            Act::Up(backend) => {
                self.down.remove(&backend);
                self.world.up(backend.into());
            }
            Act::Restart(backend) => {
                self.world.report(backend.into(), BackendReport { restarted: true, ..Default::default() });
            }
            Act::Capacity(backend, tokens) => {
                let report = BackendReport { capacity: Some(Tokens(tokens)), ..Default::default() };
                self.world.report(backend.into(), report);
            }
            Act::Draining(backend) => self.world.handle(Event::BackendDraining(BackendId(backend.into()))),
            Act::Freeze(frozen) => self.world.handle(Event::Freeze(frozen)),
            Act::Reborn(restarted) => self.reborn(restarted),
            Act::Ticks(seconds) => self.world.ticks(seconds),
        }
        self.ledger.follow(&self.world, &self.down);
    }

    /// No step survives; programs do, and claims stay within bounds.
    fn reborn(&mut self, restarted: bool) {
        let mut memory = self.world.memory();
        let started = memory.programs.len();
        for backend in memory.backends.iter_mut().filter(|_| restarted) {
            backend.life = Some(Life { started_ms: Some(1), prompt_tokens: 0 });
        }
        self.ledger.open.clear();
        self.ledger.running.clear();
        self.world.reborn(memory, &[Some(12_000), None, None]);
        self.world.report(1, BackendReport { capacity: Some(Tokens(20_000)), ..Default::default() });
        for backend in (0..3).filter(|backend| !self.down.contains(backend)) {
            self.world.up(backend.into());
        }
        assert_eq!(self.world.scheduler.programs().len(), started);
        for load in self.world.scheduler.loads() {
            let charged = load.charged_running + load.charged_idle;
            assert!(load.effective_capacity.is_none_or(|most| charged <= most), "{load:?}");
            assert!(!restarted || charged == Tokens::ZERO, "{load:?}");
        }
    }

    fn reserve(&mut self) -> StepId {
        let step = StepId(self.world.arrived());
        self.ledger.open.push(step);
        step
    }

    fn with_running(&mut self, of: u16, event: impl Fn(StepId) -> Event) {
        if let Some(step) = self.ledger.pick_running(of) {
            self.world.handle(event(step));
        }
    }

    fn finish(&mut self, of: u16, outcome: Outcome) {
        if let Some(step) = self.ledger.pick_running(of) {
            self.close(step, outcome);
        }
    }

    fn close(&mut self, step: StepId, outcome: Outcome) {
        self.ledger.open.retain(|open| *open != step);
        self.world.end(step, outcome);
    }

    /// All backends return and every step ends as its turn comes: then nothing may be left.
    fn wind_up(mut self) {
        for backend in 0..3 {
            self.act(Act::Up(backend));
        }
        self.act(Act::Freeze(false));
        for _ in 0..100_000 {
            if self.ledger.open.is_empty() {
                break;
            }
            if self.ledger.pick_running(0).is_some() {
                self.act(Act::Complete { of: 0, usage: true, cached: 0 });
            } else {
                self.act(Act::Ticks(10));
            }
        }
        assert!(self.ledger.open.is_empty(), "held for ever: {:?}", self.ledger.open);
        for program in 0..12 {
            self.act(Act::Release(program));
        }
        self.world.assert_as_if_nothing_had_been();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn under_any_interleaving_the_ledger_balances_and_no_step_is_lost(acts in prop::collection::vec(act(), 1..120)) {
        let mut play = Play::new();
        for act in acts {
            play.act(act);
        }
        play.wind_up();
    }

    #[test]
    fn a_client_that_leaves_leaves_everything_as_if_it_had_never_been(
        before in prop::collection::vec(act(), 0..60),
        tokens in 10..6_000_u64,
        first_token in any::<bool>(),
    ) {
        let mut play = Play::new();
        for act in before {
            play.act(act);
        }
        let snapshot = |play: &Play| {
            let loads: Vec<_> = play.world.scheduler.loads().iter().map(|load| format!("{load:?}")).collect();
            (loads, play.world.scheduler.held_steps(), play.world.scheduler.programs().len())
        };
        // A program that nobody knows: what it does must show nowhere once it has left.
        let quiet = play.world.log.len();
        let before = snapshot(&play);
        let step = play.world.arrive("visitor", tokens);
        if first_token {
            play.world.handle(Event::FirstToken(step));
        }
        let others = |decision: &Decision| !matches!(decision, Decision::Held { .. } | Decision::Measured { .. });
        let disturbed = play.world.log[quiet..].iter().filter(|d| others(d)).count() > 1;
        play.world.end(step, Outcome::Abandoned);
        // Where room was made for it (others lost their leases), or its departure let others in, the ledger
        // has rightly moved on; all else is as before.
        let moved_on = disturbed || play.world.log[quiet..].iter().filter(|d| matches!(d, Decision::Dispatch { .. })).count() > 1;
        if !moved_on {
            prop_assert_eq!(before, snapshot(&play));
        }
        prop_assert!(play.world.program("visitor").is_none());
    }
}
