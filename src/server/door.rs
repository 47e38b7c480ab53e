//! Where connections come in: counted, limited, and timed.

use super::line::Line;
use crate::app::{App, Open};
use crate::control::Listener as Side;
use crate::proxy::Proxy;
use crate::proxy::pulse::{CONNECTION, Pulse};
use pingora_core::apps::{HttpServerOptions, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use std::sync::Arc;
use std::time::Duration;

/// An HTTP/1.1 connection is closed after this many requests, to give back what its buffers have grown to.
const REQUESTS_PER_CONNECTION: u32 = 10_000;

/// As Pingora has it for HTTP/1.1.
const IDLE: Duration = Duration::from_secs(60);

/// A held step keeps its stream open, and a client may have all its programs on one connection.
const STREAMS: u32 = 1024;

/// Room for a request body in flight: the protocol's 64 KiB would cost a round trip for each.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

pub struct Door {
    proxy: Arc<HttpProxy<Proxy>>,
    app: Arc<App>,
    connections: Arc<Open>,
    /// Operators get in when clients have taken every place.
    limited: bool,
    /// Connections end after the request that they have.
    leave: ShutdownWatch,
}

/// Ends the connections of a door that have no request.
pub struct Closer(Arc<HttpProxy<Proxy>>);

// === impl Door ===

impl Door {
    /// The door of one side; `connections` counts those of all.
    pub fn new(
        app: Arc<App>,
        side: Side,
        conf: &Arc<ServerConf>,
        connections: Arc<Open>,
        leave: ShutdownWatch,
    ) -> Self {
        let mut proxy = HttpProxy::new(Proxy::new(Arc::clone(&app), side), Arc::clone(conf));
        proxy.handle_init_modules();
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.keepalive_request_limit = Some(REQUESTS_PER_CONNECTION);
        options.h2_idle_timeout = Some(IDLE);
        proxy.server_options = Some(options);
        proxy.h2_options = Some(h2_options());
        Self { proxy: Arc::new(proxy), app, connections, limited: side == Side::Main, leave }
    }

    pub fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.proxy))
    }
}

#[async_trait::async_trait]
impl ServerApp for Door {
    /// That the door is closed means nothing to those who came in; `leave` does.
    async fn process_new(self: &Arc<Self>, connection: Stream, _closed: &ShutdownWatch) -> Option<Stream> {
        let _place = self.connections.enter();
        let (limit, head) = {
            let settings = self.app.settings();
            (settings.limits.connections, settings.timeouts.request_header)
        };
        if self.limited && self.connections.count() > limit {
            log::warn!("a connection is refused: limits.connections ({limit}) are open");
            return None;
        }
        let pulse = Arc::new(Pulse::new());
        let line = Line::new(connection, Arc::clone(&pulse), head);
        CONNECTION.scope(pulse, self.proxy.process_new(Box::new(line), &self.leave)).await
    }
}

// === impl Closer ===

impl Closer {
    pub async fn close(&self) {
        ServerApp::cleanup(&*self.0).await;
    }
}

fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(STREAMS);
    options.initial_window_size(STREAM_WINDOW);
    options.initial_connection_window_size(CONNECTION_WINDOW);
    options
}
