//! Reads a whole request body before a backend is chosen: what it asks for decides where it goes, and no client holds a
//! place on a backend while its body trickles in.

use super::budget::Charge;
use crate::error::Refusal;
use crate::patience::Patience;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, header};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorType};
use pingora_http::RequestHeader;
use std::io::Cursor;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

/// Over HTTP/1.1 a longer body of known length is read straight from the connection: Pingora would copy it twice and
/// keep 64 KiB of buffer for as long as the request is there.
const LONG: usize = 16 * 1024;

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

/// How far a body has come.
struct Progress<'a> {
    bounds: Bounds,
    charge: &'a mut Charge,
    started: Instant,
    patience: Patience<'a>,
    length: Option<usize>,
    /// A body of one piece, the common case, is never copied.
    first: Bytes,
    rest: BytesMut,
}

/// Reads the request body to its end.
///
/// # Errors
///
/// `BodyTooLarge` and `RequestTimeout` when `bounds` are passed, `Overloaded` when `charge` can take no more; `Gone`
/// when the connection is of no more use.
pub async fn read(session: &mut ServerSession, bounds: Bounds, charge: &mut Charge) -> Result<Bytes, Stop> {
    let length = content_length(session.req_header());
    if length.is_some_and(|length| length > bounds.size) {
        return Err(too_large(bounds));
    }
    charge.expect(length.unwrap_or(0))?;
    if expects_continue(session.req_header()) {
        let answered = session.write_continue_response().await;
        answered.map_err(|e| Stop::Gone(e.into_down()))?;
    }
    let timer = pin!(tokio::time::sleep(bounds.pause));
    let mut progress = Progress::new(bounds, charge, length, Patience::new(timer, Instant::now() + bounds.pause));
    let long = session.as_http1().is_some() && length.is_some_and(|length| length > LONG);
    loop {
        if long && progress.read() > 0 {
            straight(session, &mut progress).await?;
            break;
        }
        match progress.next(session.read_request_body()).await? {
            Ok(Some(piece)) => progress.push(piece)?,
            Ok(None) => break,
            Err(e) if e.etype() == &ErrorType::ReadTimedout => return Err(too_slow(bounds)),
            Err(e) => return Err(Stop::Gone(e.into_down())),
        }
    }
    Ok(progress.finish())
}

/// Reads the rest of a body of known length past the session, which is made anew: for Pingora the request's body ends
/// where this stops to read.
async fn straight(session: &mut ServerSession, progress: &mut Progress<'_>) -> Result<(), Stop> {
    let nothing: Stream = Box::new(Cursor::new(Vec::new()));
    let remaining = session.get_keepalive_reuses_remaining();
    let (keepalive, pipelining) = (session.get_keepalive(), session.pipelining_enabled());
    let (reading, writing) = (session.get_read_timeout(), session.get_write_timeout());
    let placeholder = RequestHeader::build(Method::POST, b"/", Some(0)).map_err(|e| Stop::Gone(e.into_in()))?;
    let request = std::mem::replace(session.req_header_mut(), placeholder);
    let ServerSession::H1(h1) = std::mem::replace(session, ServerSession::new_http1(nothing)) else {
        return Err(Refusal::Internal.into());
    };
    let mut connection = h1.into_inner();
    let filled = progress.fill(&mut connection).await;
    *session = ServerSession::new_http1(connection);
    let left = progress.length.unwrap_or(0).saturating_sub(progress.read());
    let head = format!("POST / HTTP/1.1\r\nhost: -\r\ncontent-length: {left}\r\n\r\n");
    session.set_pipelined_prefix(BytesMut::from(head.as_bytes()));
    session.read_request().await.map_err(|e| Stop::Gone(e.into_in()))?;
    // Before the request is in its place again: its length is looked at once.
    session.is_body_done();
    if left == 0 {
        session.read_request_body().await.map_err(|e| Stop::Gone(e.into_in()))?;
    }
    *session.req_header_mut() = request;
    session.set_keepalive(keepalive);
    session.set_keepalive_reuses_remaining(remaining);
    session.set_pipelining_enabled(pipelining);
    session.set_read_timeout(reading);
    session.set_write_timeout(writing);
    filled
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

// === impl Progress ===

impl<'a> Progress<'a> {
    fn new(bounds: Bounds, charge: &'a mut Charge, length: Option<usize>, patience: Patience<'a>) -> Self {
        let (first, rest) = (Bytes::new(), BytesMut::new());
        Self { bounds, charge, started: Instant::now(), patience, length, first, rest }
    }

    /// Bytes so far.
    fn read(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    /// Waits for more, neither too long at a time nor in all.
    async fn next<T>(&mut self, more: impl Future<Output = T>) -> Result<T, Stop> {
        let slowest = SLOWEST * u32::try_from(self.read() / 1024).unwrap_or(u32::MAX);
        self.patience.deadline = (Instant::now() + self.bounds.pause).min(self.started + self.bounds.pause + slowest);
        tokio::select! {
            biased;
            more = more => Ok(more),
            () = self.patience.over() => Err(too_slow(self.bounds)),
        }
    }

    fn push(&mut self, piece: Bytes) -> Result<(), Stop> {
        if self.read() + piece.len() > self.bounds.size {
            return Err(too_large(self.bounds));
        }
        self.charge.grow(piece.len())?;
        if self.read() == 0 {
            self.first = piece;
        } else {
            self.gather(piece.len());
            self.rest.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// Makes room for some more behind all that is here. It grows by doubling, but not past a length that is known.
    fn gather(&mut self, more: usize) {
        let known = self.length.unwrap_or(0);
        let before = std::mem::take(&mut self.first);
        if !before.is_empty() {
            self.rest = BytesMut::with_capacity(known.min(PREALLOCATE_MAX).max(before.len() + more));
            self.rest.extend_from_slice(&before);
        }
        if self.rest.capacity() - self.rest.len() < more {
            let wanted = (self.rest.capacity() * 2).min(self.length.unwrap_or(usize::MAX));
            self.rest.reserve(wanted.saturating_sub(self.rest.len()).max(more));
        }
    }

    /// Reads up to the known length.
    async fn fill(&mut self, connection: &mut Stream) -> Result<(), Stop> {
        let length = self.length.unwrap_or(0);
        while self.read() < length {
            self.gather(1);
            let mut rest = std::mem::take(&mut self.rest);
            let left = length - rest.len();
            let mut room = (&mut rest).limit(left);
            let read = self.next(connection.read_buf(&mut room)).await;
            self.rest = rest;
            match read? {
                Ok(0) => {
                    let closed = Error::explain(ErrorType::ConnectionClosed, "before the end of the body");
                    return Err(Stop::Gone(closed.into_down()));
                }
                Ok(bytes) => self.charge.grow(bytes)?,
                Err(e) => {
                    return Err(Stop::Gone(Error::because(ErrorType::ReadError, "reading a body", e).into_down()));
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Bytes {
        if self.first.is_empty() { self.rest.freeze() } else { self.first }
    }
}

// === impl Stop ===

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
