//! The request on its way to a backend.

use super::Proxy;
use super::arrive::admitted;
use super::ctx::Ctx;
use super::reply::REQUEST_ID;
use crate::body::replay::{self, Stop};
use crate::error::Refusal;
use crate::fleet::{Awaited, Backend, Fault};
use crate::gate::Step;
use crate::scheduler::Outcome;
use http::header;
use pingora::http::RequestHeader;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;
use pingora_proxy::Session;
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

impl Proxy {
    /// The backend that the gate chose; asks again for each one that turns out to be out of reach.
    pub(super) async fn peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>, Stop> {
        if let (0, Some(pool)) = (ctx.unreached, ctx.pool) {
            self.app.retries.request(pool);
        }
        loop {
            let admission = match ctx.admission.take() {
                Some(admission) => admission,
                None => admitted(session, ctx).await?,
            };
            let backend = self.app.fleet.get(admission.backend);
            let address = self.app.fleet.address(admission.backend);
            ctx.backend = backend.clone();
            if let (Some(backend), Some(address)) = (backend, address) {
                return Ok(Box::new(self.peer_at(&backend, address, ctx.pulse.is_some())));
            }
            self.unreached(ctx, Fault::Connect)?;
        }
    }

    /// Nothing was sent: the step wants another backend, if it may still have one. With nobody left to try it waits as
    /// if all were down, which the next checks will tell.
    ///
    /// # Errors
    /// `NoBackend` when all tries are used up, `RetryBudget` when those of the whole pool are.
    pub(super) fn unreached(&self, ctx: &mut Ctx, fault: Fault) -> Result<(), Refusal> {
        ctx.unreached += 1;
        let since = *ctx.unreached_since.get_or_insert_with(Instant::now);
        if let Some(pulse) = &ctx.pulse {
            pulse.rest();
        }
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

    /// `timed`: the pulse of the client's connection tells when the backend was silent for too long.
    fn peer_at(&self, backend: &Backend, address: SocketAddr, timed: bool) -> HttpPeer {
        let settings = self.app.settings();
        let timeouts = &settings.timeouts;
        let mut peer = HttpPeer::new(address, backend.tls, backend.host.clone());
        let options = &mut peer.options;
        options.connection_timeout = Some(timeouts.connect);
        options.total_connection_timeout = Some(timeouts.connect);
        // Pingora has one timeout for all reads, and makes a timer for each. The pulse is exact; HTTP/2 has only this.
        options.read_timeout = (!timed).then(|| timeouts.first_byte.max(timeouts.stream_idle));
        options.write_timeout = Some(timeouts.stream_idle);
        options.idle_timeout = Some(KEPT_IDLE);
        options.tcp_keepalive = Some(KEEPALIVE);
        peer
    }

    /// Makes the client's head into the one that goes to the backend.
    pub(super) fn request_head(&self, request: &mut RequestHeader, ctx: &mut Ctx) -> pingora::Result<()> {
        ctx.answer.sent = Some(Instant::now());
        ctx.expect_within(self.app.settings().timeouts.first_byte);
        let Some(backend) = &ctx.backend else {
            return Ok(());
        };
        if let (true, Some(body)) = (ctx.inference, &ctx.body) {
            ctx.awaited = Some(Awaited::begin(backend, body.len()));
        }
        if request.raw_path() != ctx.target.as_bytes() || !backend.prefix.is_empty() {
            let target = format!("{}{}", backend.prefix, ctx.target);
            request.set_raw_path(target.as_bytes())?;
        }
        request.insert_header(header::HOST, &backend.authority)?;
        request.insert_header(REQUEST_ID, ctx.id.clone())?;
        if let Some(rank) = backend.rank {
            request.insert_header("x-data-parallel-rank", rank.to_string())?;
        }
        let settings = backend.settings();
        if settings.api_key.is_some() || self.app.settings().keys.required() {
            // The client's key is for us.
            request.remove_header(&header::AUTHORIZATION);
            request.remove_header("x-api-key");
        }
        if let Some(key) = &settings.api_key {
            request.insert_header(header::AUTHORIZATION, format!("Bearer {}", key.0))?;
        }
        match &ctx.body {
            Some(body) => replay::prepare_upstream_headers(request, body.len()),
            None => Ok(()),
        }
    }
}
