//! State that the tasks of the fleet share.

use super::member::FleetMember;
use super::outlier::DownCause;
use super::pools::Pools;
use super::registry::Registry;
use super::resolver::Resolve;
use super::sink::Sink;
use crate::config::{self, Reach};
use crate::scheduler::PoolId;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};

pub(super) struct Core {
    pub(super) pools: Pools,
    pub(super) registry: Registry,
    pub(super) sink: Box<dyn Sink>,
    pub(super) resolver: Box<dyn Resolve>,
    pub(super) timing: Timing,
    pub(super) metrics_interval: ArcSwap<Duration>,
    /// Addresses at which backends of [`super::Origin::Api`] may be.
    pub(super) reach: ArcSwap<Reach>,
    /// Lock of the tasks that change the set of backends: reload and discovery do so one after the other.
    pub(super) aligning: parking_lot::Mutex<()>,
    /// Lock held from counting the ejected backends to the decision to eject one more.
    ejecting: parking_lot::Mutex<()>,
    /// Channel that wakes waiters when a backend was checked, or a name was looked up, for the first time.
    progress: watch::Sender<()>,
    /// Backends that have no task yet.
    pub(super) newcomers: mpsc::UnboundedSender<Arc<FleetMember>>,
    pub(super) waiting: Mutex<mpsc::UnboundedReceiver<Arc<FleetMember>>>,
}

#[derive(Clone, Debug)]
pub(super) struct Timing {
    /// Time between two checks of a backend that is down, unless `health.interval` is shorter.
    pub(super) retry: Duration,
    /// Time limit for a whole page of metrics or models.
    pub(super) page_limit: Duration,
    pub(super) drain_poll: Duration,
    /// Time limit after which a draining backend is removed, whether or not steps are in flight.
    pub(super) drain_limit: Duration,
    /// Age up to which an answer of `models` is given again.
    pub(super) models_age: Duration,
}

// === impl Timing ===

impl Default for Timing {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(1),
            page_limit: Duration::from_secs(2),
            drain_poll: Duration::from_millis(250),
            // The same time as the default of `timeouts.grace`, which is how long a stream may go on when the whole
            // server drains.
            drain_limit: Duration::from_secs(600),
            models_age: Duration::from_secs(1),
        }
    }
}

// === impl Core ===

impl Core {
    pub(super) fn new(
        pools: &[config::Pool],
        metrics_interval: Duration,
        sink: impl Sink,
        timing: Timing,
        resolver: impl Resolve,
    ) -> Self {
        let (newcomers, waiting) = mpsc::unbounded_channel();
        Self {
            pools: Pools::new(pools),
            registry: Registry::default(),
            sink: Box::new(sink),
            resolver: Box::new(resolver),
            timing,
            metrics_interval: ArcSwap::from_pointee(metrics_interval),
            reach: ArcSwap::default(),
            aligning: parking_lot::Mutex::default(),
            ejecting: parking_lot::Mutex::default(),
            progress: watch::Sender::default(),
            newcomers,
            waiting: Mutex::new(waiting),
        }
    }

    /// Takes a backend out, if enough other backends are left.
    pub(super) fn eject(&self, member: &FleetMember, cause: DownCause, reason: &str) {
        let id = member.backend.pool;
        let Some(pool) = self.pools.get(id) else { return };
        let health = pool.health.load();
        let limits = &health.eject;
        let ejected = {
            let _one_at_a_time = self.ejecting.lock();
            let may = self.may_lose(member, limits.share);
            if !may {
                member.log_kept(reason, limits.max);
            }
            may && member.eject(&*self.sink, cause, reason, limits)
        };
        if ejected {
            self.rebuild_selection(id);
        }
    }

    fn may_lose(&self, member: &FleetMember, share: f64) -> bool {
        let all = self.registry.all();
        let pool = || all.iter().filter(|other| other.backend.pool == member.backend.pool && !other.is_draining());
        let ejected = pool().filter(|other| other.is_ejected()).count();
        (ejected + 1) as f64 <= share * pool().count() as f64 && self.has_other(member)
    }

    /// Whether another backend of the pool is usable.
    pub(super) fn has_other(&self, member: &FleetMember) -> bool {
        let (all, me) = (self.registry.all(), &member.backend);
        all.iter().any(|other| other.backend.pool == me.pool && other.backend.id != me.id && other.is_usable())
    }

    pub(super) fn rebuild_selection(&self, pool: PoolId) {
        self.pools.rebuild(pool, &self.registry);
    }

    /// Notes that a backend was checked or a name looked up; `before` says whether this one already was.
    pub(super) fn progressed(&self, before: &AtomicBool) {
        if !before.swap(true, Ordering::Release) {
            self.progress.send_replace(());
        }
    }

    /// Returns once every backend was checked and every name was looked up, whether or not that went well.
    pub(super) async fn looked_over(&self) {
        let looked = |at: &AtomicBool| at.load(Ordering::Acquire);
        let all_looked_at = |_: &()| {
            let mut pools = self.pools.iter().map(|(_, pool)| pool);
            pools.all(|pool| pool.discovery.borrow().is_none() || looked(&pool.looked_up))
                && self.registry.all().iter().all(|member| looked(&member.checked))
        };
        // The wait cannot fail: the sender is in `self`.
        let _ = self.progress.subscribe().wait_for(all_looked_at).await;
    }
}
