//! Drives any [`ProxyHttp`]: its hooks decide, this room moves the bytes.
//!
//! Pingora's own executor stands behind two channels and writes a request's head and body apart. This one sends both in
//! one write, relays the answer in the task that reads it, and watches the client meanwhile, so that no backend computes
//! for nobody. It knows nothing of programs, backends or settings. Servers, TLS, HTTP/1.1 and HTTP/2 of clients, and
//! connecting are Pingora's.
//!
//! Of the hooks it runs those that a proxy of whole requests needs, in Pingora's order: `early_request_filter`,
//! `request_filter`, `upstream_peer`, `fail_to_connect`, `upstream_request_filter`, `request_body_filter` (once: the
//! request's body has been read by then), `response_filter`, `response_body_filter`, `error_while_proxy`,
//! `fail_to_proxy`, `logging`. It has no cache, no modules, no subrequests and no trailers.

mod conn;
mod deadline;
mod framing;
mod head;
mod idle;
mod pool;
mod tunnel;
mod watch;

pub use conn::UpstreamConn;
pub use deadline::{CONNECTION, HeadDeadline, HeadFault, Phase};
pub use head::{is_hop_by_hop, nominated};
pub use idle::IdleTimer;
pub use watch::departure;

use bytes::Bytes;
use framing::{Framing, Misframed};
use head::AnswerHead;
use http::{Method, StatusCode, Version, header};
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::{ProxyHttp, Session};
use pool::ConnPool;
use std::io::{self, Cursor};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch::Sender;
use tokio::time::{sleep, timeout};
use watch::watched;

type Result<T> = pingora_core::Result<T>;

/// A client that does not read gets no longer than this to take a refusal of its head.
const REFUSAL: Duration = Duration::from_secs(2);

/// What the executor asks of a proxy beyond [`ProxyHttp`].
pub trait ExchangeHooks: ProxyHttp {
    /// How long the backend may be silent from now on. Asked when the request is sent, when the answer's head has
    /// passed `response_filter`, and after each piece of its body. Sending itself is bounded by the peer's
    /// `write_timeout`.
    fn patience(&self, ctx: &Self::CTX) -> Duration;

    /// The answer to a request that has no head to run hooks on.
    ///
    /// # Errors
    /// Never: its headers are constants and numbers.
    fn refuse_head(&self, fault: HeadFault) -> Result<(ResponseHeader, Bytes)>;
}

/// Serves what `P` decides, behind any number of listeners.
pub struct Exchange<P> {
    proxy: P,
    pool: ConnPool,
    server: HttpServerOptions,
    h2: H2Options,
    /// No connection waits for another request.
    closed: Sender<bool>,
}

// === impl Exchange ===

impl<P> Exchange<P>
where
    P: ExchangeHooks + Send + Sync + 'static,
    P::CTX: Send + Sync,
{
    #[must_use]
    pub fn new(proxy: P, server: HttpServerOptions, h2: H2Options) -> Self {
        Self { proxy, pool: ConnPool::new(), server, h2, closed: Sender::new(false) }
    }

    /// Closes the connections to backends that nobody has used for a while; ends with the process.
    pub async fn sweep(&self) {
        self.pool.sweep().await;
    }

    /// Closes the connections without a request.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Whether there is a request to be served.
    async fn read_head(&self, session: &mut ServerSession) -> bool {
        if session.get_keepalive().is_some() {
            // The connection's own deadline tells when nobody asks any more, without a timer for each request.
            session.set_keepalive(Some(0));
        }
        let mut closed = self.closed.subscribe();
        let read = tokio::select! {
            biased;
            read = session.read_request() => read,
            _ = closed.wait_for(|closed| *closed) => return false,
        };
        let fault = match read {
            Ok(true) if session.req_header().method != Method::CONNECT => return true,
            Ok(true) => Some(HeadFault::Connect),
            Err(e) if e.etype() == &ErrorType::InvalidHTTPHeader => Some(HeadFault::Unreadable),
            Ok(false) | Err(_) => HeadDeadline::fault(),
        };
        if let Some(fault) = fault {
            self.refuse_head(session, fault).await;
        }
        false
    }

    async fn refuse_head(&self, session: &mut ServerSession, fault: HeadFault) {
        let refused = async {
            let (head, body) = self.proxy.refuse_head(fault)?;
            session.write_error_response(head, body).await
        };
        if let Ok(Err(e)) = timeout(REFUSAL, refused).await {
            log::debug!("a client left before it was told: {e}");
        }
        session.shutdown().await;
    }

    /// Runs all hooks of one request. Whether the client's connection may carry another one.
    async fn serve(&self, session: &mut Session, ctx: &mut P::CTX) -> bool {
        let served = self.run(session, ctx).await;
        let mut reusable = true;
        if let Err(e) = &served {
            reusable = self.proxy.fail_to_proxy(session, e, ctx).await.can_reuse_downstream;
            if !self.proxy.suppress_error_log(session, ctx, e) {
                log::error!("{}: {e}", self.proxy.request_summary(session, ctx));
            }
        }
        self.proxy.logging(session, served.as_ref().err().map(|e| &**e), ctx).await;
        reusable
    }

    async fn run(&self, session: &mut Session, ctx: &mut P::CTX) -> Result<()> {
        self.proxy.early_request_filter(session, ctx).await?;
        if self.proxy.request_filter(session, ctx).await? {
            return Ok(());
        }
        loop {
            match self.attempt(session, ctx).await {
                Err(e) if e.retry() => log::debug!("another attempt: {e}"),
                done => return done,
            }
        }
    }

    /// Brings the request to one backend, and its answer back.
    async fn attempt(&self, session: &mut Session, ctx: &mut P::CTX) -> Result<()> {
        let mut peer = self.proxy.upstream_peer(session, ctx).await?;
        let kept = self.pool.take(&peer);
        let reused = kept.is_some();
        let connected = match kept {
            Some(conn) => Ok(conn),
            // In a box: Pingora's part is large, and every request has room for it otherwise.
            None => watched(session, None, Box::pin(self.connect(&mut peer))).await?,
        };
        let mut conn = match connected {
            Ok(conn) => conn,
            Err(e) => return Err(self.proxy.fail_to_connect(session, &peer, ctx, e)),
        };
        match self.exchange(session, ctx, &peer, &mut conn).await {
            Ok(true) => self.pool.keep(conn, peer.options.idle_timeout),
            Ok(false) => {}
            Err(e) => return Err(self.proxy.error_while_proxy(&peer, session, e, ctx, reused)),
        }
        Ok(())
    }

    /// A new connection. The timeout is taken from Pingora and kept by tokio: Pingora's own would start a thread that
    /// wakes a hundred times a second.
    async fn connect(&self, peer: &mut HttpPeer) -> Result<UpstreamConn> {
        let limit = peer.options.total_connection_timeout.take().unwrap_or(Duration::MAX);
        let late = |_| Error::explain(ErrorType::ConnectTimedout, format!("no connection within {limit:?}"));
        timeout(limit, self.pool.connect(peer)).await.map_err(late)?
    }

    /// Whether the connection to the backend may carry another request.
    async fn exchange(
        &self,
        session: &mut Session,
        ctx: &mut P::CTX,
        peer: &HttpPeer,
        conn: &mut UpstreamConn,
    ) -> Result<bool> {
        let started = Instant::now();
        let sending = peer.options.write_timeout.unwrap_or(Duration::MAX);
        let mut timer = pin!(sleep(sending));
        let mut idle = IdleTimer::new(timer.as_mut(), started, sending);
        let sent = self.send(session, ctx, conn, &mut idle).await?;
        idle.expect_within(started, self.proxy.patience(ctx));
        let AnswerHead { mut head, mut framing, persists } = self.answer_head(session, ctx, conn, &mut idle).await?;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            self.proxy.response_filter(session, &mut head, ctx).await?;
            session.downstream_session.write_response_header(head).await.map_err(Error::into_down)?;
            tunnel::run(&mut session.downstream_session, conn, self.proxy.patience(ctx)).await?;
            return Ok(false);
        }
        self.proxy.response_filter(session, &mut head, ctx).await?;
        idle.expect_within(Instant::now(), self.proxy.patience(ctx));
        if !framing.is_whole() && !head.headers.contains_key(header::CONTENT_LENGTH) {
            head::frame(&mut head, session.req_header().version)?;
        }
        session.downstream_session.write_response_header(head).await.map_err(Error::into_down)?;
        self.relay_body(session, ctx, conn, &mut framing, &mut idle).await?;
        Ok(persists && sent)
    }

    /// Sends head and body. `false`: the backend has begun to answer before it had everything.
    async fn send(
        &self,
        session: &mut Session,
        ctx: &mut P::CTX,
        conn: &mut UpstreamConn,
        idle: &mut IdleTimer<'_>,
    ) -> Result<bool> {
        let mut request = session.req_header().clone();
        self.proxy.upstream_request_filter(session, &mut request, ctx).await?;
        let mut body = None;
        self.proxy.request_body_filter(session, &mut body, true, ctx).await?;
        let head = head::request(&request, body.as_ref().map(Bytes::len));
        drop(request);
        let unsent = |e| Error::because(ErrorType::WriteError, "it did not take the whole request", e).into_up();
        match watched(session, Some(idle), conn.send(&head, body.as_deref().unwrap_or_default())).await {
            Err(e) if e.etype() == &ErrorType::ReadTimedout && !is_downstream(&e) => {
                Err(Error::explain(ErrorType::WriteTimedout, "it did not take the whole request").into_up())
            }
            sent => sent?.map_err(unsent),
        }
    }

    /// The head that counts; those before it are for a client of HTTP/1.1 that waits for them.
    async fn answer_head(
        &self,
        session: &mut Session,
        ctx: &mut P::CTX,
        conn: &mut UpstreamConn,
        idle: &mut IdleTimer<'_>,
    ) -> Result<AnswerHead> {
        loop {
            let Some(mut answer) = head::take(&mut conn.read, &session.req_header().method).map_err(lost)? else {
                if watched(session, Some(idle), conn.more()).await?.map_err(broken)? == 0 {
                    return Err(closed("it closed the connection without an answer"));
                }
                continue;
            };
            let status = answer.head.status;
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(answer);
            }
            // A client that waited for 100 had it before its body was read.
            if status != StatusCode::CONTINUE && session.req_header().version == Version::HTTP_11 {
                self.proxy.response_filter(session, &mut answer.head, ctx).await?;
                session.downstream_session.write_response_header(answer.head).await.map_err(Error::into_down)?;
            }
        }
    }

    /// The body of the answer, to its end.
    async fn relay_body(
        &self,
        session: &mut Session,
        ctx: &mut P::CTX,
        conn: &mut UpstreamConn,
        framing: &mut Framing,
        idle: &mut IdleTimer<'_>,
    ) -> Result<()> {
        let mut at_end = false;
        loop {
            let (piece, fault) = framing.take(&mut conn.read);
            let end = framing.is_whole() || (at_end && framing.ends_by_close());
            if end || !piece.is_empty() {
                let mut piece = Some(piece);
                self.proxy.response_body_filter(session, &mut piece, end, ctx)?;
                idle.expect_within(Instant::now(), self.proxy.patience(ctx));
                let piece = piece.unwrap_or_default();
                if end || !piece.is_empty() {
                    session.downstream_session.write_response_body(piece, end).await.map_err(Error::into_down)?;
                }
            }
            if end {
                return Ok(());
            }
            fault.map_err(lost)?;
            if at_end {
                return Err(closed("it broke off its answer"));
            }
            at_end = watched(session, Some(idle), conn.more()).await?.map_err(broken)? == 0;
        }
    }
}

#[async_trait::async_trait]
impl<P> HttpServerApp for Exchange<P>
where
    P: ExchangeHooks + Send + Sync + 'static,
    P::CTX: Send + Sync,
{
    async fn process_new_http(
        self: &Arc<Self>,
        mut http: ServerSession,
        leave: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !self.read_head(&mut http).await {
            return None;
        }
        if *leave.borrow() {
            http.set_keepalive(None);
        }
        let _busy = HeadDeadline::busy();
        let mut session = session_of(http);
        let mut ctx = self.proxy.new_ctx();
        if !self.serve(&mut session, &mut ctx).await {
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let connection = session.downstream_session.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(connection, settings))
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.h2.clone())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.server)
    }
}

/// The session that hooks get. `Session` has no other public constructor; its `downstream_session` is public, and takes
/// the place of the empty one that comes with it.
fn session_of(http: ServerSession) -> Session {
    let mut session = Session::new_h1(Box::new(Cursor::new(Vec::new())));
    *session.downstream_session = http;
    session
}

fn is_downstream(e: &Error) -> bool {
    e.esource() == &pingora_core::ErrorSource::Downstream
}

fn lost(fault: Misframed) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, fault.0).into_up()
}

fn broken(e: io::Error) -> Box<Error> {
    Error::because(ErrorType::ReadError, "its connection broke", e).into_up()
}

fn closed(how: &'static str) -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, how).into_up()
}
