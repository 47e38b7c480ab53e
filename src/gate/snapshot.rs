//! Snapshots of the schedulers, taken and restored one pool at a time.

use super::{Gate, PoolId};
use crate::scheduler::SchedulerSnapshot;
use parking_lot::MutexGuard;
use std::time::Duration;

/// Number of programs that are copied while a pool is locked. The lock then delays dispatch by a tenth of a millisecond
/// or so.
pub const PORTION: usize = 256;

impl Gate {
    /// A number that grows whenever the content of [`Gate::snapshot`] changes, except by time alone.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.pools.iter().map(|pool| pool.lock().scheduler.revision()).sum()
    }

    /// A snapshot of the pool's scheduler. Taking it takes a while, so no thread that serves requests should call this.
    #[must_use]
    pub fn snapshot(&self, pool: PoolId) -> SchedulerSnapshot {
        let Some(pool) = self.0.pools.get(pool.0) else {
            return SchedulerSnapshot::default();
        };
        let mut programs = Vec::new();
        let mut next = Some(0);
        while let Some(number) = next {
            // Memory is allocated before the lock is taken, to keep the lock short.
            programs.reserve(PORTION);
            let locked = pool.lock();
            next = locked.scheduler.snapshot_programs(number, PORTION, &mut programs);
            // Threads that wait for the lock come before the next portion.
            MutexGuard::unlock_fair(locked);
        }
        // The rest comes last. So each prefix in it belongs to a program that was copied, or to one that has ended.
        let memory = pool.lock().scheduler.snapshot();
        SchedulerSnapshot { programs, ..memory }
    }

    /// Restores a snapshot that was taken `passed` ago. To be called before the pool's first backend is up.
    pub fn restore(&self, pool: PoolId, passed: Duration, memory: SchedulerSnapshot) {
        if let Some(pool) = self.0.pools.get(pool.0) {
            pool.lock().scheduler.restore(self.now(), passed, memory);
        }
    }
}
