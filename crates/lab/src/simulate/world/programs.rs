//! The life of a program: it begins, takes step after step, and ends.

use super::{EXTRA, Flight, GIANT_STEPS, Live, Plan, World};
use std::time::Duration;
use thundergate_scheduler::{Arrival, Event, ProgramKey, StepId};

impl World<'_> {
    pub(super) fn begin_next(&mut self, followed: bool) {
        let program = self.next_program;
        self.next_program += 1;
        self.begin_program(program, followed);
    }

    pub(super) fn begin_program(&mut self, number: u64, followed: bool) {
        let mut script = self.setup.demand.script(number);
        if let Some(first) = self.setup.faults.giant.filter(|_| number == EXTRA + self.setup.faults.burst) {
            script.enlarge(first, GIANT_STEPS);
        }
        script.misjudge(self.setup.faults.estimate);
        let live = Live {
            texts: script.texts(number, self.setup.shape.block_size),
            script,
            key: ProgramKey { tenant: "".into(), id: format!("p{number}").into() },
            at: 0,
            began: self.now,
            arrived: self.now,
            waiting: false,
            followed,
        };
        self.programs.insert(number, live);
        self.arrive(number);
    }

    /// Sends the program's present step to the proxy, for the first time or again.
    pub(super) fn arrive(&mut self, number: u64) {
        let Some(live) = self.programs.get_mut(&number) else { return };
        if !live.waiting {
            (live.waiting, live.arrived) = (true, self.now);
        }
        let step = StepId(self.next_step);
        self.next_step += 1;
        self.flights.insert(step, Flight { program: number, on: None, output: 0 });
        let arrival = Arrival {
            step,
            program: Some(live.key.clone()),
            class: live.script.class,
            prompt_bytes: live.step().bytes,
            max_output: None,
            preferred: None,
            last: false,
        };
        self.tell(Event::Arrive(arrival));
    }

    /// Takes in that the present step was answered. The next step follows, or the program is done.
    pub(super) fn answered(&mut self, number: u64) {
        let Some(live) = self.programs.get_mut(&number) else { return };
        live.at += 1;
        live.waiting = false;
        if live.at < live.script.steps.len() {
            let gap = live.step().gap;
            self.plan(gap, Plan::Arrive(number));
            return;
        }
        self.tally.program(self.now, self.now - live.began);
        self.done(number, Duration::ZERO);
    }

    /// Ends a program. The next one of a closed loop begins after `pause`.
    pub(super) fn done(&mut self, number: u64, pause: Duration) {
        let Some(live) = self.programs.remove(&number) else { return };
        if !self.setup.faults.no_release {
            self.inbox.push_back(Event::Release(live.key));
        }
        if live.followed {
            let program = self.next_program;
            self.next_program += 1;
            self.plan(pause, Plan::Begin { program, followed: true });
        }
    }
}
