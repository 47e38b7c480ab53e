//! Agents in a closed loop around a scheduler: a step, a tool, the next step, until the program ends and another
//! begins. Time is virtual and there are no engines: the time that a step takes follows from a rule. The handling of
//! every event is timed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};
use thundergate::config::{Config, Pool};
use thundergate::scheduler::{
    Arrival, BackendId, BackendReport, Decision, DispatchKind, Event, Outcome, ProgramKey, Scheduler, StepId, Usage,
};
use thundergate::units::Tokens;

const BACKENDS: u32 = 4;
const BYTES_PER_TOKEN: u64 = 4;
/// Size of a program in tokens: at its beginning, its growth in each step, and at its end.
const FIRST: u64 = 4_000;
const GROWTH: u64 = 1_000;
const LAST: u64 = 50_000;
const OUTPUT: u64 = 200;
/// Prefill speed of a backend in shares of its capacity per second. So large backends are fast ones.
const PREFILL: f64 = 0.02;
const DECODE: Duration = Duration::from_secs(4);
/// Virtual time after which the start no longer shows, and the limit on the real time for it.
const SETTLE: Duration = Duration::from_secs(180);
const SETTLE_AT_MOST: Duration = Duration::from_secs(10);
/// Number of other events after which a kind of event counts as one that never comes.
const PATIENCE: u64 = 10_000_000;

pub struct Scene {
    pub name: &'static str,
    /// Least number of programs that the scheduler knows.
    pub known: u64,
    /// Number of these programs that run steps, or want to.
    pub active: u64,
    /// Capacity of each backend in tokens.
    pub capacity: u64,
}

/// Kind of event that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A step of a leased program arrives and is dispatched at once.
    Leased,
    /// A step arrives and is held.
    Held,
    FirstToken,
    Progress,
    End,
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Arrive(usize),
    FirstToken(usize),
    Progress(usize),
    End(usize),
    Tick,
}

struct Agent {
    key: ProgramKey,
    step: StepId,
    prompt: u64,
}

pub struct Crowd {
    scheduler: Scheduler,
    now: Duration,
    agents: Vec<Agent>,
    steps: HashMap<StepId, usize>,
    agenda: BinaryHeap<Reverse<(Duration, u64, Act)>>,
    planned: u64,
    next_step: u64,
    decisions: Vec<Decision>,
    random: u64,
}

// === impl Kind ===

impl Kind {
    pub const ALL: [Self; 6] = [Self::Leased, Self::Held, Self::FirstToken, Self::Progress, Self::End, Self::Tick];

    pub fn name(self) -> &'static str {
        match self {
            Self::Leased => "arrival, leased",
            Self::Held => "arrival, held",
            Self::FirstToken => "first token",
            Self::Progress => "progress",
            Self::End => "end",
            Self::Tick => "tick",
        }
    }
}

// === impl Crowd ===

impl Crowd {
    /// A crowd in which every program of the scene has run a first step, and none is leased.
    pub fn known(scene: &Scene) -> Self {
        let mut policy = Config::default().policy(&Pool::default());
        policy.settings.hold.queue = 2 * scene.active as usize;
        policy.max_programs = 2 * scene.known as usize;
        policy.idle_ttl = Duration::from_secs(86_400);
        let mut crowd = Self {
            scheduler: Scheduler::new(policy),
            now: Duration::ZERO,
            agents: Vec::new(),
            steps: HashMap::new(),
            agenda: BinaryHeap::new(),
            planned: 0,
            next_step: 0,
            decisions: Vec::new(),
            random: 1,
        };
        for backend in (0..BACKENDS).map(BackendId) {
            crowd.tell(Event::BackendAdded { backend, weight: 1, capacity: None });
            crowd.tell(Event::BackendUp(backend));
        }
        for number in 0..scene.known {
            crowd.now += Duration::from_millis(1);
            let (step, prompt) = (StepId(crowd.next_step), FIRST + crowd.below(LAST - FIRST));
            crowd.next_step += 1;
            crowd.tell(arrival(step, key(number), prompt));
            crowd.tell(Event::FirstToken(step));
            crowd.tell(Event::End { step, outcome: answer(prompt) });
        }
        for backend in (0..BACKENDS).map(BackendId) {
            crowd.tell(Event::BackendDown(backend));
        }
        crowd.decisions = Vec::new();
        crowd
    }

    /// Lets the active programs come within ten seconds, and live until the start no longer shows.
    pub fn gather(&mut self, scene: &Scene) {
        for backend in (0..BACKENDS).map(BackendId) {
            self.tell(Event::BackendUp(backend));
            let report = BackendReport {
                capacity: Some(Tokens(scene.capacity)),
                prefill_rate: Some(scene.capacity as f64 * PREFILL),
                ..BackendReport::default()
            };
            self.tell(Event::Report { backend, report });
        }
        for number in 0..scene.active {
            let key = key(number);
            let prompt = self.scheduler.program(&key).map_or(FIRST, |program| program.context.0) + GROWTH;
            self.agents.push(Agent { key, step: StepId(0), prompt });
            let after = Duration::from_millis(self.below(10_000));
            self.plan(after, Act::Arrive(number as usize));
        }
        self.plan(Duration::from_secs(1), Act::Tick);
        let (end, start) = (self.now + SETTLE, Instant::now());
        while self.now < end && start.elapsed() < SETTLE_AT_MOST {
            self.next();
        }
    }

    /// Lets the crowd live for `time` in real time. Returns the time that each event took, by [`Kind::ALL`].
    pub fn live_for(&mut self, time: Duration) -> [Vec<Duration>; Kind::ALL.len()] {
        let (mut spent, start) = (Kind::ALL.map(|_| Vec::new()), Instant::now());
        while start.elapsed() < time {
            if let (Some(kind), took) = self.next() {
                spent[kind as usize].push(took);
            }
        }
        spent
    }

    /// Lets the crowd live until `events` events of this kind were handled. Returns the time that these events took.
    pub fn live(&mut self, kind: Kind, events: u64) -> Duration {
        let (mut left, mut spent, mut others) = (events, Duration::ZERO, 0);
        while left > 0 {
            let (was, took) = self.next();
            if was == Some(kind) {
                (left, spent, others) = (left - 1, spent + took, 0);
            } else {
                others += 1;
                assert!(others < PATIENCE, "no {kind:?} among {PATIENCE} events");
            }
        }
        spent
    }

    pub fn census(&self) -> String {
        let leased: usize = self.scheduler.loads().iter().map(|load| load.leased_running + load.leased_idle).sum();
        let running: usize = self.scheduler.loads().iter().map(|load| load.in_flight).sum();
        let (known, held) = (self.scheduler.programs().len(), self.scheduler.held_steps());
        format!("{known} known, {leased} leased, {running} running, {held} held")
    }

    /// Handles the next event on the agenda. Returns its kind, and the time that the scheduler took.
    fn next(&mut self) -> (Option<Kind>, Duration) {
        let Some(Reverse((at, _, act))) = self.agenda.pop() else {
            return (None, Duration::ZERO);
        };
        self.now = at;
        match act {
            Act::Arrive(number) => {
                let agent = &mut self.agents[number];
                let id = StepId(self.next_step);
                agent.step = id;
                self.next_step += 1;
                self.steps.insert(id, number);
                let event = arrival(id, agent.key.clone(), agent.prompt);
                let took = self.tell(event);
                let held = |decision: &Decision| matches!(decision, Decision::Held { step, .. } if *step == id);
                let kind = self.decisions.iter().find_map(|decision| match decision {
                    Decision::Dispatch { step, kind: DispatchKind::Leased, .. } if *step == id => Some(Kind::Leased),
                    decision => held(decision).then_some(Kind::Held),
                });
                self.carry_out();
                (kind, took)
            }
            Act::FirstToken(number) => {
                let took = self.tell(Event::FirstToken(self.agents[number].step));
                self.carry_out();
                (Some(Kind::FirstToken), took)
            }
            Act::Progress(number) => {
                let took = self.tell(Event::Progress { step: self.agents[number].step, output: Tokens(OUTPUT) });
                self.carry_out();
                (Some(Kind::Progress), took)
            }
            Act::End(number) => (Some(Kind::End), self.end(number)),
            Act::Tick => {
                self.plan(Duration::from_secs(1), Act::Tick);
                let took = self.tell(Event::Tick);
                self.carry_out();
                (Some(Kind::Tick), took)
            }
        }
    }

    fn end(&mut self, number: usize) -> Duration {
        let agent = &mut self.agents[number];
        let (step, outcome) = (agent.step, answer(agent.prompt));
        let over = agent.prompt + GROWTH > LAST;
        agent.prompt = if over { FIRST } else { agent.prompt + GROWTH };
        self.steps.remove(&step);
        let took = self.tell(Event::End { step, outcome });
        self.carry_out();
        if over {
            self.tell(Event::Release(self.agents[number].key.clone()));
            self.carry_out();
        }
        // Most tools take a short time, some a long time.
        let tool = 500 + self.below(3_000) + if self.below(10) == 0 { self.below(20_000) } else { 0 };
        self.plan(Duration::from_millis(tool), Act::Arrive(number));
        took
    }

    fn tell(&mut self, event: Event) -> Duration {
        self.decisions.clear();
        let start = Instant::now();
        self.scheduler.handle(self.now, event, &mut self.decisions);
        start.elapsed()
    }

    /// Plans the first token and the end of every step that was dispatched.
    fn carry_out(&mut self) {
        for decision in std::mem::take(&mut self.decisions) {
            match decision {
                Decision::Dispatch { step, kind, .. } => {
                    let number = self.steps[&step];
                    let wait = if kind == DispatchKind::Leased { 200 } else { 600 };
                    let first = Duration::from_millis(wait);
                    self.plan(first, Act::FirstToken(number));
                    self.plan(first + DECODE / 2, Act::Progress(number));
                    self.plan(first + DECODE, Act::End(number));
                }
                Decision::Refuse { step, .. } => {
                    if let Some(number) = self.steps.remove(&step) {
                        self.plan(Duration::from_secs(30), Act::Arrive(number));
                    }
                }
                _ => {}
            }
        }
    }

    fn plan(&mut self, after: Duration, act: Act) {
        self.planned += 1;
        self.agenda.push(Reverse((self.now + after, self.planned, act)));
    }

    /// A number below `limit`, from a linear congruential generator (Knuth's MMIX constants).
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % limit
    }
}

fn key(number: u64) -> ProgramKey {
    ProgramKey { tenant: "tenant".into(), id: format!("program-{number:024}").into() }
}

fn arrival(step: StepId, program: ProgramKey, prompt: u64) -> Event {
    Event::Arrive(Arrival {
        step,
        program: Some(program),
        class: 1,
        prompt_bytes: prompt * BYTES_PER_TOKEN,
        max_output: None,
        preferred: None,
        last: false,
    })
}

fn answer(prompt: u64) -> Outcome {
    let usage = Usage { prompt: Tokens(prompt), completion: Tokens(OUTPUT), cached: Some(Tokens(prompt - GROWTH)) };
    Outcome::Completed(Some(usage))
}
