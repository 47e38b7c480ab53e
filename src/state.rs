//! What outlives the process: programs, their leases, and what was learned. Ids and tenants, never a prompt.
//!
//! [`capture`] and [`restore`] turn the running schedulers into bytes and back, for a file ([`SnapshotWriter`]) as for a
//! process that takes over from another.

mod format;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use format::{Damage, decode, encode};
pub use store::{StoreError, directory};
pub use writer::SnapshotWriter;

use crate::app::App;
use crate::config;
use crate::fleet::{self, Origin};
use crate::gate::PoolId;
use crate::scheduler::{BackendId, SchedulerSnapshot};
use crate::units::unix_time;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// Everything, at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Unix time, milliseconds.
    pub taken_ms: u64,
    pub pools: Vec<PoolSnapshot>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolSnapshot {
    pub name: String,
    /// Where the backends of `memory` are: ids are of one process.
    pub backends: Vec<(BackendId, String)>,
    /// Those of them that a name server knew.
    pub discovered: Vec<BackendId>,
    pub memory: SchedulerSnapshot,
}

/// What a snapshot gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub programs: usize,
    /// How old it was.
    pub age: Duration,
}

/// What the schedulers of `app` know now, encoded. Takes a while: not for a thread that serves.
#[must_use]
pub fn capture(app: &App) -> Vec<u8> {
    encode(&snapshot(app))
}

/// Takes up what [`capture`] gave, before the fleet of `app` runs. Pools are found by name and backends by URL; what
/// the configuration no longer has is left out.
///
/// # Errors
/// The bytes are not a whole snapshot of this version: nothing has changed.
pub fn restore(bytes: &[u8], app: &App) -> Result<Restored, Damage> {
    let snapshot = decode(bytes)?;
    let age = Duration::from_millis(now_ms().saturating_sub(snapshot.taken_ms));
    let mut programs = 0;
    for pool in snapshot.pools {
        let mut ids = pools(app);
        let Some((id, _)) = ids.find(|(_, name)| *name == pool.name) else {
            continue;
        };
        programs += pool.memory.programs.len();
        rediscover(app, id, &pool);
        for server in pool.backends.iter().map(|(_, url)| fleet::server(url)) {
            // Those of one server stand for one rank each, or it has none.
            let ranks = pool.backends.iter().filter(|(_, url)| url != server && fleet::server(url) == server).count();
            if ranks > 0 {
                app.fleet.split(id, server, ranks);
            }
        }
        app.gate.restore(id, age, translated(pool, &backends(app, id)));
    }
    Ok(Restored { programs, age })
}

fn snapshot(app: &App) -> Snapshot {
    let pool = |(id, name): (PoolId, &str)| PoolSnapshot {
        name: name.to_owned(),
        memory: app.gate.snapshot(id),
        backends: backends(app, id),
        discovered: discovered(app, id),
    };
    Snapshot { taken_ms: now_ms(), pools: pools(app).map(pool).collect() }
}

fn pools(app: &App) -> impl Iterator<Item = (PoolId, &str)> {
    (0..).map(PoolId).map_while(|id| Some((id, app.fleet.pool_name(id)?)))
}

fn backends(app: &App, pool: PoolId) -> Vec<(BackendId, String)> {
    let statuses = app.fleet.statuses().into_iter().map(|status| status.backend);
    statuses.filter(|backend| backend.pool == pool).map(|backend| (backend.id, backend.url.clone())).collect()
}

fn discovered(app: &App, pool: PoolId) -> Vec<BackendId> {
    let here = app.fleet.statuses().into_iter().filter(|status| !status.draining).map(|status| status.backend);
    let found = here.filter(|backend| backend.pool == pool && backend.settings().origin == Origin::Dns);
    found.map(|backend| backend.id).collect()
}

/// Programs may be at home where only a name server leads: that is taken for so until it was asked.
fn rediscover(app: &App, id: PoolId, pool: &PoolSnapshot) {
    let settings = app.settings();
    let Some(discovery) = settings.models.get(id.0).and_then(|model| model.discovery.as_ref()) else {
        return;
    };
    let found = pool.backends.iter().filter(|(id, _)| pool.discovered.contains(id));
    for backend in found.filter_map(|(_, url)| config::Backend::at(fleet::server(url)).ok()) {
        let backend = config::Backend { api_key: discovery.api_key.clone(), ..backend };
        // Not if it is there already: the file may name it too.
        let _ = app.fleet.insert(id, &backend, Origin::Dns);
    }
}

/// The memory of `pool`, with the ids that its backends have `here`.
fn translated(pool: PoolSnapshot, here: &[(BackendId, String)]) -> SchedulerSnapshot {
    let mut memory = pool.memory;
    let id_of = |url: &str| here.iter().find(|(_, other)| other == url).map(|&(id, _)| id);
    let ids: HashMap<BackendId, BackendId> =
        pool.backends.iter().filter_map(|(was, url)| Some((*was, id_of(url)?))).collect();
    for program in &mut memory.programs {
        program.home = program.home.and_then(|home| ids.get(&home).copied());
    }
    memory.backends.retain_mut(|backend| {
        let id = ids.get(&backend.backend);
        id.inspect(|&&id| backend.backend = id).is_some()
    });
    memory
}

fn now_ms() -> u64 {
    unix_time().as_millis() as u64
}
