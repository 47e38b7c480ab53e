//! Reads a whole request body before a backend is chosen, such that Pingora still forwards one.
//!
//! Pingora 0.9.1 asks for a body that was consumed already only if its retry buffer holds some of it
//! (`proxy_h1.rs`, `proxy_handle_downstream`). That buffer copies what is read once it is enabled, and drops
//! everything for good when it passes 64 KiB. So it is used as a marker, the smaller the better, and [`replay`] puts
//! the real body in its place. All of this leans on internals of that one version; `tests/replay.rs` is the proof
//! that they hold.

use super::budget::Charge;
use crate::error::Refusal;
use bytes::{Bytes, BytesMut};
use http::{Method, header};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::Session;
use std::future::poll_fn;
use std::time::Duration;
use tokio::time::Instant;

/// What the retry buffer holds at most (`BODY_BUF_LIMIT`): up to this length a body may be its own marker.
const OWN_MARKER: usize = 64 * 1024;

/// A longer body that came in pieces is marked anew: [`remark`] lets go of what HTTP/1 was read through.
const SMALL: usize = 16 * 1024;

/// Room that is set aside on the word of a `Content-Length` alone; more only as bytes arrive.
const PREALLOCATE_MAX: usize = 1024 * 1024;

/// A body may take this much longer in all for each KiB that has arrived, so that one byte every few
/// seconds does not hold a place for ever. Slower than any client that means it.
const SLOWEST: Duration = Duration::from_secs(1);

/// What a client may send, and how slowly.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes.
    pub size: usize,
    /// The longest pause between two pieces of the body.
    pub pause: Duration,
}

/// Why a request goes no further.
#[derive(Debug)]
pub enum Stop {
    /// The client is there, and is told.
    Refused(Refusal),
    /// The client went away, or broke the framing.
    Gone(Box<Error>),
}

/// The bytes so far. A body of one piece, the common case, is never copied.
enum Collected {
    Nothing,
    One(Bytes),
    Many(Vec<u8>),
}

/// Reads the request body to its end. Afterwards Pingora forwards a body to whatever backend is chosen, as
/// often as one is chosen, and [`replay`] says which.
///
/// # Errors
///
/// `BodyTooLarge` and `RequestTimeout` when `bounds` are passed, `Overloaded` when `charge` can take no more; `Gone`
/// when the connection is of no more use.
pub async fn read(session: &mut Session, bounds: Bounds, charge: &mut Charge) -> Result<Bytes, Stop> {
    let length = content_length(session.req_header());
    if length.is_some_and(|length| length > bounds.size) {
        return Err(too_large(bounds));
    }
    charge.expect(length.unwrap_or(0))?;
    if expects_continue(session.req_header()) {
        let answered = session.downstream_session.write_continue_response().await;
        answered.map_err(|e| Stop::Gone(e.into_down()))?;
    }
    // One frame of HTTP/2 is always small enough.
    if session.is_http2() || length.is_none_or(|length| length <= OWN_MARKER) {
        session.enable_retry_buffering();
    }
    let body = collect(session, length, bounds, charge).await?;
    let in_pieces = matches!(body, Collected::Many(_));
    let body = body.finish();
    if !body.is_empty() && !session.is_http2() {
        // No read goes past a known length, but the one that brought the head may have.
        let alone = length.is_some() && in_pieces;
        let unmarked = length.is_some_and(|length| length > OWN_MARKER);
        if unmarked || session.as_downstream().retry_buffer_truncated() || (alone && body.len() > SMALL) {
            remark(session, alone).await?;
        }
    }
    Ok(body)
}

/// Frames the request to the backend: always by length, whatever the client did.
///
/// # Errors
///
/// None in practice: a number is a valid header value.
pub fn prepare_upstream_headers(request: &mut RequestHeader, length: usize) -> pingora::Result<()> {
    request.remove_header(&header::TRANSFER_ENCODING);
    request.remove_header(&header::EXPECT);
    request.insert_header(header::CONTENT_LENGTH, length)
}

/// Puts `full` in the place of what Pingora kept of the body; for `request_body_filter`. What is sent may be
/// longer or shorter than what was read.
pub fn replay(body: &mut Option<Bytes>, end_of_stream: bool, full: &Bytes) {
    // `None` would end the body, an empty piece before the end is passed over.
    *body = Some(if end_of_stream { full.clone() } else { Bytes::new() });
}

async fn collect(
    session: &mut Session,
    length: Option<usize>,
    bounds: Bounds,
    charge: &mut Charge,
) -> Result<Collected, Stop> {
    let started = Instant::now();
    let mut collected = Collected::Nothing;
    loop {
        let now = Instant::now();
        let slowest = SLOWEST * u32::try_from(collected.len() / 1024).unwrap_or(u32::MAX);
        let deadline = (now + bounds.pause).min(started + bounds.pause + slowest);
        let piece = tokio::time::timeout_at(deadline, next(session, collected.len())).await;
        match piece {
            Err(_) => return Err(too_slow(bounds)),
            Ok(Err(e)) if e.etype() == &ErrorType::ReadTimedout => return Err(too_slow(bounds)),
            Ok(Err(e)) => return Err(Stop::Gone(e.into_down())),
            Ok(Ok(None)) => return Ok(collected),
            Ok(Ok(Some(piece))) => {
                if collected.len() + piece.len() > bounds.size {
                    return Err(too_large(bounds));
                }
                charge.grow(piece.len())?;
                collected.push(piece, length);
            }
        }
    }
}

/// The next piece. Over HTTP/2 only the first frame passes the retry buffer: one frame (16 KiB) is marker enough,
/// and no length is needed to know that it fits.
async fn next(session: &mut Session, read: usize) -> pingora::Result<Option<Bytes>> {
    match &mut *session.downstream_session {
        ServerSession::H2(h2) if read > 0 => poll_fn(|cx| h2.poll_read_body_bytes(cx))
            .await
            .transpose()
            .map_err(|e| Error::because(ErrorType::ReadError, "reading an HTTP/2 body", e)),
        any => any.read_request_body().await,
    }
}

/// Marks an HTTP/1.1 body that has no marker. The session is given a second head to parse, of a request with a body of
/// one byte, and reads that: parsing makes the buffers anew. What the client may have pipelined goes with the old ones:
/// unless `alone`, the connection ends with this request.
async fn remark(session: &mut Session, alone: bool) -> Result<(), Stop> {
    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nhost: -\r\ncontent-length: 1\r\n\r\n.";
    let gone = |e: Box<Error>| Stop::Gone(e.into_in());
    session.enable_retry_buffering();
    let keepalive = session.get_keepalive().filter(|_| alone);
    let ServerSession::H1(h1) = &mut *session.downstream_session else {
        return Err(gone(Error::explain(ErrorType::InternalError, "not an HTTP/1 session")));
    };
    let placeholder = RequestHeader::build(Method::POST, b"/", Some(0)).map_err(gone)?;
    let request = std::mem::replace(h1.req_header_mut(), placeholder);
    h1.set_pipelined_prefix(BytesMut::from(HEAD));
    h1.read_request().await.map_err(gone)?;
    h1.read_body_bytes().await.map_err(gone)?;
    *h1.req_header_mut() = request;
    h1.set_server_keepalive(keepalive);
    Ok(())
}

fn content_length(request: &RequestHeader) -> Option<usize> {
    let value = request.headers.get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

fn expects_continue(request: &RequestHeader) -> bool {
    let expect = request.headers.get(header::EXPECT);
    expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn too_large(bounds: Bounds) -> Stop {
    Stop::Refused(Refusal::BodyTooLarge { limit: bounds.size })
}

fn too_slow(bounds: Bounds) -> Stop {
    Stop::Refused(Refusal::RequestTimeout { what: "body", limit: bounds.pause })
}

// === impl Collected ===

impl Collected {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(piece) => piece.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn push(&mut self, piece: Bytes, length: Option<usize>) {
        *self = match std::mem::replace(self, Self::Nothing) {
            Self::Nothing if piece.is_empty() => Self::Nothing,
            Self::Nothing => Self::One(piece),
            Self::One(first) => {
                let known = length.unwrap_or(0).min(PREALLOCATE_MAX);
                let mut bytes = Vec::with_capacity(known.max(first.len() + piece.len()));
                bytes.extend_from_slice(&first);
                Self::append(bytes, &piece, length)
            }
            Self::Many(bytes) => Self::append(bytes, &piece, length),
        };
    }

    /// Grows by doubling, but not past a length that is known.
    fn append(mut bytes: Vec<u8>, piece: &[u8], length: Option<usize>) -> Self {
        if bytes.capacity() - bytes.len() < piece.len() {
            let wanted = (bytes.capacity() * 2).min(length.unwrap_or(usize::MAX));
            let wanted = wanted.max(bytes.len() + piece.len());
            bytes.reserve_exact(wanted - bytes.len());
        }
        bytes.extend_from_slice(piece);
        Self::Many(bytes)
    }

    fn finish(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(piece) => piece,
            Self::Many(bytes) => Bytes::from(bytes),
        }
    }
}

// === impl Stop ===

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
