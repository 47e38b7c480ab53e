//! A connection to a backend.

use bytes::BytesMut;
use pingora_core::protocols::Stream;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncReadExt, AsyncWrite};

/// Bytes asked for at once: at first, and once an answer has shown that it comes faster.
const READ: usize = 8 * 1024;
const READ_MORE: usize = 64 * 1024;

/// A connection to a backend.
#[derive(Debug)]
pub struct UpstreamConn {
    pub(super) stream: Stream,
    /// Pingora's hash of the peer: connections of one hash may stand in for each other.
    pub(super) peer: u64,
    /// Bytes that were read and not taken yet.
    pub read: BytesMut,
    room: usize,
}

// === impl UpstreamConn ===

impl UpstreamConn {
    pub(super) fn new(stream: Stream, peer: u64) -> Self {
        Self { stream, peer, read: BytesMut::new(), room: READ }
    }

    /// Sends head and body, in one write where the socket takes it. `false`: the backend has begun to answer before it
    /// had everything. A connection whose sending was cancelled is of no more use.
    ///
    /// # Errors
    /// The backend does not have the whole request, and will not.
    pub async fn send(&mut self, head: &[u8], body: &[u8]) -> io::Result<bool> {
        let (mut sent, mut failed) = (0, None);
        let whole = poll_fn(|cx| self.poll_send(cx, head, body, &mut sent, &mut failed)).await?;
        if whole {
            poll_fn(|cx| Pin::new(&mut self.stream).poll_flush(cx)).await?;
        }
        Ok(whole)
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        sent: &mut usize,
        failed: &mut Option<io::Error>,
    ) -> Poll<io::Result<bool>> {
        while failed.is_none() && *sent < head.len() + body.len() {
            let rest = [&head[(*sent).min(head.len())..], &body[sent.saturating_sub(head.len())..]].map(IoSlice::new);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &rest) {
                Poll::Ready(Ok(0)) => *failed = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => *sent += bytes,
                // An answer that the backend gave before it closed may still be there to be read.
                Poll::Ready(Err(e)) => *failed = Some(e),
                Poll::Pending => break,
            }
        }
        if failed.is_none() && *sent == head.len() + body.len() {
            return Poll::Ready(Ok(true));
        }
        let read = ready!(self.poll_read(cx));
        Poll::Ready(match (read, failed.take()) {
            (Ok(read), _) if read > 0 => Ok(false),
            (_, Some(e)) | (Err(e), None) => Err(e),
            (Ok(_), None) => Err(io::ErrorKind::UnexpectedEof.into()),
        })
    }

    /// Writes some of what is no request; the bytes may stay in a buffer until [`UpstreamConn::poll_flush`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Reads some more; zero bytes when the backend has closed. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn more(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// [`UpstreamConn::more`] as a poll.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read.reserve(self.room);
        let bytes = ready!(pin!(self.stream.read_buf(&mut self.read)).poll(cx))?;
        if bytes >= self.room {
            self.room = READ_MORE;
        }
        Poll::Ready(Ok(bytes))
    }
}

/// Whether the connection is open and nothing has come. `waker` is woken when that changes.
pub(super) fn is_quiet(stream: &mut Stream, waker: &Waker) -> bool {
    pin!(stream.read(&mut [0])).poll(&mut Context::from_waker(waker)).is_pending()
}
