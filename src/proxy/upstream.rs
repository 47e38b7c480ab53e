//! The request on its way to a backend.

use super::Proxy;
use super::admit::admitted;
use super::ctx::{Ctx, Kind};
use super::failure::Stop;
use super::reply::REQUEST_ID;
use crate::error::Refusal;
use crate::exchange::{is_hop_by_hop, nominated};
use crate::fleet::{Backend, BackendFault, PendingAnswer};
use crate::gate::Step;
use crate::scheduler::Outcome;
use crate::telemetry::UpstreamError;
use bytes::Bytes;
use http::{HeaderName, Method, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long an idle connection to a backend is kept: uvicorn closes its side after 5 seconds.
const KEPT_IDLE: Duration = Duration::from_secs(4);

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

const RANK: HeaderName = HeaderName::from_static("x-data-parallel-rank");

impl Proxy {
    /// The backend that the gate chose. Asks again as long as the one that it chose is not there any more.
    pub(super) async fn peer(&self, session: &mut Session, ctx: &mut Ctx) -> std::result::Result<Box<HttpPeer>, Stop> {
        loop {
            let admission = match ctx.work.admission.take() {
                Some(admission) => admission,
                None => admitted(session, ctx).await?,
            };
            let backend = self.app.fleet.get(admission.backend);
            let address = self.app.fleet.address(admission.backend);
            ctx.target.backend.clone_from(&backend);
            if let (Some(backend), Some(address)) = (backend, address) {
                return Ok(Box::new(self.peer_at(&backend, address, ctx)));
            }
            self.retry_elsewhere(ctx, BackendFault::Connect)?;
        }
    }

    fn peer_at(&self, backend: &Backend, address: SocketAddr, ctx: &mut Ctx) -> HttpPeer {
        let settings = self.app.settings();
        let (first_byte, stream_idle) = (settings.timeouts.first_byte, settings.timeouts.stream_idle);
        (ctx.target.first_byte, ctx.target.stream_idle) = (first_byte, stream_idle);
        let mut peer = HttpPeer::new(address, backend.tls, backend.host.clone());
        // Each backend has connections of its own, even where two names lead to one address.
        peer.group_key = backend.id.0.into();
        let options = &mut peer.options;
        options.total_connection_timeout = Some(settings.timeouts.connect);
        options.write_timeout = Some(first_byte.min(stream_idle));
        options.read_timeout = Some(first_byte.max(stream_idle));
        options.idle_timeout = Some(KEPT_IDLE);
        options.tcp_keepalive = Some(KEEPALIVE);
        peer
    }

    /// Nothing was sent: the step wants another backend, if it may still have one. With nobody left to try it waits as
    /// if all were down, which the next checks will tell.
    ///
    /// # Errors
    /// `NoBackend` when all tries are used up, `RetryBudget` when those of the whole pool are.
    pub(super) fn retry_elsewhere(&self, ctx: &mut Ctx, fault: BackendFault) -> std::result::Result<(), Refusal> {
        let target = &mut ctx.target;
        target.unreached += 1;
        let since = *target.unreached_since.get_or_insert_with(Instant::now);
        let goes_on = ctx.work.step.as_mut().is_none_or(Step::undelivered);
        // After the step has turned away from it: the check that this asks for may let it come back.
        if let Some(backend) = &target.backend {
            self.app.fleet.failed(backend.id, fault);
        }
        let settings = self.app.settings();
        let (retry, wait) = (&settings.retry, settings.scheduler.no_backend_wait);
        if target.unreached > retry.connect_attempts && (goes_on || since.elapsed() >= wait) {
            ctx.report_outcome(Outcome::Abandoned);
            return Err(Refusal::NoBackend { waited: since.elapsed(), retry_after: NO_BACKEND_RETRY });
        }
        let granted = ctx.work.pool.is_some_and(|pool| self.app.retries.take(pool, retry.budget));
        self.app.telemetry.metrics.model(ctx.work.pool).retry(granted);
        if !granted {
            ctx.report_outcome(Outcome::Abandoned);
            return Err(Refusal::RetryBudget { retry_after: NO_BACKEND_RETRY });
        }
        Ok(())
    }

    /// The backend could not be reached, so another one may be tried.
    pub(super) fn connect_failed(&self, ctx: &mut Ctx, mut e: Box<Error>) -> Box<Error> {
        let kind = match e.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => UpstreamError::ConnectTimeout,
            _ => UpstreamError::Connect,
        };
        if let Some(backend) = &ctx.target.backend {
            self.app.telemetry.metrics.upstream_error(&backend.url, kind);
        }
        let again = self.retry_elsewhere(ctx, BackendFault::Connect);
        e.set_retry(again.is_ok());
        ctx.answer.refusal = again.err();
        e
    }

    /// Makes the client's head into the one that goes to the backend.
    pub(super) fn request_head(&self, request: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
        let Some(backend) = &ctx.target.backend else {
            return Err(Error::explain(ErrorType::InternalError, "a request is sent, and no backend was chosen"));
        };
        let length = ctx.payload.body.as_ref().map(Bytes::len);
        if ctx.kind == Kind::Inference {
            ctx.target.pending = Some(PendingAnswer::begin(&backend.outlier, length.unwrap_or(0)));
        }
        ctx.answer.sent = Some((Instant::now(), length.unwrap_or(0)));
        let upgrade = is_websocket(request);
        // The client's key is for the proxy.
        let keyless = backend.settings().api_key.is_some() || self.app.settings().keys.required();
        strip(request, keyless, backend.rank.is_some());
        if !backend.prefix.is_empty() || request.raw_path() != ctx.path.as_bytes() {
            request.set_raw_path(format!("{}{}", backend.prefix, ctx.path).as_bytes())?;
        }
        request.insert_header(header::HOST, &backend.authority)?;
        request.insert_header(REQUEST_ID, ctx.id.clone())?;
        if let Some(rank) = backend.rank {
            request.insert_header(RANK, rank.to_string())?;
        }
        if let Some(key) = &backend.settings().api_key {
            request.insert_header(header::AUTHORIZATION, format!("Bearer {}", key.0))?;
        }
        if upgrade {
            request.insert_header(header::CONNECTION, "Upgrade")?;
            request.insert_header(header::UPGRADE, "websocket")?;
        }
        if length.is_some() || [Method::POST, Method::PUT, Method::PATCH].contains(&request.method) {
            request.insert_header(header::CONTENT_LENGTH, length.unwrap_or(0))?;
        }
        Ok(())
    }
}

/// Takes away what concerns the client's connection alone, what it nominates, its key if `keyless`, and its rank if the
/// backend is one.
fn strip(request: &mut RequestHeader, keyless: bool, ranked: bool) {
    // What it may name was looked at when it arrived.
    let named = nominated(&request.headers).unwrap_or_default();
    let goes = |name: &HeaderName| {
        let key = keyless && (*name == header::AUTHORIZATION || name.as_str() == "x-api-key");
        let named = named.iter().any(|token| token.eq_ignore_ascii_case(name.as_str().as_bytes()));
        key || named || (ranked && *name == RANK) || is_hop_by_hop(name)
    };
    let gone: SmallVec<[HeaderName; 8]> = request.headers.keys().filter(|name| goes(name)).cloned().collect();
    for name in &gone {
        request.remove_header(name);
    }
}

/// Whether the client asks for the one upgrade that is passed on.
pub(super) fn is_websocket(request: &RequestHeader) -> bool {
    let upgrade = request.headers.get(header::UPGRADE);
    request.version == Version::HTTP_11 && upgrade.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}
