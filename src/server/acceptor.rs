//! Where connections come in: counted, limited, and timed.

use super::client_conn::ClientConn;
use super::tls::Certificates;
use crate::app::{App, Open, OpenGuard};
use crate::control::Side;
use crate::exchange::{CONNECTION, Exchange, HeadDeadline};
use crate::proxy::Proxy;
use pingora_core::apps::{HttpServerOptions, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::ShutdownWatch;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An HTTP/1.1 connection is closed after this many requests, to give back what its buffers have grown to.
const REQUESTS_PER_CONNECTION: u32 = 10_000;

/// A held step keeps its stream open, and a client may have all its programs on one connection.
const STREAMS: u32 = 1024;

/// Room for a request body in flight: the protocol's 64 KiB would cost a round trip for each.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes of answers that a stream keeps for a client that does not read: the library's 400 KiB would be 400 MB for a
/// connection's streams.
const STREAM_BACKLOG: usize = 64 * 1024;

/// Connections to the admin listener. They are counted apart from those of clients: operators get in when clients have
/// taken every place, and take none of theirs.
const ADMIN_CONNECTIONS: usize = 256;

/// Takes the connections of one listener.
pub struct Acceptor {
    app: Arc<App>,
    side: Side,
    proxy: Arc<Exchange<Proxy>>,
    limit: Arc<ConnectionLimit>,
    tls: Option<Arc<Certificates>>,
    /// Whether connections end after the request that they have.
    leave: ShutdownWatch,
}

/// Counts the connections of one side, all its listeners together.
#[derive(Default)]
pub struct ConnectionLimit {
    open: Arc<Open>,
    /// Whether the log says that no place is free.
    full: AtomicBool,
}

/// The executor of one side, for any number of acceptors.
pub fn http(app: &Arc<App>, side: Side) -> Arc<Exchange<Proxy>> {
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.keepalive_request_limit = Some(REQUESTS_PER_CONNECTION);
    options.h2_idle_timeout = Some(app.settings().timeouts.client_idle);
    Arc::new(Exchange::new(Proxy::new(Arc::clone(app), side), options, h2_options()))
}

// === impl ConnectionLimit ===

impl ConnectionLimit {
    /// Waits until every connection is closed.
    pub async fn empty(&self) {
        self.open.idle().await;
    }

    /// A place for a connection; `None` when all are taken. The log says so once, until there is one again.
    fn take(&self, limit: usize) -> Option<OpenGuard> {
        let permit = self.open.enter();
        let full = self.open.count() > limit;
        if full && !self.full.swap(true, Ordering::Relaxed) {
            log::warn!("connections are refused: {limit} are open (limits.connections)");
        } else if !full && self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
        (!full).then_some(permit)
    }
}

// === impl Acceptor ===

impl Acceptor {
    /// `proxy` is that of `side`.
    pub fn new(
        app: Arc<App>,
        side: Side,
        proxy: Arc<Exchange<Proxy>>,
        limit: Arc<ConnectionLimit>,
        tls: Option<Arc<Certificates>>,
        leave: ShutdownWatch,
    ) -> Self {
        Self { app, side, proxy, limit, tls, leave }
    }

    fn limit(&self) -> usize {
        match self.side {
            Side::Main => self.app.settings().limits.connections,
            Side::Admin => ADMIN_CONNECTIONS,
        }
    }
}

#[async_trait::async_trait]
impl ServerApp for Acceptor {
    /// A connection that was accepted is served even when the listener closes; only `leave` ends it.
    async fn process_new(self: &Arc<Self>, connection: Stream, _closed: &ShutdownWatch) -> Option<Stream> {
        // Before the handshake, which costs more than anything else that a stranger can ask for.
        let _permit = self.limit.take(self.limit())?;
        // For the handshake, and for each head after it.
        let (head, idle, write) = {
            let timeouts = &self.app.settings().timeouts;
            (timeouts.request_header, timeouts.client_idle, timeouts.stream_idle)
        };
        let connection = match &self.tls {
            Some(tls) => tls.handshake(connection, head).await?,
            None => connection,
        };
        let deadline = Arc::new(HeadDeadline::new(idle, head));
        let conn = ClientConn::new(connection, Arc::clone(&deadline), write);
        CONNECTION.scope(deadline, self.proxy.process_new(Box::new(conn), &self.leave)).await
    }
}

fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(STREAMS);
    options.initial_window_size(STREAM_WINDOW);
    options.initial_connection_window_size(CONNECTION_WINDOW);
    options.max_send_buffer_size(STREAM_BACKLOG);
    options
}
