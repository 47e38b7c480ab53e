//! One run: programs, a policy and engines in virtual time.

mod engines;
mod programs;

use super::demand::{Arrivals, Demand};
use super::faults::Faults;
use super::policy::{Choice, Policy};
use super::script::{Script, Step, Texts};
use super::tally::Tally;
use crate::engine::model::{Engine, EngineEvent, Finish, Request, Shape};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use thundergate_scheduler::{BackendId, Decision, Event, Outcome, ProgramKey, RefuseReason, StepId};

/// Setup of a run: everything that the run depends on besides the policy.
#[derive(Clone, Debug)]
pub struct Setup {
    pub demand: Demand,
    pub engines: usize,
    pub shape: Shape,
    /// Settings of `ours`.
    pub policy: thundergate_scheduler::Policy,
    pub length: Duration,
    pub warmup: Duration,
    pub faults: Faults,
}

struct World<'a> {
    setup: &'a Setup,
    /// Whether tokens that were computed once come back at no cost.
    recall: bool,
    policy: Box<dyn Policy>,
    machines: Vec<Machine>,
    now: Duration,
    agenda: BTreeMap<(Duration, u64), Plan>,
    planned: u64,
    starts: Box<dyn Iterator<Item = Duration> + 'a>,
    programs: BTreeMap<u64, Live>,
    flights: BTreeMap<StepId, Flight>,
    next_step: u64,
    next_program: u64,
    inbox: VecDeque<Event>,
    decisions: Vec<Decision>,
    events: Vec<EngineEvent>,
    tally: Tally,
}

struct Machine {
    engine: Engine,
    up: bool,
    /// Number of prompt tokens computed up to the last report.
    computed: Option<u64>,
}

/// A program under way.
struct Live {
    script: Script,
    texts: Texts,
    key: ProgramKey,
    /// Index of the present step.
    at: usize,
    began: Duration,
    /// Time when the present step came to the proxy for the first time.
    arrived: Duration,
    /// Whether the present step has come and has no first token yet.
    waiting: bool,
    /// Whether another program begins when this one ends.
    followed: bool,
}

struct Flight {
    program: u64,
    on: Option<usize>,
    /// Number of tokens that have come.
    output: u64,
}

/// An event that will happen.
#[derive(Clone, Copy)]
enum Plan {
    /// The next of `starts` begins.
    Start,
    Begin {
        program: u64,
        followed: bool,
    },
    Arrive(u64),
    Tick,
    Report,
    Crash(usize),
    Back(usize),
}

/// Time between two readings of an engine's metrics, the default of the proxy's fleet.
pub const REPORT: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_secs(1);
/// Time that a restarted engine is away.
const AWAY: Duration = Duration::from_secs(30);
/// Time after which a client whose step failed tries again.
const RETRY: Duration = Duration::from_secs(5);
/// First number of the programs that come by a fault, so that the other programs keep their numbers.
const EXTRA: u64 = 1 << 40;
/// Number of steps of the giant.
const GIANT_STEPS: usize = 5;

/// Runs the setup under `choice`. `progress` is told the virtual time every 5 s of it.
#[must_use]
pub fn run(setup: &Setup, choice: Choice, progress: &dyn Fn(Duration)) -> Tally {
    let recall = choice == Choice::ZeroRecompute;
    live(World::new(setup, choice.build(&setup.policy), &choice.shape(&setup.shape), recall), progress)
}

fn live(mut world: World<'_>, progress: &dyn Fn(Duration)) -> Tally {
    world.begin();
    while let Some(at) = world.next_at().filter(|&at| at <= world.setup.length) {
        world.now = at;
        world.run_engines();
        while let Some(plan) = world.due() {
            if matches!(plan, Plan::Report) {
                progress(at);
            }
            world.carry_out(plan);
        }
    }
    world.finish()
}

// === impl World ===

impl<'a> World<'a> {
    fn new(setup: &'a Setup, policy: Box<dyn Policy>, shape: &Shape, recall: bool) -> Self {
        let machine = || Machine { engine: Engine::new(shape.clone()), up: true, computed: None };
        Self {
            setup,
            recall,
            policy,
            machines: (0..setup.engines).map(|_| machine()).collect(),
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            planned: 0,
            starts: setup.demand.starts(),
            programs: BTreeMap::new(),
            flights: BTreeMap::new(),
            next_step: 0,
            next_program: 0,
            inbox: VecDeque::new(),
            decisions: Vec::new(),
            events: Vec::new(),
            tally: Tally::new(setup.engines, setup.warmup, setup.length),
        }
    }

    fn begin(&mut self) {
        for at in 0..self.machines.len() {
            let backend = BackendId(at as u32);
            self.tell(Event::BackendAdded { backend, weight: 1, capacity: None });
            self.tell(Event::BackendUp(backend));
        }
        let faults = self.setup.faults;
        self.plan(Duration::ZERO, Plan::Report);
        self.plan(TICK, Plan::Tick);
        self.plan_start();
        if let Some(every) = faults.restart {
            self.plan(every, Plan::Crash(0));
        }
        let giant = u64::from(faults.giant.is_some());
        for extra in 0..faults.burst + giant {
            self.plan(self.setup.warmup, Plan::Begin { program: EXTRA + extra, followed: false });
        }
    }

    fn finish(mut self) -> Tally {
        self.now = self.setup.length;
        for live in self.programs.values().filter(|live| live.waiting) {
            self.tally.still_waits(self.now, self.now - live.arrived, live.at > 0);
        }
        self.tally
    }

    fn next_at(&self) -> Option<Duration> {
        let engines = self.machines.iter().filter_map(|machine| machine.engine.next_event_at());
        engines.chain(self.agenda.keys().next().map(|&(at, _)| at)).min()
    }

    fn plan(&mut self, after: Duration, plan: Plan) {
        self.planned += 1;
        self.agenda.insert((self.now + after, self.planned), plan);
    }

    fn plan_start(&mut self) {
        if let Some(after) = self.starts.next() {
            self.plan(after, Plan::Start);
        }
    }

    fn due(&mut self) -> Option<Plan> {
        let first = self.agenda.first_entry().filter(|first| first.key().0 <= self.now);
        first.map(|first| first.remove())
    }

    fn carry_out(&mut self, plan: Plan) {
        match plan {
            Plan::Start => {
                self.plan_start();
                let followed = matches!(self.setup.demand.arrivals, Arrivals::Closed(_));
                self.begin_next(followed);
            }
            Plan::Begin { program, followed } => self.begin_program(program, followed),
            Plan::Arrive(program) => self.arrive(program),
            Plan::Tick => {
                self.plan(TICK, Plan::Tick);
                self.tell(Event::Tick);
            }
            Plan::Report => {
                self.plan(REPORT, Plan::Report);
                self.report();
            }
            Plan::Crash(at) => self.crash(at),
            Plan::Back(at) => self.back(at),
        }
    }

    /// Tells the policy an event and carries out its decisions, until no event is left.
    fn tell(&mut self, event: Event) {
        self.inbox.push_back(event);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(event) = self.inbox.pop_front() {
            let mut decisions = std::mem::take(&mut self.decisions);
            self.policy.handle(self.now, event, &mut decisions);
            for decision in decisions.drain(..) {
                match decision {
                    Decision::Dispatch { step, backend, .. } => self.dispatch(step, backend),
                    Decision::Refuse { step, reason } => self.refused(step, reason),
                    _ => {}
                }
            }
            self.decisions = decisions;
        }
    }

    fn dispatch(&mut self, id: StepId, backend: BackendId) {
        let on = backend.0 as usize;
        let Some(flight) = self.flights.get_mut(&id) else { return };
        debug_assert!(flight.on.is_none(), "{id:?} is dispatched twice");
        let Some(live) = self.programs.get(&flight.program) else { return };
        let machine = &mut self.machines[on];
        if !machine.up {
            self.inbox.push_back(Event::Undelivered(id));
            return;
        }
        let step = live.step();
        let request = Request {
            id: id.0,
            chain: live.texts.chain(live.at),
            prompt_tokens: step.prompt,
            output_tokens: step.output,
            recalled: if self.recall { live.texts.known(live.at) } else { 0 },
            finish: Finish::Stop,
            stream: true,
        };
        let program = flight.program;
        flight.on = Some(on);
        if machine.engine.submit(self.now, request).is_err() {
            // The prompt is longer than the engine's context. An agent has no answer to that error.
            self.flights.remove(&id);
            self.inbox.push_back(Event::End { step: id, outcome: Outcome::Rejected });
            self.done(program, RETRY);
        }
    }

    fn refused(&mut self, id: StepId, reason: RefuseReason) {
        let Some(flight) = self.flights.remove(&id) else { return };
        if let Some(after) = reason.retry_after() {
            self.plan(after, Plan::Arrive(flight.program));
        }
    }
}

/// Runs the setup under any policy, on the engines of the setup.
#[cfg(test)]
pub fn run_policy(setup: &Setup, policy: Box<dyn Policy>) -> Tally {
    live(World::new(setup, policy, &setup.shape, false), &|_| ())
}

// === impl Live ===

impl Live {
    fn step(&self) -> &Step {
        &self.script.steps[self.at]
    }
}
