//! The task of one backend: asks for its health, reads its metrics, and sees it off when it is removed.

use super::client::{self, ProbeClient, ProbeError};
use super::probe::Probe;
use super::reading::{Reading, Tracker};
use super::{BackendFault, Core, DownCause, Fleet, Member};
use crate::config::{Engine, Health};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Bounds a configured interval from below, so that a zero cannot make a busy loop.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Between the start of a check and of one that a failed request asks for.
const SHORTEST_RECHECK: Duration = Duration::from_millis(100);

pub(super) struct Monitor {
    inner: Arc<Core>,
    member: Arc<Member>,
    engine: Engine,
    /// `None` for an engine that tells nothing.
    probe: Option<Mutex<(Probe, Tracker)>>,
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
    /// success: there is nothing to be careful about yet. `confirms`: a request failed just before, and two
    /// independent signs are enough.
    fn turns(&mut self, up: bool, healthy: bool, confirms: bool, limits: &Health) -> bool {
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
            (false, _) if confirms => 1,
            (false, _) => limits.unhealthy_after,
            (true, true) => limits.healthy_after,
            (true, false) => 1,
        };
        let turns = self.against >= needed;
        self.ever_up |= turns && healthy;
        turns
    }
}

/// A check that is only late may have met a server that is only busy; unless a connection was late as well.
fn confirms(suspicion: Option<BackendFault>, outcome: &Result<(), ProbeError>) -> bool {
    match outcome {
        Err(ProbeError::Timeout(_)) => suspicion == Some(BackendFault::Connect),
        Err(_) => suspicion.is_some(),
        Ok(()) => false,
    }
}

// === impl Monitor ===

impl Monitor {
    pub(super) fn new(inner: Arc<Core>, member: Arc<Member>) -> Option<Self> {
        let pool = inner.pools.get(member.backend.pool)?;
        let engine = pool.engine;
        let probe = Probe::of(engine).map(|probe| Mutex::new((probe, Tracker::default())));
        Some(Self { inner, member, engine, probe })
    }

    /// As configured now.
    fn health(&self) -> Arc<Health> {
        self.inner.pools.get(self.member.backend.pool).map_or_else(Arc::default, |pool| pool.health.load_full())
    }

    /// Runs until the backend is removed.
    pub(super) async fn run(self) {
        // One task, but neither a slow check nor a slow page holds up the other.
        tokio::select! {
            never = self.watch_health() => match never {},
            never = self.watch_metrics() => match never {},
            () = self.drained() => {}
        }
        self.member.remove(&*self.inner.sink);
        self.inner.registry.forget(self.member.backend.id);
        self.inner.progressed(&self.member.checked);
    }

    async fn watch_health(&self) -> Infallible {
        let mut streak = Streak::default();
        loop {
            let started = Instant::now();
            let suspicion = self.member.take_probe_request();
            let health = self.health();
            let outcome = self.check().await;
            let up = self.member.is_up();
            if streak.turns(up, outcome.is_ok(), confirms(suspicion, &outcome), &health) {
                self.turn(&outcome).await;
            } else {
                match &outcome {
                    Err(reason) if !up => self.member.still_down(reason.to_string()),
                    Ok(()) if suspicion.is_some() => self.member.cleared(&*self.inner.sink),
                    _ => {}
                }
            }
            self.inner.progressed(&self.member.checked);
            let interval = health.interval.max(SHORTEST_INTERVAL);
            let pause = if self.member.is_up() { interval } else { interval.min(self.inner.timing.retry) };
            tokio::select! {
                () = tokio::time::sleep_until(started + pause) => {}
                () = self.member.recheck.notified() => tokio::time::sleep_until(started + SHORTEST_RECHECK).await,
            }
        }
    }

    async fn turn(&self, outcome: &Result<(), ProbeError>) {
        match outcome {
            Ok(()) => {
                // First what it can hold, then that it is there: the scheduler places by capacity.
                if self.scrape(true).await {
                    self.member.rise(&*self.inner.sink, !self.inner.is_left(&self.member));
                }
            }
            Err(reason) => {
                self.member.fall(&*self.inner.sink, reason.to_string());
            }
        }
        self.inner.rebuild_ring(self.member.backend.pool);
    }

    async fn check(&self) -> Result<(), ProbeError> {
        let current = self.member.client.load().as_ref().map(|client| client.address);
        let addresses = client::resolve(&self.member.backend, current, self.health().timeout(self.engine)).await?;
        let addresses = match self.member.within(&self.inner.reach.load(), addresses) {
            Ok(addresses) => addresses,
            Err(failure) => {
                // The name, or the reach, is another one since.
                self.member.client.store(None);
                return Err(failure);
            }
        };
        self.check_each(&addresses).await
    }

    /// Checks the first address that answers; that one is used from then on.
    pub(super) async fn check_each(&self, addresses: &[SocketAddr]) -> Result<(), ProbeError> {
        let health = self.health();
        let mut result = Err(ProbeError::Unresolved("no address".to_owned()));
        for address in addresses {
            let client = self.client_for(*address)?;
            let (path, lenient) = (health.path(self.engine), health.is_lenient(self.engine));
            result = client.check(&self.member.backend, path, lenient, health.timeout(self.engine)).await;
            let elsewhere = result.as_ref().is_err_and(ProbeError::is_about_the_address);
            if !elsewhere {
                self.member.client.store(Some(client));
                break;
            }
        }
        result
    }

    fn client_for(&self, address: SocketAddr) -> Result<Arc<ProbeClient>, ProbeError> {
        match self.member.client.load_full() {
            Some(client) if client.address == address => Ok(client),
            _ => Ok(Arc::new(ProbeClient::new(&self.member.backend, address)?)),
        }
    }

    async fn watch_metrics(&self) -> Infallible {
        if self.probe.is_none() {
            return std::future::pending().await;
        }
        loop {
            let started = Instant::now();
            if self.member.is_up() {
                self.scrape(false).await;
            }
            let period = (**self.inner.metrics_interval.load()).max(SHORTEST_INTERVAL);
            tokio::time::sleep_until(started + period).await;
        }
    }

    /// `returned`: it was away. `false` if others have taken its place.
    async fn scrape(&self, returned: bool) -> bool {
        let (Some(probe), Some(client)) = (&self.probe, self.member.client.load_full()) else {
            return true;
        };
        // Held over the fetch: pages are taken in the order in which they were asked for.
        let (probe, tracker) = &mut *probe.lock().await;
        if returned {
            probe.returned();
        }
        let interval = **self.inner.metrics_interval.load();
        let fresh = if returned { SHORTEST_RECHECK } else { interval / 2 };
        match probe.read(&client, &self.member, self.inner.timing.page_limit, fresh).await {
            Ok(reading) if self.is_split(&reading) => return false,
            Ok(reading) => {
                let blind = reading.blind;
                if reading.malformed > 0 {
                    let url = &self.member.backend.url;
                    log::debug!("metrics of {url}: {} lines not understood", reading.malformed);
                }
                let (gauges, mut report) = tracker.observe(Instant::now().into_std(), reading);
                if self.member.backend.settings().capacity_tokens.is_some() {
                    report.capacity = None;
                }
                self.member.report(&*self.inner.sink, gauges, blind, report);
                if !blind {
                    self.watch_progress();
                }
            }
            Err(reason) => self.member.scrape_failed(&reason),
        }
        true
    }

    /// Its server has other ranks than it stands for: they take its place.
    fn is_split(&self, reading: &Reading) -> bool {
        let backend = &self.member.backend;
        let fleet = Fleet { inner: Arc::clone(&self.inner) };
        reading.ranks > usize::from(backend.rank.is_none())
            && fleet.split(backend.pool, backend.server(), reading.ranks)
            && self.member.is_draining()
    }

    /// Looked at only when a page was read: what moves on it may be the one sign of life.
    fn watch_progress(&self) {
        let (all, me) = (self.inner.registry.all(), &self.member.backend);
        let peers = all.iter().filter(|peer| peer.backend.pool == me.pool && peer.backend.id != me.id);
        let others = peers.filter(|peer| peer.is_up()).map(|peer| &peer.backend.outlier);
        if let Some(silent) = me.outlier.stalled(self.health().eject.no_progress, others) {
            let silent = silent.as_secs_f64();
            self.inner.eject(&self.member, DownCause::NoProgress, &format!("no sign of progress for {silent:.0} s"));
        }
    }

    /// Returns once the backend is draining and nothing is in flight there any more, or after `drain_limit`.
    async fn drained(&self) {
        self.member.drain.notified().await;
        let timing = &self.inner.timing;
        let deadline = Instant::now() + timing.drain_limit;
        let mut ticks = tokio::time::interval(timing.drain_poll);
        loop {
            ticks.tick().await;
            let left = self.inner.sink.in_flight(self.member.backend.pool, self.member.backend.id);
            if left == 0 {
                return;
            }
            if Instant::now() >= deadline {
                let url = &self.member.backend.url;
                log::warn!("backend {url} is removed with {left} steps in flight");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The states after each check, from a backend that was never up.
    fn states(checks: &[bool]) -> Vec<bool> {
        let (mut streak, mut up, limits) = (Streak::default(), false, Health::default());
        let mut after = |healthy: &bool| {
            up ^= streak.turns(up, *healthy, false, &limits);
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
        let mut turns = |up, healthy, confirms| streak.turns(up, healthy, confirms, &Health::default());
        assert!(turns(false, true, false));
        assert!(!turns(true, false, false));
        assert!(!turns(false, true, false), "first success since");
        assert!(turns(false, true, false));
        assert!(!turns(true, true, false));
        assert!(turns(true, false, true), "one failure is enough where a request failed too");
    }

    #[test]
    fn a_late_check_confirms_only_that_no_connection_could_be_made() {
        let [late, wrong] = [ProbeError::Timeout(Duration::ZERO), ProbeError::Broken(String::new())].map(Err);
        for (fault, by_late) in
            [(BackendFault::Connect, true), (BackendFault::Reset, false), (BackendFault::Error, false)]
        {
            assert_eq!(confirms(Some(fault), &late), by_late);
            assert!(confirms(Some(fault), &wrong));
            assert!(!confirms(Some(fault), &Ok(())));
        }
        assert!(!confirms(None, &wrong));
    }
}
