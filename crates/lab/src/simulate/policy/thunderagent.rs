//! ThunderAgent's program scheduler, built from its published description (arXiv 2602.13692). Every five seconds it
//! resumes paused programs as they fit, then pauses programs of overfull backends.

use super::Policy;
use super::fleet::{Fleet, total};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use thundergate_scheduler::{
    Arrival, BackendId, Decision, DispatchKind, Event, Outcome, ProgramKey, RefuseReason, StepId,
};

const INTERVAL: Duration = Duration::from_secs(5);
/// Number of tokens kept free for every program on a backend.
const BUFFER: i64 = 100;
/// Time after which a held program goes in, whether or not it fits.
const FORCED: Duration = Duration::from_secs(1800);
/// Bytes per token before any token was counted, and the weight of a new sample.
const FIRST_RATIO: f64 = 5.0;
const RATIO_WEIGHT: f64 = 0.2;

/// Place of a program among all, in the order of their first steps.
type Order = u64;

pub(super) struct ThunderAgent {
    /// Whether marking stops once enough is marked.
    fixed: bool,
    /// Whether an idle program weighs 2^-t when room for resuming is counted.
    decay: bool,
    fleet: Fleet,
    ratio: Option<f64>,
    orders: HashMap<ProgramKey, Order>,
    programs: BTreeMap<Order, Program>,
    running: HashMap<StepId, (Order, u64)>,
    next: Order,
    checked: Duration,
}

struct Program {
    tokens: i64,
    steps: u64,
    phase: Phase,
    place: Place,
    /// Steps held until the program is resumed.
    held: Vec<Arrival>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Reasoning,
    Acting(Duration),
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    On {
        backend: BackendId,
        marked: bool,
    },
    /// Start of the pause, and the backend before it.
    Paused {
        since: Duration,
        from: Option<BackendId>,
    },
}

// === impl ThunderAgent ===

impl ThunderAgent {
    pub(super) fn new(fixed: bool, decay: bool) -> Self {
        Self {
            fixed,
            decay,
            fleet: Fleet::default(),
            ratio: None,
            orders: HashMap::new(),
            programs: BTreeMap::new(),
            running: HashMap::new(),
            next: 0,
            checked: Duration::ZERO,
        }
    }

    fn arrive(&mut self, now: Duration, arrival: Arrival, decisions: &mut Vec<Decision>) {
        let Some(key) = arrival.program.clone() else {
            let on = self.fleet.least_loaded();
            self.send(arrival, on, decisions);
            return;
        };
        let tokens = (arrival.prompt_bytes as f64 / self.ratio.unwrap_or(FIRST_RATIO)) as i64;
        let order = *self.orders.entry(key).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        if !self.programs.contains_key(&order) {
            let place = match self.open_to_new(tokens) {
                Some(backend) => Place::On { backend, marked: false },
                None => Place::Paused { since: now, from: None },
            };
            let program = Program { tokens, steps: 0, phase: Phase::Reasoning, place, held: Vec::new() };
            self.programs.insert(order, program);
        }
        let Some(program) = self.programs.get_mut(&order) else { return };
        (program.tokens, program.phase) = (tokens, Phase::Reasoning);
        program.steps += 1;
        match &mut program.place {
            Place::On { backend, .. } => {
                let backend = *backend;
                self.send(arrival, Some(backend), decisions);
            }
            Place::Paused { since, .. } => {
                // The time limit counts from the first step that waits.
                if program.held.is_empty() {
                    *since = now;
                }
                program.held.push(arrival);
            }
        }
    }

    /// The backend with the fewest tokens, among those with room for a new program.
    fn open_to_new(&self, tokens: i64) -> Option<BackendId> {
        let open = self.fleet.usable().filter(|&id| self.remaining(id).is_none_or(|free| free >= tokens + BUFFER));
        open.min_by_key(|&id| (self.tokens_on(id), id))
    }

    fn on(&self, id: BackendId) -> impl Iterator<Item = (&Order, &Program)> {
        self.programs.iter().filter(move |(_, p)| matches!(p.place, Place::On { backend, .. } if backend == id))
    }

    fn tokens_on(&self, id: BackendId) -> i64 {
        self.on(id).map(|(_, program)| program.tokens).sum()
    }

    /// Number of tokens still free on a backend, below zero if the backend is overfull; `None` if its capacity is not
    /// known.
    fn remaining(&self, id: BackendId) -> Option<i64> {
        let capacity = self.fleet.capacity(id)?.0 as i64;
        Some(capacity - self.on(id).map(|(_, program)| program.tokens + BUFFER).sum::<i64>())
    }

    /// Number of tokens free for resuming. With decay, idle programs count for less and less.
    fn remaining_to_resume(&self, id: BackendId, now: Duration) -> Option<i64> {
        let faded = |program: &Program| match program.phase {
            Phase::Acting(since) if self.decay => {
                let weight = (-now.saturating_sub(since).as_secs_f64()).exp2();
                (program.tokens as f64 * (1.0 - weight)) as i64
            }
            _ => 0,
        };
        Some(self.remaining(id)? + self.on(id).map(|(_, program)| faded(program)).sum::<i64>())
    }

    fn ended(&mut self, now: Duration, step: StepId, outcome: &Outcome) {
        let Some((order, bytes)) = self.running.remove(&step) else { return };
        // Without usage, ThunderAgent never learns that the step is over, so the program stays as it is.
        let Some((prompt, total)) = total(outcome) else { return };
        let sample = bytes as f64 / prompt.as_f64().max(1.0);
        self.ratio = Some(self.ratio.map_or(sample, |ratio| ratio + RATIO_WEIGHT * (sample - ratio)));
        let Some(program) = self.programs.get_mut(&order) else { return };
        (program.tokens, program.phase) = (total.0 as i64, Phase::Acting(now));
        if matches!(program.place, Place::On { marked: true, .. }) {
            self.pause(now, order);
        }
    }

    fn pause(&mut self, now: Duration, order: Order) {
        if let Some(program) = self.programs.get_mut(&order)
            && let Place::On { backend, .. } = program.place
        {
            program.place = Place::Paused { since: now, from: Some(backend) };
        }
    }

    fn resume(&mut self, order: Order, backend: BackendId, decisions: &mut Vec<Decision>) {
        let Some(program) = self.programs.get_mut(&order) else { return };
        program.place = Place::On { backend, marked: false };
        for arrival in std::mem::take(&mut program.held) {
            self.send(arrival, Some(backend), decisions);
        }
    }

    fn send(&mut self, arrival: Arrival, on: Option<BackendId>, decisions: &mut Vec<Decision>) {
        let step = arrival.step;
        let Some(backend) = on.filter(|&on| self.fleet.usable().any(|id| id == on)) else {
            decisions.push(Decision::Refuse { step, reason: RefuseReason::NoBackend });
            return;
        };
        let order = arrival.program.as_ref().and_then(|key| self.orders.get(key));
        self.running.insert(step, (order.copied().unwrap_or(0), arrival.prompt_bytes));
        self.fleet.dispatched(step, backend);
        decisions.push(Decision::Dispatch { step, backend, kind: DispatchKind::Unlabelled });
    }

    /// Fills the free room: first with started programs that have a step held, then new ones, then idle ones. The
    /// smallest are taken first, until their sum is all the room. The largest of those taken is placed first, on the
    /// backend with the most room.
    fn resume_all(&mut self, now: Duration, decisions: &mut Vec<Decision>) {
        let room = |id| Some((self.remaining_to_resume(id, now)?, id)).filter(|&(free, _)| free > BUFFER);
        let mut rooms: Vec<(i64, BackendId)> = self.fleet.usable().filter_map(room).collect();
        let mut left: i64 = rooms.iter().map(|&(free, _)| free).sum();
        let mut paused: Vec<_> = self
            .programs
            .iter()
            .filter(|(_, program)| matches!(program.place, Place::Paused { .. }))
            .map(|(&order, program)| {
                let group = match (program.steps, program.phase) {
                    (..=1, _) => 1,
                    (_, Phase::Reasoning) => 0,
                    (_, Phase::Acting(_)) => 2,
                };
                (group, program.tokens, order)
            })
            .collect();
        paused.sort_unstable();
        let mut chosen: Vec<(i64, Order)> = Vec::new();
        for (_, tokens, order) in paused {
            if tokens + BUFFER <= left {
                left -= tokens + BUFFER;
                chosen.push((tokens + BUFFER, order));
            }
        }
        chosen.sort_by_key(|&(tokens, _)| Reverse(tokens));
        for (tokens, order) in chosen {
            let Some(most) = rooms.iter_mut().max_by_key(|(free, id)| (*free, Reverse(*id))) else { return };
            if tokens <= most.0 {
                most.0 -= tokens;
                let backend = most.1;
                self.resume(order, backend, decisions);
            }
        }
    }

    /// Pauses idle programs, the smallest first. Then marks running programs, which are paused when their step ends.
    fn pause_overfull(&mut self, now: Duration, id: BackendId) {
        while self.remaining(id).is_some_and(|free| free < 0) {
            let idle = self.on(id).filter(|(_, program)| program.phase != Phase::Reasoning);
            let Some(order) = idle.min_by_key(|(order, program)| (program.tokens, **order)).map(|(&order, _)| order)
            else {
                break;
            };
            self.pause(now, order);
        }
        let Some(mut free) = self.remaining(id) else { return };
        let is_marked = |program: &Program| matches!(program.place, Place::On { marked: true, .. });
        let mut running: Vec<(i64, Order)> = Vec::new();
        for (&order, program) in self.on(id) {
            match is_marked(program) {
                false => running.push((program.tokens, order)),
                // Marked programs will leave. In the published version their tokens do not count as free.
                true if self.fixed => free += program.tokens + BUFFER,
                true => {}
            }
        }
        running.sort_unstable();
        for (tokens, order) in running {
            if free >= 0 {
                return;
            }
            if self.fixed {
                free += tokens + BUFFER;
            }
            if let Some(Place::On { marked, .. }) = self.programs.get_mut(&order).map(|program| &mut program.place) {
                *marked = true;
            }
        }
    }

    fn force_late(&mut self, now: Duration, decisions: &mut Vec<Decision>) {
        let late = |(&order, program): (&Order, &Program)| match program.place {
            Place::Paused { since, from } if !program.held.is_empty() && now.saturating_sub(since) >= FORCED => {
                Some((order, from))
            }
            _ => None,
        };
        let late: Vec<_> = self.programs.iter().filter_map(late).collect();
        for (order, from) in late {
            let fewest = || self.fleet.usable().min_by_key(|&id| (self.on(id).count(), id));
            if let Some(backend) = from.or_else(fewest) {
                self.resume(order, backend, decisions);
            }
        }
    }
}

impl Policy for ThunderAgent {
    fn handle(&mut self, now: Duration, event: Event, decisions: &mut Vec<Decision>) {
        self.fleet.note(&event);
        match event {
            Event::Arrive(arrival) => self.arrive(now, arrival, decisions),
            Event::End { step, outcome } => self.ended(now, step, &outcome),
            Event::Undelivered(step) => {
                self.running.remove(&step);
                decisions.push(Decision::Refuse { step, reason: RefuseReason::NoBackend });
            }
            Event::Release(key) => {
                if let Some(program) = self.orders.remove(&key).and_then(|order| self.programs.remove(&order)) {
                    let refuse = |step: Arrival| Decision::Refuse { step: step.step, reason: RefuseReason::Released };
                    decisions.extend(program.held.into_iter().map(refuse));
                }
            }
            Event::Tick => {
                self.force_late(now, decisions);
                if now.saturating_sub(self.checked) >= INTERVAL {
                    self.checked = now;
                    self.resume_all(now, decisions);
                    let all: Vec<BackendId> = self.fleet.usable().collect();
                    all.into_iter().for_each(|id| self.pause_overfull(now, id));
                }
            }
            _ => {}
        }
    }
}
