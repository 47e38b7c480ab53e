//! Restoring a snapshot: the programs at once, their leases when the backend proves to be in the same life as before.

use super::{BackendSnapshot, ProgramSnapshot, SchedulerSnapshot};
use crate::backend::RestoredBackend;
use crate::decision::DispatchKind;
use crate::event::BackendId;
use crate::feedback::CapacityFeedback;
use crate::policy::LARGEST;
use crate::program::{Pid, Program, known};
use crate::scheduler::Scheduler;
use crate::shadow::Shadow;
use crate::units::Tokens;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Time after a restart for which programs wait for the backend that holds their prefix. Its first health check takes
/// 2 s at most by default.
const PATIENCE: Duration = Duration::from_secs(3);

impl Scheduler {
    /// Restores the snapshot of an earlier scheduler, taken `passed` ago. Its backends are known here under the ids in
    /// `snapshot`, and are not up yet. No step survives: all programs are idle. To be called before any event but
    /// `BackendAdded`.
    pub fn restore(&mut self, now: Duration, passed: Duration, snapshot: SchedulerSnapshot) {
        self.now = self.now.max(now);
        self.restored_at = Some(self.now);
        self.learned.restore(&snapshot.experience);
        self.growth.restore(&snapshot.experience);
        self.classes.restore(&snapshot.experience);
        self.presumed_over = self.over_since();
        let mut pids: HashMap<u64, Pid> = HashMap::with_capacity(snapshot.programs.len());
        let mut leases: HashMap<BackendId, Vec<(Pid, Tokens)>> = HashMap::new();
        for record in snapshot.programs {
            let (number, running, home) = (record.number, record.running, record.home.filter(|_| record.leased));
            let Some(pid) = self.restore_program(record, passed) else {
                continue;
            };
            pids.insert(number, pid);
            if let (Some(home), Some(program)) = (home, self.programs.get(&pid)) {
                // The blocks that its running step had pinned are still in the cache.
                let left = if running { program.context - self.shared(program.class) } else { Tokens::ZERO };
                leases.entry(home).or_default().push((pid, left));
            }
        }
        for record in snapshot.backends {
            let leases = leases.remove(&record.backend).unwrap_or_default();
            self.note_restored(record, passed, &mut pids, leases);
        }
        while self.keys.len() > self.policy.max_programs
            && let Some(&(_, longest)) = self.inactive.first()
        {
            self.forget(longest);
        }
    }

    fn restore_program(&mut self, record: ProgramSnapshot, passed: Duration) -> Option<Pid> {
        if record.context == Tokens::ZERO || self.keys.contains_key(&record.key) {
            return None;
        }
        let pid = self.new_pid();
        let since = |ms| self.since(passed, ms);
        let program = Program {
            first_seen: since(record.age_ms),
            last_active: since(record.idle_ms),
            context: record.context.min(LARGEST),
            last_prompt: record.last_prompt.min(LARGEST),
            last_bytes: record.last_bytes,
            home: record.home.filter(|home| self.backends.contains_key(home)),
            steps: record.steps,
            // The experience counts the program as ended already.
            presumed_over: since(record.idle_ms) < self.presumed_over,
            ..Program::new(record.key.clone(), record.class, self.now)
        };
        if program.presumed_over {
            self.learned.saw_no_return();
        }
        self.inactive.insert((program.last_active, pid));
        self.programs.insert(pid, program);
        self.by_start.insert(pid);
        self.keys.insert(record.key, pid);
        Some(pid)
    }

    fn note_restored(
        &mut self,
        record: BackendSnapshot,
        passed: Duration,
        pids: &mut HashMap<u64, Pid>,
        leases: Vec<(Pid, Tokens)>,
    ) {
        let mut shadow = Shadow::default();
        for (number, tokens, idle_ms) in record.prefixes {
            // The prefix of a forgotten program still takes its place in the cache.
            let pid = *pids.entry(number).or_insert_with(|| self.new_pid());
            shadow.leave(pid, tokens.min(LARGEST), self.since(passed, idle_ms));
        }
        for &(pid, left) in &leases {
            if left > Tokens::ZERO {
                shadow.leave(pid, left, self.since(passed, 0));
            }
        }
        let feedback = CapacityFeedback::restore(record.feedback);
        let leases = leases.into_iter().map(|(pid, _)| pid).collect();
        if let Some(backend) = self.backends.get_mut(&record.backend).filter(|backend| !backend.up()) {
            backend.keep_restored(RestoredBackend { life: record.life, rate: record.rate, feedback, shadow, leases });
        }
    }

    fn since(&self, passed: Duration, ms: u64) -> Duration {
        self.now.saturating_sub(passed.saturating_add(Duration::from_millis(ms)))
    }

    /// Restores the cache of a backend that is up for the first time since [`Scheduler::restore`]. If it has not
    /// restarted meanwhile, its cache holds what it held, and its programs get their leases again.
    pub(crate) fn restore_cache(&mut self, id: BackendId) {
        let backend = known(self.backends.get_mut(&id));
        if let Some(leases) = backend.and_then(|backend| backend.take_restored(&self.classes)) {
            self.restore_leases(id, &leases);
        }
    }

    /// Gives leases again while there is room: first to programs that wait, then to those that were active last.
    fn restore_leases(&mut self, id: BackendId, leases: &BTreeSet<Pid>) {
        let at_home = |program: &&Program| program.lease.is_none() && program.home == Some(id);
        let rank = |&pid: &Pid| {
            let program = self.programs.get(&pid).filter(at_home)?;
            Some((program.waiting.is_empty(), Reverse(program.last_active), pid))
        };
        let mut ranked: Vec<_> = leases.iter().filter_map(rank).collect();
        ranked.sort_unstable();
        for (_, _, pid) in ranked {
            let (Some(program), Some(backend)) = (known(self.programs.get(&pid)), known(self.backends.get(&id))) else {
                return;
            };
            let charge = self.need_on(program, id, self.need(program).1) - self.shared(program.class);
            let room = self.effective(backend, Some(program.class));
            if room.is_some_and(|room| backend.claims() + charge > room) {
                return;
            }
            self.lease(pid, id);
            if !self.frozen {
                self.start_held(pid, DispatchKind::Leased);
            }
        }
    }

    /// Whether the program will have its lease back if its backend, which is not up yet, proves to be in the same life.
    pub(crate) fn regains_lease(&self, pid: Pid, program: &Program) -> bool {
        let restored = program.home.and_then(|home| self.backends.get(&home)?.restored());
        program.lease.is_none() && restored.is_some_and(|restored| restored.leases.contains(&pid))
    }

    /// Whether the program is to wait a moment for the backend of its restored lease, because it would lose its prefix
    /// elsewhere.
    pub(crate) fn awaits_home(&self, pid: Pid, program: &Program) -> bool {
        let fresh = self.restored_at.is_some_and(|restored_at| self.now.saturating_sub(restored_at) < PATIENCE);
        fresh && self.regains_lease(pid, program)
    }
}
