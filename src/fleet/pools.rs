//! The pools, and which of them serves which model.

use super::registry::Registry;
use super::selection::Selection;
use crate::config;
use crate::scheduler::PoolId;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::watch;

pub(super) struct Pools {
    list: Vec<ModelPool>,
    /// Pools by name and alias.
    names: ArcSwap<HashMap<String, PoolId>>,
    unnamed: Option<PoolId>,
    /// Lock for rebuilding a selection: a slower rebuilding, with an older view, must not win.
    rebuild: Mutex<()>,
}

pub(super) struct ModelPool {
    pub(super) name: String,
    pub(super) aliases: ArcSwap<Vec<String>>,
    pub(super) engine: config::Engine,
    pub(super) ranks: config::Ranks,
    pub(super) health: ArcSwap<config::Health>,
    pub(super) discovery: watch::Sender<Option<config::Discovery>>,
    /// Whether the first lookup has ended, successful or not.
    pub(super) looked_up: AtomicBool,
    pub(super) selection: ArcSwap<Selection>,
}

// === impl Pools ===

impl Pools {
    pub(super) fn new(configs: &[config::Pool]) -> Self {
        let unnamed = configs.iter().position(|config| config.name.is_empty()).map(PoolId);
        let list = configs.iter().map(ModelPool::new).collect();
        Self { list, names: ArcSwap::from_pointee(names(configs)), unnamed, rebuild: Mutex::new(()) }
    }

    /// Takes over those settings that may change. `configs` are the same pools in the same order.
    pub(super) fn reload(&self, configs: &[config::Pool]) {
        self.names.store(Arc::new(names(configs)));
        for (pool, config) in self.list.iter().zip(configs) {
            pool.aliases.store(Arc::new(config.aliases.clone()));
            pool.health.store(Arc::new(config.health.clone()));
            pool.discovery.send_replace(config.discovery.clone());
        }
    }

    pub(super) fn get(&self, id: PoolId) -> Option<&ModelPool> {
        self.list.get(id.0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PoolId, &ModelPool)> {
        self.list.iter().enumerate().map(|(index, pool)| (PoolId(index), pool))
    }

    pub(super) fn serving(&self, model: Option<&str>) -> Option<PoolId> {
        match model {
            Some(model) => self.names.load().get(model).copied().or(self.unnamed),
            None if self.list.len() == 1 => Some(PoolId(0)),
            None => self.unnamed,
        }
    }

    /// Rebuilds the pool's selection from the present state of the registry.
    pub(super) fn rebuild(&self, id: PoolId, registry: &Registry) {
        let Some(pool) = self.get(id) else { return };
        let _one_at_a_time = self.rebuild.lock();
        let all = registry.all();
        let here = all.iter().filter(|member| member.backend.pool == id);
        let here: Vec<_> = here.map(|member| (&*member.backend, member.is_usable())).collect();
        pool.selection.store(Arc::new(Selection::build(here.iter().copied())));
    }
}

/// The pools by name and alias. Validation makes sure that no two are alike.
fn names(configs: &[config::Pool]) -> HashMap<String, PoolId> {
    let of_pool = |(index, config): (usize, &config::Pool)| {
        let names = config.aliases.iter().chain([&config.name]).filter(|name| !name.is_empty());
        names.map(|name| (name.clone(), PoolId(index))).collect::<Vec<_>>()
    };
    configs.iter().enumerate().flat_map(of_pool).collect()
}

// === impl ModelPool ===

impl ModelPool {
    fn new(config: &config::Pool) -> Self {
        Self {
            name: config.name.clone(),
            aliases: ArcSwap::from_pointee(config.aliases.clone()),
            engine: config.engine,
            ranks: config.ranks,
            health: ArcSwap::from_pointee(config.health.clone()),
            discovery: watch::Sender::new(config.discovery.clone()),
            looked_up: AtomicBool::new(false),
            selection: ArcSwap::from_pointee(Selection::build(std::iter::empty())),
        }
    }
}
