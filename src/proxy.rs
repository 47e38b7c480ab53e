//! The request path: a request walks from its head through the gate to a backend, and its answer back.

mod answer;
mod arrive;
pub(crate) mod auth;
mod ctx;
mod exchange;
mod failure;
mod head;
mod limit;
pub mod observe;
pub mod pulse;
mod record;
mod reply;
mod route;
mod upstream;

pub use route::{INFERENCE, PASSED};
pub use upstream::KEEPALIVE;

use crate::app::App;
use crate::control::Listener;
use arrive::Next;
use ctx::Ctx;
use exchange::Links;
use http::Method;
use limit::Limits;
use pingora_core::ErrorType;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// One side's proxy; that of the admin listener answers the control API only.
pub struct Proxy {
    app: Arc<App>,
    listener: Listener,
    limits: Limits,
    links: Links,
    /// Where the control API is served.
    background: Handle,
    /// The tenant of those who need no key.
    nobody: Arc<str>,
    server: HttpServerOptions,
    h2: H2Options,
    /// No connection waits for another request.
    closed: watch::Sender<bool>,
}

// === impl Proxy ===

impl Proxy {
    /// To be called in the runtime that does what is no request.
    #[must_use]
    pub fn new(app: Arc<App>, listener: Listener, server: HttpServerOptions, h2: H2Options) -> Self {
        let (limits, links, background) = (Limits::new(), Links::new(), Handle::current());
        let closed = watch::Sender::new(false);
        Self { app, listener, limits, links, background, nobody: Arc::from(""), server, h2, closed }
    }

    /// Closes the connections to backends that nobody has used for a while; ends with the process.
    pub async fn sweep(&self) {
        self.links.sweep().await;
    }

    /// Closes the connections without a request.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Whether there is a request to be served.
    async fn read_head(&self, session: &mut ServerSession) -> bool {
        if session.get_keepalive().is_some() {
            // The connection's own pulse tells when nobody asks any more, without a timer for each request.
            session.set_keepalive(Some(0));
        }
        let mut closed = self.closed.subscribe();
        let read = tokio::select! {
            biased;
            read = session.read_request() => read,
            _ = closed.wait_for(|closed| *closed) => return false,
        };
        // Put in our words on its way out: see `server::line`.
        let refused = match read {
            Ok(false) => return false,
            Ok(true) if session.req_header().method == Method::CONNECT => 405,
            Ok(true) => return true,
            Err(e) if e.etype() == &ErrorType::InvalidHTTPHeader => 400,
            Err(e) => {
                log::debug!("no request came: {e}");
                return false;
            }
        };
        if let Err(e) = session.respond_error(refused).await {
            log::debug!("a client left before it was told: {e}");
        }
        session.shutdown().await;
        false
    }

    /// Whether the connection may go on.
    async fn serve(&self, session: &mut ServerSession, ctx: &mut Ctx) -> bool {
        let served = match self.arrive(session, ctx).await {
            Ok(Next::Upstream) => self.deliver(session, ctx).await,
            Ok(Next::Answered) => Ok(()),
            Err(stop) => Err(stop),
        };
        ctx.whole = served.is_ok();
        match served {
            Ok(()) => true,
            Err(stop) => self.fail(session, ctx, stop).await,
        }
    }
}

#[async_trait::async_trait]
impl HttpServerApp for Proxy {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        leave: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !self.read_head(&mut session).await {
            return None;
        }
        if *leave.borrow() {
            session.set_keepalive(None);
        }
        let mut ctx = Ctx::new();
        let goes_on = self.serve(&mut session, &mut ctx).await;
        self.record(&session, &mut ctx);
        if !goes_on {
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let connection = session.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(connection, settings))
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.h2.clone())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.server)
    }
}
