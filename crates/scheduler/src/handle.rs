//! The way of one event: it is taken in, what fits is dispatched, and the steps that still wait are announced.

use crate::decision::{Decision, DispatchKind};
use crate::event::Event;
use crate::scheduler::Scheduler;
use std::time::Duration;

impl Scheduler {
    /// Takes in an event that happened at `now`, and appends what is to be done to `decisions`. A `now` before that of
    /// the last event counts as the time of the last event. An event costs as much work as it changes, except
    /// [`Event::Tick`], which looks at every program that waits.
    pub fn handle(&mut self, now: Duration, event: Event, decisions: &mut Vec<Decision>) {
        self.now = self.now.max(now);
        let changes = self.changes_snapshot(&event);
        self.take_in(event);
        self.fill();
        self.note_held();
        self.revision += u64::from(changes || self.out.iter().any(tells_of_change));
        decisions.append(&mut self.out);
        debug_assert_eq!(self.check(), Ok(()));
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Arrive(arrival) => self.arrive(arrival),
            Event::FirstToken(step) => self.first_token(step),
            Event::Progress { step, output } => self.progress(step, output),
            Event::End { step, outcome } => self.end(step, outcome),
            Event::Undelivered(step) => self.undelivered(step),
            Event::Release(key) => self.release(&key),
            Event::BackendAdded { backend, weight, capacity } => self.backend_added(backend, weight, capacity),
            Event::BackendUp(backend) => self.backend_up(backend),
            Event::BackendDown(backend) => self.backend_down(backend),
            Event::BackendDraining(backend) => self.backend_draining(backend),
            Event::BackendRemoved(backend) => self.backend_removed(backend),
            Event::Report { backend, report } => self.report(backend, report),
            Event::Freeze(frozen) => self.freeze(frozen),
            Event::Drain => self.drain(),
            Event::Tick => self.tick(),
        }
    }

    /// Whether the event itself may change the content of a snapshot; changes that follow from it show in the
    /// decisions.
    fn changes_snapshot(&self, event: &Event) -> bool {
        match event {
            Event::Arrive(arrival) => arrival.program.is_some(),
            Event::End { step, .. } | Event::Undelivered(step) => {
                self.steps.get(step).is_some_and(|step| step.program.is_some())
            }
            Event::Report { report, .. } => report.restarted,
            Event::BackendUp(_) => true,
            _ => false,
        }
    }
}

/// Whether this decision changes the content of a snapshot.
fn tells_of_change(decision: &Decision) -> bool {
    match decision {
        Decision::Dispatch { kind, .. } => *kind != DispatchKind::Unlabelled,
        Decision::Paused { .. } | Decision::Ended { .. } => true,
        _ => false,
    }
}
