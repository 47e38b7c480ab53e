//! Reads a whole request body before a backend is chosen: what it asks for decides where it goes, and no client holds a
//! place on a backend while its body trickles in.

use super::failure::Stop;
use crate::body::budget::Charge;
use crate::error::Refusal;
use crate::exchange::IdleTimer;
use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora::http::RequestHeader;
use pingora_proxy::Session;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::sleep;

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

/// The pieces of a body so far. A body of one piece, the common case, is never copied.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    rest: BytesMut,
}

/// Reads the request body to its end.
///
/// # Errors
/// `BodyTooLarge` and `RequestTimeout` when `bounds` are passed, `Overloaded` when `charge` can take no more; `Gone`
/// when the connection is of no more use.
pub async fn read(session: &mut Session, bounds: Bounds, charge: &mut Charge) -> Result<Bytes, Stop> {
    let length = content_length(session.req_header());
    if length.is_some_and(|length| length > bounds.size) {
        return Err(too_large(bounds));
    }
    charge.expect(length.unwrap_or(0))?;
    if expects_continue(session.req_header()) {
        let answered = session.write_continue_response().await;
        answered.map_err(|e| Stop::Gone(e.into_down()))?;
    }
    let started = Instant::now();
    let mut timer = pin!(sleep(bounds.pause));
    let mut idle = IdleTimer::new(timer.as_mut(), started, bounds.pause);
    let mut pieces = Pieces::default();
    loop {
        let piece = tokio::select! {
            biased;
            piece = session.read_request_body() => piece.map_err(|e| Stop::Gone(e.into_down()))?,
            () = idle.over() => return Err(too_slow(bounds)),
        };
        let Some(piece) = piece else {
            return Ok(pieces.whole());
        };
        if pieces.len() + piece.len() > bounds.size {
            return Err(too_large(bounds));
        }
        charge.grow(piece.len())?;
        pieces.push(piece, length.unwrap_or(0));
        let slowest = bounds.pause + SLOWEST * u32::try_from(pieces.len() / 1024).unwrap_or(u32::MAX);
        idle.expect_within(Instant::now(), bounds.pause.min(slowest.saturating_sub(started.elapsed())));
    }
}

fn content_length(request: &RequestHeader) -> Option<usize> {
    let value = request.headers.get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

/// A client of HTTP/1.0 that expects anything is not answered (RFC 9110, 10.1.1).
fn expects_continue(request: &RequestHeader) -> bool {
    let expect = request.headers.get(header::EXPECT).filter(|_| request.version > Version::HTTP_10);
    expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn too_large(bounds: Bounds) -> Stop {
    Stop::Refused(Refusal::BodyTooLarge { limit: bounds.size })
}

fn too_slow(bounds: Bounds) -> Stop {
    Stop::Refused(Refusal::RequestTimeout { what: "body", limit: bounds.pause })
}

// === impl Pieces ===

impl Pieces {
    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    /// `length`: of the whole body, if it is known; else zero.
    fn push(&mut self, piece: Bytes, length: usize) {
        if self.len() == 0 {
            self.first = piece;
            return;
        }
        let before = std::mem::take(&mut self.first);
        if !before.is_empty() {
            self.rest = BytesMut::with_capacity(length.min(PREALLOCATE_MAX).max(before.len() + piece.len()));
            self.rest.extend_from_slice(&before);
        }
        if self.rest.capacity() - self.rest.len() < piece.len() {
            // Room grows by doubling, but not past a length that is known.
            let wanted = (self.rest.capacity() * 2).min(if length > 0 { length } else { usize::MAX });
            self.rest.reserve(wanted.saturating_sub(self.rest.len()).max(piece.len()));
        }
        self.rest.extend_from_slice(&piece);
    }

    fn whole(self) -> Bytes {
        if self.first.is_empty() { self.rest.freeze() } else { self.first }
    }
}
