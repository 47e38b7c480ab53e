//! The task of one backend: asks for its health, reads its metrics, and sees it off when it is removed.

use super::link::{self, Failure, Link};
use super::vllm::{self, Tracker};
use super::{Entry, Inner};
use crate::config::{Engine, Health};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

/// Bounds a configured interval from below, so that a zero cannot make a busy loop.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

pub(super) struct Monitor {
    inner: Arc<Inner>,
    entry: Arc<Entry>,
    health: Health,
    /// `None` for an engine whose metrics we cannot read.
    tracker: Option<Mutex<Tracker>>,
}

/// Consecutive checks that speak against the present state.
#[derive(Debug, Default)]
struct Streak {
    ever_up: bool,
    /// The state that they speak against.
    up: bool,
    against: u32,
}

// === impl Streak ===

impl Streak {
    /// Takes in a check; `true` if the state is to change. A backend that was never up comes up at the first
    /// success: there is nothing to be careful about yet.
    fn turns(&mut self, up: bool, healthy: bool, limits: &Health) -> bool {
        if healthy == up || up != self.up {
            // It may have gone down by a failed connection since: counting starts anew.
            self.against = 0;
        }
        self.up = up;
        if healthy == up {
            return false;
        }
        self.against += 1;
        let needed = match (healthy, self.ever_up) {
            (false, _) => limits.unhealthy_after,
            (true, true) => limits.healthy_after,
            (true, false) => 1,
        };
        let turns = self.against >= needed;
        self.ever_up |= turns && healthy;
        turns
    }
}

// === impl Monitor ===

impl Monitor {
    pub(super) fn new(inner: Arc<Inner>, entry: Arc<Entry>) -> Option<Self> {
        let pool = inner.pools.get(entry.backend.pool)?;
        let mut health = pool.health.clone();
        health.interval = health.interval.max(SHORTEST_INTERVAL);
        if !health.path.starts_with('/') {
            health.path.insert(0, '/');
        }
        let tracker = (pool.engine == Engine::Vllm).then(Mutex::default);
        Some(Self { inner, entry, health, tracker })
    }

    /// Runs until the backend is removed.
    pub(super) async fn run(self) {
        // One task, but neither a slow check nor a slow page holds up the other.
        tokio::select! {
            never = self.watch_health() => match never {},
            never = self.watch_metrics() => match never {},
            () = self.drained() => {}
        }
        self.entry.remove(&*self.inner.sink);
        self.inner.registry.forget(self.entry.backend.id);
    }

    async fn watch_health(&self) -> Infallible {
        let mut streak = Streak::default();
        loop {
            let started = Instant::now();
            let outcome = self.check().await;
            if streak.turns(self.entry.is_up(), outcome.is_ok(), &self.health) {
                self.turn(&outcome).await;
            } else if let (Err(reason), false) = (&outcome, self.entry.is_up()) {
                self.entry.still_down(reason.to_string());
            }
            let retry = self.health.interval.min(self.inner.timing.retry);
            let pause = if self.entry.is_up() { self.health.interval } else { retry };
            tokio::select! {
                () = tokio::time::sleep_until(started + pause) => {}
                () = self.entry.recheck.notified() => {}
            }
        }
    }

    async fn turn(&self, outcome: &Result<(), Failure>) {
        match outcome {
            Ok(()) => {
                // First what it can hold, then that it is there: the scheduler places by capacity.
                self.scrape().await;
                self.entry.rise(&*self.inner.sink);
            }
            Err(reason) => {
                self.entry.fall(&*self.inner.sink, reason.to_string());
            }
        }
        self.inner.rebuild_ring(self.entry.backend.pool);
    }

    /// Looks its name up anew and checks the first address that answers; that one is used from then on.
    async fn check(&self) -> Result<(), Failure> {
        let limit = self.health.timeout;
        let known = self.entry.link.load_full();
        let current = known.as_ref().map(|link| link.address);
        let mut result = Err(Failure::Unresolved("no address".to_owned()));
        for address in link::resolve(&self.entry.backend, current, limit).await? {
            let link = self.link_to(address)?;
            result = link.check(&self.entry.backend, &self.health.path, limit).await;
            let elsewhere = result.as_ref().is_err_and(Failure::is_about_the_address);
            if !elsewhere {
                self.entry.link.store(Some(link));
                break;
            }
        }
        result
    }

    fn link_to(&self, address: SocketAddr) -> Result<Arc<Link>, Failure> {
        match self.entry.link.load_full() {
            Some(link) if link.address == address => Ok(link),
            _ => Ok(Arc::new(Link::new(&self.entry.backend, address)?)),
        }
    }

    async fn watch_metrics(&self) -> Infallible {
        if self.tracker.is_none() {
            return std::future::pending().await;
        }
        let period = self.inner.metrics_interval.max(SHORTEST_INTERVAL);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.entry.is_up() {
                self.scrape().await;
            }
        }
    }

    async fn scrape(&self) {
        let (Some(tracker), Some(link)) = (&self.tracker, self.entry.link.load_full()) else {
            return;
        };
        // Held over the fetch: pages are taken in the order in which they were asked for.
        let mut tracker = tracker.lock().await;
        match self.read_page(&link).await {
            Ok(reading) => {
                if reading.malformed > 0 {
                    let url = &self.entry.backend.url;
                    log::debug!("metrics of {url}: {} lines not understood", reading.malformed);
                }
                let (gauges, mut report) = tracker.observe(Instant::now().into_std(), reading);
                if self.entry.backend.capacity_tokens.is_some() {
                    report.capacity = None;
                }
                self.entry.report(&*self.inner.sink, gauges, report);
            }
            Err(reason) => self.entry.scrape_failed(&reason),
        }
    }

    async fn read_page(&self, link: &Link) -> Result<vllm::Reading, Failure> {
        const PATH: &str = "/metrics";
        let limit = self.inner.timing.page_limit;
        let page = link.fetch(&self.entry.backend, PATH, limit).await?;
        vllm::read(&page)
            .ok_or_else(|| Failure::Unintelligible { path: PATH.to_owned(), what: "not the metrics of a vLLM server" })
    }

    /// Returns once the backend is draining and nothing is in flight there any more, or after `drain_limit`.
    async fn drained(&self) {
        self.entry.drain.notified().await;
        let timing = &self.inner.timing;
        let deadline = Instant::now() + timing.drain_limit;
        let mut ticks = tokio::time::interval(timing.drain_poll);
        loop {
            ticks.tick().await;
            let left = self.inner.sink.in_flight(self.entry.backend.pool, self.entry.backend.id);
            if left == 0 {
                return;
            }
            if Instant::now() >= deadline {
                let url = &self.entry.backend.url;
                log::warn!("backend {url} is removed with {left} steps in flight");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Health = Health {
        path: String::new(),
        interval: Duration::ZERO,
        timeout: Duration::ZERO,
        unhealthy_after: 3,
        healthy_after: 2,
    };

    /// The states after each check, from a backend that was never up.
    fn states(checks: &[bool]) -> Vec<bool> {
        let (mut streak, mut up) = (Streak::default(), false);
        let mut after = |healthy: &bool| {
            up ^= streak.turns(up, *healthy, &LIMITS);
            up
        };
        checks.iter().map(&mut after).collect()
    }

    #[test]
    fn the_first_success_of_all_brings_a_backend_up() {
        assert_eq!(states(&[false, false, true]), [false, false, true]);
    }

    #[test]
    fn it_takes_consecutive_failures_to_go_down_and_successes_to_return() {
        let (t, f) = (true, false);
        assert_eq!(states(&[t, f, f, t, f, f, f]), [t, t, t, t, t, t, f]);
        assert_eq!(states(&[t, f, f, f, t, f, t, t]), [t, t, t, f, f, f, f, t]);
    }

    #[test]
    fn failures_before_a_refused_connection_do_not_count_as_successes_after_it() {
        let mut streak = Streak::default();
        assert!(streak.turns(false, true, &LIMITS));
        assert!(!streak.turns(true, false, &LIMITS));
        assert!(!streak.turns(false, true, &LIMITS), "first success since");
        assert!(streak.turns(false, true, &LIMITS));
    }
}
