//! The backends, and what the proxy knows of each: address, health, capacity, load.
//!
//! One task for each backend ([`monitor`]) checks its health and reads its metrics. Requests show the health of their
//! backend as well ([`outlier`]). Checks and requests both work on the backend's [`breaker`]. Each change goes to the
//! [`Sink`], behind which the schedulers place steps.

mod backend;
mod breaker;
mod client;
mod core;
mod discovery;
mod member;
mod membership;
mod models;
mod monitor;
mod outlier;
mod pools;
mod probe;
#[doc(hidden)]
pub mod prometheus;
#[doc(hidden)]
pub mod reading;
mod registry;
mod resolver;
mod selection;
#[doc(hidden)]
pub mod sglang;
mod sink;
#[doc(hidden)]
pub mod skyrl;
mod status;
#[doc(hidden)]
pub mod vllm;

pub(crate) use backend::server;
pub use backend::{Backend, BackendSettings, Origin};
pub use outlier::{BackendFault, DownCause, OutlierState, PendingAnswer};
pub use reading::Gauges;
pub use sink::Sink;
pub use status::BackendStatus;

use self::core::{Core, Timing};
use crate::config::{self, Reach};
use crate::scheduler::{BackendId, PoolId};
use models::ModelsCache;
use monitor::Monitor;
use resolver::{Resolve, SystemResolver};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::task::JoinSet;

/// All backends of all pools. A clone is cheap and stands for the same fleet.
#[derive(Clone)]
pub struct Fleet {
    core: Arc<Core>,
    models: Arc<ModelsCache>,
}

// === impl Fleet ===

impl Fleet {
    /// Makes the fleet that the configuration describes. Metrics are read every `metrics.interval` even when
    /// `metrics.enabled` is false: that key is about showing metrics, and the scheduler cannot do without them. `sink`
    /// hears `BackendAdded` of every backend before this function returns. A backend whose URL cannot be used (which
    /// validation refuses) is logged and left out.
    pub fn new(pools: &[config::Pool], metrics: &config::Metrics, sink: impl Sink) -> Self {
        Self::with_parts(pools, metrics, sink, Timing::default(), SystemResolver)
    }

    fn with_parts(
        pools: &[config::Pool],
        metrics: &config::Metrics,
        sink: impl Sink,
        timing: Timing,
        resolver: impl Resolve,
    ) -> Self {
        let core = Core::new(pools, metrics.interval, sink, timing, resolver);
        for (index, pool) in pools.iter().enumerate() {
            pool.backends.iter().for_each(|config| core.insert_or_log(PoolId(index), config, None, Origin::File));
        }
        Self { core: Arc::new(core), models: Arc::new(ModelsCache::new()) }
    }

    /// Checks the health and reads the metrics of every backend, in a task for each; runs until the process ends.
    pub async fn run(&self) {
        let mut newcomers = self.core.waiting.lock().await;
        let mut monitors = JoinSet::new();
        for (pool, _) in self.core.pools.iter() {
            monitors.spawn(discovery::run(Arc::clone(&self.core), pool));
        }
        loop {
            tokio::select! {
                Some(member) = newcomers.recv() => {
                    if let Some(monitor) = Monitor::new(Arc::clone(&self.core), member) {
                        monitors.spawn(monitor.run());
                    }
                }
                Some(ended) = monitors.join_next() => {
                    if let Err(error) = ended {
                        log::error!("task of the fleet: {error}");
                    }
                }
                else => return,
            }
        }
    }

    #[must_use]
    pub fn get(&self, id: BackendId) -> Option<Arc<Backend>> {
        self.core.registry.with(id, |member| Arc::clone(&member.backend))
    }

    /// Address of the backend to connect to; `None` while its name does not resolve.
    #[must_use]
    pub fn address(&self, id: BackendId) -> Option<SocketAddr> {
        self.core.registry.with(id, |member| member.client.load().as_ref().map(|client| client.address)).flatten()
    }

    #[must_use]
    pub fn statuses(&self) -> Vec<BackendStatus> {
        self.core.registry.all().iter().map(|member| member.status()).collect()
    }

    /// The pool that serves `model`, by name or alias. The pool with the empty name serves any model. A request that
    /// names no model goes to the only pool, or else to the pool with the empty name.
    #[must_use]
    pub fn pool_for(&self, model: Option<&str>) -> Option<PoolId> {
        self.core.pools.serving(model)
    }

    /// The model name that an alias stands for; `None` if `model` may go upstream as it is.
    #[must_use]
    pub fn canonical(&self, pool: PoolId, model: &str) -> Option<&str> {
        self.pool_name(pool).filter(|name| !name.is_empty() && *name != model)
    }

    /// The model name that clients of the pool ask for; empty for the pool that serves any model.
    #[must_use]
    pub fn pool_name(&self, pool: PoolId) -> Option<&str> {
        self.core.pools.get(pool).map(|pool| pool.name.as_str())
    }

    /// The backend that a step without a program prefers, by the consistent hash of `key` over the pool's usable
    /// backends. The scheduler has the last word; `fleet::selection` says how the preference and the scheduler's
    /// placement meet.
    #[must_use]
    pub fn preferred(&self, pool: PoolId, key: &[u8]) -> Option<BackendId> {
        self.core.pools.get(pool)?.selection.load().pick(key)
    }

    /// Notes that a request showed that the backend is not well. A check follows at once. Too many faults in a row
    /// eject the backend without a check.
    pub fn failed(&self, id: BackendId, fault: BackendFault) {
        let Some(member) = self.core.registry.with(id, Arc::clone) else { return };
        let in_a_row = member.backend.outlier.count(fault);
        member.probe_now(fault);
        let Some(pool) = self.core.pools.get(member.backend.pool) else { return };
        if in_a_row >= fault.limit(&pool.health.load().eject) {
            let reason = format!("{in_a_row} {} in a row", fault.plural());
            self.core.eject(&member, DownCause::Fault(fault), &reason);
        }
    }

    /// Confines backends that came by `POST /backends`: their addresses were chosen by others than those who wrote the
    /// configuration. The proxy connects to such a backend only where `admin.allow_backends` permits, wherever the
    /// backend's name leads.
    pub fn confine(&self, admin: Option<&config::Admin>) {
        let allowed = admin.and_then(|admin| admin.allow_backends.as_deref());
        self.core.reach.store(Arc::new(Reach::new(allowed)));
    }

    /// Adds a backend at run time.
    ///
    /// # Errors
    /// A text that says what is wrong: no such pool, a URL that cannot be used or is out of reach, or one that the pool
    /// has already.
    pub fn add(&self, pool: PoolId, config: &config::Backend, origin: Origin) -> Result<BackendId, String> {
        self.core.insert(pool, config, None, origin)
    }

    /// Takes over another configuration of the same pools, in the same order. Backends that the configuration no longer
    /// names are drained. Backends that came by `POST /backends` or by discovery stay; if the configuration names one
    /// of them, it belongs to the configuration from then on.
    pub fn reload(&self, pools: &[config::Pool], metrics: &config::Metrics) {
        let core = &self.core;
        core.metrics_interval.store(Arc::new(metrics.interval));
        core.pools.reload(pools);
        for (index, pool) in pools.iter().enumerate() {
            core.align(PoolId(index), &pool.backends, Origin::File);
            core.rebuild_selection(PoolId(index));
        }
        // Each backend is checked at once, by the new path and at the new intervals.
        core.registry.all().iter().for_each(|member| member.recheck.notify_one());
    }

    /// Drains a backend, with all ranks of its server, then forgets it once nothing is in flight there. `false` if no
    /// backend has this id.
    pub fn remove(&self, id: BackendId) -> bool {
        self.core.remove(id)
    }

    /// Adds a backend that an earlier process had discovered, until its name is looked up: programs may be at home on
    /// this backend. Called before [`Fleet::run`].
    pub(crate) fn rediscover(&self, pool: PoolId, server: &str) {
        let discovery = self.core.pools.get(pool).and_then(|pool| pool.discovery.borrow().clone());
        if let Some(Ok(config)) = discovery.map(|discovery| discovery::backend(server, &discovery)) {
            // Adding fails if the backend is there already: the file may name it too.
            let _ = self.add(pool, &config, Origin::Dns);
        }
    }

    /// Replaces a server's backends by one for each of its `ranks`, if the pool wants ranks.
    pub(crate) fn split(&self, pool: PoolId, server: &str, ranks: usize) {
        self.core.split(pool, server, ranks);
    }

    /// Returns once every backend was checked and every name was looked up, whether or not that went well.
    pub async fn looked_over(&self) {
        self.core.looked_over().await;
    }

    /// The union of `GET /v1/models` over healthy backends of all pools, aliases included, as a JSON body. The answer
    /// is at most a second old.
    pub async fn models(&self) -> bytes::Bytes {
        self.models.get(&self.core).await
    }

    /// Whether clients may be served, which takes at least one usable backend.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.core.registry.all().iter().any(|member| member.is_usable())
    }
}

#[cfg(test)]
mod tests;
