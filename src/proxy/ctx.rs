//! What is kept of one request. All that has to be given back is a guard in here.

use super::auth::Key;
use super::observe::Observer;
use super::pulse::{Busy, Pulse};
use crate::app::OpenGuard;
use crate::body::budget::Charge;
use crate::error::Refusal;
use crate::fleet::{Backend, PendingAnswer};
use crate::gate::{Admission, PoolId, Step};
use crate::identity::fingerprint::Trail;
use crate::scheduler::{Outcome, ProgramKey, Usage};
use crate::telemetry::InFlight;
use bytes::Bytes;
use http::HeaderValue;
use pingora_limits::inflight::Guard;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a request id.
const MAX_ID: usize = 128;

pub struct Ctx {
    pub arrived: Instant,
    /// `x-request-id`: the client's, or made here.
    pub id: HeaderValue,
    /// Path and query as they go upstream, before the backend's prefix.
    pub target: String,
    pub key: Option<Arc<Key>>,
    pub pool: Option<PoolId>,
    pub program: Option<ProgramKey>,
    /// Of a program without an id.
    pub trail: Option<Trail>,
    pub step: Option<Step>,
    /// A place was given and not used yet.
    pub admission: Option<Admission>,
    pub held: Duration,
    pub backend: Option<Arc<Backend>>,
    /// The step is at the backend.
    pub awaited: Option<PendingAnswer>,
    /// Backends that could not be reached, and when the first of them could not.
    pub unreached: usize,
    pub unreached_since: Option<Instant>,
    /// What goes upstream in place of the body that was read; `None`: there was none.
    pub body: Option<Bytes>,
    /// Room for it.
    pub charge: Charge,
    /// An inference endpoint: the answer is observed.
    pub inference: bool,
    /// The usage event was asked for by us alone.
    pub strip_usage: bool,
    pub answer: Answer,
    /// The error of our own that the client got, or is to get.
    pub refusal: Option<Refusal>,
    /// The client left before its answer was whole.
    pub departed: bool,
    /// It was answered as it was meant to be.
    pub whole: bool,
    pub guards: Option<Guards>,
    /// The key's place among its requests in flight; free before the client can see the end of its answer.
    pub place: Option<Guard>,
    /// The client's connection is at work.
    pub _busy: Option<Busy>,
}

/// What has been seen of the backend's answer.
#[derive(Default)]
pub struct Answer {
    pub observer: Option<Observer>,
    pub status: u16,
    pub events: bool,
    /// When the request went to the backend, with how many bytes of body.
    pub sent: Option<(Instant, usize)>,
    /// When output began, when the last piece came.
    pub first: Option<Instant>,
    pub last: Option<Instant>,
    pub usage: Option<Usage>,
    /// The last bytes that went to the client, to know whether an event is open.
    pub tail: [u8; 2],
}

/// Held while a request is on its way to a backend, waiting included.
pub struct Guards {
    pub _open: OpenGuard,
    pub _in_flight: InFlight,
}

// === impl Ctx ===

impl Ctx {
    #[must_use]
    pub fn new() -> Self {
        Self {
            arrived: Instant::now(),
            id: HeaderValue::from_static(""),
            target: String::new(),
            key: None,
            pool: None,
            program: None,
            trail: None,
            step: None,
            admission: None,
            held: Duration::ZERO,
            backend: None,
            awaited: None,
            unreached: 0,
            unreached_since: None,
            body: None,
            charge: Charge::default(),
            inference: false,
            strip_usage: false,
            answer: Answer::default(),
            refusal: None,
            departed: false,
            whole: false,
            guards: None,
            place: None,
            _busy: Pulse::begin(),
        }
    }

    /// For a line in the log: no query, which may hold a key.
    #[must_use]
    pub fn summary(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        let backend = self.backend.as_ref().map_or("no backend", |backend| &backend.url);
        format!("{path}, request {}, {backend}", String::from_utf8_lossy(self.id.as_bytes()))
    }

    /// Some of the answer came.
    pub fn heard(&self) {
        if let Some(awaited) = &self.awaited {
            awaited.note_progress();
        }
        if let (200..400, Some(backend)) = (self.answer.status, &self.backend) {
            backend.outlier.clear_errors();
        }
    }

    /// The step is over; a later call changes nothing.
    pub fn settle(&mut self, outcome: Outcome) {
        self.place = None;
        if let (Some(trail), Outcome::Completed(_)) = (self.trail.take(), outcome) {
            trail.answered();
        }
        if let Some(mut step) = self.step.take() {
            step.finish(outcome);
        }
    }

    /// The backend's answer came whole.
    pub fn settle_by_status(&mut self) {
        self.awaited = None;
        if let (200..400, Some(backend)) = (self.answer.status, &self.backend) {
            backend.outlier.clear();
        }
        let outcome = match self.answer.status {
            200..=299 => Outcome::Completed(self.answer.usage),
            500.. => Outcome::Failed,
            _ => Outcome::Rejected,
        };
        self.settle(outcome);
    }
}

/// Whether a client's `x-request-id` may be taken over: no longer than anybody needs, and of characters that mean
/// nothing to a header, a log, a shell or a terminal.
#[must_use]
pub fn is_usable_id(id: &HeaderValue) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@,~|".contains(byte);
    (1..=MAX_ID).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

/// A new request id: 128 bits that no other request will have.
#[must_use]
pub fn new_id() -> HeaderValue {
    // The keys of a `RandomState` are random for each thread and differ for each instance.
    let half = |half: u8| RandomState::new().hash_one(half);
    let id = format!("{:016x}{:016x}", half(0), half(1));
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn request_ids_differ_between_requests_and_threads() {
        let many = || (0..1000).map(|_| new_id()).collect::<Vec<_>>();
        let elsewhere = std::thread::spawn(many).join().expect("a thread");
        let ids: HashSet<_> = many().into_iter().chain(elsewhere).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
