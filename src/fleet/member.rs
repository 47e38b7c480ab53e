//! A backend, and all that is known of its present state. The sink is told of each change under the lock of the state.
//! So the scheduler hears of changes in the order in which they happened, and of none after `BackendRemoved`.

use super::backend::{Backend, BackendSettings, Origin};
use super::breaker::Breaker;
use super::client::{ProbeClient, ProbeError};
use super::outlier::{BackendFault, DownCause};
use super::reading::Gauges;
use super::sink::Sink;
use super::status::BackendStatus;
use crate::config::{Eject, Health, Reach};
use crate::scheduler::{BackendReport, Event};
use crate::units::Tokens;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Number of different reasons that are logged for one outage. A server that fails with ever new messages is cut short.
const LOGGED_REASONS: usize = 4;

pub(super) struct FleetMember {
    pub(super) backend: Arc<Backend>,
    /// Client of the address in use; `None` before an address has answered.
    pub(super) client: ArcSwapOption<ProbeClient>,
    /// Last page of the server's metrics, which the server's ranks share.
    pub(super) page: Arc<PageCache>,
    /// Signal that wakes the health check ahead of its time.
    pub(super) recheck: Notify,
    /// Signal that starts the wait for the last step in flight.
    pub(super) drain: Notify,
    /// Fault of a request since the last check began. If a connection failed, that fault takes precedence.
    fault: Mutex<Option<BackendFault>>,
    /// Whether the first health check has ended, passed or not.
    pub(super) checked: AtomicBool,
    state: Mutex<MemberState>,
}

#[derive(Default)]
struct MemberState {
    breaker: Breaker,
    stage: Stage,
    /// Reasons of the outage that are logged. The last is the present reason.
    reasons: Vec<String>,
    /// Time of the last log line which says that the backend stays only because others are out.
    kept_logged: Option<Instant>,
    /// Last reading of the metrics.
    reading: Option<LastReading>,
    /// Whether the last scrape failed.
    scrape_fails: bool,
}

/// Stage of a backend on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Active,
    Draining,
    Removed,
}

struct LastReading {
    at: Instant,
    gauges: Gauges,
    /// Whether the server does not tell its load: [`super::reading::Reading::blind`].
    blind: bool,
}

/// One page and the time of its reading. The lock is held during the reading, so that a task that waits for the lock
/// gets the page too.
pub(super) type PageCache = tokio::sync::Mutex<Option<(Instant, Bytes)>>;

// === impl FleetMember ===

impl FleetMember {
    pub(super) fn new(backend: Backend, page: Arc<PageCache>) -> Self {
        Self {
            backend: Arc::new(backend),
            client: ArcSwapOption::empty(),
            page,
            recheck: Notify::new(),
            drain: Notify::new(),
            fault: Mutex::default(),
            checked: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Whether the backend may be connected to at all.
    pub(super) fn may_be_within(&self, reach: &Reach) -> bool {
        !self.is_confined() || reach.may_name(&self.backend.host)
    }

    /// Whether the backend is confined to the reach. A backend that the configuration names may be anywhere.
    fn is_confined(&self) -> bool {
        self.backend.settings().origin == Origin::Api
    }

    /// Those of the `addresses` that the backend may be connected to.
    ///
    /// # Errors
    /// `OutOfReach` if the backend may be connected to at none of them.
    pub(super) fn within(&self, reach: &Reach, mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ProbeError> {
        if self.is_confined() {
            addresses.retain(|address| reach.permits(&self.backend.host, address.ip()));
            if addresses.is_empty() {
                return Err(ProbeError::OutOfReach);
            }
        }
        Ok(addresses)
    }

    fn tell(&self, sink: &dyn Sink, event: Event) {
        sink.tell(self.backend.pool, event);
    }

    /// Tells the sink that the backend is there.
    pub(super) fn announce(&self, sink: &dyn Sink) {
        let settings = self.backend.settings();
        let (backend, weight) = (self.backend.id, settings.weight);
        let capacity = settings.capacity_tokens.map(Tokens);
        self.tell(sink, Event::BackendAdded { backend, weight, capacity });
    }

    /// Gives the backend other settings.
    pub(super) fn configure(&self, sink: &dyn Sink, settings: BackendSettings) {
        let Some(_state) = self.present() else { return };
        if **self.backend.settings() != settings {
            self.backend.configure(settings);
            self.announce(sink);
        }
    }

    /// The state, unless the backend is removed.
    fn present(&self) -> Option<MutexGuard<'_, MemberState>> {
        Some(self.state.lock()).filter(|state| state.stage != Stage::Removed)
    }

    /// Whether the backend is of this origin and is to stay.
    pub(super) fn is_of(&self, origin: Origin) -> bool {
        self.backend.settings().origin == origin && !self.is_draining()
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().is_up()
    }

    /// Whether the backend is up and open to new programs.
    pub(super) fn is_usable(&self) -> bool {
        self.state.lock().is_usable()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.lock().stage != Stage::Active
    }

    /// Whether the backend is down because of faults that its requests showed.
    pub(super) fn is_ejected(&self) -> bool {
        self.state.lock().breaker.is_ejected()
    }

    /// Asks for a check at once, because a request failed.
    pub(super) fn probe_now(&self, because: BackendFault) {
        let mut fault = self.fault.lock();
        if fault.is_none() {
            self.recheck.notify_one();
        }
        if *fault != Some(BackendFault::Connect) {
            *fault = Some(because);
        }
    }

    /// Takes the fault that [`FleetMember::probe_now`] left for the next check.
    pub(super) fn take_fault(&self) -> Option<BackendFault> {
        self.fault.lock().take()
    }

    /// Tells the sink once more that the backend is up. A check found nothing wrong, so steps that could not be
    /// delivered may try this backend again.
    pub(super) fn cleared(&self, sink: &dyn Sink) {
        if self.state.lock().is_usable() {
            self.tell(sink, Event::BackendUp(self.backend.id));
        }
    }

    pub(super) fn status(&self) -> BackendStatus {
        let state = self.state.lock();
        let breaker = &state.breaker;
        let reading = state.reading.as_ref();
        let given = self.backend.settings().capacity_tokens;
        BackendStatus {
            backend: Arc::clone(&self.backend),
            healthy: state.is_up(),
            draining: state.stage != Stage::Active,
            down_reason: state.reasons.last().cloned(),
            down_cause: breaker.down_cause(),
            returns_in: breaker.returns_in(Instant::now()),
            downs: breaker.downs(),
            capacity: given.or_else(|| Some(reading?.gauges.capacity()?.0)),
            gauges: reading.filter(|reading| !reading.blind).map(|reading| reading.gauges.clone()),
            scrape_age: reading.map(|reading| reading.at.elapsed()),
        }
    }

    /// Takes in a passed check. `true` if the backend may be [brought back](FleetMember::close).
    pub(super) fn check_passed(&self, limits: &Health) -> bool {
        self.state.lock().breaker.check_passed(limits)
    }

    /// Brings the backend back, unless an ejection keeps it out. With `last_resort`, no other backend of the pool is
    /// usable.
    pub(super) fn close(&self, sink: &dyn Sink, last_resort: bool) {
        let Some(mut state) = self.present() else { return };
        let outlier = &self.backend.outlier;
        if !state.breaker.close(Instant::now(), outlier, last_resort) {
            return;
        }
        outlier.clear();
        state.reasons.clear();
        log::info!("backend {} is up", self.backend.url);
        // A draining backend is not announced: the scheduler would take `BackendUp` for the end of the draining.
        if state.stage == Stage::Active {
            self.tell(sink, Event::BackendUp(self.backend.id));
        }
    }

    /// Takes in a failed check; see [`Breaker::check_failed`]. `true` if this check took the backend down.
    pub(super) fn check_failed(&self, sink: &dyn Sink, confirms: bool, limits: &Health, reason: String) -> bool {
        let Some(mut state) = self.present() else { return false };
        let was_up = state.breaker.is_up();
        let falls = state.breaker.check_failed(confirms, limits);
        if falls {
            self.went_down(&mut state, sink, reason);
        } else if !was_up {
            self.still_down(&mut state, reason);
        }
        falls
    }

    /// Takes the backend out because of the faults that its requests show. `true` if the backend was up until now.
    pub(super) fn eject(&self, sink: &dyn Sink, cause: DownCause, reason: &str, limits: &Eject) -> bool {
        let mut state = self.state.lock();
        if state.stage != Stage::Active {
            return false;
        }
        let Some(time) = state.breaker.eject(Instant::now(), cause, limits) else { return false };
        self.went_down(&mut state, sink, format!("{reason}; it stays out for {time:?} at least"));
        true
    }

    fn went_down(&self, state: &mut MemberState, sink: &dyn Sink, reason: String) {
        log::warn!("backend {} is down: {reason}", self.backend.url);
        state.reasons = vec![reason];
        self.tell(sink, Event::BackendDown(self.backend.id));
    }

    /// Logs, now and then, that the backend would be ejected if fewer others were out.
    pub(super) fn log_kept(&self, reason: &str, every: Duration) {
        let mut state = self.state.lock();
        if state.is_usable() && state.kept_logged.is_none_or(|last| last.elapsed() >= every) {
            state.kept_logged = Some(Instant::now());
            let url = &self.backend.url;
            log::warn!("backend {url} stays although it is not well, for too few others are left: {reason}");
        }
    }

    /// Notes the present reason. Each reason is logged once in an outage.
    fn still_down(&self, state: &mut MemberState, reason: String) {
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

    /// Takes in a reading of the backend's metrics, and passes `report` on.
    pub(super) fn report(&self, sink: &dyn Sink, gauges: Gauges, blind: bool, report: BackendReport) {
        let Some(mut state) = self.present() else { return };
        let url = &self.backend.url;
        if std::mem::take(&mut state.scrape_fails) {
            log::info!("metrics of backend {url} are back");
        }
        if report.restarted {
            log::warn!("backend {url} has restarted: its KV cache is empty");
        }
        match &state.reading {
            None if gauges.capacity().or(self.backend.settings().capacity_tokens.map(Tokens)).is_none() => {
                log::warn!("backend {url} does not tell the size of its KV cache: give it as `capacity_tokens`");
            }
            Some(last) if !last.blind && gauges.moved_since(&last.gauges) => self.backend.outlier.note_progress(),
            _ => {}
        }
        state.reading = Some(LastReading { at: Instant::now(), gauges, blind });
        self.tell(sink, Event::Report { backend: self.backend.id, report });
    }

    pub(super) fn scrape_failed(&self, reason: &ProbeError) {
        if !std::mem::replace(&mut self.state.lock().scrape_fails, true) {
            let url = &self.backend.url;
            log::warn!("metrics of backend {url} cannot be read, what is known of its load goes stale: {reason}");
        }
    }

    pub(super) fn start_draining(&self, sink: &dyn Sink) {
        let mut state = self.state.lock();
        if state.stage == Stage::Active {
            state.stage = Stage::Draining;
            log::info!("backend {} is draining", self.backend.url);
            self.tell(sink, Event::BackendDraining(self.backend.id));
            self.drain.notify_one();
        }
    }

    pub(super) fn remove(&self, sink: &dyn Sink) {
        if let Some(mut state) = self.present() {
            state.stage = Stage::Removed;
            log::info!("backend {} is removed", self.backend.url);
            self.tell(sink, Event::BackendRemoved(self.backend.id));
        }
    }
}

// === impl MemberState ===

impl MemberState {
    fn is_up(&self) -> bool {
        self.stage != Stage::Removed && self.breaker.is_up()
    }

    fn is_usable(&self) -> bool {
        self.stage == Stage::Active && self.breaker.is_up()
    }
}
