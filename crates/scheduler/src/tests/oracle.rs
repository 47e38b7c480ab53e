//! A second ledger, kept in the most obvious way: from events and decisions alone, with every sum computed anew when it
//! is needed. It also checks for each decision whether the scheduler may make it.

mod compare;

use crate::units::Tokens;
use crate::*;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// One life of a key: a program between its first step and its end.
#[derive(Debug)]
struct Life {
    key: ProgramKey,
    class: u64,
    context: Tokens,
    context_order: u64,
    last_prompt: Tokens,
    last_bytes: u64,
    lease: Option<BackendId>,
    home: Option<BackendId>,
    ended: bool,
}

#[derive(Debug)]
struct Step {
    life: Option<usize>,
    arrived: Duration,
    bytes: u64,
    max_output: Option<Tokens>,
    avoid: Vec<BackendId>,
    announced: bool,
    run: Option<Run>,
}

#[derive(Debug)]
struct Run {
    on: BackendId,
    order: u64,
    kind: DispatchKind,
    prompt: Tokens,
    output: Tokens,
    estimate: Tokens,
}

/// A step of a leased program, which must go at once.
struct Due {
    step: StepId,
    on: BackendId,
    key: ProgramKey,
    /// Whether another step of the program runs.
    busy: bool,
    /// Whether no program that is leased on the backend was seen earlier.
    oldest: bool,
}

/// Whether the backend is up, and whether it is draining.
type Backend = (bool, bool);

#[derive(Debug)]
pub struct Oracle {
    policy: Policy,
    now: Duration,
    frozen: bool,
    draining: bool,
    backends: BTreeMap<BackendId, Backend>,
    current: HashMap<ProgramKey, usize>,
    lives: BTreeMap<usize, Life>,
    steps: BTreeMap<StepId, Step>,
    born: usize,
    dispatched: u64,
    /// Mean output of a step in tokens, mean bytes per token, and for each class its smallest cached prefix with the
    /// number of programs that reported one.
    output: Option<f64>,
    bytes: Option<f64>,
    prefixes: HashMap<u64, (Tokens, u32)>,
    /// Number of dispatches before the event under way, and the programs that were given a lease by it.
    before: u64,
    admitted: Vec<(usize, BackendId, DispatchKind)>,
}

impl Oracle {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            now: Duration::ZERO,
            frozen: false,
            draining: false,
            backends: BTreeMap::new(),
            current: HashMap::new(),
            lives: BTreeMap::new(),
            steps: BTreeMap::new(),
            born: 0,
            dispatched: 0,
            before: 0,
            output: None,
            bytes: None,
            prefixes: HashMap::new(),
            admitted: Vec::new(),
        }
    }

    /// Follows one event and the decisions on it.
    pub fn follow(&mut self, now: Duration, event: &Event, decisions: &[Decision]) {
        self.now = self.now.max(now);
        self.admitted.clear();
        self.before = self.dispatched;
        let subject = match event {
            Event::Undelivered(step) | Event::End { step, .. } => self.steps.get(step).and_then(|step| step.life),
            _ => None,
        };
        let promise = self.must_go_at_once(event);
        let estimate = self.happens(event);
        for decision in decisions {
            match decision {
                Decision::Measured { estimate: said, .. } => assert_eq!(Some(*said), estimate),
                decision => self.decided(decision, subject),
            }
        }
        if let Some(due) = promise {
            Self::went_at_once(&due, decisions);
        }
        let open: Vec<usize> = self.steps.values().filter_map(|step| step.life).collect();
        self.lives.retain(|at, life| open.contains(at) || !(life.ended || life.context == Tokens::ZERO));
        let lives = &self.lives;
        self.current.retain(|_, at| lives.contains_key(at));
    }

    // --- events

    /// Takes in the event. Gives the estimate of the step that it ends with usage, if it does.
    fn happens(&mut self, event: &Event) -> Option<Tokens> {
        match event {
            Event::Arrive(arrival) => self.arrives(arrival),
            Event::Progress { step, output } => {
                if let Some(run) = self.steps.get_mut(step).and_then(|step| step.run.as_mut()) {
                    run.output = run.output.max(*output);
                    run.estimate = run.estimate.max(run.prompt + run.output);
                }
            }
            Event::Undelivered(step) => {
                if let Some(step) = self.steps.get_mut(step)
                    && let Some(run) = step.run.take()
                {
                    step.avoid.push(run.on);
                    step.announced = false;
                }
            }
            Event::End { step, outcome } => return self.ends(*step, *outcome),
            Event::BackendAdded { backend, .. } => drop(self.backends.entry(*backend).or_insert((false, false))),
            Event::BackendUp(id) => {
                self.change(*id, |backend| *backend = (true, false));
                self.steps.values_mut().for_each(|step| step.avoid.retain(|avoided| avoided != id));
            }
            Event::BackendDown(id) => self.change(*id, |backend| backend.0 = false),
            Event::BackendDraining(id) => self.change(*id, |backend| backend.1 = true),
            Event::BackendRemoved(id) => drop(self.backends.remove(id)),
            Event::Freeze(frozen) => self.frozen = *frozen,
            Event::Drain => self.draining = true,
            Event::FirstToken(_) | Event::Release(_) | Event::Report { .. } | Event::Tick => {}
        }
        None
    }

    fn change(&mut self, id: BackendId, how: impl FnOnce(&mut Backend)) {
        if let Some(backend) = self.backends.get_mut(&id) {
            how(backend);
        }
    }

    fn arrives(&mut self, arrival: &Arrival) {
        if self.steps.contains_key(&arrival.step) {
            return;
        }
        let key = arrival.program.clone().filter(|_| !self.draining);
        let life = key.map(|key| match self.current.get(&key) {
            Some(&life) => life,
            None => self.is_born(key, arrival.class),
        });
        let step = Step {
            life,
            arrived: self.now,
            bytes: arrival.prompt_bytes,
            max_output: arrival.max_output,
            avoid: Vec::new(),
            announced: false,
            run: None,
        };
        self.steps.insert(arrival.step, step);
    }

    fn is_born(&mut self, key: ProgramKey, class: u64) -> usize {
        self.born += 1;
        self.current.insert(key.clone(), self.born);
        let life = Life {
            key,
            class,
            context: Tokens::ZERO,
            context_order: 0,
            last_prompt: Tokens::ZERO,
            last_bytes: 0,
            lease: None,
            home: None,
            ended: false,
        };
        self.lives.insert(self.born, life);
        self.born
    }

    fn ends(&mut self, id: StepId, outcome: Outcome) -> Option<Tokens> {
        let Step { life, bytes, run: Some(run), .. } = self.steps.remove(&id)? else { return None };
        let over = life.is_some_and(|life| self.running(life).count() == 0);
        let life = self.lives.get_mut(&life?)?;
        match outcome {
            Outcome::Completed(usage) => {
                let first = life.context == Tokens::ZERO;
                let prompt = usage.map_or(run.prompt, |usage| usage.prompt);
                let total = prompt + usage.map_or(run.output.max(Tokens(1)), |usage| usage.completion);
                if run.order >= life.context_order || first {
                    (life.context, life.context_order) = (total, run.order);
                    (life.last_prompt, life.last_bytes) = (prompt, bytes);
                } else {
                    life.context = life.context.max(total);
                }
                let class = life.class;
                self.learn(class, first, bytes, usage, run.output);
                return usage.map(|_| run.estimate);
            }
            Outcome::Rejected | Outcome::Abandoned if over && run.kind != DispatchKind::Leased => life.lease = None,
            _ => {}
        }
        None
    }

    fn learn(&mut self, class: u64, first: bool, bytes: u64, usage: Option<Usage>, seen: Tokens) {
        let follow =
            |mean: &mut Option<f64>, sample: f64| *mean = Some(mean.map_or(sample, |m| m + 0.05 * (sample - m)));
        let Some(usage) = usage else {
            if seen > Tokens::ZERO {
                follow(&mut self.output, seen.as_f64());
            }
            return;
        };
        follow(&mut self.output, usage.completion.as_f64());
        if bytes > 0 && usage.prompt > Tokens::ZERO {
            follow(&mut self.bytes, bytes as f64 / usage.prompt.as_f64());
        }
        if let Some(cached) = usage.cached.filter(|&cached| first && cached > Tokens::ZERO) {
            let (smallest, times) = self.prefixes.get(&class).copied().unwrap_or((cached, 0));
            self.prefixes.insert(class, (smallest.min(cached), times + 1));
        }
    }

    // --- decisions

    fn decided(&mut self, decision: &Decision, subject: Option<usize>) {
        match decision {
            Decision::Dispatch { step, backend, kind } => self.dispatched(*step, *backend, *kind),
            Decision::Refuse { step, reason } => {
                let step = self.steps.remove(step).expect("only an open step can be refused");
                assert!(step.run.is_none(), "refused while it runs: {step:?}");
                let waited = self.now.saturating_sub(step.arrived);
                assert!(*reason != RefuseReason::HeldTooLong || waited >= self.policy.settings.hold.max, "{waited:?}");
            }
            Decision::Held { step, .. } => {
                let step = self.steps.get_mut(step).filter(|step| step.run.is_none()).expect("it waits");
                assert!(!std::mem::replace(&mut step.announced, true), "announced twice: {step:?}");
            }
            Decision::Paused { program, backend, reason } => self.paused(program, *backend, *reason, subject),
            Decision::Moved { program, from, to, .. } => {
                let moved = |life: &&Life| life.key == *program && life.home == Some(*from);
                assert!(from != to && self.lives.values().any(|life| moved(&life)), "{decision:?}");
            }
            Decision::Ended { program, .. } => {
                let life = self.current.remove(program).expect("only a known program can end");
                self.lives.get_mut(&life).expect("it lives").ended = true;
            }
            Decision::Measured { .. } => {}
        }
    }

    fn dispatched(&mut self, id: StepId, on: BackendId, kind: DispatchKind) {
        assert!(!self.frozen && !self.draining, "{id:?} is dispatched although dispatch has stopped");
        let step = self.steps.get(&id).expect("only an open step can be dispatched");
        assert!(step.run.is_none(), "{id:?} is dispatched twice");
        let last_resort = kind == DispatchKind::Forced && !step.life.is_some_and(|life| self.open_elsewhere(life));
        assert!(!step.avoid.contains(&on) || last_resort, "{id:?} ({kind:?}) goes where it could not be delivered");
        let (up, draining) = self.backends.get(&on).copied().unwrap_or_default();
        assert!(up, "{id:?} is dispatched to {on:?}, which is down");
        assert!(!draining || kind == DispatchKind::Leased, "{id:?} ({kind:?}) is dispatched to {on:?}, which drains");
        let waited = self.now.saturating_sub(step.arrived);
        if kind == DispatchKind::Unlabelled {
            assert!(step.life.is_none() || self.policy.routing != Routing::Program);
        } else {
            assert_eq!(self.policy.routing, Routing::Program, "{id:?} ({kind:?})");
            let life = step.life.expect("it has a program");
            self.leased(life, on, kind, waited);
        }
        let step = self.steps.get(&id).expect("it is open");
        let prompt = self.prompt(step.life, step.bytes);
        let output = Tokens(self.output.unwrap_or(200.0).ceil() as u64);
        let output = step.max_output.map_or(output, |most| output.min(most));
        let run = Run { on, order: self.dispatched, kind, prompt, output: Tokens::ZERO, estimate: prompt + output };
        self.dispatched += 1;
        let step = self.steps.get_mut(&id).expect("it is open");
        step.run = Some(run);
        if let Some(life) = step.life.and_then(|life| self.lives.get_mut(&life)) {
            life.home = Some(on);
        }
    }

    /// Whether a backend could take the program by force other than those where its steps could not be delivered.
    fn open_elsewhere(&self, life: usize) -> bool {
        let forced = |run: &Run| run.kind == DispatchKind::Forced;
        let taken = |id: BackendId| {
            let mut runs = self.steps.values().filter_map(|step| step.run.as_ref());
            runs.any(|run| run.on == id && forced(run))
        };
        let avoided =
            |id: BackendId| self.steps.values().any(|step| step.life == Some(life) && step.avoid.contains(&id));
        self.backends.iter().any(|(&id, &(up, draining))| up && !draining && !taken(id) && !avoided(id))
    }

    fn leased(&mut self, at: usize, on: BackendId, kind: DispatchKind, waited: Duration) {
        let life = &self.lives[&at];
        let started = life.context > Tokens::ZERO;
        let again = self.admitted.contains(&(at, on, kind));
        match kind {
            DispatchKind::Leased => return assert_eq!(life.lease, Some(on), "{life:?}"),
            DispatchKind::Forced => {
                assert!(started && self.policy.settings.hold.on_timeout == OnTimeout::Admit);
                assert!(again || waited >= self.policy.settings.hold.max, "forced in after {waited:?}");
            }
            DispatchKind::Resumed => assert!(started),
            DispatchKind::New => {
                assert!(!started);
                let waits = |at: usize| self.held(at) > 0;
                let older = self.lives.iter().find(|(at, life)| life.context > Tokens::ZERO && waits(**at));
                assert!(older.is_none(), "{life:?} is admitted while a started program is held: {older:?}");
            }
            DispatchKind::Unlabelled => unreachable!(),
        }
        assert!(again || life.lease.is_none(), "{life:?} gets a second lease");
        self.admitted.push((at, on, kind));
        self.lives.get_mut(&at).expect("it lives").lease = Some(on);
    }

    fn paused(&mut self, key: &ProgramKey, on: BackendId, reason: PauseReason, subject: Option<usize>) {
        // A program that has ended but still runs may share its key with a later one.
        let leased = self.lives.iter().filter(|(_, life)| life.key == *key && life.lease == Some(on));
        let chosen = leased.min_by_key(|(at, life)| (Some(**at) != subject, life.ended)).map(|(&at, _)| at);
        let at = chosen.expect("only a leased program can be paused");
        let forced = matches!(reason, PauseReason::BackendDown | PauseReason::Error);
        assert!(forced || self.running(at).count() == 0, "{key:?} is paused ({reason:?}) while it runs");
        self.lives.get_mut(&at).expect("it lives").lease = None;
    }

    // --- what must hold

    /// The step that the event brings, if it has to go at once because its program is leased.
    fn must_go_at_once(&self, event: &Event) -> Option<Due> {
        let Event::Arrive(arrival) = event else { return None };
        let at = *self.current.get(arrival.program.as_ref()?)?;
        let on = self.lives[&at].lease?;
        let new = !self.steps.contains_key(&arrival.step) && self.held(at) == 0;
        let due = Due {
            step: arrival.step,
            on,
            key: self.lives[&at].key.clone(),
            busy: self.running(at).count() > 0,
            oldest: self.lives.iter().filter(|(_, life)| life.lease == Some(on)).all(|(&other, _)| other >= at),
        };
        (new && !self.frozen && !self.draining).then_some(due)
    }

    /// Checks that the step went, or that its program, which was idle, was paused: because its cache was lost, or
    /// because an older program is leased there.
    fn went_at_once(due: &Due, decisions: &[Decision]) {
        if decisions.contains(&Decision::Dispatch { step: due.step, backend: due.on, kind: DispatchKind::Leased }) {
            return;
        }
        let why = decisions.iter().find_map(|decision| match decision {
            Decision::Paused { program, reason, .. } if *program == due.key => Some(*reason),
            _ => None,
        });
        assert!(!due.busy, "it runs there already: {:?}", due.key);
        match why {
            Some(PauseReason::CacheLost) => {}
            Some(PauseReason::OverCapacity) => assert!(!due.oldest, "{:?} was the oldest", due.key),
            why => panic!("the step of a leased program was not let go: {:?} {why:?}", due.key),
        }
    }

    // --- sums

    fn running(&self, life: usize) -> impl Iterator<Item = &Step> {
        self.steps.values().filter(move |step| step.life == Some(life) && step.run.is_some())
    }

    fn waiting(&self, life: usize) -> impl Iterator<Item = &Step> {
        self.steps.values().filter(move |step| step.life == Some(life) && step.run.is_none())
    }

    fn held(&self, life: usize) -> usize {
        self.waiting(life).count()
    }

    /// The footprint of a leased program; zero without a lease.
    fn charge(&self, at: usize) -> Tokens {
        let life = &self.lives[&at];
        let Some(lease) = life.lease else { return Tokens::ZERO };
        let runs = self.running(at).filter_map(|step| step.run.as_ref()).filter(|run| run.on == lease);
        let running: Tokens = runs.map(|run| run.estimate).sum();
        life.context.max(running) - self.shared(life.class)
    }

    fn shared(&self, class: u64) -> Tokens {
        self.prefixes.get(&class).filter(|(_, times)| *times >= 2).map_or(Tokens::ZERO, |(smallest, _)| *smallest)
    }

    /// Tokens of the prompt. In a known conversation only the new part is estimated.
    fn prompt(&self, life: Option<usize>, bytes: u64) -> Tokens {
        let at = |bytes: u64, a_token: f64| Tokens((bytes as f64 / a_token).ceil() as u64);
        match life.map(|life| &self.lives[&life]).filter(|l| l.last_prompt > Tokens::ZERO && l.last_bytes > 0) {
            None => at(bytes, self.bytes.unwrap_or(4.0)),
            Some(life) => {
                let own = life.last_bytes as f64 / life.last_prompt.as_f64();
                let grown = bytes.checked_sub(life.last_bytes).map(|new| life.last_prompt + at(new, own));
                grown.map_or(at(bytes, own), |grown| grown.max(life.context))
            }
        }
    }
}
