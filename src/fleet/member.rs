//! One backend's live state. Each change is told to the sink under the state's lock, so that the scheduler
//! hears of changes in the order in which they happened, and nothing after `BackendRemoved`.

use super::client::{ProbeClient, ProbeError};
use super::{Backend, BackendFault, BackendSettings, BackendStatus, DownCause, Gauges, Origin, Sink};
use crate::config::{Eject, Reach};
use crate::scheduler::{BackendReport, Event};
use crate::units::Tokens;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Different reasons for one outage that are logged; a server that fails in ever new words is cut short.
const LOGGED_REASONS: usize = 4;

pub(super) struct Member {
    pub(super) backend: Arc<Backend>,
    pub(super) client: ArcSwapOption<ProbeClient>,
    /// The last page of its server's metrics, which its ranks share.
    pub(super) page: Arc<PageCache>,
    /// Wakes the health check ahead of its time.
    pub(super) recheck: Notify,
    /// Starts the wait for the last step in flight.
    pub(super) drain: Notify,
    /// A request failed since the last check began; by not being connected, if one did.
    suspicion: Mutex<Option<BackendFault>>,
    /// Its first health check has ended, well or not.
    pub(super) checked: AtomicBool,
    state: Mutex<MemberState>,
}

#[derive(Default)]
struct MemberState {
    up: bool,
    /// Since it came up last.
    up_since: Option<Instant>,
    /// Taken out by what its requests showed.
    ejection: Option<Ejection>,
    /// How often that happened lately.
    ejections: u32,
    /// When it was logged last that it stays in only because others are out.
    kept_logged: Option<Instant>,
    /// Why it is down, and how often it went so, by [`DownCause::ALL`].
    cause: Option<DownCause>,
    downs: [u64; DownCause::ALL.len()],
    draining: bool,
    /// For good, and then it is not `up`.
    removed: bool,
    /// Why it is down, as logged in this outage; the last is the present one.
    reasons: Vec<String>,
    /// As the engine says, tokens.
    capacity: Option<u64>,
    gauges: Option<Gauges>,
    scraped: Option<Instant>,
    scrape_fails: bool,
}

/// One page, and when it was read. Held over the reading: who waits for it gets it too.
pub(super) type PageCache = tokio::sync::Mutex<Option<(Instant, Bytes)>>;

struct Ejection {
    since: Instant,
    until: Instant,
}

// === impl Member ===

impl Member {
    pub(super) fn new(backend: Backend, page: Arc<PageCache>) -> Self {
        Self {
            backend: Arc::new(backend),
            client: ArcSwapOption::empty(),
            page,
            recheck: Notify::new(),
            drain: Notify::new(),
            suspicion: Mutex::default(),
            checked: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Whether it may be connected to at all.
    pub(super) fn may_be_within(&self, reach: &Reach) -> bool {
        !self.is_confined() || reach.may_name(&self.backend.host)
    }

    /// What the configuration names itself may be anywhere.
    fn is_confined(&self) -> bool {
        self.backend.settings().origin == Origin::Api
    }

    /// Those of `addresses` that it may be connected to.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn within(&self, reach: &Reach, mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ProbeError> {
        if self.is_confined() {
            addresses.retain(|address| reach.permits(&self.backend.host, address.ip()));
            if addresses.is_empty() {
                return Err(ProbeError::OutOfReach);
            }
        }
        Ok(addresses)
    }

    /// Tells the sink that it is there.
    pub(super) fn announce(&self, sink: &dyn Sink) {
        let settings = self.backend.settings();
        let added = Event::BackendAdded {
            backend: self.backend.id,
            weight: settings.weight,
            capacity: settings.capacity_tokens.map(Tokens),
        };
        sink.tell(self.backend.pool, added);
    }

    /// Other settings from now on.
    pub(super) fn configure(&self, sink: &dyn Sink, settings: BackendSettings) {
        let state = self.state.lock();
        if !state.removed && *self.backend.settings().as_ref() != settings {
            self.backend.configure(settings);
            self.announce(sink);
        }
    }

    /// A backend of this origin that is to stay.
    pub(super) fn is_of(&self, origin: Origin) -> bool {
        self.backend.settings().origin == origin && !self.is_draining()
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().up
    }

    /// Up, and open to new programs.
    pub(super) fn is_usable(&self) -> bool {
        let state = self.state.lock();
        state.up && !state.draining
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.lock().draining
    }

    /// Down by what its requests showed.
    pub(super) fn is_ejected(&self) -> bool {
        self.state.lock().ejection.is_some()
    }

    /// A request failed: a check is to follow at once.
    pub(super) fn probe_now(&self, fault: BackendFault) {
        let mut suspicion = self.suspicion.lock();
        if suspicion.is_none() {
            self.recheck.notify_one();
        }
        if *suspicion != Some(BackendFault::Connect) {
            *suspicion = Some(fault);
        }
    }

    pub(super) fn take_probe_request(&self) -> Option<BackendFault> {
        self.suspicion.lock().take()
    }

    /// A check found nothing wrong: steps that could not be delivered may try here again.
    pub(super) fn cleared(&self, sink: &dyn Sink) {
        let state = self.state.lock();
        if state.up && !state.draining {
            sink.tell(self.backend.pool, Event::BackendUp(self.backend.id));
        }
    }

    pub(super) fn status(&self) -> BackendStatus {
        let state = self.state.lock();
        BackendStatus {
            backend: Arc::clone(&self.backend),
            healthy: state.up,
            draining: state.draining,
            down_reason: if state.up { None } else { state.reasons.last().cloned() },
            down_cause: state.cause.filter(|_| !state.up),
            returns_in: state.ejection.as_ref().map(|out| out.until.saturating_duration_since(Instant::now())),
            downs: std::array::from_fn(|at| (DownCause::ALL[at], state.downs[at])),
            capacity: self.backend.settings().capacity_tokens.or(state.capacity).filter(|&capacity| capacity > 0),
            gauges: state.gauges.clone(),
            scrape_age: state.scraped.map(|at| at.elapsed()),
        }
    }

    /// Its checks are good. One that was taken out stays out for its time, and while it leaves its steps waiting;
    /// `last_left`: not even then.
    pub(super) fn rise(&self, sink: &dyn Sink, last_left: bool) {
        let mut state = self.state.lock();
        if state.up || state.removed {
            return;
        }
        let now = Instant::now();
        if let Some(out) = &state.ejection {
            let outlier = &self.backend.outlier;
            let stalls = state.cause == Some(DownCause::NoProgress) && outlier.has_pending();
            if !last_left && (now < out.until || stalls && !outlier.progressed_since(out.since)) {
                return;
            }
        }
        state.ejection = None;
        state.up = true;
        state.up_since = Some(now);
        state.reasons.clear();
        self.backend.outlier.clear();
        log::info!("backend {} is up", self.backend.url);
        // To the scheduler `BackendUp` would end the draining.
        if !state.draining {
            sink.tell(self.backend.pool, Event::BackendUp(self.backend.id));
        }
    }

    /// Its checks fail. `true` if it was up until now.
    pub(super) fn fall(&self, sink: &dyn Sink, reason: String) -> bool {
        let mut state = self.state.lock();
        self.goes_down(&mut state, sink, DownCause::Check, reason)
    }

    /// Its requests show that it is not well. `true` if it was up until now.
    pub(super) fn eject(&self, sink: &dyn Sink, cause: DownCause, reason: &str, eject: &Eject) -> bool {
        let mut state = self.state.lock();
        if !state.up || state.draining {
            return false;
        }
        let now = Instant::now();
        if state.up_since.is_some_and(|up_since| now.duration_since(up_since) >= eject.max) {
            state.ejections = 0;
        }
        let time = eject.base.saturating_mul(2_u32.saturating_pow(state.ejections)).min(eject.max);
        state.ejections = state.ejections.saturating_add(1);
        state.ejection = Some(Ejection { since: now, until: now + time });
        self.goes_down(&mut state, sink, cause, format!("{reason}; it stays out for {time:?} at least"))
    }

    fn goes_down(&self, state: &mut MemberState, sink: &dyn Sink, cause: DownCause, reason: String) -> bool {
        if !state.up {
            return false;
        }
        state.up = false;
        state.cause = Some(cause);
        for (_, downs) in DownCause::ALL.iter().zip(&mut state.downs).filter(|(of, _)| **of == cause) {
            *downs += 1;
        }
        log::warn!("backend {} is down: {reason}", self.backend.url);
        state.reasons = vec![reason];
        sink.tell(self.backend.pool, Event::BackendDown(self.backend.id));
        true
    }

    /// It would be taken out, but too many others are. Logged now and then.
    pub(super) fn log_kept(&self, reason: &str, every: Duration) {
        let mut state = self.state.lock();
        if state.up && !state.draining && state.kept_logged.is_none_or(|last| last.elapsed() >= every) {
            state.kept_logged = Some(Instant::now());
            log::warn!(
                "backend {} stays although it is not well, for too few others are left: {reason}",
                self.backend.url
            );
        }
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

    /// `blind`: `gauges` hold nothing but the capacity.
    pub(super) fn report(&self, sink: &dyn Sink, gauges: Gauges, blind: bool, report: BackendReport) {
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
        let sized = gauges.capacity_tokens > 0 || self.backend.settings().capacity_tokens.is_some();
        if !sized && state.scraped.is_none() {
            log::warn!(
                "backend {} does not tell the size of its KV cache: give it as `capacity_tokens`",
                self.backend.url
            );
        }
        if state.gauges.as_ref().is_some_and(|last| gauges.moved_since(last)) {
            self.backend.outlier.note_progress();
        }
        state.scrape_fails = false;
        state.capacity = Some(gauges.capacity_tokens);
        state.gauges = Some(gauges).filter(|_| !blind);
        state.scraped = Some(Instant::now());
        let backend = self.backend.id;
        sink.tell(self.backend.pool, Event::Report { backend, report });
    }

    pub(super) fn scrape_failed(&self, reason: &ProbeError) {
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
