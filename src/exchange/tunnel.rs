//! Another protocol from here on (WebSocket): what either side says goes to the other.
//!
//! Each direction has a loop and a buffer of its own: a side that does not read never keeps the other from being read.
//! The client's half uses the calls of Pingora's session that may be given up and taken up again.

use super::{Result, UpstreamConn};
use bytes::{Buf, Bytes};
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::{Error, ErrorType};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Both directions of one tunnel.
struct Tunnel<'a> {
    session: &'a mut ServerSession,
    conn: &'a mut UpstreamConn,
    /// Bytes of the client that the backend has not taken yet.
    to_backend: Bytes,
    /// The last write to the backend may still be in a buffer.
    unflushed: bool,
    /// Neither side says anything more.
    client_ended: bool,
    backend_ended: bool,
    /// When bytes last moved.
    moved: Instant,
}

/// Carries bytes both ways until one side closes and the other has all that it said, until the backend's connection
/// breaks, or until nothing has moved for `idle`. Nothing is added to what was said.
///
/// # Errors
/// The client's connection broke, or the client does not read.
pub async fn run(session: &mut ServerSession, conn: &mut UpstreamConn, idle: Duration) -> Result<()> {
    // The tunnel has a timer of its own.
    session.set_write_timeout(None);
    let (to_backend, moved) = (Bytes::new(), Instant::now());
    let mut tunnel =
        Tunnel { session, conn, to_backend, unflushed: false, client_ended: false, backend_ended: false, moved };
    let mut timer = pin!(sleep(idle));
    let carried = poll_fn(|cx| {
        if let Poll::Ready(ended) = tunnel.poll(cx) {
            return Poll::Ready(ended);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if tunnel.moved.elapsed() >= idle {
                return Poll::Ready(tunnel.stalled());
            }
            timer.as_mut().reset((tunnel.moved + idle).into());
        }
    });
    carried.await?;
    session.write_response_body(Bytes::new(), true).await.map_err(Error::into_down)
}

// === impl Tunnel ===

impl Tunnel<'_> {
    /// How a tunnel ends in which nothing moves.
    ///
    /// # Errors
    /// The client does not take what was said to it: nothing more is written there.
    fn stalled(&self) -> Result<()> {
        match self.session.has_pending_downstream_proxy_tasks() {
            true => Err(Error::explain(ErrorType::WriteTimedout, "it does not read").into_down()),
            false => Ok(()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let upwards = self.poll_to_backend(cx)?;
        let downwards = self.poll_to_client(cx)?;
        match upwards.is_ready() || downwards.is_ready() {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    /// Ready when the client has closed and the backend has all that it said, or takes nothing more.
    fn poll_to_backend(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            if !self.to_backend.is_empty() {
                let Ok(written @ 1..) = ready!(self.conn.poll_write(cx, &self.to_backend)) else {
                    return Poll::Ready(Ok(()));
                };
                self.to_backend.advance(written);
                (self.unflushed, self.moved) = (true, Instant::now());
                continue;
            }
            if self.unflushed {
                let Ok(()) = ready!(self.conn.poll_flush(cx)) else {
                    return Poll::Ready(Ok(()));
                };
                self.unflushed = false;
            }
            if self.client_ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(pin!(self.session.read_request_body()).poll(cx)).map_err(Error::into_down)? {
                Some(said) => self.to_backend = said,
                None => self.client_ended = true,
            }
            self.moved = Instant::now();
        }
    }

    /// Ready when the backend has closed and the client has all that it said.
    fn poll_to_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            if self.session.has_pending_downstream_proxy_tasks() {
                let written = ready!(pin!(self.session.write_downstream_proxy_tasks()).poll(cx));
                written.map_err(Error::into_down)?;
                self.moved = Instant::now();
            }
            if !self.conn.read.is_empty() {
                let said = self.conn.read.split().freeze();
                self.session.send_downstream_proxy_task(HttpTask::UpgradedBody(Some(said), false));
                continue;
            }
            if self.backend_ended {
                return Poll::Ready(Ok(()));
            }
            self.backend_ended = !matches!(ready!(self.conn.poll_read(cx)), Ok(1..));
        }
    }
}
