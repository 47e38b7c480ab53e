//! One backend's live state. Each change is told to the sink under the state's lock, so that the scheduler
//! hears of changes in the order in which they happened, and nothing after `BackendRemoved`.

use super::link::{Failure, Link};
use super::{Backend, BackendStatus, Gauges, Sink};
use crate::scheduler::{BackendReport, Event};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// Different reasons for one outage that are logged; a server that fails in ever new words is cut short.
const LOGGED_REASONS: usize = 4;

pub(super) struct Entry {
    pub(super) backend: Arc<Backend>,
    pub(super) link: ArcSwapOption<Link>,
    /// Wakes the health check ahead of its time.
    pub(super) recheck: Notify,
    /// Starts the wait for the last step in flight.
    pub(super) drain: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    up: bool,
    draining: bool,
    removed: bool,
    /// Why it is down, as logged in this outage; the last is the present one.
    reasons: Vec<String>,
    gauges: Option<Gauges>,
    scraped: Option<Instant>,
    scrape_fails: bool,
}

// === impl Entry ===

impl Entry {
    pub(super) fn new(backend: Backend) -> Self {
        Self {
            backend: Arc::new(backend),
            link: ArcSwapOption::empty(),
            recheck: Notify::new(),
            drain: Notify::new(),
            state: Mutex::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().up
    }

    /// Up, and open to new programs.
    pub(super) fn is_usable(&self) -> bool {
        let state = self.state.lock();
        state.up && !state.draining && !state.removed
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.lock().draining
    }

    pub(super) fn status(&self) -> BackendStatus {
        let state = self.state.lock();
        BackendStatus {
            backend: Arc::clone(&self.backend),
            healthy: state.up,
            draining: state.draining,
            down_reason: if state.up { None } else { state.reasons.last().cloned() },
            gauges: state.gauges.clone(),
            scrape_age: state.scraped.map(|at| at.elapsed()),
        }
    }

    pub(super) fn rise(&self, sink: &dyn Sink) {
        let mut state = self.state.lock();
        if state.up || state.removed {
            return;
        }
        state.up = true;
        state.reasons.clear();
        log::info!("backend {} is up", self.backend.url);
        // To the scheduler `BackendUp` would end the draining.
        if !state.draining {
            sink.tell(self.backend.pool, Event::BackendUp(self.backend.id));
        }
    }

    /// `true` if it was up until now.
    pub(super) fn fall(&self, sink: &dyn Sink, reason: String) -> bool {
        let mut state = self.state.lock();
        if !state.up || state.removed {
            return false;
        }
        state.up = false;
        log::warn!("backend {} is down: {reason}", self.backend.url);
        state.reasons = vec![reason];
        sink.tell(self.backend.pool, Event::BackendDown(self.backend.id));
        true
    }

    /// It is down already, for this reason; a reason is logged once.
    pub(super) fn still_down(&self, reason: String) {
        let mut state = self.state.lock();
        if let Some(at) = state.reasons.iter().position(|known| *known == reason) {
            state.reasons[at..].rotate_left(1);
            return;
        }
        if state.reasons.len() < LOGGED_REASONS {
            log::warn!("backend {} cannot be used: {reason}", self.backend.url);
        } else {
            state.reasons.pop();
        }
        state.reasons.push(reason);
    }

    pub(super) fn report(&self, sink: &dyn Sink, gauges: Gauges, report: BackendReport) {
        let mut state = self.state.lock();
        if state.removed {
            return;
        }
        if state.scrape_fails {
            log::info!("metrics of backend {} are back", self.backend.url);
        }
        if report.restarted {
            log::warn!("backend {} has restarted: its KV cache is empty", self.backend.url);
        }
        let sized = gauges.capacity_tokens > 0 || self.backend.capacity_tokens.is_some();
        if !sized && state.gauges.is_none() {
            log::warn!(
                "backend {} does not tell the size of its KV cache: give it as `capacity_tokens`",
                self.backend.url
            );
        }
        state.scrape_fails = false;
        state.gauges = Some(gauges);
        state.scraped = Some(Instant::now());
        let backend = self.backend.id;
        sink.tell(self.backend.pool, Event::Report { backend, report });
    }

    pub(super) fn scrape_failed(&self, reason: &Failure) {
        let mut state = self.state.lock();
        if !state.scrape_fails {
            log::warn!(
                "metrics of backend {} cannot be read, what is known of its load goes stale: {reason}",
                self.backend.url
            );
        }
        state.scrape_fails = true;
    }

    pub(super) fn start_draining(&self, sink: &dyn Sink) {
        let mut state = self.state.lock();
        if !state.draining && !state.removed {
            state.draining = true;
            log::info!("backend {} is draining", self.backend.url);
            sink.tell(self.backend.pool, Event::BackendDraining(self.backend.id));
            self.drain.notify_one();
        }
    }

    pub(super) fn remove(&self, sink: &dyn Sink) {
        let mut state = self.state.lock();
        if !state.removed {
            state.removed = true;
            state.up = false;
            log::info!("backend {} is removed", self.backend.url);
            sink.tell(self.backend.pool, Event::BackendRemoved(self.backend.id));
        }
    }
}
