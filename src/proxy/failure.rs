//! When a request cannot be finished: what the client sees, and what is written down.

use super::Proxy;
use super::ctx::{Answer, Ctx};
use super::observe::Observer;
use super::pulse::Busy;
use crate::body::replay::Stop;
use crate::error::Refusal;
use crate::fleet::Fault;
use crate::scheduler::Outcome;
use crate::telemetry::UpstreamError;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use pingora::{Error, ErrorSource, ErrorType};
use pingora_proxy::{FailToProxy, Session};

/// What an access log says of a client that left before there was an answer (as nginx has it).
pub const CLIENT_GONE: u16 = 499;

impl Proxy {
    /// Makes an early stop into the error that Pingora carries to [`Proxy::fail`].
    pub(super) fn stopped(ctx: &mut Ctx, stop: Stop) -> Box<Error> {
        match stop {
            Stop::Gone(e) => e,
            Stop::Refused(refusal) => {
                let status = ErrorType::HTTPStatus(refusal.status().as_u16());
                let e = Error::explain(status, refusal.to_string());
                ctx.refusal = Some(refusal);
                e
            }
        }
    }

    /// The backend could not be reached: nothing was sent, so another one may be tried.
    pub(super) fn connect_failed(&self, ctx: &mut Ctx, mut e: Box<Error>) -> Box<Error> {
        let kind = match e.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => UpstreamError::ConnectTimeout,
            _ => UpstreamError::Connect,
        };
        if let Some(backend) = &ctx.backend {
            self.app.telemetry.metrics.upstream_error(&backend.url, kind);
        }
        match self.unreached(ctx, Fault::Connect) {
            Ok(()) => e.set_retry(true),
            Err(refusal) => {
                e.set_retry(false);
                ctx.refusal = Some(refusal);
            }
        }
        e
    }

    /// The exchange broke. Sent again only if the backend cannot have had the whole request: it costs GPU time.
    pub(super) fn broken(&self, session: &Session, ctx: &mut Ctx, mut e: Box<Error>) -> Box<Error> {
        e.set_retry(false);
        // A client that does not read keeps the backend silent.
        let unread = matches!(e.etype(), ErrorType::WriteError | ErrorType::WriteTimedout);
        let silent = !unread && ctx.pulse.as_ref().is_some_and(Busy::is_overdue);
        let Some(backend) = ctx.backend.as_ref().filter(|_| silent || e.esource() == &ErrorSource::Upstream) else {
            return e;
        };
        let answered = session.response_written().filter(|head| !head.status.is_informational());
        let (answered, framed) =
            (answered.is_some(), answered.is_some_and(|head| head.headers.contains_key(CONTENT_LENGTH)));
        if !framed && ctx.answer.observer.as_ref().is_some_and(Observer::ended) {
            ctx.answer.unended = true;
            return e;
        }
        let silent = silent || e.etype() == &ErrorType::ReadTimedout;
        let unsent = !answered && ctx.body.is_some();
        let unsent = unsent && matches!(e.etype(), ErrorType::WriteError | ErrorType::WriteTimedout);
        let kind = match (answered, silent) {
            (false, true) => UpstreamError::FirstByteTimeout,
            (false, false) => UpstreamError::NoResponse,
            (true, true) => UpstreamError::Stalled,
            (true, false) => UpstreamError::Broken,
        };
        self.app.telemetry.metrics.upstream_error(&backend.url, kind);
        ctx.awaited = None;
        if unsent {
            if self.unreached(ctx, Fault::Reset).is_ok() {
                e.set_retry(true);
                return e;
            }
        } else if !silent {
            // Slow is not dead: the fleet judges silence by what else the backend does.
            self.app.fleet.failed(backend.id, Fault::Reset);
        }
        ctx.refusal = Some(Refusal::UpstreamFailed(reason(kind).to_owned()));
        ctx.settle(Outcome::Failed);
        e
    }

    /// Tells the client as well as it can still be told.
    pub(super) async fn fail(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        if ctx.answer.unended {
            return finish(session, &mut ctx.answer).await;
        }
        let answered = session.response_written().is_some_and(|head| !head.status.is_informational());
        ctx.departed = ctx.refusal.is_none() && departed(e);
        let refusal = match &ctx.refusal {
            _ if ctx.departed => return FailToProxy { error_code: 0, can_reuse_downstream: false },
            Some(refusal) => refusal.clone(),
            None if e.esource() == &ErrorSource::Downstream => {
                Refusal::InvalidRequest("its body breaks its own framing")
            }
            None if e.esource() == &ErrorSource::Upstream => Refusal::UpstreamFailed(e.etype().as_str().to_owned()),
            None => Refusal::Internal,
        };
        // Pingora drops the connection after an error, whatever is said here.
        session.set_keepalive(None);
        let told = match answered {
            false => self.refuse(session, ctx, &refusal).await,
            true if ctx.answer.events => break_off(session, &mut ctx.answer, &refusal).await,
            // Less than its length, or chunks without an end: the client sees that it is not whole.
            true => Ok(()),
        };
        if let Err(e) = told {
            log::debug!("a client left before it was told: {e}");
        }
        let error_code = refusal.status().as_u16();
        ctx.refusal = Some(refusal);
        FailToProxy { error_code, can_reuse_downstream: false }
    }
}

/// The end of an answer whose backend did not get to it.
async fn finish(session: &mut Session, answer: &mut Answer) -> FailToProxy {
    let rest = answer.observer.take().map(|mut observer| observer.finish()).unwrap_or_default();
    if let Err(e) = session.write_response_body(Some(rest), true).await {
        log::debug!("a client left before the end: {e}");
    }
    FailToProxy { error_code: answer.status, can_reuse_downstream: false }
}

/// The last event of an answer that will not be finished, behind what the observer still held back. Over HTTP/1.1 the connection closes after it without the
/// last chunk: a client that does not know the event still sees that the answer is not whole. Over HTTP/2 the stream
/// has to be ended, for a reset would overtake the event and drop it.
async fn break_off(session: &mut Session, answer: &mut Answer, refusal: &Refusal) -> pingora::Result<()> {
    let held_back = answer.observer.take().map(|mut observer| observer.finish()).unwrap_or_default();
    answer.note_tail(&held_back);
    let error = refusal.body();
    let mut event = BytesMut::with_capacity(held_back.len() + error.len() + 16);
    event.put_slice(&held_back);
    if !matches!(&answer.tail, b"\n\n" | b"\r\n" | [0, 0]) {
        event.put_slice(b"\n\n");
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
