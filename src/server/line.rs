//! A client's connection, whose reads end when its pulse stops: a head that does not arrive in time is
//! answered with 408, a silent backend looks as if the client had left, and the proxy finds out why.

use crate::error::Refusal;
use crate::proxy::pulse::{Phase, Pulse};
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

/// A head that is longer and not at its end yet is refused; HTTP/2 has the same limit. Pingora's own is a mebibyte.
const MAX_HEAD: usize = 64 * 1024;

/// As much as Pingora reads at first.
const FIRST_READ: usize = 4096;

#[derive(Debug)]
pub struct Line {
    io: Stream,
    /// Read while looking for the HTTP/2 preface, not given out yet.
    ahead: BytesMut,
    pulse: Arc<Pulse>,
    /// For a request's head, from its first byte; for the first head, from the start.
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes of the HTTP/2 preface that a client has yet to send who has announced it in its TLS handshake.
    preface: usize,
    /// Bytes of the head that is being read.
    head: usize,
    /// The client was told here why it is not served: nothing more is written or read.
    refused: bool,
}

// === impl Line ===

impl Line {
    pub fn new(io: Stream, pulse: Arc<Pulse>, limit: Duration) -> Self {
        let preface = if io.selected_alpn_proto() == Some(ALPN::H2) { PREFACE.len() } else { 0 };
        pulse.expect_within(limit);
        Self { io, ahead: BytesMut::new(), pulse, limit, timer: None, preface, head: 0, refused: false }
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

    /// So many bytes have come.
    fn note(&mut self, bytes: usize) {
        if self.preface > 0 {
            self.preface = self.preface.saturating_sub(bytes);
            if self.preface == 0 {
                self.pulse.enter(Phase::Off);
            }
        } else if self.pulse.phase() == Phase::Idle && bytes > 0 {
            self.pulse.enter(Phase::Head);
            self.pulse.expect_within(self.limit);
            self.head = bytes;
        } else {
            self.head = self.head.saturating_add(bytes);
        }
    }

    fn poll_pulse(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.pulse.deadline() else {
                return Poll::Pending;
            };
            // A timer that is early is set anew when it rings: each sign of life would cost it otherwise.
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if self.pulse.is_overdue() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// As far as the socket takes it at once: a client that does not read either is not waited for.
    fn refuse(&mut self, cx: &mut Context<'_>, refusal: &Refusal) {
        self.refused = true;
        let (status, code, body) = (refusal.status(), refusal.code(), refusal.body());
        let mut answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-thundergate-error: {code}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        if let Poll::Ready(Ok(_)) = Pin::new(&mut self.io).poll_write(cx, &answer) {
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
    }

    /// Whether `answer` is not for the client, or not any more. Before a request is served Pingora only writes that it
    /// cannot read its head; that is put in our words.
    fn is_answered(&mut self, cx: &mut Context<'_>, answer: &[u8]) -> bool {
        let unserved = || matches!(self.pulse.phase(), Phase::Idle | Phase::Head);
        if !self.refused && answer.starts_with(b"HTTP/1.1 4") && unserved() {
            let refusal = match answer.get(9..12) {
                Some(b"405") => Refusal::MethodNotAllowed,
                _ => Refusal::InvalidRequest("its head cannot be read"),
            };
            self.refuse(cx, &refusal);
        }
        self.refused
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let take = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..take]);
            this.ahead.advance(take);
            if this.ahead.is_empty() {
                // The connection may be held for long: the room is given back.
                this.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        if this.pulse.phase() == Phase::Head && this.head > MAX_HEAD {
            this.refuse(cx, &Refusal::HeadTooLarge { limit: MAX_HEAD });
        }
        if this.refused {
            return Poll::Ready(Ok(()));
        }
        let waiting = matches!(this.pulse.phase(), Phase::Idle | Phase::Head);
        // A head that is late is not read on, however steadily it trickles.
        if !waiting || !this.pulse.is_overdue() {
            let before = buf.filled().len();
            let read = Pin::new(&mut this.io).poll_read(cx, buf);
            this.note(buf.filled().len() - before);
            if read.is_ready() {
                return read;
            }
            ready!(this.poll_pulse(cx));
        }
        if this.pulse.phase() == Phase::Head {
            this.refuse(cx, &Refusal::RequestTimeout { what: "head", limit: this.limit });
        }
        // As if the client had nothing more to say.
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.is_answered(cx, buf) {
            true => Poll::Ready(Ok(buf.len())),
            false => Pin::new(&mut this.io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.is_answered(cx, bufs.first().map_or(&[], |buf| &**buf)) {
            true => Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum())),
            false => Pin::new(&mut this.io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[async_trait::async_trait]
impl Shutdown for Line {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

#[async_trait::async_trait]
impl Peek for Line {
    /// Only ever asked for the HTTP/2 preface.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        if self.begins_as_h2().await? {
            self.pulse.enter(Phase::Off);
        }
        let known = self.ahead.len().min(buf.len());
        buf[..known].copy_from_slice(&self.ahead[..known]);
        Ok(true)
    }
}

impl UniqueID for Line {
    fn id(&self) -> UniqueIDType {
        self.io.id()
    }
}

impl Ssl for Line {
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

impl GetTimingDigest for Line {
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

impl GetProxyDigest for Line {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.io.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.io.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Line {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.io.set_socket_digest(digest);
    }
}
