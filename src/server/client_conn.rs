//! A client's connection, whose reads fail when a request's head is late or too large, and end when nobody asks for
//! anything any more.

use crate::exchange::{HeadDeadline, HeadFault, Phase};
use bytes::{Buf, BytesMut};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
    raw_connect::ProxyDigest,
    tls::{SslDigest, TlsRef},
};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How an HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a request's head: one that has more, and is not at its end yet, is refused. HTTP/2 has the same limit;
/// Pingora's own is a mebibyte.
const MAX_HEAD: usize = 64 * 1024;

/// Bytes that Pingora reads at first.
const FIRST_READ: usize = 4096;

/// The stream that Pingora reads a client's requests from.
#[derive(Debug)]
pub struct ClientConn {
    io: Stream,
    /// Bytes that were read while looking for the HTTP/2 preface, and not given out yet.
    ahead: BytesMut,
    deadline: Arc<HeadDeadline>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Time that the client may take to make room for more bytes: one that does not read holds a place on a backend.
    write_limit: Duration,
    /// Runs while a write waits for room.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Bytes of the HTTP/2 preface that a client has yet to send who has announced it in its TLS handshake.
    preface: usize,
    /// Bytes of the head that is being read.
    head: usize,
}

// === impl ClientConn ===

impl ClientConn {
    pub fn new(io: Stream, deadline: Arc<HeadDeadline>, write_limit: Duration) -> Self {
        let preface = if io.selected_alpn_proto() == Some(ALPN::H2) { PREFACE.len() } else { 0 };
        Self { io, ahead: BytesMut::new(), deadline, timer: None, write_limit, write_timer: None, preface, head: 0 }
    }

    /// Whether the connection begins as HTTP/2 does. Waits for no more bytes than it takes to know: a short request of
    /// HTTP/1.0 is no longer than the preface.
    ///
    /// # Errors
    /// The connection broke, or ended.
    async fn begins_as_h2(&mut self) -> io::Result<bool> {
        loop {
            let known = self.ahead.len().min(PREFACE.len());
            if self.ahead[..known] != PREFACE[..known] {
                return Ok(false);
            }
            if known == PREFACE.len() {
                return Ok(true);
            }
            let mut more = BytesMut::with_capacity(FIRST_READ);
            // Past the bytes that are here already.
            let here = std::mem::take(&mut self.ahead);
            let read = self.read_buf(&mut more).await;
            self.ahead = here;
            self.ahead.unsplit(more);
            if read? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Counts bytes that have come.
    fn note(&mut self, bytes: usize) {
        if self.preface > 0 {
            self.preface = self.preface.saturating_sub(bytes);
            if self.preface == 0 {
                self.deadline.enter(Phase::Off);
            }
        } else if self.deadline.phase() == Phase::Idle && bytes > 0 {
            self.deadline.enter(Phase::Head);
            self.head = bytes;
        } else {
            self.head = self.head.saturating_add(bytes);
        }
    }

    /// Gives on how a write went, and fails one that has waited too long. Pingora bounds the writes of bodies alone.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let limit = self.write_limit;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.deadline.deadline() else {
                return Poll::Pending;
            };
            // A timer that is early is set anew when it rings: each sign of life would cost it otherwise.
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if self.deadline.is_overdue() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

/// What is wrong with the head is told by the deadline; for Pingora the read has failed.
fn refused(_: HeadFault) -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl AsyncRead for ClientConn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let take = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..take]);
            this.ahead.advance(take);
            if this.ahead.is_empty() {
                // The connection may be held for long: the buffer is given back.
                this.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        if this.deadline.phase() == Phase::Head && this.head > MAX_HEAD {
            this.deadline.note_too_large(MAX_HEAD);
        }
        // A head that is late is not read on, however steadily it trickles.
        if let Some(fault) = this.deadline.head_fault() {
            return Poll::Ready(Err(refused(fault)));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.note(buf.filled().len() - before);
        if read.is_ready() {
            return read;
        }
        ready!(this.poll_deadline(cx));
        match this.deadline.head_fault() {
            Some(fault) => Poll::Ready(Err(refused(fault))),
            // As if the client had nothing more to say.
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for ClientConn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.bounded(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.bounded(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.bounded(cx, shut)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[async_trait::async_trait]
impl Shutdown for ClientConn {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

#[async_trait::async_trait]
impl Peek for ClientConn {
    /// Only ever asked for the HTTP/2 preface.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        match self.begins_as_h2().await {
            Ok(true) => self.deadline.enter(Phase::Off),
            Ok(false) => {}
            // What is wrong with the head is told where heads are read.
            Err(_) if self.deadline.head_fault().is_some() => {}
            Err(e) => return Err(e),
        }
        let known = self.ahead.len().min(buf.len());
        buf[..known].copy_from_slice(&self.ahead[..known]);
        Ok(true)
    }
}

impl UniqueID for ClientConn {
    fn id(&self) -> UniqueIDType {
        self.io.id()
    }
}

impl Ssl for ClientConn {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.io.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

impl GetTimingDigest for ClientConn {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.io.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.io.get_write_pending_time()
    }
}

impl GetProxyDigest for ClientConn {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.io.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.io.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for ClientConn {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.io.set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A client's connection with room for 1,000 bytes, and its client.
    fn pair() -> (ClientConn, DuplexStream) {
        let (near, far) = duplex(1000);
        let deadline = Arc::new(HeadDeadline::new(LIMIT, LIMIT));
        (ClientConn::new(Box::new(near), deadline, LIMIT), far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_waited_for_no_longer_than_the_limit() {
        let (mut conn, _far) = pair();
        let start = Instant::now();
        for _ in 0..3 {
            let written = conn.write_all(&[0; 1001]).await;
            assert_eq!(written.expect_err("no room").kind(), io::ErrorKind::TimedOut);
        }
        // Whatever is written afterwards is not waited for again.
        assert!((LIMIT..LIMIT + Duration::from_millis(10)).contains(&start.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn each_byte_that_a_client_takes_starts_its_time_anew() {
        let (mut conn, mut far) = pair();
        let reads = async {
            for _ in 0..10 {
                tokio::time::sleep(LIMIT / 2).await;
                far.read_exact(&mut [0; 100]).await.expect("bytes");
            }
        };
        let (written, ()) = tokio::join!(conn.write_all(&[0; 2000]), reads);
        written.expect("room in time");
    }
}
