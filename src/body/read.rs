//! Reads a whole request body before a backend is chosen: what it asks for decides where it goes, and no client holds a
//! place on a backend while its body trickles in.

use super::budget::Charge;
use crate::error::Refusal;
use bytes::Bytes;
use http::header;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorType};
use pingora_http::RequestHeader;
use std::time::Duration;
use tokio::time::Instant;

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
    Ok(collect(session, length, bounds, charge).await?.finish())
}

async fn collect(
    session: &mut ServerSession,
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
        let piece = tokio::time::timeout_at(deadline, session.read_request_body()).await;
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
