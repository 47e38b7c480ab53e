//! What is kept of one request. All that has to be given back is a guard in here.

use super::observe::Observer;
use crate::app::OpenGuard;
use crate::auth::Key;
use crate::body::budget::Charge;
use crate::error::Refusal;
use crate::fleet::{Backend, PendingAnswer};
use crate::gate::{Admission, PoolId, Step};
use crate::identity::fingerprint::Fingerprint;
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

/// How long a stream that has said its last word may take to close: its client waits for that end.
const LAST_WORD: Duration = Duration::from_secs(1);

pub struct Ctx {
    pub arrived: Instant,
    /// `x-request-id`: the client's, or made here.
    pub id: HeaderValue,
    /// Path and query as they go upstream, before the backend's prefix.
    pub path: String,
    pub kind: Kind,
    pub caller: Caller,
    pub work: Work,
    pub target: Target,
    pub payload: Payload,
    pub answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The control API's: no traffic, so neither counted nor logged.
    Control,
    /// Traffic that is passed through as it is.
    Passed,
    /// A step: its answer is observed.
    Inference,
}

/// Who asks.
#[derive(Default)]
pub struct Caller {
    pub key: Option<Arc<Key>>,
    /// The key's place among its requests in flight; free before the client can see the end of its answer.
    pub key_permit: Option<Guard>,
    pub guards: Option<Guards>,
}

/// Held while a request is on its way to a backend, waiting included.
pub struct Guards {
    pub _open: OpenGuard,
    pub _in_flight: InFlight,
}

/// What the gate knows of the request.
#[derive(Default)]
pub struct Work {
    pub pool: Option<PoolId>,
    pub program: Option<ProgramKey>,
    /// Fingerprint state; only set when the client named no program.
    pub trail: Option<Fingerprint>,
    pub step: Option<Step>,
    /// The gate's word that has not been acted on yet.
    pub admission: Option<Admission>,
    pub held: Duration,
}

/// Where the request goes.
#[derive(Default)]
pub struct Target {
    pub backend: Option<Arc<Backend>>,
    /// The step is at the backend.
    pub pending: Option<PendingAnswer>,
    /// Backends that could not be reached, and when the first of them could not.
    pub unreached: usize,
    pub unreached_since: Option<Instant>,
    /// `timeouts.first_byte` and `timeouts.stream_idle`, as they were when the backend was chosen.
    pub first_byte: Duration,
    pub stream_idle: Duration,
}

/// What is sent.
#[derive(Default)]
pub struct Payload {
    /// The body that goes upstream in place of the one that was read; `None`: there was none.
    pub body: Option<Bytes>,
    /// Room for the body.
    pub charge: Charge,
    /// The usage event was asked for by the proxy alone.
    pub strip_usage: bool,
}

/// What came back: the backend's answer, or why there is none.
#[derive(Default)]
pub struct Answer {
    pub observer: Option<Observer>,
    /// Zero until the backend has answered.
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
    /// The answer came whole by its own word, but its connection did not end as it should.
    pub unended: bool,
    /// The error of the proxy's own that the client got, or is to get.
    pub refusal: Option<Refusal>,
    /// The client left before its answer was whole.
    pub departed: bool,
}

// === impl Ctx ===

impl Ctx {
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            arrived: Instant::now(),
            id: HeaderValue::from_static(""),
            path: String::new(),
            kind,
            caller: Caller::default(),
            work: Work::default(),
            target: Target::default(),
            payload: Payload::default(),
            answer: Answer::default(),
        }
    }

    /// For a line in the log: no query, which may hold a key.
    #[must_use]
    pub fn summary(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        let backend = self.target.backend.as_ref().map_or("no backend", |backend| &backend.url);
        format!("{path}, request {}, {backend}", String::from_utf8_lossy(self.id.as_bytes()))
    }

    /// How long the backend may be silent from now on.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match (self.answer.status, &self.answer.observer) {
            (0, _) => self.target.first_byte,
            (_, Some(observer)) if self.answer.events && observer.ended() => LAST_WORD.min(self.target.stream_idle),
            _ => self.target.stream_idle,
        }
    }

    /// Some of the answer came.
    pub fn heard(&self) {
        if let Some(pending) = &self.target.pending {
            pending.note_progress();
        }
        if let (200..400, Some(backend)) = (self.answer.status, &self.target.backend) {
            backend.outlier.clear_errors();
        }
    }

    /// Tells the gate how the step ended; a later call changes nothing.
    pub fn report_outcome(&mut self, outcome: Outcome) {
        self.caller.key_permit = None;
        if let (Some(trail), Outcome::Completed(_)) = (self.work.trail.take(), outcome) {
            trail.answered();
        }
        if let Some(mut step) = self.work.step.take() {
            step.finish(outcome);
        }
    }

    /// The backend's answer came whole.
    pub fn report_answer(&mut self) {
        self.target.pending = None;
        if let (200..400, Some(backend)) = (self.answer.status, &self.target.backend) {
            backend.outlier.clear();
        }
        let outcome = match self.answer.status {
            200..=299 => Outcome::Completed(self.answer.usage),
            500.. => Outcome::Failed,
            _ => Outcome::Rejected,
        };
        self.report_outcome(outcome);
    }
}

// === impl Payload ===

impl Payload {
    /// Puts the body that goes upstream in the place of a piece that was read. `None` would end the body before its
    /// end, and an empty piece is passed over.
    pub fn replace(&self, piece: &mut Option<Bytes>, end: bool) {
        if let Some(body) = &self.body {
            *piece = Some(if end { body.clone() } else { Bytes::new() });
        }
    }

    /// Gives the body back: it will not be sent again.
    pub fn release(&mut self) {
        (self.body, self.charge) = (None, Charge::default());
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
