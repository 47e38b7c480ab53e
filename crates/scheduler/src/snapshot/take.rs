//! Taking a snapshot. The programs come in portions, so that the caller may let events in between them.

use super::{BackendSnapshot, Experience, ProgramSnapshot, SchedulerSnapshot};
use crate::backend::BackendLedger;
use crate::event::BackendId;
use crate::program::Pid;
use crate::scheduler::Scheduler;
use std::ops::Bound;
use std::time::Duration;

/// Number of prefixes that are kept of one backend's cache, the youngest: a cache holds far fewer contexts of any use.
const PREFIXES: usize = 4096;

impl Scheduler {
    /// A number that grows whenever the content of a snapshot changes, except by time alone.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A snapshot without its programs, which come from [`Scheduler::snapshot_programs`].
    #[must_use]
    pub fn snapshot(&self) -> SchedulerSnapshot {
        let mut experience = Experience::default();
        self.learned.snapshot(&mut experience);
        self.growth.snapshot(&mut experience);
        self.classes.snapshot(&mut experience);
        let backends = self.backends.iter().map(|(&id, backend)| self.snapshot_backend(id, backend)).collect();
        SchedulerSnapshot { experience, backends, programs: Vec::new() }
    }

    /// Appends up to `most` programs from `number` on, and gives the number to go on with; `None` at the end. Each
    /// record is whole in itself, so events may come between two portions.
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
            // Its running first step is all that is known of the program. By the time of a restart that step was
            // answered, or it leaves its prompt in the cache.
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
        let (shadow, life, rate, feedback) = match backend.restored() {
            Some(restored) => (&restored.shadow, restored.life, restored.rate, &restored.feedback),
            None => (backend.shadow(), backend.life(), backend.rate(), backend.feedback()),
        };
        let age = |used: Duration| self.now.saturating_sub(used).as_millis() as u64;
        let prefixes = shadow.entries().take(PREFIXES).map(|(pid, tokens, used)| (pid.0, tokens, age(used)));
        BackendSnapshot { backend: id, life, rate, feedback: feedback.snapshot(), prefixes: prefixes.collect() }
    }
}
