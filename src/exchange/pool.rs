//! Connections to backends, kept between requests.

use super::conn::{UpstreamConn, is_quiet};
use parking_lot::Mutex;
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::Stream;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};
use thread_local::ThreadLocal;
use tokio::sync::Notify;

/// Time that an idle connection is kept where its peer does not say.
const KEPT_IDLE: Duration = Duration::from_secs(4);

/// The most connections that are kept, all backends together.
const KEPT: usize = 4096;

/// Opens connections and keeps those that are idle. A connection belongs to the runtime of the thread that opened it,
/// so each thread keeps its own; only the sweep looks at those of others.
pub struct ConnPool {
    connector: TransportConnector,
    idle: ThreadLocal<Mutex<Idle>>,
    /// Idle connections of all threads.
    count: AtomicUsize,
    /// Notified when an idle connection has something to say, which can only be that it is closed.
    watch: Arc<IdleWatch>,
    idle_waker: Waker,
}

#[derive(Default)]
struct IdleWatch(Notify);

/// The idle connections of one thread, by the hash of their peer. The one that was used last is used next: the others
/// may close.
type Idle = HashMap<u64, Vec<Kept>>;

struct Kept {
    until: Instant,
    stream: Stream,
}

// === impl ConnPool ===

impl ConnPool {
    pub fn new() -> Self {
        let watch = Arc::<IdleWatch>::default();
        Self {
            connector: TransportConnector::new(Some(ConnectorOptions::new(0))),
            idle: ThreadLocal::new(),
            count: AtomicUsize::new(0),
            idle_waker: Waker::from(Arc::clone(&watch)),
            watch,
        }
    }

    /// An idle connection that is still open, as far as anybody can tell.
    pub fn take(&self, peer: &HttpPeer) -> Option<UpstreamConn> {
        let (peer, now) = (peer.reuse_hash(), Instant::now());
        let mut idle = self.idle.get()?.lock();
        let of_peer = idle.get_mut(&peer)?;
        while let Some(mut kept) = of_peer.pop() {
            self.count.fetch_sub(1, Ordering::Relaxed);
            if now < kept.until && is_quiet(&mut kept.stream, Waker::noop()) {
                return Some(UpstreamConn::new(kept.stream, peer));
            }
        }
        None
    }

    /// A new connection.
    ///
    /// # Errors
    /// The backend cannot be reached.
    pub async fn connect(&self, peer: &HttpPeer) -> pingora_core::Result<UpstreamConn> {
        Ok(UpstreamConn::new(self.connector.new_stream(peer).await?, peer.reuse_hash()))
    }

    /// Keeps a connection whose last answer was whole, for `limit` at the longest.
    pub fn keep(&self, mut conn: UpstreamConn, limit: Option<Duration>) {
        if !conn.read.is_empty() || !is_quiet(&mut conn.stream, &self.idle_waker) {
            // The backend says what nobody asked for, or has closed.
            return;
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= KEPT {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let kept = Kept { until: Instant::now() + limit.unwrap_or(KEPT_IDLE), stream: conn.stream };
        self.idle.get_or_default().lock().entry(conn.peer).or_default().push(kept);
    }

    /// Closes what its backend has closed, and what has been idle for too long; ends with the process.
    pub async fn sweep(&self) {
        loop {
            // Notified or not, in time or late: all connections are looked at.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.watch.0.notified()).await;
            for idle in &self.idle {
                let closed = self.stale(&mut idle.lock());
                self.count.fetch_sub(closed.len(), Ordering::Relaxed);
                // Closed here, when nobody waits for the lock any more.
                drop(closed);
            }
        }
    }

    /// Takes out of `idle` the connections that are of no more use.
    fn stale(&self, idle: &mut Idle) -> Vec<Kept> {
        let (mut closed, now) = (Vec::new(), Instant::now());
        idle.retain(|_, of_peer| {
            let stale = |kept: &mut Kept| now >= kept.until || !is_quiet(&mut kept.stream, &self.idle_waker);
            closed.extend(of_peer.extract_if(.., stale));
            !of_peer.is_empty()
        });
        closed
    }
}

impl Wake for IdleWatch {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}
