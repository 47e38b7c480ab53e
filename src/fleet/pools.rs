//! Which pool serves which model, and each pool's consistent hash.

use super::Entry;
use super::ring::Ring;
use crate::config;
use crate::gate::PoolId;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct Pools {
    list: Vec<Pool>,
    /// Names and aliases.
    names: HashMap<String, PoolId>,
    unnamed: Option<PoolId>,
    /// Rebuilt under this lock: a slower, older view must not win.
    rebuild: Mutex<()>,
}

pub(super) struct Pool {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    pub(super) engine: config::Engine,
    pub(super) health: config::Health,
    pub(super) ring: ArcSwap<Ring>,
}

// === impl Pools ===

impl Pools {
    pub(super) fn new(configs: &[config::Pool]) -> Self {
        let mut names = HashMap::new();
        let mut unnamed = None;
        for (index, config) in configs.iter().enumerate() {
            if config.name.is_empty() {
                unnamed.get_or_insert(PoolId(index));
            } else {
                names.insert(config.name.clone(), PoolId(index));
            }
            for alias in &config.aliases {
                names.entry(alias.clone()).or_insert(PoolId(index));
            }
        }
        let list = configs.iter().map(Pool::new).collect();
        Self { list, names, unnamed, rebuild: Mutex::new(()) }
    }

    pub(super) fn get(&self, id: PoolId) -> Option<&Pool> {
        self.list.get(id.0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PoolId, &Pool)> {
        self.list.iter().enumerate().map(|(index, pool)| (PoolId(index), pool))
    }

    pub(super) fn serving(&self, model: Option<&str>) -> Option<PoolId> {
        match model {
            Some(model) => self.names.get(model).copied().or(self.unnamed),
            None if self.list.len() == 1 => Some(PoolId(0)),
            None => self.unnamed,
        }
    }

    /// Rebuilds the pool's ring from what `entries` says now.
    pub(super) fn rebuild(&self, id: PoolId, entries: impl FnOnce() -> Arc<Vec<Arc<Entry>>>) {
        let Some(pool) = self.get(id) else { return };
        let _one_at_a_time = self.rebuild.lock();
        let entries = entries();
        let members: Vec<_> = entries
            .iter()
            .filter(|entry| entry.backend.pool == id)
            .map(|entry| (&*entry.backend, entry.is_usable()))
            .collect();
        pool.ring.store(Arc::new(Ring::build(members.iter().copied())));
    }
}

// === impl Pool ===

impl Pool {
    fn new(config: &config::Pool) -> Self {
        Self {
            name: config.name.clone(),
            aliases: config.aliases.clone(),
            engine: config.engine,
            health: config.health.clone(),
            ring: ArcSwap::from_pointee(Ring::build(std::iter::empty())),
        }
    }
}
