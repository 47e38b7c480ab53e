//! When a request cannot be finished: what the client sees, and what is written down.

use super::Proxy;
use super::ctx::{Answer, Ctx};
use super::observe::Observer;
use crate::error::Refusal;
use crate::fleet::BackendFault;
use crate::scheduler::Outcome;
use crate::telemetry::UpstreamError;
use bytes::{BufMut, Bytes, BytesMut};
use http::{StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::{FailToProxy, Session};

/// What an access log says of a client that left before there was an answer (as nginx has it).
pub const CLIENT_GONE: u16 = 499;

/// Why a request goes no further.
#[derive(Debug)]
pub enum Stop {
    /// The client is there, and is told.
    Refused(Refusal),
    /// The client went away, or broke the framing.
    Gone(Box<Error>),
}

impl Proxy {
    /// The exchange with a backend broke. The request is sent again only if the backend cannot have had the whole of it,
    /// for it costs GPU time.
    pub(super) fn broken(&self, session: &Session, ctx: &mut Ctx, mut e: Box<Error>) -> Box<Error> {
        e.set_retry(false);
        if e.esource() != &ErrorSource::Upstream {
            return e;
        }
        ctx.target.pending = None;
        let head = answered(session);
        let framed = head.is_some_and(|head| head.headers.contains_key(header::CONTENT_LENGTH));
        if !framed && ctx.answer.observer.as_ref().is_some_and(Observer::ended) {
            // The answer came whole by its own word.
            ctx.answer.unended = true;
            return e;
        }
        let unsent = matches!(e.etype(), ErrorType::WriteError | ErrorType::WriteTimedout);
        let silent = e.etype() == &ErrorType::ReadTimedout;
        let kind = match (head.is_some(), silent) {
            (false, true) => UpstreamError::FirstByteTimeout,
            (false, false) => UpstreamError::NoResponse,
            (true, true) => UpstreamError::Stalled,
            (true, false) => UpstreamError::Broken,
        };
        if let Some(backend) = &ctx.target.backend {
            self.app.telemetry.metrics.upstream_error(&backend.url, kind);
            if !unsent && !silent {
                // Slow is not dead: the fleet judges silence by what else the backend does.
                self.app.fleet.failed(backend.id, BackendFault::Reset);
            }
        }
        if unsent {
            ctx.answer.sent = None;
        }
        if unsent && self.retry_elsewhere(ctx, BackendFault::Reset).is_ok() {
            e.set_retry(true);
            return e;
        }
        log::warn!("{}: {}", ctx.summary(), e.context.as_ref().map_or("", |context| context.as_str()));
        ctx.report_outcome(Outcome::Failed);
        ctx.answer.refusal = Some(Refusal::UpstreamFailed(reason(kind).to_owned()));
        e
    }

    /// Tells the client as well as it can still be told, and whether its connection may go on.
    pub(super) async fn fail(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        if ctx.answer.unended {
            return finish(session, &mut ctx.answer).await;
        }
        if ctx.answer.refusal.is_none() && departed(e) {
            ctx.answer.departed = true;
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        let refusal = ctx.answer.refusal.take().unwrap_or_else(|| unexpected(session, ctx, e));
        ctx.caller.key_permit = None;
        // Nobody wants the body any more, and the client may take a while to read its answer.
        ctx.payload.release();
        let answered = answered(session).is_some();
        let told = match answered {
            false => self.refuse(session, ctx, &refusal).await,
            true if ctx.answer.events => break_off(session, &mut ctx.answer, &refusal).await,
            // Less than its length, or chunks without an end: the client sees that it is not whole.
            true => Ok(()),
        };
        if let Err(e) = &told {
            log::debug!("a client left before it was told: {e}");
        }
        let error_code = refusal.status().as_u16();
        ctx.answer.refusal = Some(refusal);
        FailToProxy { error_code, can_reuse_downstream: told.is_ok() && !answered }
    }
}

/// The head of the answer that the client has.
fn answered(session: &Session) -> Option<&ResponseHeader> {
    let last = |status: StatusCode| !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS;
    session.response_written().filter(|head| last(head.status))
}

/// What the client is told of an error that nobody has put in words.
fn unexpected(session: &mut Session, ctx: &Ctx, e: &Error) -> Refusal {
    session.set_keepalive(None);
    if e.esource() == &ErrorSource::Downstream {
        return Refusal::InvalidRequest("its body breaks its own framing");
    }
    log::error!("{}: {e}", ctx.summary());
    Refusal::Internal
}

/// Gives the client the end of an answer whose backend did not get to it.
async fn finish(session: &mut Session, answer: &mut Answer) -> FailToProxy {
    let rest = answer.observer.take().map(|mut observer| observer.finish()).unwrap_or_default();
    let told = session.write_response_body(Some(rest), true).await;
    answer.departed = told.is_err();
    FailToProxy { error_code: answer.status, can_reuse_downstream: told.is_ok() }
}

/// The last event of an answer that will not be finished, behind what the observer still held back. Over HTTP/1.1 the
/// connection closes after it without the last chunk: a client that does not know the event still sees that the answer
/// is not whole. Over HTTP/2 the stream has to be ended, for a reset would overtake the event and drop it.
async fn break_off(session: &mut Session, answer: &mut Answer, refusal: &Refusal) -> Result<()> {
    let held_back = answer.observer.take().map(|mut observer| observer.finish()).unwrap_or_default();
    answer.note_tail(&held_back);
    let error = refusal.body();
    let mut event = BytesMut::with_capacity(held_back.len() + error.len() + 16);
    event.put_slice(&held_back);
    match &answer.tail {
        b"\n\n" | [0, 0] => {}
        [_, b'\n'] => event.put_u8(b'\n'),
        _ => event.put_slice(b"\n\n"),
    }
    event.put_slice(b"data: ");
    event.put_slice(&error);
    event.put_slice(b"\n\n");
    let end = session.is_http2();
    session.write_response_body(Some(Bytes::from(event)), end).await
}

/// The client is not there any more.
fn departed(e: &Error) -> bool {
    use ErrorType::{ConnectionClosed, H2Error, ReadError, ReadTimedout, WriteError, WriteTimedout};
    let lost = matches!(e.etype(), ConnectionClosed | H2Error | ReadError | ReadTimedout | WriteError | WriteTimedout);
    e.esource() == &ErrorSource::Downstream && lost
}

fn reason(kind: UpstreamError) -> &'static str {
    match kind {
        UpstreamError::FirstByteTimeout => "no answer within timeouts.first_byte",
        UpstreamError::Stalled => "its answer stalled",
        UpstreamError::Broken => "it broke off its answer",
        _ => "it closed the connection without an answer",
    }
}

// === impl Stop ===

impl Stop {
    /// Makes the error that is carried to `fail_to_proxy`. A refusal goes into `ctx`, where that hook finds the refusal.
    pub fn into_error(self, ctx: &mut Ctx) -> Box<Error> {
        match self {
            Self::Gone(e) => e,
            Self::Refused(refusal) => {
                let e = Error::new_in(ErrorType::HTTPStatus(refusal.status().as_u16()));
                ctx.answer.refusal = Some(refusal);
                e
            }
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
