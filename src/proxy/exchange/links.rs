//! Connections to backends, kept between requests.

use crate::scheduler::BackendId;
use bytes::BytesMut;
use parking_lot::Mutex;
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::Stream;
use pingora_core::upstreams::peer::HttpPeer;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// How long an idle connection is kept: uvicorn closes its side after 5 seconds.
const KEPT_IDLE: Duration = Duration::from_secs(4);

/// Kept connections, all backends together.
const KEPT: usize = 4096;

/// Bytes asked for at once: at first, and once an answer has shown that it comes faster.
const READ: usize = 8 * 1024;
const READ_MORE: usize = 64 * 1024;

/// The thread whose runtime a connection belongs to, the backend, and where its name leads now.
type Place = (ThreadId, BackendId, SocketAddr);

/// Opens connections and keeps those that are idle.
pub struct Links {
    connector: TransportConnector,
    idle: Mutex<Idle>,
    /// Rings when an idle connection has something to say, which can only be that it is closed.
    bell: Arc<Bell>,
    bell_rope: Waker,
}

#[derive(Default)]
struct Bell(Notify);

#[derive(Default)]
struct Idle {
    /// The one that was used last is used next: the others may close.
    places: HashMap<Place, Vec<(Instant, Stream)>>,
    count: usize,
}

/// A connection to a backend.
#[derive(Debug)]
pub struct Link {
    stream: Stream,
    place: Place,
    /// Read, and not taken yet.
    pub read: BytesMut,
    room: usize,
}

// === impl Links ===

impl Links {
    pub fn new() -> Self {
        let bell = Arc::<Bell>::default();
        Self {
            connector: TransportConnector::new(Some(ConnectorOptions::new(0))),
            idle: Mutex::default(),
            bell_rope: Waker::from(Arc::clone(&bell)),
            bell,
        }
    }

    /// An idle connection that is still open, as far as anybody can tell.
    pub fn take(&self, backend: BackendId, address: SocketAddr) -> Option<Link> {
        let place = (thread::current().id(), backend, address);
        loop {
            let (since, stream) = {
                let mut idle = self.idle.lock();
                let kept = idle.places.get_mut(&place)?.pop()?;
                idle.count -= 1;
                kept
            };
            let mut link = Link::new(stream, place);
            if since.elapsed() < KEPT_IDLE && is_quiet(&mut link.stream, Waker::noop()) {
                return Some(link);
            }
        }
    }

    /// A new connection. Pingora's own timeouts would start a thread that wakes a hundred times a second.
    ///
    /// # Errors
    /// The backend cannot be reached.
    pub async fn connect(
        &self,
        peer: &HttpPeer,
        backend: BackendId,
        address: SocketAddr,
    ) -> pingora_core::Result<Link> {
        let stream = self.connector.new_stream(peer).await?;
        Ok(Link::new(stream, (thread::current().id(), backend, address)))
    }

    /// Keeps a connection whose last answer was whole.
    pub fn keep(&self, mut link: Link) {
        if !link.read.is_empty() || !is_quiet(&mut link.stream, &self.bell_rope) {
            // It says what nobody asked for, or is closed.
            return;
        }
        let mut idle = self.idle.lock();
        if idle.count < KEPT {
            idle.count += 1;
            idle.places.entry(link.place).or_default().push((Instant::now(), link.stream));
        }
    }

    /// Closes what its backend has closed, and what has been idle for too long; ends with the process.
    pub async fn sweep(&self) {
        loop {
            // Rung or not, in time or late: all are looked at.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.bell.0.notified()).await;
            let mut closed = Vec::new();
            let mut idle = self.idle.lock();
            idle.places.retain(|_, kept| {
                let gone = |(since, stream): &mut (Instant, Stream)| {
                    since.elapsed() >= KEPT_IDLE || !is_quiet(stream, &self.bell_rope)
                };
                closed.extend(kept.extract_if(.., gone));
                !kept.is_empty()
            });
            idle.count -= closed.len();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Neither closed nor saying anything. When that changes, `waker` is woken.
fn is_quiet(stream: &mut Stream, waker: &Waker) -> bool {
    pin!(stream.read(&mut [0])).poll(&mut Context::from_waker(waker)).is_pending()
}

// === impl Link ===

impl Link {
    fn new(stream: Stream, place: Place) -> Self {
        Self { stream, place, read: BytesMut::new(), room: READ }
    }

    /// Sends head and body, in one write where the socket takes it. `false`: the backend has begun to answer before it
    /// had everything. Cancelled, the connection is of no more use.
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
                // What it said before it closed may still be there to be read.
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

    /// Sends what is no request.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads some more; zero bytes when the backend has closed. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn more(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read.reserve(self.room);
        let bytes = ready!(pin!(self.stream.read_buf(&mut self.read)).poll(cx))?;
        if bytes >= self.room {
            self.room = READ_MORE;
        }
        Poll::Ready(Ok(bytes))
    }
}
