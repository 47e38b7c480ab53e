//! What is worth keeping across a restart, as plain data: programs, where their prefixes are, what was learned.
//!
//! Backends are named by the ids of the process that remembers. Ages count back from the moment of asking.

use super::*;
use crate::units::Tokens;
use serde::{Deserialize, Serialize};
use std::ops::Bound;

/// Prefixes remembered of one backend's cache, the youngest: it holds far fewer contexts of any use.
const PREFIXES: usize = 4096;

/// What one scheduler remembers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SchedulerSnapshot {
    pub experience: Experience,
    pub backends: Vec<BackendSnapshot>,
    /// In the order in which they began.
    pub programs: Vec<ProgramSnapshot>,
}

/// What was learned from the traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Experience {
    /// Mean output of a step, tokens.
    pub output: Option<f64>,
    pub bytes_per_token: Option<f64>,
    /// Tool gaps, the oldest first.
    pub gaps_ms: Vec<u64>,
    /// Of contexts in each band: how many programs grew beyond it, how many ended in it, the sum of those contexts.
    pub lives: Vec<(u16, f64, f64, f64)>,
    /// Growth of leased programs: tokens, and the seconds that it took.
    pub grown: (f64, f64),
    /// Class, smallest cached prefix of a first step, and how many programs told of one.
    pub classes: Vec<(u64, Tokens, u32)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendSnapshot {
    pub backend: BackendId,
    /// Which life of it the rest is about.
    pub life: Option<Life>,
    /// Prompt tokens a second.
    pub rate: Option<f64>,
    /// The factor on its capacity, and the share of late prompts that was missing.
    pub feedback: (f64, f64),
    /// [`ProgramSnapshot::number`] (or that of a program which is gone), tokens that are probably cached, and their age.
    pub prefixes: Vec<(u64, Tokens, u64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramSnapshot {
    pub number: u64,
    pub key: ProgramKey,
    pub class: u64,
    pub context: Tokens,
    pub last_prompt: Tokens,
    pub last_bytes: u64,
    /// Where it ran last.
    pub home: Option<BackendId>,
    /// It held a lease there.
    pub leased: bool,
    /// A step of it was in flight.
    pub running: bool,
    pub age_ms: u64,
    pub idle_ms: u64,
    pub steps: u64,
}

impl Scheduler {
    /// Grows whenever what is remembered changes, save by time alone.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Everything but the programs: see [`Scheduler::snapshot_programs`].
    #[must_use]
    pub fn snapshot(&self) -> SchedulerSnapshot {
        let mut experience = Experience::default();
        self.learned.snapshot(&mut experience);
        self.growth.snapshot(&mut experience);
        self.classes.snapshot(&mut experience);
        let backends = self.backends.iter().map(|(&id, backend)| self.snapshot_backend(id, backend)).collect();
        SchedulerSnapshot { experience, backends, programs: Vec::new() }
    }

    /// Appends up to `most` programs from `number` on, and gives the number to go on with; `None` at the end. Each is
    /// whole in itself: events may come between two portions.
    #[must_use]
    pub fn snapshot_programs(&self, number: u64, most: usize, into: &mut Vec<ProgramSnapshot>) -> Option<u64> {
        let mut next = number;
        let mut seen = 0;
        for &pid in self.by_start.range((Bound::Included(Pid(number)), Bound::Unbounded)).take(most) {
            into.extend(self.snapshot_program(pid));
            next = pid.0 + 1;
            seen += 1;
        }
        (seen == most).then_some(next)
    }

    fn snapshot_program(&self, pid: Pid) -> Option<ProgramSnapshot> {
        let program = self.programs.get(&pid).filter(|program| !program.ended)?;
        let step = program.running.iter().find_map(|id| self.steps.get(id));
        let mut known = (program.context, program.last_prompt, program.last_bytes);
        if !program.started() {
            // Its first step is all there is of it: it will have been answered, or leaves its prompt in the cache.
            let step = step?;
            let run = step.run.as_ref()?;
            known = (run.estimate, run.prompt, step.prompt_bytes);
        }
        let ms = |since: Duration| self.now.saturating_sub(since).as_millis() as u64;
        Some(ProgramSnapshot {
            number: pid.0,
            key: program.key.clone(),
            class: program.class,
            context: known.0,
            last_prompt: known.1,
            last_bytes: known.2,
            home: program.lease.or(program.home),
            leased: program.lease.is_some() || self.regains_lease(pid, program),
            running: step.is_some(),
            age_ms: ms(program.first_seen),
            idle_ms: if step.is_some() { 0 } else { ms(program.last_active) },
            steps: program.steps,
        })
    }

    fn snapshot_backend(&self, id: BackendId, backend: &BackendLedger) -> BackendSnapshot {
        let (shadow, life, rate, feedback) = match &backend.restored {
            Some(restored) => (&restored.shadow, restored.life, restored.rate, &restored.feedback),
            None => (&backend.shadow, backend.life, backend.rate(), &backend.feedback),
        };
        let age = |used: Duration| self.now.saturating_sub(used).as_millis() as u64;
        let prefixes = shadow.entries().take(PREFIXES).map(|(pid, tokens, used)| (pid.0, tokens, age(used)));
        BackendSnapshot { backend: id, life, rate, feedback: feedback.snapshot(), prefixes: prefixes.collect() }
    }

    /// What is remembered may change by the event itself; of what it leads to, decisions tell.
    pub(super) fn touches(&self, event: &Event) -> bool {
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

pub(super) fn tells_of_change(decision: &Decision) -> bool {
    match decision {
        Decision::Dispatch { kind, .. } => *kind != DispatchKind::Unlabelled,
        Decision::Paused { .. } | Decision::Ended { .. } => true,
        _ => false,
    }
}
