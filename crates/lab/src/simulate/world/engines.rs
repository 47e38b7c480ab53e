//! The events of the engines, and their failures.

use super::{AWAY, Machine, Plan, REPORT, RETRY, World};
use crate::engine::model::{Engine, EngineEvent, EventKind, Usage};
use thundergate_scheduler::units::Tokens;
use thundergate_scheduler::{BackendId, BackendReport, Event, Outcome, PROGRESS, StepId, Usage as Reported};

impl World<'_> {
    pub(super) fn run_engines(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for on in 0..self.machines.len() {
            self.machines[on].engine.advance(self.now, &mut events);
            for event in events.drain(..) {
                self.engine_event(on, event);
            }
        }
        self.events = events;
    }

    fn engine_event(&mut self, on: usize, event: EngineEvent) {
        let id = StepId(event.id);
        match event.kind {
            EventKind::Token => self.token(id),
            EventKind::Preempted => self.tally.preempted(self.now),
            EventKind::FirstToken { .. } => {
                let program = self.flights.get(&id).map(|flight| flight.program);
                if let Some(live) = program.and_then(|number| self.programs.get_mut(&number)) {
                    live.waiting = false;
                    self.tally.waited(self.now, self.now - live.arrived, live.at > 0);
                }
                self.tell(Event::FirstToken(id));
                self.token(id);
            }
            EventKind::Finished(usage) => self.finished(on, id, usage),
        }
    }

    /// Takes in one more token. The policy is told of tokens in portions, as the proxy's scheduler is.
    fn token(&mut self, id: StepId) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.output += 1;
        if flight.output.is_multiple_of(PROGRESS) {
            let output = Tokens(flight.output);
            self.tell(Event::Progress { step: id, output });
        }
    }

    fn finished(&mut self, on: usize, id: StepId, usage: Usage) {
        let Some(flight) = self.flights.remove(&id) else { return };
        let Some(live) = self.programs.get(&flight.program) else { return };
        let latency = self.now - live.arrived;
        self.tally.step(self.now, on, latency, usage.prompt as u64, usage.cached as u64);
        let tokens = |count: usize| Tokens(count as u64);
        let reported = Reported {
            prompt: tokens(usage.prompt),
            completion: tokens(usage.output),
            cached: Some(tokens(usage.cached)),
        };
        let reported = (!self.setup.faults.no_usage).then_some(reported);
        self.tell(Event::End { step: id, outcome: Outcome::Completed(reported) });
        self.answered(flight.program);
        self.settle();
    }

    pub(super) fn report(&mut self) {
        let usage: f64 = self.machines.iter().map(|machine| machine.engine.gauges().kv_usage).sum();
        let held = self.flights.values().filter(|flight| flight.on.is_none()).count();
        self.tally.sample(self.now, usage / self.machines.len() as f64, held);
        #[cfg(test)]
        if self.now.as_secs().is_multiple_of(60) {
            self.machines.iter().for_each(|machine| machine.engine.check());
        }
        for at in 0..self.machines.len() {
            if self.machines[at].up {
                self.report_one(at, false);
            }
        }
    }

    /// Reports the reading that the proxy's fleet would take from the engine's metrics page.
    fn report_one(&mut self, at: usize, restarted: bool) {
        let machine = &mut self.machines[at];
        let counters = machine.engine.counters();
        let computed = counters.prompt_tokens - counters.prompt_cached;
        let before = machine.computed.replace(computed).filter(|_| !restarted);
        let report = BackendReport {
            life: None,
            capacity: Some(Tokens(machine.engine.capacity() as u64).scale(self.setup.faults.capacity)),
            restarted,
            prefill_rate: before.map(|before| (computed - before) as f64 / REPORT.as_secs_f64()),
            kv_usage: Some(machine.engine.gauges().kv_usage),
        };
        self.tell(Event::Report { backend: BackendId(at as u32), report });
    }

    pub(super) fn crash(&mut self, at: usize) {
        let shape = self.machines[at].engine.shape().clone();
        self.machines[at] = Machine { engine: Engine::new(shape), up: false, computed: None };
        self.tell(Event::BackendDown(BackendId(at as u32)));
        let failed: Vec<StepId> =
            self.flights.iter().filter(|(_, flight)| flight.on == Some(at)).map(|(&id, _)| id).collect();
        for id in failed {
            self.tell(Event::End { step: id, outcome: Outcome::Failed });
            if let Some(flight) = self.flights.remove(&id) {
                if let Some(live) = self.programs.get_mut(&flight.program) {
                    live.waiting = true;
                }
                self.plan(RETRY, Plan::Arrive(flight.program));
            }
        }
        self.plan(AWAY, Plan::Back(at));
        if let Some(every) = self.setup.faults.restart {
            self.plan(every, Plan::Crash((at + 1) % self.machines.len()));
        }
    }

    pub(super) fn back(&mut self, at: usize) {
        self.machines[at].up = true;
        self.tell(Event::BackendUp(BackendId(at as u32)));
        self.report_one(at, true);
    }
}
