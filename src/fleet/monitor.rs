//! The task of one backend: checks its health, reads its metrics, and waits for its last step when it is removed.

use super::client::{ProbeClient, ProbeError};
use super::core::Core;
use super::member::FleetMember;
use super::outlier::{BackendFault, DownCause};
use super::probe::Probe;
use super::reading::{Reading, Tracker};
use super::resolver;
use crate::config::{Engine, Health};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Lower bound of a configured interval, so that a zero cannot make a busy loop.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Shortest time from the start of one check to the start of a check that a failed request asks for.
const SHORTEST_RECHECK: Duration = Duration::from_millis(100);

pub(super) struct Monitor {
    core: Arc<Core>,
    member: Arc<FleetMember>,
    engine: Engine,
    /// Reader of the metrics; `None` for an engine that does not tell its load.
    probe: Option<Mutex<(Probe, Tracker)>>,
}

/// Whether a failed check agrees with the `fault` of a request. A check that came too late may only have met a busy
/// server. Such a check agrees only if a connection of a request was too late as well.
fn confirms(fault: Option<BackendFault>, outcome: &Result<(), ProbeError>) -> bool {
    match outcome {
        Err(ProbeError::Timeout(_)) => fault == Some(BackendFault::Connect),
        Err(_) => fault.is_some(),
        Ok(()) => false,
    }
}

// === impl Monitor ===

impl Monitor {
    pub(super) fn new(core: Arc<Core>, member: Arc<FleetMember>) -> Option<Self> {
        let engine = core.pools.get(member.backend.pool)?.engine;
        let probe = Probe::of(engine).map(|probe| Mutex::new((probe, Tracker::default())));
        Some(Self { core, member, engine, probe })
    }

    /// The health settings as they are now.
    fn health(&self) -> Arc<Health> {
        self.core.pools.get(self.member.backend.pool).map_or_else(Arc::default, |pool| pool.health.load_full())
    }

    /// Runs until the backend is removed.
    pub(super) async fn run(self) {
        // Both run in one task, but a slow check does not delay a page, nor a slow page a check.
        tokio::select! {
            never = self.watch_health() => match never {},
            never = self.watch_metrics() => match never {},
            () = self.drained() => {}
        }
        self.member.remove(&*self.core.sink);
        self.core.registry.forget(self.member.backend.id);
        self.core.progressed(&self.member.checked);
    }

    async fn watch_health(&self) -> Infallible {
        loop {
            let started = Instant::now();
            let fault = self.member.take_fault();
            let health = self.health();
            let outcome = self.check().await;
            self.take_in(&outcome, fault, &health).await;
            self.core.progressed(&self.member.checked);
            let interval = health.interval.max(SHORTEST_INTERVAL);
            let pause = if self.member.is_up() { interval } else { interval.min(self.core.timing.retry) };
            tokio::select! {
                () = tokio::time::sleep_until(started + pause) => {}
                () = self.member.recheck.notified() => tokio::time::sleep_until(started + SHORTEST_RECHECK).await,
            }
        }
    }

    /// Takes in a check. `fault` is that of a request before the check, if one failed.
    async fn take_in(&self, outcome: &Result<(), ProbeError>, fault: Option<BackendFault>, health: &Health) {
        let sink = &*self.core.sink;
        match outcome {
            Ok(()) if self.member.check_passed(health) => {
                // The scheduler places by capacity, so it hears of the capacity before it hears that the backend is up.
                if self.scrape(true).await {
                    self.member.close(sink, !self.core.has_other(&self.member));
                }
            }
            Ok(()) if fault.is_some() => return self.member.cleared(sink),
            Ok(()) => return,
            Err(reason) => {
                let confirms = confirms(fault, outcome);
                if !self.member.check_failed(sink, confirms, health, reason.to_string()) {
                    return;
                }
            }
        }
        self.core.rebuild_selection(self.member.backend.pool);
    }

    async fn check(&self) -> Result<(), ProbeError> {
        let backend = &self.member.backend;
        let current = self.member.client.load().as_ref().map(|client| client.address);
        let limit = self.health().timeout(self.engine);
        let found = self.core.resolver.addresses(&backend.host, backend.port, limit).await;
        let found = resolver::candidates(found, current).map_err(ProbeError::Unresolved)?;
        let within = self.member.within(&self.core.reach.load(), found);
        // The name or the reach may have changed since the last check.
        let addresses = within.inspect_err(|_| self.member.client.store(None))?;
        self.check_each(&addresses).await
    }

    /// Checks the addresses up to the first that answers, which is used from then on.
    pub(super) async fn check_each(&self, addresses: &[SocketAddr]) -> Result<(), ProbeError> {
        let health = self.health();
        let (path, lenient) = (health.path(self.engine), health.is_lenient(self.engine));
        let mut result = Err(ProbeError::Unresolved(io::Error::other("no address")));
        for address in addresses {
            let client = self.client_for(*address)?;
            result = client.check(&self.member.backend, path, lenient, health.timeout(self.engine)).await;
            if !result.as_ref().is_err_and(ProbeError::is_about_the_address) {
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
        loop {
            let started = Instant::now();
            if self.member.is_up() {
                self.scrape(false).await;
            }
            let period = (**self.core.metrics_interval.load()).max(SHORTEST_INTERVAL);
            tokio::time::sleep_until(started + period).await;
        }
    }

    /// Reads the metrics. `returned` says that the backend was away. `false` if other backends have taken its place.
    async fn scrape(&self, returned: bool) -> bool {
        let (Some(probe), Some(client)) = (&self.probe, self.member.client.load_full()) else {
            return true;
        };
        // The lock is held during the fetch, so that pages are taken in in the order in which they were asked for.
        let (probe, tracker) = &mut *probe.lock().await;
        if returned {
            probe.returned();
        }
        let interval = **self.core.metrics_interval.load();
        let fresh = if returned { SHORTEST_RECHECK } else { interval / 2 };
        match probe.read(&client, &self.member, self.core.timing.page_limit, fresh).await {
            Ok(reading) if self.is_split(&reading) => return false,
            Ok(reading) => self.report(tracker, reading),
            Err(reason) => self.member.scrape_failed(&reason),
        }
        true
    }

    fn report(&self, tracker: &mut Tracker, reading: Reading) {
        if reading.malformed > 0 {
            log::debug!("metrics of {}: {} lines not understood", self.member.backend.url, reading.malformed);
        }
        let blind = reading.blind;
        let (gauges, report) = tracker.observe(Instant::now().into_std(), reading);
        self.member.report(&*self.core.sink, gauges, blind, report);
        if !blind {
            self.watch_progress();
        }
    }

    /// Splits the server if it has other ranks than the backend stands for. `true` if the ranks take the backend's
    /// place.
    fn is_split(&self, reading: &Reading) -> bool {
        let backend = &self.member.backend;
        reading.ranks > usize::from(backend.rank.is_none())
            && self.core.split(backend.pool, backend.server(), reading.ranks)
            && self.member.is_draining()
    }

    /// Ejects the backend if its requests make no progress. Called only after a page was read: a movement on the page
    /// may be the only sign of progress.
    fn watch_progress(&self) {
        let (all, me) = (self.core.registry.all(), &self.member.backend);
        let peers = all.iter().filter(|peer| peer.backend.pool == me.pool && peer.backend.id != me.id);
        let others = peers.filter(|peer| peer.is_up()).map(|peer| &*peer.backend.outlier);
        if let Some(silent) = me.outlier.stalled(self.health().eject.no_progress, others) {
            let silent = silent.as_secs_f64();
            self.core.eject(&self.member, DownCause::NoProgress, &format!("no sign of progress for {silent:.0} s"));
        }
    }

    /// Returns once the backend is draining and nothing is in flight there any more, or `drain_limit` after the
    /// draining began.
    async fn drained(&self) {
        self.member.drain.notified().await;
        let (timing, backend) = (&self.core.timing, &self.member.backend);
        let deadline = Instant::now() + timing.drain_limit;
        let mut ticks = tokio::time::interval(timing.drain_poll);
        loop {
            ticks.tick().await;
            let left = self.core.sink.in_flight(backend.pool, backend.id);
            if left == 0 {
                return;
            }
            if Instant::now() >= deadline {
                log::warn!("backend {} is removed with {left} steps in flight", backend.url);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_check_confirms_only_that_no_connection_could_be_made() {
        let [late, wrong] = [ProbeError::Timeout(Duration::ZERO), ProbeError::Broken(String::new())].map(Err);
        let cases = [(BackendFault::Connect, true), (BackendFault::Reset, false), (BackendFault::Error, false)];
        for (fault, by_late) in cases {
            assert_eq!(confirms(Some(fault), &late), by_late);
            assert!(confirms(Some(fault), &wrong));
            assert!(!confirms(Some(fault), &Ok(())));
        }
        assert!(!confirms(None, &wrong));
    }
}
