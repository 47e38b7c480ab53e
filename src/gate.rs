//! The asynchronous side of the schedulers: one lock per pool, one waker per held step, and guards that give back every
//! charge.

mod freeze;
mod record;
mod snapshot;
mod step;
#[cfg(test)]
mod tests;

pub use crate::scheduler::{Arrival, LoadView, PoolId, ProgramView};
pub use freeze::WeightSync;
pub use snapshot::PORTION;
pub use step::{Admission, Step};

use crate::config::{self, Config};
use crate::scheduler::{BackendId, StepId};
use crate::scheduler::{Decision, DispatchKind, Event, ProgramKey, RefuseReason, Scheduler};
use crate::telemetry::Telemetry;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, oneshot};

/// Number of decisions that a slow reader of `GET /events` may fall behind.
const EVENT_BACKLOG: usize = 1024;

/// Start of the schedulers' clock. It is above zero, so that what happened before this process began has a time too.
const EPOCH: Duration = Duration::from_secs(365 * 24 * 3600);

/// The scheduler's decision on a step.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Go(BackendId, DispatchKind),
    Refuse(RefuseReason),
}

struct Pool {
    scheduler: Scheduler,
    waiting: HashMap<StepId, oneshot::Sender<Verdict>>,
}

struct Inner {
    pools: Vec<Mutex<Pool>>,
    policy: ArcSwap<config::Scheduler>,
    start: Instant,
    next_step: AtomicU64,
    telemetry: Arc<Telemetry>,
    events: broadcast::Sender<Arc<str>>,
}

/// The schedulers of all pools. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

// === impl Gate ===

impl Gate {
    /// A gate with one scheduler for each pool of the configuration. Backends come through [`Gate::tell`].
    #[must_use]
    pub fn new(config: &Config, telemetry: Arc<Telemetry>) -> Self {
        let pool = |pool: &config::Pool| {
            let policy = config.policy(pool);
            Mutex::new(Pool { scheduler: Scheduler::new(policy), waiting: HashMap::new() })
        };
        Self(Arc::new(Inner {
            pools: config.models.iter().map(pool).collect(),
            policy: ArcSwap::from_pointee(config.scheduler.clone()),
            start: Instant::now(),
            next_step: AtomicU64::new(0),
            telemetry,
            events: broadcast::Sender::new(EVENT_BACKLOG),
        }))
    }

    /// Registers a step and numbers it, so `arrival.step` need not be set. Dropping the guard gives everything back, at
    /// any time.
    #[must_use]
    pub fn enter(&self, pool: PoolId, arrival: Arrival) -> Step {
        let step = StepId(self.0.next_step.fetch_add(1, Ordering::Relaxed));
        Step::enter(self.clone(), pool, Arrival { step, ..arrival })
    }

    /// Tells the pool's scheduler an event: what the fleet learns of a backend, or `Freeze`.
    pub fn tell(&self, pool: PoolId, event: Event) {
        self.handle(pool, event);
    }

    /// Takes over the settings of the schedulers. The pools must be the same ones, in the same order.
    pub fn reload(&self, config: &Config) {
        self.0.policy.store(Arc::new(config.scheduler.clone()));
        for (pool, config_of) in self.0.pools.iter().zip(&config.models) {
            let policy = config.policy(config_of);
            pool.lock().scheduler.set_policy(policy);
        }
        // With the new settings, some held steps may fit.
        self.tell_all(&Event::Tick);
    }

    /// Stops (`true`) or restarts dispatch in every pool.
    pub fn freeze(&self, frozen: bool) {
        self.tell_all(&Event::Freeze(frozen));
    }

    /// Refuses held and new steps in every pool. Steps in flight go on.
    pub fn drain(&self) {
        self.tell_all(&Event::Drain);
    }

    fn tell_all(&self, event: &Event) {
        for pool in 0..self.0.pools.len() {
            self.tell(PoolId(pool), event.clone());
        }
    }

    /// Ends the program in every pool where it is known; false: no pool knows it.
    #[must_use]
    pub fn release(&self, program: &ProgramKey) -> bool {
        // The program is looked up and ended under one lock. So of two clients that release it at once, only one is
        // told that it ended it.
        let release = |pool: &mut Pool, now: Duration, decisions: &mut Vec<Decision>| {
            let known = pool.scheduler.knows(program);
            pool.handle(now, Event::Release(program.clone()), None, decisions);
            known
        };
        let mut known = false;
        for pool in 0..self.0.pools.len() {
            known |= self.with(PoolId(pool), release).unwrap_or_default();
        }
        known
    }

    /// All programs of all pools.
    #[must_use]
    pub fn programs(&self) -> Vec<(PoolId, ProgramView)> {
        let all = |(index, pool): (usize, &Mutex<Pool>)| {
            let programs = pool.lock().scheduler.programs();
            programs.into_iter().map(move |program| (PoolId(index), program))
        };
        self.0.pools.iter().enumerate().flat_map(all).collect()
    }

    /// The program in each pool where it is known.
    #[must_use]
    pub fn program(&self, key: &ProgramKey) -> Vec<(PoolId, ProgramView)> {
        let one = |(index, pool): (usize, &Mutex<Pool>)| Some((PoolId(index), pool.lock().scheduler.program(key)?));
        self.0.pools.iter().enumerate().filter_map(one).collect()
    }

    /// All backends of all pools.
    #[must_use]
    pub fn loads(&self) -> Vec<(PoolId, LoadView)> {
        let all = |(index, pool): (usize, &Mutex<Pool>)| {
            let loads = pool.lock().scheduler.loads();
            loads.into_iter().map(move |load| (PoolId(index), load))
        };
        self.0.pools.iter().enumerate().flat_map(all).collect()
    }

    /// Number of steps in flight or held, in all pools.
    #[must_use]
    pub fn open_steps(&self) -> usize {
        self.0.pools.iter().map(|pool| pool.lock().scheduler.open_steps()).sum()
    }

    /// Number of held steps, in all pools.
    #[must_use]
    pub fn held_steps(&self) -> usize {
        self.0.pools.iter().map(|pool| pool.lock().scheduler.held_steps()).sum()
    }

    /// Checks the ledgers of all pools (see [`Scheduler::check`]).
    ///
    /// # Errors
    /// A sentence that names the first broken invariant.
    pub fn check(&self) -> Result<(), String> {
        self.0.pools.iter().try_for_each(|pool| pool.lock().scheduler.check())
    }

    /// A receiver of the schedulers' decisions from now on, each as a JSON object.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.events.subscribe()
    }

    /// Sends all pools their ticks. Does not return: it ends with the process.
    pub async fn run_ticks(&self) {
        loop {
            self.tell_all(&Event::Tick);
            let tick = self.0.policy.load().tick;
            tokio::time::sleep(tick).await;
        }
    }

    fn now(&self) -> Duration {
        EPOCH + self.0.start.elapsed()
    }

    /// Hands an event to the pool's scheduler and carries out what the scheduler decides.
    fn handle(&self, pool: PoolId, event: Event) {
        self.with(pool, |pool, now, decisions| pool.handle(now, event, None, decisions));
    }

    /// Hands over an event that asks where `step` may go. Gives the verdict on the step, or the channel on which it
    /// will come.
    fn ask(&self, pool: PoolId, event: Event, step: StepId) -> Result<Verdict, oneshot::Receiver<Verdict>> {
        let ask = |pool: &mut Pool, now: Duration, decisions: &mut Vec<Decision>| {
            pool.handle(now, event, Some(step), decisions).ok_or(step).map_err(|step| {
                let (sender, receiver) = oneshot::channel();
                pool.waiting.insert(step, sender);
                receiver
            })
        };
        self.with(pool, ask).unwrap_or(Ok(Verdict::Refuse(RefuseReason::NoBackend)))
    }

    /// Runs `act` on a pool under its lock, and records the decisions once the lock is free. `None`: there is no such
    /// pool.
    fn with<T>(&self, pool: PoolId, act: impl FnOnce(&mut Pool, Duration, &mut Vec<Decision>) -> T) -> Option<T> {
        let mut decisions = Vec::new();
        let done = self.0.pools.get(pool.0).map(|pool| {
            let pool = &mut *pool.lock();
            act(pool, self.now(), &mut decisions)
        });
        self.record(pool, &decisions);
        done
    }
}

// === impl Pool ===

impl Pool {
    /// Hands an event to the scheduler and wakes the steps that it decides on, except `own`, whose verdict is returned.
    fn handle(
        &mut self,
        now: Duration,
        event: Event,
        own: Option<StepId>,
        decisions: &mut Vec<Decision>,
    ) -> Option<Verdict> {
        self.scheduler.handle(now, event, decisions);
        self.wake(decisions, own)
    }

    /// Passes verdicts on to the tasks that wait for them, except the verdict on `own`, which is returned.
    fn wake(&mut self, decisions: &[Decision], own: Option<StepId>) -> Option<Verdict> {
        let mut verdict = None;
        for decision in decisions {
            let (step, said) = match *decision {
                Decision::Dispatch { step, backend, kind } => (step, Verdict::Go(backend, kind)),
                Decision::Refuse { step, reason } => (step, Verdict::Refuse(reason)),
                _ => continue,
            };
            if own == Some(step) {
                verdict = Some(said);
            } else if let Some(waker) = self.waiting.remove(&step) {
                // If the receiver is gone, the step's guard is being dropped and tells the scheduler so.
                let _ = waker.send(said);
            }
        }
        verdict
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("pools", &self.0.pools.len()).finish_non_exhaustive()
    }
}
