//! When a request cannot be finished: what the client sees, and what is written down.

use super::Proxy;
use super::ctx::{Answer, Ctx};
use super::exchange::Broken;
use super::observe::Observer;
use crate::body::budget::Charge;
use crate::body::read::Stop;
use crate::error::Refusal;
use crate::fleet::BackendFault;
use crate::scheduler::Outcome;
use crate::telemetry::UpstreamError;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorSource, ErrorType};

/// What an access log says of a client that left before there was an answer (as nginx has it).
pub const CLIENT_GONE: u16 = 499;

impl Proxy {
    /// The exchange broke. `true`: it is tried again, which it is only if the backend cannot have had the whole
    /// request, for it costs GPU time. `false`: all is said, the client has its answer.
    ///
    /// # Errors
    /// What the client is to be told.
    pub(super) async fn broken(
        &self,
        session: &mut ServerSession,
        ctx: &mut Ctx,
        broken: Broken,
    ) -> Result<bool, Stop> {
        if let Broken::Client(e) = broken {
            return Err(Stop::Gone(e));
        }
        ctx.awaited = None;
        let answered = session.response_written().filter(|head| !head.status.is_informational());
        let (answered, framed) =
            (answered.is_some(), answered.is_some_and(|head| head.headers.contains_key(CONTENT_LENGTH)));
        if !framed && ctx.answer.observer.as_ref().is_some_and(Observer::ended) {
            // It came whole by its own word: the client is to get the end that did not come.
            let rest = ctx.answer.observer.take().map(|mut observer| observer.finish()).unwrap_or_default();
            return session
                .write_response_body(rest, true)
                .await
                .map(|()| false)
                .map_err(|e| Stop::Gone(e.into_down()));
        }
        let kind = match (answered, &broken) {
            (false, Broken::Silent) => UpstreamError::FirstByteTimeout,
            (false, _) => UpstreamError::NoResponse,
            (true, Broken::Silent) => UpstreamError::Stalled,
            (true, _) => UpstreamError::Broken,
        };
        if let Some(backend) = &ctx.backend {
            self.app.telemetry.metrics.upstream_error(&backend.url, kind);
            if !matches!(broken, Broken::Unsent | Broken::Silent) {
                // Slow is not dead: the fleet judges silence by what else the backend does.
                self.app.fleet.failed(backend.id, BackendFault::Reset);
            }
        }
        if matches!(broken, Broken::Unsent) && self.unreached(ctx, BackendFault::Reset).is_ok() {
            return Ok(true);
        }
        log::warn!("{}: {broken}", ctx.summary());
        ctx.settle(Outcome::Failed);
        Err(Refusal::UpstreamFailed(reason(kind).to_owned()).into())
    }

    /// Tells the client as well as it can still be told; whether its connection may go on.
    pub(super) async fn fail(&self, session: &mut ServerSession, ctx: &mut Ctx, stop: Stop) -> bool {
        let refusal = match stop {
            Stop::Refused(refusal) => refusal,
            Stop::Gone(e) if departed(&e) => {
                ctx.departed = true;
                return false;
            }
            Stop::Gone(e) => {
                session.set_keepalive(None);
                match e.esource() {
                    ErrorSource::Downstream => Refusal::InvalidRequest("its body breaks its own framing"),
                    _ => {
                        log::error!("{}: {e}", ctx.summary());
                        Refusal::Internal
                    }
                }
            }
        };
        ctx.place = None;
        if ctx.answer.sent.is_none() {
            // Nobody wants the body any more, and the client may take a while to read its answer.
            (ctx.body, ctx.charge) = (None, Charge::default());
        }
        let answered = session.response_written().is_some_and(|head| !head.status.is_informational());
        let told = match answered {
            false => self.refuse(session, ctx, &refusal).await,
            true if ctx.answer.events => break_off(session, &mut ctx.answer, &refusal).await,
            // Less than its length, or chunks without an end: the client sees that it is not whole.
            true => Ok(()),
        };
        if let Err(e) = &told {
            log::debug!("a client left before it was told: {e}");
        }
        ctx.refusal = Some(refusal);
        told.is_ok() && !answered
    }
}

/// The last event of an answer that will not be finished, behind what the observer still held back. Over HTTP/1.1 the
/// connection closes after it without the last chunk: a client that does not know the event still sees that the answer
/// is not whole. Over HTTP/2 the stream has to be ended, for a reset would overtake the event and drop it.
async fn break_off(session: &mut ServerSession, answer: &mut Answer, refusal: &Refusal) -> pingora_core::Result<()> {
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
    session.write_response_body(Bytes::from(event), end).await
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
