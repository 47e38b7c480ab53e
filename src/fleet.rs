//! What is known of each backend: address, health, capacity, gauges.

mod backend;
mod client;
mod discovery;
mod member;
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
mod selection;
#[doc(hidden)]
pub mod sglang;
#[doc(hidden)]
pub mod skyrl;
#[doc(hidden)]
pub mod vllm;

pub(crate) use backend::server;
pub use backend::{Backend, BackendSettings, Origin};
pub use outlier::{BackendFault, DownCause, OutlierState, PendingAnswer};

use crate::config::{self, Reach};
use crate::gate::{Gate, LoadView, PoolId};
use crate::scheduler::{BackendId, Event};
use arc_swap::ArcSwap;
use client::OUT_OF_REACH;
use discovery::{Resolve, SystemResolver};
use member::Member;
use monitor::Monitor;
use pools::Pools;
use registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

/// Everything the control API shows of a backend.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    pub backend: Arc<Backend>,
    pub healthy: bool,
    pub draining: bool,
    /// Why it is not healthy; `None` before the first check.
    pub down_reason: Option<String>,
    /// What kind of reason that is.
    pub down_cause: Option<DownCause>,
    /// If its requests took it out: after this time, once its checks are good.
    pub returns_in: Option<Duration>,
    /// How often it went down.
    pub downs: [(DownCause, u64); DownCause::ALL.len()],
    /// The KV cache in tokens, as configured, or else as the engine says; `None` while it is not known.
    pub capacity: Option<u64>,
    /// Last scrape; `None` before the first, and of an engine that does not tell its load.
    pub gauges: Option<Gauges>,
    pub scrape_age: Option<Duration>,
}

/// One reading of a backend's `/metrics`: gauges and counters, summed over its engines.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Tokens in a KV block.
    pub block_size: u64,
    pub num_gpu_blocks: u64,
    /// What the engine says, without the null block; 0 while unknown. `Backend::capacity_tokens` overrides it.
    pub capacity_tokens: u64,
    pub running: f64,
    pub waiting: f64,
    /// 0–1, the mean over engines.
    pub kv_usage: f64,
    /// In tokens, like `prefix_hits`.
    pub prefix_queries: f64,
    pub prefix_hits: f64,
    pub prompt_tokens: f64,
    pub generation_tokens: f64,
    pub preemptions: f64,
    pub requests_completed: f64,
    /// SGLang's: tokens in use, and the hit rate of its last prefills.
    pub used_tokens: f64,
    pub cache_hit_rate: f64,
    /// Engines behind the one address; 0 where it does not matter.
    pub engines: usize,
}

/// Who is told of the backends: the gate. It must not call the fleet back from `tell`.
pub trait Sink: Send + Sync + 'static {
    fn tell(&self, pool: PoolId, event: Event);
    /// Steps in flight on a backend.
    fn in_flight(&self, pool: PoolId, backend: BackendId) -> usize;
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Core>,
}

struct Core {
    pools: Pools,
    registry: Registry,
    sink: Box<dyn Sink>,
    /// Held from the look at how many are out to the decision that one more is.
    ejecting: parking_lot::Mutex<()>,
    metrics_interval: ArcSwap<Duration>,
    timing: Timing,
    models: models::ModelsCache,
    resolver: Box<dyn Resolve>,
    /// Where backends of [`Origin::Api`] may be.
    reach: ArcSwap<Reach>,
    /// Reload and discovery change the set of backends one after the other.
    aligning: parking_lot::Mutex<()>,
    /// Something was looked at for the first time.
    progress: watch::Sender<()>,
    /// Backends that have no task yet.
    newcomers: mpsc::UnboundedSender<Arc<Member>>,
    waiting: Mutex<mpsc::UnboundedReceiver<Arc<Member>>>,
}

#[derive(Clone, Debug)]
struct Timing {
    /// A backend that is down is checked this often, or every `health.interval` if that is shorter.
    retry: Duration,
    /// For a whole page of metrics or models.
    page_limit: Duration,
    drain_poll: Duration,
    /// A draining backend is removed after this, steps in flight or not.
    drain_limit: Duration,
    /// How old the answer of `models` may be.
    models_age: Duration,
}

// === impl Timing ===

impl Default for Timing {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(1),
            page_limit: Duration::from_secs(2),
            drain_poll: Duration::from_millis(250),
            // The default of `timeouts.grace`: as long as a stream may finish when the whole server drains.
            drain_limit: Duration::from_secs(600),
            models_age: Duration::from_secs(1),
        }
    }
}

// === impl Sink for Gate ===

impl Sink for Gate {
    fn tell(&self, pool: PoolId, event: Event) {
        Self::tell(self, pool, event);
    }

    fn in_flight(&self, pool: PoolId, backend: BackendId) -> usize {
        let here = |(of, load): (PoolId, LoadView)| (of == pool && load.backend == backend).then_some(load.in_flight);
        self.loads().into_iter().find_map(here).unwrap_or(0)
    }
}

// === impl Gauges ===

impl Gauges {
    /// The engine has done something. All of these come from its own loop, each turn of it; `requests_completed` moves
    /// also when clients leave.
    fn moved_since(&self, last: &Self) -> bool {
        let loops = |g: &Self| {
            let tokens = [g.prompt_tokens, g.generation_tokens, g.prefix_queries];
            (tokens, [g.running, g.waiting, g.kv_usage, g.preemptions])
        };
        loops(self) != loops(last)
    }
}

// === impl Core ===

impl Core {
    /// Takes a backend out, if enough others are left.
    fn eject(&self, member: &Member, cause: DownCause, reason: &str) {
        let id = member.backend.pool;
        let Some(pool) = self.pools.get(id) else { return };
        let health = pool.health.load();
        let eject = &health.eject;
        let fell = {
            let _one_at_a_time = self.ejecting.lock();
            let may = self.may_lose(member, eject.share);
            if !may {
                member.log_kept(reason, eject.max);
            }
            may && member.eject(&*self.sink, cause, reason, eject)
        };
        if fell {
            self.rebuild_ring(id);
        }
    }

    fn may_lose(&self, member: &Member, share: f64) -> bool {
        let all = self.registry.all();
        let members = || all.iter().filter(|other| other.backend.pool == member.backend.pool && !other.is_draining());
        let out = members().filter(|member| member.is_ejected()).count();
        (out + 1) as f64 <= share * members().count() as f64 && self.is_left(member)
    }

    /// Another backend of its pool is usable.
    fn is_left(&self, member: &Member) -> bool {
        let all = self.registry.all();
        all.iter().any(|other| {
            other.backend.pool == member.backend.pool && other.backend.id != member.backend.id && other.is_usable()
        })
    }

    fn rebuild_ring(&self, pool: PoolId) {
        self.pools.rebuild(pool, || Arc::clone(&self.registry.all()));
    }

    /// Something was looked at; `before` says whether it was already.
    fn progressed(&self, before: &AtomicBool) {
        if !before.swap(true, Ordering::Release) {
            self.progress.send_replace(());
        }
    }
}

// === impl Fleet ===

impl Fleet {
    /// Metrics are read every `metrics.interval` whether or not they are `enabled`, which is about showing them:
    /// the scheduler cannot do without. `sink` is the gate; it hears `BackendAdded` of every backend before this returns. A backend whose URL
    /// cannot be used (which validation refuses) is logged and left out.
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
        let (newcomers, waiting) = mpsc::unbounded_channel();
        let inner = Core {
            pools: Pools::new(pools),
            registry: Registry::default(),
            sink: Box::new(sink),
            ejecting: parking_lot::Mutex::default(),
            metrics_interval: ArcSwap::from_pointee(metrics.interval),
            timing,
            models: models::ModelsCache::new(),
            resolver: Box::new(resolver),
            reach: ArcSwap::default(),
            aligning: parking_lot::Mutex::default(),
            progress: watch::Sender::default(),
            newcomers,
            waiting: Mutex::new(waiting),
        };
        let fleet = Self { inner: Arc::new(inner) };
        for (index, pool) in pools.iter().enumerate() {
            for backend in &pool.backends {
                if let Err(reason) = fleet.insert(PoolId(index), backend, Origin::File) {
                    log::error!("backend left out: {reason}");
                }
            }
        }
        fleet
    }

    /// Health checks and scrapes of every backend; runs until the process ends. Spawns a task per backend.
    pub async fn run(&self) {
        let mut newcomers = self.inner.waiting.lock().await;
        let mut monitors = JoinSet::new();
        for (pool, _) in self.inner.pools.iter() {
            monitors.spawn(discovery::run(self.clone(), pool));
        }
        loop {
            tokio::select! {
                Some(member) = newcomers.recv() => {
                    if let Some(monitor) = Monitor::new(Arc::clone(&self.inner), member) {
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
        self.inner.registry.with(id, |member| Arc::clone(&member.backend))
    }

    /// Where to connect; `None` while the name does not resolve.
    #[must_use]
    pub fn address(&self, id: BackendId) -> Option<SocketAddr> {
        let address = |member: &Arc<Member>| member.client.load().as_ref().map(|client| client.address);
        self.inner.registry.with(id, address).flatten()
    }

    #[must_use]
    pub fn statuses(&self) -> Vec<BackendStatus> {
        self.inner.registry.all().iter().map(|member| member.status()).collect()
    }

    /// Which pool serves `model`, by name or alias; the empty-named pool serves any. A request that names no
    /// model goes to the only pool, or else to the empty-named one.
    #[must_use]
    pub fn pool_for(&self, model: Option<&str>) -> Option<PoolId> {
        self.inner.pools.serving(model)
    }

    /// What an alias stands for; `None` if `model` may go upstream as it is.
    #[must_use]
    pub fn canonical(&self, pool: PoolId, model: &str) -> Option<&str> {
        let name = self.pool_name(pool)?;
        (!name.is_empty() && name != model).then_some(name)
    }

    /// What clients ask for in `model`; empty for the pool that serves any.
    #[must_use]
    pub fn pool_name(&self, pool: PoolId) -> Option<&str> {
        self.inner.pools.get(pool).map(|pool| pool.name.as_str())
    }

    /// The consistent hash's choice among the pool's healthy backends.
    #[must_use]
    pub fn preferred(&self, pool: PoolId, hash_of: &[u8]) -> Option<BackendId> {
        self.inner.pools.get(pool)?.ring.load().pick(hash_of)
    }

    /// A request showed that the backend is not well. A check follows at once; too many faults in a row take it out
    /// without one.
    pub fn failed(&self, id: BackendId, fault: BackendFault) {
        let inner = &self.inner;
        let Some(member) = inner.registry.with(id, Arc::clone) else {
            return;
        };
        let in_a_row = member.backend.outlier.count(fault);
        member.probe_now(fault);
        let Some(pool) = inner.pools.get(member.backend.pool) else {
            return;
        };
        if in_a_row >= fault.limit(&pool.health.load().eject) {
            let reason = format!("{in_a_row} {} in a row", fault.plural());
            inner.eject(&member, DownCause::Fault(fault), &reason);
        }
    }

    /// Adds a backend at run time.
    ///
    /// # Errors
    /// Says what is wrong: no such pool, a URL that cannot be used or is out of reach, or one that the pool has already.
    pub fn add(&self, pool: PoolId, backend: config::Backend) -> Result<BackendId, String> {
        self.insert(pool, &backend, Origin::Api)
    }

    /// Those that came by `POST /backends` were chosen by others than who wrote the configuration: they are never
    /// connected to but where `admin.allow_backends` lets them be, wherever their names lead.
    pub fn confine(&self, admin: Option<&config::Admin>) {
        let allowed = admin.and_then(|admin| admin.allow_backends.as_deref());
        self.inner.reach.store(Arc::new(Reach::new(allowed)));
    }

    /// # Errors
    /// As for [`Fleet::add`].
    pub(crate) fn insert(&self, pool: PoolId, backend: &config::Backend, origin: Origin) -> Result<BackendId, String> {
        self.insert_rank(pool, backend, None, origin)
    }

    fn insert_rank(
        &self,
        pool: PoolId,
        backend: &config::Backend,
        rank: Option<u32>,
        origin: Origin,
    ) -> Result<BackendId, String> {
        let inner = &self.inner;
        inner.pools.get(pool).ok_or("no such pool")?;
        let sibling = |member: &&Arc<Member>| member.backend.server() == backend::name(backend);
        let page = inner.registry.all().iter().find(sibling).map(|member| Arc::clone(&member.page)).unwrap_or_default();
        let member = inner.registry.insert(
            |id| {
                let member = Member::new(Backend::new(id, pool, backend, rank, origin)?, page);
                let within = member.may_be_within(&inner.reach.load());
                within.then_some(member).ok_or_else(|| format!("{}: {OUT_OF_REACH}", backend::name(backend)))
            },
            |member| member.announce(&*inner.sink),
        )?;
        let id = member.backend.id;
        inner.rebuild_ring(pool);
        // The receiver lives as long as the fleet.
        let _ = inner.newcomers.send(member);
        Ok(id)
    }

    /// Makes a server's backends those of so many ranks, if that is wanted. `true` if they were others.
    pub(crate) fn split(&self, pool: PoolId, server: &str, ranks: usize) -> bool {
        let inner = &self.inner;
        let _one_at_a_time = inner.aligning.lock();
        let known = Arc::clone(&inner.registry.all());
        let is_it = |member: &&Arc<Member>| {
            member.backend.pool == pool && member.backend.server() == server && !member.is_draining()
        };
        let here: Vec<&Arc<Member>> = known.iter().filter(is_it).collect();
        let wanted = inner.pools.get(pool).is_some_and(|pool| pool.ranks == config::Ranks::Auto);
        let (Some(first), Ok(url), true) = (here.first(), server.parse(), wanted) else { return false };
        let is_rank = |member: &Member| member.backend.rank.is_some_and(|rank| (rank as usize) < ranks);
        if here.len() == ranks && here.iter().all(|member| is_rank(member)) {
            return false;
        }
        log::info!("backend {server} has {ranks} data-parallel ranks");
        let BackendSettings { api_key, weight, capacity_tokens, origin } = (**first.backend.settings()).clone();
        let config = config::Backend { url, api_key, weight, capacity_tokens };
        here.iter().filter(|member| !is_rank(member)).for_each(|member| member.start_draining(&*inner.sink));
        for rank in 0..u32::try_from(ranks).unwrap_or(u32::MAX) {
            if !here.iter().any(|member| member.backend.rank == Some(rank))
                && let Err(reason) = self.insert_rank(pool, &config, Some(rank), origin)
            {
                log::error!("backend left out: {reason}");
            }
        }
        inner.rebuild_ring(pool);
        true
    }

    /// Takes over another configuration of the same pools, in the same order. Backends that it names no more are
    /// drained; those that came by `POST /backends` or by discovery stay, unless it names them itself.
    pub fn reload(&self, pools: &[config::Pool], metrics: &config::Metrics) {
        let inner = &self.inner;
        inner.metrics_interval.store(Arc::new(metrics.interval));
        inner.pools.reload(pools);
        for (index, pool) in pools.iter().enumerate() {
            self.align(PoolId(index), &pool.backends, Origin::File);
            inner.rebuild_ring(PoolId(index));
        }
        // By the new path, and at the new intervals.
        inner.registry.all().iter().for_each(|member| member.recheck.notify_one());
    }

    /// Makes the pool's backends of this origin those of `wanted`. What is there already keeps its state.
    fn align(&self, pool: PoolId, wanted: &[config::Backend], origin: Origin) {
        let inner = &self.inner;
        let _one_at_a_time = inner.aligning.lock();
        let known = Arc::clone(&inner.registry.all());
        let named = |member: &Member| wanted.iter().any(|backend| backend::name(backend) == member.backend.server());
        let here = || known.iter().filter(|member| member.backend.pool == pool);
        for member in here().filter(|member| member.is_of(origin) && !named(member)) {
            self.remove(member.backend.id);
        }
        for backend in wanted {
            let is_it =
                |member: &&Arc<Member>| member.backend.server() == backend::name(backend) && !member.is_draining();
            let mut there = here().filter(is_it).peekable();
            if there.peek().is_none()
                && let Err(reason) = self.insert(pool, backend, origin)
            {
                log::error!("backend left out: {reason}");
            }
            // The file has the last word.
            for member in there.filter(|member| origin == Origin::File || member.is_of(origin)) {
                member.configure(&*inner.sink, BackendSettings::new(backend, origin));
            }
        }
    }

    /// Returns once every backend was checked and every name was looked up, well or not.
    pub async fn looked_over(&self) {
        let mut progress = self.inner.progress.subscribe();
        loop {
            progress.mark_unchanged();
            let looked = |at: &AtomicBool| at.load(Ordering::Acquire);
            let mut pools = self.inner.pools.iter().map(|(_, pool)| pool);
            let found = pools.all(|pool| pool.discovery.borrow().is_none() || looked(&pool.looked_up));
            if found && self.inner.registry.all().iter().all(|member| looked(&member.checked)) {
                return;
            }
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// Drains a backend, with all ranks of its server, then forgets it once nothing is in flight there. `false` if
    /// there is none with this id.
    pub fn remove(&self, id: BackendId) -> bool {
        let inner = &self.inner;
        let Some(gone) = self.get(id) else { return false };
        let is_it =
            |member: &&Arc<Member>| member.backend.pool == gone.pool && member.backend.server() == gone.server();
        inner.registry.all().iter().filter(is_it).for_each(|member| member.start_draining(&*inner.sink));
        inner.rebuild_ring(gone.pool);
        true
    }

    /// The union of `GET /v1/models` over healthy backends of all pools, aliases included, as a JSON body. At
    /// most a second old.
    pub async fn models(&self) -> bytes::Bytes {
        self.inner.models.get(&self.inner).await
    }

    /// Clients may be served: at least one backend is usable.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.inner.registry.all().iter().any(|member| member.is_usable())
    }
}

#[cfg(test)]
mod tests;
