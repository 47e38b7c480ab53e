//! A plain cap on the number of programs on a backend, first come, first served. A program keeps its place from its
//! first step to its end.

use super::Policy;
use super::fleet::Fleet;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;
use thundergate_scheduler::{Arrival, BackendId, Decision, DispatchKind, Event, ProgramKey, StepId};

/// Time without a step after which a program has lost its place: many clients never say that they are done.
const GONE: Duration = Duration::from_secs(600);

pub(super) struct Cap {
    most: usize,
    fleet: Fleet,
    places: BTreeMap<ProgramKey, Place>,
    /// Number of programs on each backend.
    taken: HashMap<BackendId, usize>,
    queue: VecDeque<Arrival>,
    running: HashMap<StepId, Arrival>,
}

struct Place {
    on: BackendId,
    running: usize,
    used: Duration,
}

impl Cap {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            fleet: Fleet::default(),
            places: BTreeMap::new(),
            taken: HashMap::new(),
            queue: VecDeque::new(),
            running: HashMap::new(),
        }
    }

    fn place(&mut self, arrival: &Arrival, now: Duration) -> Option<BackendId> {
        let Some(key) = &arrival.program else { return self.fleet.least_loaded() };
        if let Some(place) = self.places.get_mut(key) {
            (place.used, place.running) = (now, place.running + 1);
            return Some(place.on);
        }
        let taken = |id: &BackendId| self.taken.get(id).copied().unwrap_or(0);
        let on = self.fleet.usable().filter(|id| taken(id) < self.most).min_by_key(|id| (taken(id), *id))?;
        *self.taken.entry(on).or_default() += 1;
        self.places.insert(key.clone(), Place { on, running: 1, used: now });
        Some(on)
    }

    fn leave(&mut self, key: &ProgramKey) {
        if let Some(place) = self.places.remove(key) {
            *self.taken.entry(place.on).or_default() -= 1;
        }
    }

    fn drop_where(&mut self, gone: impl Fn(&Place) -> bool) {
        let keys: Vec<_> = self.places.iter().filter(|(_, place)| gone(place)).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.leave(key));
    }

    fn stopped(&mut self, step: StepId, now: Duration) -> Option<Arrival> {
        let arrival = self.running.remove(&step)?;
        let place = arrival.program.as_ref().and_then(|key| self.places.get_mut(key));
        if let Some(place) = place {
            (place.used, place.running) = (now, place.running.saturating_sub(1));
        }
        Some(arrival)
    }

    fn serve(&mut self, now: Duration, decisions: &mut Vec<Decision>) {
        let mut waiting = VecDeque::new();
        while let Some(arrival) = self.queue.pop_front() {
            let Some(backend) = self.place(&arrival, now) else {
                waiting.push_back(arrival);
                continue;
            };
            self.fleet.dispatched(arrival.step, backend);
            decisions.push(Decision::Dispatch { step: arrival.step, backend, kind: DispatchKind::Unlabelled });
            self.running.insert(arrival.step, arrival);
        }
        self.queue = waiting;
    }
}

impl Policy for Cap {
    fn handle(&mut self, now: Duration, event: Event, decisions: &mut Vec<Decision>) {
        self.fleet.note(&event);
        match event {
            Event::Arrive(arrival) => self.queue.push_back(arrival),
            Event::End { step, .. } => {
                self.stopped(step, now);
            }
            Event::Undelivered(step) => {
                if let Some(arrival) = self.stopped(step, now) {
                    self.queue.push_front(arrival);
                }
            }
            Event::Release(program) => self.leave(&program),
            Event::BackendDown(id) => self.drop_where(|place| place.on == id),
            Event::BackendUp(_) => {}
            Event::Tick => self.drop_where(|place| place.running == 0 && now.saturating_sub(place.used) > GONE),
            _ => return,
        }
        self.serve(now, decisions);
    }
}
