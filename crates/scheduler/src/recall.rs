//! A memory taken up again: programs at once, their leases when the backend turns out to be the one that it was.

use super::feedback::Feedback;
use super::policy::LARGEST;
use super::shadow::Shadow;
use super::*;
use crate::units::Tokens;
use std::cmp::Reverse;

/// After a restart, programs wait this long for the backend that holds their prefix: its first health check takes
/// 2 s at most by default.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was known of a backend before this process began.
#[derive(Debug)]
pub struct Former {
    pub life: Option<Life>,
    pub rate: Option<f64>,
    pub feedback: Feedback,
    pub shadow: Shadow,
    leases: BTreeSet<Pid>,
}

impl Scheduler {
    /// Takes up what a scheduler before this one remembered `passed` ago; its backends are known here under the ids in
    /// `memory`, and are not up yet. No step survives: all programs are idle. To be called before any event but
    /// `BackendAdded`.
    pub fn recall(&mut self, now: Duration, passed: Duration, memory: Memory) {
        self.now = self.now.max(now);
        self.recalled = Some(self.now);
        self.learned.recall(&memory.experience);
        self.growth.recall(&memory.experience);
        self.classes.recall(&memory.experience);
        self.presumed_over = self.over_since();
        let mut pids: HashMap<u64, Pid> = HashMap::with_capacity(memory.programs.len());
        let mut leases: HashMap<BackendId, Vec<(Pid, Tokens)>> = HashMap::new();
        for record in memory.programs {
            let (number, running, home) = (record.number, record.running, record.home.filter(|_| record.leased));
            let Some(pid) = self.recall_program(record, passed) else {
                continue;
            };
            pids.insert(number, pid);
            if let (Some(home), Some(program)) = (home, self.programs.get(&pid)) {
                // What its step had pinned is left in the cache.
                let left = if running { program.context - self.shared(program.class) } else { Tokens::ZERO };
                leases.entry(home).or_default().push((pid, left));
            }
        }
        for record in memory.backends {
            let leases = leases.remove(&record.backend).unwrap_or_default();
            self.recall_backend(record, passed, &mut pids, leases);
        }
        while self.keys.len() > self.policy.max_programs
            && let Some(&(_, longest)) = self.inactive.first()
        {
            self.forget(longest);
        }
    }

    fn recall_program(&mut self, record: ProgramMemory, passed: Duration) -> Option<Pid> {
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
            // Which the experience knows of already.
            presumed_over: since(record.idle_ms) < self.presumed_over,
            ..Program::new(record.key.clone(), record.class, self.now)
        };
        if program.presumed_over {
            self.learned.saw_no_return();
        }
        self.inactive.insert((program.last_active, pid));
        self.programs.insert(pid, program);
        self.roll.insert(pid);
        self.keys.insert(record.key, pid);
        Some(pid)
    }

    fn recall_backend(
        &mut self,
        record: BackendMemory,
        passed: Duration,
        pids: &mut HashMap<u64, Pid>,
        leases: Vec<(Pid, Tokens)>,
    ) {
        let mut shadow = Shadow::default();
        for (number, tokens, idle_ms) in record.prefixes {
            // What programs left that are gone keeps its place in the cache.
            let pid = *pids.entry(number).or_insert_with(|| self.new_pid());
            shadow.leave(pid, tokens.min(LARGEST), self.since(passed, idle_ms));
        }
        for &(pid, left) in &leases {
            if left > Tokens::ZERO {
                shadow.leave(pid, left, self.since(passed, 0));
            }
        }
        let feedback = Feedback::recall(record.feedback);
        let leases = leases.into_iter().map(|(pid, _)| pid).collect();
        if let Some(backend) = self.backends.get_mut(&record.backend).filter(|backend| !backend.up) {
            backend.former = Some(Former { life: record.life, rate: record.rate, feedback, shadow, leases });
        }
    }

    fn since(&self, passed: Duration, ms: u64) -> Duration {
        self.now.saturating_sub(passed.saturating_add(Duration::from_millis(ms)))
    }

    /// The backend is up for the first time since [`Scheduler::recall`]. If it has not restarted meanwhile, what was in
    /// its cache still is.
    pub(super) fn revive(&mut self, id: BackendId) {
        let Some(backend) = self.backends.get_mut(&id) else {
            return;
        };
        let Some(former) = backend.former.take() else {
            return;
        };
        let same = match (backend.life, former.life) {
            (Some(now), Some(before)) => now.continues(before),
            // A server that tells nothing of itself gets the benefit of the doubt.
            (None, None) => true,
            _ => false,
        };
        if !same {
            return;
        }
        if let Some(rate) = former.rate {
            backend.saw_rate(rate);
        }
        backend.feedback = former.feedback;
        backend.shadow = former.shadow;
        backend.outlook.take();
        backend.press(|class| self.classes.shared(class));
        self.lease_again(id, &former.leases);
    }

    /// Those that were active last come first; where the room ends, the longest idle go without.
    fn lease_again(&mut self, id: BackendId, leases: &BTreeSet<Pid>) {
        let at_home = |program: &&Program| program.lease.is_none() && program.home == Some(id);
        let rank = |&pid: &Pid| {
            let program = self.programs.get(&pid).filter(at_home)?;
            Some((program.waiting.is_empty(), Reverse(program.last_active), pid))
        };
        let mut ranked: Vec<_> = leases.iter().filter_map(rank).collect();
        ranked.sort_unstable();
        for (_, _, pid) in ranked {
            let (Some(program), Some(backend)) = (self.programs.get(&pid), self.backends.get(&id)) else {
                return;
            };
            let charge = self.need_on(program, id, self.need(program).1) - self.shared(program.class);
            let room = self.effective(backend, Some(program.class));
            if room.is_some_and(|room| backend.claims + charge > room) {
                return;
            }
            self.lease(pid, id);
            if !self.frozen {
                self.start_held(pid, DispatchKind::Leased);
            }
        }
    }

    /// It will have its lease back if its backend, not up yet, turns out to be the one that it was.
    pub(super) fn former_lease(&self, pid: Pid, program: &Program) -> bool {
        let former = program.home.and_then(|home| self.backends.get(&home)?.former.as_ref());
        program.lease.is_none() && former.is_some_and(|former| former.leases.contains(&pid))
    }

    /// Going elsewhere would cost its prefix: a moment's wait may save it.
    pub(super) fn awaits_former(&self, pid: Pid, program: &Program) -> bool {
        let fresh = self.recalled.is_some_and(|recalled| self.now.saturating_sub(recalled) < PATIENCE);
        fresh && self.former_lease(pid, program)
    }
}
