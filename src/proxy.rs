//! The request path: Pingora's hooks, each a line or two that names what happens.

mod answer;
mod arrive;
pub(crate) mod auth;
mod ctx;
mod failure;
mod head;
mod limit;
pub mod observe;
pub mod pulse;
mod record;
mod reply;
mod route;
mod upstream;

pub use upstream::KEEPALIVE;

use crate::app::App;
use crate::body::budget::Charge;
use crate::body::replay::{self, Stop};
use crate::control::Listener;
use arrive::Next;
use bytes::Bytes;
use ctx::Ctx;
use http::StatusCode;
use limit::Limits;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use std::sync::Arc;
use std::time::Duration;

/// One listener's proxy; that of the admin listener answers the control API only.
pub struct Proxy {
    app: Arc<App>,
    listener: Listener,
    limits: Limits,
    /// The tenant of those who need no key.
    nobody: Arc<str>,
}

// === impl Proxy ===

impl Proxy {
    #[must_use]
    pub fn new(app: Arc<App>, listener: Listener) -> Self {
        Self { app, listener, limits: Limits::new(), nobody: Arc::from("") }
    }
}

#[async_trait::async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new()
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // No compression, the only default module: answers pass byte for byte.
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        match self.arrive(session, ctx).await {
            Ok(Next::Upstream) => Ok(false),
            Ok(Next::Answered) => Ok(true),
            Err(Stop::Gone(e)) => Err(e),
            Err(Stop::Refused(refusal)) => {
                // Nobody wants the body any more, and the client may take a while to read its answer.
                (ctx.body, ctx.charge) = (None, Charge::default());
                // Answered here, and not as an error, the connection goes on.
                self.refuse(session, ctx, &refusal).await.map_err(|e| e.into_down())?;
                ctx.refusal = Some(refusal);
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<Box<HttpPeer>> {
        let peer = self.peer(session, ctx).await;
        peer.map_err(|stop| Self::stopped(ctx, stop))
    }

    fn fail_to_connect(&self, _session: &mut Session, _peer: &HttpPeer, ctx: &mut Ctx, e: Box<Error>) -> Box<Error> {
        self.connect_failed(ctx, e)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        self.request_head(request, ctx)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if let Some(full) = &ctx.body {
            replay::replay(body, end_of_stream, full);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS && !session.is_upgrade_req() {
            // The client would take what follows for another protocol.
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "101 without having been asked").into_up());
        }
        self.response_head(head, ctx)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> pingora::Result<Option<Duration>> {
        self.response_piece(body, end_of_stream, ctx);
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Ctx,
        _client_reused: bool,
    ) -> Box<Error> {
        let e = e.more_context(format!("Peer: {peer}"));
        self.broken(session, ctx, e)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        self.fail(session, e, ctx).await
    }

    /// For Pingora's own log lines: no query, which may hold a key.
    fn request_summary(&self, session: &Session, ctx: &Ctx) -> String {
        let path = ctx.target.split('?').next().unwrap_or_default();
        format!("{} {path}, request {}", session.req_header().method, String::from_utf8_lossy(ctx.id.as_bytes()))
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Ctx, e: &Error) -> bool {
        let ours = !matches!(e.esource(), pingora::ErrorSource::Upstream | pingora::ErrorSource::Internal);
        ctx.departed || ctx.answer.unended || (ctx.refusal.is_some() && ours)
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        // The fleet says once that a backend is out of reach.
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        self.record(session, e, ctx);
    }
}
