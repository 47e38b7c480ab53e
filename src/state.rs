//! What outlives the process: programs, their leases, and what was learned. Ids and tenants, never a prompt.
//!
//! A [`Snapshot`] is taken from the running schedulers and put back into others, by way of bytes: those of a file
//! ([`SnapshotWriter`]), or those that one process sends to the process that takes over from it.

mod format;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use format::{Damage, decode, encode};
pub use store::StoreError;
pub use writer::SnapshotWriter;

use crate::fleet::{self, BackendStatus, Fleet, Origin};
use crate::gate::Gate;
use crate::scheduler::{BackendId, PoolId, SchedulerSnapshot};
use crate::units::unix_time;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// What all schedulers know, at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Unix time, milliseconds.
    pub taken_ms: u64,
    pub pools: Vec<PoolSnapshot>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolSnapshot {
    pub name: String,
    /// URLs of the backends in `memory`: ids are of one process.
    pub backends: Vec<(BackendId, String)>,
    /// Those of the backends that a name server knew.
    pub discovered: Vec<BackendId>,
    pub memory: SchedulerSnapshot,
}

/// What a snapshot gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub programs: usize,
    /// Age of the snapshot.
    pub age: Duration,
}

// === impl Snapshot ===

impl Snapshot {
    /// What the schedulers know now. Takes a while: not for a thread that serves.
    #[must_use]
    pub fn take(gate: &Gate, fleet: &Fleet) -> Self {
        let pool = |(id, name): (PoolId, &str)| {
            let found = |status: &BackendStatus| !status.draining && status.backend.settings().origin == Origin::Dns;
            PoolSnapshot {
                name: name.to_owned(),
                memory: gate.snapshot(id),
                backends: backends(fleet, id).map(|status| (status.backend.id, status.backend.url.clone())).collect(),
                discovered: backends(fleet, id).filter(found).map(|status| status.backend.id).collect(),
            }
        };
        Self { taken_ms: now_ms(), pools: pools(fleet).map(pool).collect() }
    }

    /// Puts what [`Snapshot::take`] gave into other schedulers, before their fleet runs. Pools are found by name and
    /// backends by URL. What the configuration no longer has is left out.
    pub fn restore(self, gate: &Gate, fleet: &Fleet) -> Restored {
        let age = Duration::from_millis(now_ms().saturating_sub(self.taken_ms));
        let mut programs = 0;
        for pool in self.pools {
            let Some((id, _)) = pools(fleet).find(|(_, name)| *name == pool.name) else {
                continue;
            };
            programs += pool.memory.programs.len();
            pool.restore_backends(id, fleet);
            let here = backends(fleet, id).map(|status| (status.backend.url.clone(), status.backend.id)).collect();
            gate.restore(id, age, pool.into_memory(&here));
        }
        Restored { programs, age }
    }
}

fn pools(fleet: &Fleet) -> impl Iterator<Item = (PoolId, &str)> {
    (0..).map(PoolId).map_while(|id| Some((id, fleet.pool_name(id)?)))
}

fn backends(fleet: &Fleet, pool: PoolId) -> impl Iterator<Item = BackendStatus> {
    fleet.statuses().into_iter().filter(move |status| status.backend.pool == pool)
}

// === impl PoolSnapshot ===

impl PoolSnapshot {
    /// Adds the backends that the configuration does not name, and at which programs may be at home.
    fn restore_backends(&self, id: PoolId, fleet: &Fleet) {
        for (_, url) in self.backends.iter().filter(|(id, _)| self.discovered.contains(id)) {
            fleet.rediscover(id, fleet::server(url));
        }
        let mut ranks: HashMap<&str, usize> = HashMap::new();
        for (_, url) in self.backends.iter().filter(|(_, url)| fleet::server(url) != url) {
            *ranks.entry(fleet::server(url)).or_default() += 1;
        }
        ranks.into_iter().for_each(|(server, ranks)| fleet.split(id, server, ranks));
    }

    /// The memory with the ids that its backends have `here`.
    fn into_memory(self, here: &HashMap<String, BackendId>) -> SchedulerSnapshot {
        let mut memory = self.memory;
        let ids: HashMap<BackendId, BackendId> =
            self.backends.iter().filter_map(|(was, url)| Some((*was, *here.get(url)?))).collect();
        for program in &mut memory.programs {
            program.home = program.home.and_then(|home| ids.get(&home).copied());
        }
        memory.backends.retain_mut(|backend| ids.get(&backend.backend).map(|id| backend.backend = *id).is_some());
        memory
    }
}

fn now_ms() -> u64 {
    unix_time().as_millis() as u64
}
