//! The request path: Pingora's hooks, each of a few lines that name what happens. [`crate::exchange`] runs them.

mod admit;
mod answer;
mod body;
mod ctx;
mod failure;
mod head;
mod limit;
pub mod observe;
mod record;
mod reply;
mod route;
mod upstream;

pub use route::{INFERENCE, PASSED};
pub use upstream::KEEPALIVE;

use crate::app::App;
use crate::control::Side;
use crate::exchange::{ExchangeHooks, HeadFault};
use bytes::Bytes;
use ctx::{Ctx, Kind};
use limit::Limits;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// The proxy of one side; that of the admin listener answers the control API only.
pub struct Proxy {
    app: Arc<App>,
    listener: Side,
    limits: Limits,
    /// Where the control API is served.
    background: Handle,
    /// The tenant of those who need no key.
    nobody: Arc<str>,
}

// === impl Proxy ===

impl Proxy {
    /// To be called in the runtime that does what is no request.
    #[must_use]
    pub fn new(app: Arc<App>, listener: Side) -> Self {
        Self { app, listener, limits: Limits::new(), background: Handle::current(), nobody: Arc::from("") }
    }
}

#[async_trait::async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(match self.listener {
            Side::Main => Kind::Passed,
            Side::Admin => Kind::Control,
        })
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // No compression, the only default module: answers pass byte for byte.
    }

    /// Route, key, limits, body, identity, gate. `true`: answered here.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        self.admit(session, ctx).await.map_err(|stop| stop.into_error(ctx))
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        self.peer(session, ctx).await.map_err(|stop| stop.into_error(ctx))
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, ctx: &mut Ctx, e: Box<Error>) -> Box<Error> {
        self.connect_failed(ctx, e)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        self.request_head(request, ctx)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.payload.replace(body, end);
        Ok(())
    }

    async fn response_filter(&self, session: &mut Session, head: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        self.response_head(session, head, ctx)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        self.response_piece(body, end, ctx);
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Ctx,
        _reused: bool,
    ) -> Box<Error> {
        self.broken(session, ctx, e)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        self.fail(session, e, ctx).await
    }

    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        // What there is to say was said where it was found.
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        // The fleet says once that a backend is out of reach.
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        self.record(session, e, ctx);
    }
}

impl ExchangeHooks for Proxy {
    fn patience(&self, ctx: &Ctx) -> Duration {
        ctx.patience()
    }

    fn refuse_head(&self, fault: HeadFault) -> Result<(ResponseHeader, Bytes)> {
        reply::to_no_request(fault)
    }
}
