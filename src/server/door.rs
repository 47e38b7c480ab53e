//! Where connections come in: counted, limited, and timed.

use super::line::Line;
use super::tls::Certificates;
use crate::app::{Open, OpenGuard};
use crate::proxy::Proxy;
use crate::proxy::pulse::{CONNECTION, Pulse};
use pingora_core::apps::{HttpServerOptions, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// An HTTP/1.1 connection is closed after this many requests, to give back what its buffers have grown to.
const REQUESTS_PER_CONNECTION: u32 = 10_000;

/// A held step keeps its stream open, and a client may have all its programs on one connection.
const STREAMS: u32 = 1024;

/// Room for a request body in flight: the protocol's 64 KiB would cost a round trip for each.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

pub struct Door {
    proxy: Arc<HttpProxy<Proxy>>,
    seats: Arc<Seats>,
    tls: Option<Arc<Certificates>>,
    /// `timeouts.request_header`
    head: Duration,
}

/// The connections of one side, all its listeners together.
pub struct Seats {
    open: Arc<Open>,
    limit: usize,
    full: AtomicBool,
}

/// Makes what serves requests, behind any number of doors. `idle` is how long a connection is kept between two.
pub fn http(proxy: Proxy, conf: &Arc<ServerConf>, idle: Duration) -> Arc<HttpProxy<Proxy>> {
    let mut proxy = HttpProxy::new(proxy, Arc::clone(conf));
    proxy.handle_init_modules();
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.keepalive_request_limit = Some(REQUESTS_PER_CONNECTION);
    options.h2_idle_timeout = Some(idle);
    proxy.server_options = Some(options);
    proxy.h2_options = Some(h2_options());
    Arc::new(proxy)
}

// === impl Seats ===

impl Seats {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { open: Arc::default(), limit, full: AtomicBool::new(false) })
    }

    /// Waits until every connection is closed.
    pub async fn empty(&self) {
        self.open.idle().await;
    }

    /// `None` when all are taken; said once, until there is one again.
    fn take(&self) -> Option<OpenGuard> {
        let place = self.open.enter();
        let full = self.open.count() > self.limit;
        if full && !self.full.swap(true, Ordering::Relaxed) {
            log::warn!("connections are refused: {} are open (limits.connections)", self.limit);
        } else if !full && self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
        (!full).then_some(place)
    }
}

// === impl Door ===

impl Door {
    /// `head` is the time for a request's head, and for the handshake before the first.
    pub fn new(
        proxy: Arc<HttpProxy<Proxy>>,
        seats: Arc<Seats>,
        tls: Option<Arc<Certificates>>,
        head: Duration,
    ) -> Self {
        Self { proxy, seats, tls, head }
    }
}

#[async_trait::async_trait]
impl ServerApp for Door {
    async fn process_new(self: &Arc<Self>, connection: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        // Before the handshake, which costs more than anything else that a stranger can ask for.
        let _place = self.seats.take()?;
        let connection = match &self.tls {
            Some(tls) => tls.handshake(connection, self.head).await?,
            None => connection,
        };
        let pulse = Arc::new(Pulse::new());
        let line = Line::new(connection, Arc::clone(&pulse), self.head);
        CONNECTION.scope(pulse, self.proxy.process_new(Box::new(line), shutdown)).await
    }

    async fn cleanup(&self) {
        ServerApp::cleanup(&*self.proxy).await;
    }
}

fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(STREAMS);
    options.initial_window_size(STREAM_WINDOW);
    options.initial_connection_window_size(CONNECTION_WINDOW);
    options
}
