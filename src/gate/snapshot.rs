//! Snapshots of the schedulers, taken and restored a pool at a time.

use super::{Gate, PoolId};
use crate::scheduler::SchedulerSnapshot;
use parking_lot::MutexGuard;
use std::time::Duration;

/// Programs copied while a pool is locked: dispatch waits for no more, a tenth of a millisecond or so.
pub const PORTION: usize = 256;

impl Gate {
    /// A number that grows whenever what [`Gate::snapshot`] gives changes, save by time alone.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.pools.iter().map(|pool| pool.lock().scheduler.revision()).sum()
    }

    /// A snapshot of the pool's scheduler. Taking it takes a while: not for a thread that serves requests.
    #[must_use]
    pub fn snapshot(&self, pool: PoolId) -> SchedulerSnapshot {
        let Some(pool) = self.0.pools.get(pool.0) else {
            return SchedulerSnapshot::default();
        };
        let mut programs = Vec::new();
        let mut next = Some(0);
        while let Some(number) = next {
            // Memory is taken before the lock is.
            programs.reserve(PORTION);
            let locked = pool.lock();
            next = locked.scheduler.snapshot_programs(number, PORTION, &mut programs);
            // Threads that wait for the lock come before the next portion.
            MutexGuard::unlock_fair(locked);
        }
        // Last: a prefix is then of a program that is there, or of one that is gone.
        let memory = pool.lock().scheduler.snapshot();
        SchedulerSnapshot { programs, ..memory }
    }

    /// Takes up what was remembered `passed` ago, before the pool's first backend is up.
    pub fn restore(&self, pool: PoolId, passed: Duration, memory: SchedulerSnapshot) {
        if let Some(pool) = self.0.pools.get(pool.0) {
            pool.lock().scheduler.restore(self.now(), passed, memory);
        }
    }
}
