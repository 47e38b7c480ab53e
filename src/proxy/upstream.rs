//! The request on its way to a backend.

use super::Proxy;
use super::arrive::admitted;
use super::ctx::Ctx;
use super::exchange::{Link, departure, is_ours, nominated, put};
use crate::body::read::Stop;
use crate::error::Refusal;
use crate::fleet::{Backend, BackendFault};
use crate::gate::Step;
use crate::scheduler::Outcome;
use crate::telemetry::UpstreamError;
use bytes::{BufMut, BytesMut};
use http::{HeaderName, Method, Version, header};
use pingora_core::protocols::TcpKeepalive;
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Finds a backend whose machine has vanished while it computes, in about two minutes.
pub const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(15),
    count: 4,
    #[cfg(target_os = "linux")]
    user_timeout: Duration::ZERO,
};

/// What a client is told to wait when no backend could be reached.
const NO_BACKEND_RETRY: Duration = Duration::from_secs(5);

impl Proxy {
    /// A connection to the backend that the gate chose; asks again for each one that turns out to be out of reach.
    pub(super) async fn link(&self, session: &mut ServerSession, ctx: &mut Ctx) -> Result<Link, Stop> {
        loop {
            let admission = match ctx.admission.take() {
                Some(admission) => admission,
                None => admitted(session, ctx).await?,
            };
            let backend = self.app.fleet.get(admission.backend);
            let address = self.app.fleet.address(admission.backend);
            ctx.backend.clone_from(&backend);
            let (Some(backend), Some(address)) = (backend, address) else {
                self.unreached(ctx, BackendFault::Connect)?;
                continue;
            };
            if let Some(link) = self.links.take(admission.backend, address) {
                return Ok(link);
            }
            let (peer, limit) = (peer(&backend, address), self.app.settings().timeouts.connect);
            // In a box: Pingora's part is large, and every request has room for it otherwise.
            let connect = Box::pin(self.links.connect(&peer, admission.backend, address));
            let connected = tokio::select! {
                biased;
                connected = timeout(limit, connect) => connected,
                gone = departure(session) => return Err(Stop::Gone(gone)),
            };
            let kind = match connected {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(_)) => UpstreamError::Connect,
                Err(_) => UpstreamError::ConnectTimeout,
            };
            self.app.telemetry.metrics.upstream_error(&backend.url, kind);
            self.unreached(ctx, BackendFault::Connect)?;
        }
    }

    /// Nothing was sent: the step wants another backend, if it may still have one. With nobody left to try it waits as
    /// if all were down, which the next checks will tell.
    ///
    /// # Errors
    /// `NoBackend` when all tries are used up, `RetryBudget` when those of the whole pool are.
    pub(super) fn unreached(&self, ctx: &mut Ctx, fault: BackendFault) -> Result<(), Refusal> {
        ctx.unreached += 1;
        let since = *ctx.unreached_since.get_or_insert_with(Instant::now);
        let goes_on = ctx.step.as_mut().is_none_or(Step::undelivered);
        // After the step has turned away from it: the check that this asks for may let it come back.
        if let Some(backend) = &ctx.backend {
            self.app.fleet.failed(backend.id, fault);
        }
        let settings = self.app.settings();
        let (retry, wait) = (&settings.retry, settings.scheduler.no_backend_wait);
        if ctx.unreached > retry.connect_attempts && (goes_on || since.elapsed() >= wait) {
            ctx.settle(Outcome::Abandoned);
            return Err(Refusal::NoBackend { waited: since.elapsed(), retry_after: NO_BACKEND_RETRY });
        }
        let granted = ctx.pool.is_some_and(|pool| self.app.retries.take(pool, retry.budget));
        self.app.telemetry.metrics.model(ctx.pool).retry(granted);
        if !granted {
            ctx.settle(Outcome::Abandoned);
            return Err(Refusal::RetryBudget { retry_after: NO_BACKEND_RETRY });
        }
        Ok(())
    }

    /// The head that goes to the backend, made of the client's.
    pub(super) fn request_head(&self, request: &RequestHeader, ctx: &Ctx) -> BytesMut {
        let Some(backend) = &ctx.backend else {
            return BytesMut::new();
        };
        let settings = backend.settings();
        // The client's key is for us.
        let keyless = settings.api_key.is_some() || self.app.settings().keys.required();
        // What it may name was looked at when it arrived.
        let nominated = nominated(&request.headers).unwrap_or_default();
        let passes = |name: &HeaderName| {
            let key = keyless && (*name == header::AUTHORIZATION || name.as_str() == "x-api-key");
            let rank = backend.rank.is_some() && name.as_str() == "x-data-parallel-rank";
            let named = nominated.iter().any(|token| token.eq_ignore_ascii_case(name.as_str().as_bytes()));
            !(key || rank || named || is_ours(name))
        };
        let mut head = BytesMut::with_capacity(1024);
        for part in [request.method.as_str(), " ", &backend.prefix, &ctx.target, " HTTP/1.1\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        put(&mut head, "host", backend.authority.as_bytes());
        for (name, value) in request.headers.iter().filter(|(name, _)| passes(name)) {
            put(&mut head, name.as_str(), value.as_bytes());
        }
        put(&mut head, "x-request-id", ctx.id.as_bytes());
        if let Some(rank) = backend.rank {
            put(&mut head, "x-data-parallel-rank", rank.to_string().as_bytes());
        }
        if let Some(key) = &settings.api_key {
            put(&mut head, "authorization", format!("Bearer {}", key.0).as_bytes());
        }
        if is_websocket(request) {
            put(&mut head, "connection", b"Upgrade");
            put(&mut head, "upgrade", b"websocket");
        }
        let bodied = ctx.body.is_some() || [Method::POST, Method::PUT, Method::PATCH].contains(&request.method);
        if bodied {
            let length = ctx.body.as_ref().map_or(0, bytes::Bytes::len);
            put(&mut head, "content-length", length.to_string().as_bytes());
        }
        head.put_slice(b"\r\n");
        head
    }
}

fn peer(backend: &Backend, address: SocketAddr) -> HttpPeer {
    let mut peer = HttpPeer::new(address, backend.tls, backend.host.clone());
    peer.options.tcp_keepalive = Some(KEEPALIVE);
    peer
}

fn is_websocket(request: &RequestHeader) -> bool {
    let upgrade = request.headers.get(header::UPGRADE);
    request.version == Version::HTTP_11 && upgrade.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}
