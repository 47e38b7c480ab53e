//! Reads a whole request body before a backend is chosen, such that Pingora still forwards one.
//!
//! Pingora 0.9.1 asks for a body that was consumed already only if its retry buffer holds some of it
//! (`proxy_h1.rs`, `proxy_handle_downstream`). That buffer copies what is read once it is enabled, and
//! drops everything for good when it passes 64 KiB. So it is used as a marker: enabled when it cannot
//! overflow any more, and [`replay`] puts the real body in its place. All of this leans on internals of
//! that one version; `tests/replay.rs` is the proof that they hold.

use crate::error::Refusal;
use bytes::{Bytes, BytesMut};
use http::header;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::Session;
use std::future::poll_fn;
use std::time::Duration;
use tokio::time::Instant;

/// What Pingora's retry buffer holds at most (`BODY_BUF_LIMIT`), and the most that one read of an
/// HTTP/1 body returns (`BODY_BUFFER_SIZE`).
const MARKER_MAX: usize = 64 * 1024;

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
/// `BodyTooLarge` and `RequestTimeout` when `bounds` are passed; `Gone` when the connection is of no more use.
pub async fn read(session: &mut Session, bounds: Bounds) -> Result<Bytes, Stop> {
    let length = content_length(session.req_header());
    if length.is_some_and(|length| length > bounds.size) {
        return Err(too_large(bounds));
    }
    if expects_continue(session.req_header()) {
        let answered = session.downstream_session.write_continue_response().await;
        answered.map_err(|e| Stop::Gone(e.into_down()))?;
    }
    let body = collect(session, length, bounds).await?;
    if !body.is_empty() && session.as_downstream().retry_buffer_truncated() {
        remark(session).await?;
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

async fn collect(session: &mut Session, length: Option<usize>, bounds: Bounds) -> Result<Bytes, Stop> {
    let started = Instant::now();
    let mut collected = Collected::Nothing;
    loop {
        let left = length.map(|length| length.saturating_sub(collected.len()));
        if left.is_none_or(|left| left <= MARKER_MAX) || session.is_http2() {
            session.enable_retry_buffering();
        }
        let now = Instant::now();
        let slowest = SLOWEST * u32::try_from(collected.len() / 1024).unwrap_or(u32::MAX);
        let deadline = (now + bounds.pause).min(started + bounds.pause + slowest);
        let piece = tokio::time::timeout_at(deadline, next(session, collected.len())).await;
        match piece {
            Err(_) => return Err(too_slow(bounds)),
            Ok(Err(e)) if e.etype() == &ErrorType::ReadTimedout => return Err(too_slow(bounds)),
            Ok(Err(e)) => return Err(Stop::Gone(e.into_down())),
            Ok(Ok(None)) => return Ok(collected.finish()),
            Ok(Ok(Some(piece))) => {
                if collected.len() + piece.len() > bounds.size {
                    return Err(too_large(bounds));
                }
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

/// An HTTP/1.1 chunked body of more than 64 KiB is the one case without a marker. The session is given a second
/// head to parse, of a request with a body of one byte, and reads that: parsing makes the retry buffer anew.
async fn remark(session: &mut Session) -> Result<(), Stop> {
    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nhost: -\r\ncontent-length: 1\r\n\r\n.";
    let gone = |e: Box<Error>| Stop::Gone(e.into_in());
    let ServerSession::H1(h1) = &mut *session.downstream_session else {
        let e = Error::explain(ErrorType::InternalError, "an HTTP/2 body left no marker");
        return Err(gone(e));
    };
    let request = h1.req_header().clone();
    h1.set_pipelined_prefix(BytesMut::from(HEAD));
    h1.read_request().await.map_err(gone)?;
    h1.read_body_bytes().await.map_err(gone)?;
    *h1.req_header_mut() = request;
    // What the client may have pipelined went with the old body reader.
    h1.set_server_keepalive(None);
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
