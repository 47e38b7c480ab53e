//! From the request's head to a place on a backend: who asks, for what, for which program, and when it may go.

use super::Proxy;
use super::auth::Key;
use super::ctx::{Ctx, Guards, is_usable_id, new_id};
use super::exchange::departure;
use super::route::{Inference, Route, is_ambiguous, normal};
use super::{head, reply};
use crate::body::envelope::{Edits, Envelope, Forwarded};
use crate::body::read::{self, Bounds, Stop};
use crate::config::Anonymous;
use crate::control::{self, ControlRequest, ControlRoute};
use crate::error::{Refusal, echo};
use crate::gate::{Admission, PoolId, Step, StepInfo};
use crate::identity::final_step;
use crate::identity::fingerprint::{self, Conversation};
use crate::telemetry::{FINGERPRINT, NO_IDENTITY};
use bytes::Bytes;
use http::Method;
use pingora_core::protocols::http::ServerSession;
use pingora_limits::inflight::Guard;
use std::sync::Arc;

/// What is left to do after a request has been looked at.
pub enum Next {
    Upstream,
    Answered,
}

impl Proxy {
    pub(super) async fn arrive(&self, session: &mut ServerSession, ctx: &mut Ctx) -> Result<Next, Stop> {
        self.prepare_connection(session);
        let request = session.req_header();
        let id = request.headers.get(&reply::REQUEST_ID).filter(|id| is_usable_id(id));
        ctx.id = id.cloned().unwrap_or_else(new_id);
        let on_main = self.listener == control::Listener::Main;
        if on_main {
            // Refused, it is a request all the same: it is counted, and logged under this path.
            ctx.target = echo(request.uri.path());
        }
        if let Some(fault) = head::fault(session) {
            // Where the next request begins is in doubt.
            session.set_keepalive(None);
            return Err(Refusal::InvalidRequest(fault).into());
        }
        let request = session.req_header();
        let unknown = || Refusal::NotFound(echo(request.uri.path()));
        let path = normal(request.uri.path()).ok_or(Refusal::InvalidPath)?;
        let route = match Route::of(&request.method, &path) {
            Route::Control(route) => {
                let path = path.into_owned();
                // It is no traffic.
                ctx.target.clear();
                return self.control(session, ctx, route, path).await;
            }
            Route::Unknown => return Err(unknown().into()),
            _ if !on_main => return Err(unknown().into()),
            _ if is_ambiguous(&path) => return Err(Refusal::InvalidPath.into()),
            route => route,
        };
        ctx.target = match request.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.into_owned(),
        };
        if let Route::Inference(_) = route
            && request.method != Method::POST
        {
            return Err(Refusal::MethodNotAllowed.into());
        }
        ctx.key = self.app.settings().keys.check(&request.headers)?.cloned();
        ctx.place = self.place_of(ctx.key.as_deref())?;
        ctx.guards = Some(Guards { _open: self.app.open.enter(), _in_flight: self.app.telemetry.metrics.in_flight() });
        let (pool, info) = match route {
            Route::Inference(inference) => self.inference(session, ctx, inference).await?,
            _ => (self.passed(session, ctx).await?, StepInfo::default()),
        };
        ctx.pool = Some(pool);
        ctx.step = Some(self.app.gate.enter(pool, info));
        ctx.admission = Some(admitted(session, ctx).await?);
        Ok(Next::Upstream)
    }

    /// The key's place among its requests in flight.
    fn place_of(&self, key: Option<&Key>) -> Result<Option<Guard>, Refusal> {
        key.map(|key| self.limits.enter(&self.app.settings().limits.per_key, key)).transpose()
    }

    fn prepare_connection(&self, session: &mut ServerSession) {
        session.set_pipelining_enabled(true);
        // Bodies are timed where they are read.
        session.set_read_timeout(None);
        // A client that does not read holds a place on a backend.
        session.set_write_timeout(Some(self.app.settings().timeouts.stream_idle));
        if self.app.draining() {
            session.set_keepalive(None);
        }
    }

    async fn control(
        &self,
        session: &mut ServerSession,
        ctx: &mut Ctx,
        route: ControlRoute,
        path: String,
    ) -> Result<Next, Stop> {
        let request = session.req_header();
        let on_main = self.listener == control::Listener::Main;
        if on_main && route.needs_key() {
            ctx.key = self.app.settings().keys.check(&request.headers)?.cloned();
        }
        let mut request = ControlRequest {
            method: request.method.clone(),
            path,
            query: request.uri.query().map(str::to_owned),
            headers: request.headers.clone(),
            body: Bytes::new(),
            listener: self.listener,
            local: is_local(session),
            tenant: ctx.key.as_ref().map(|key| Arc::clone(&key.tenant)),
        };
        if route.reads_body() {
            if on_main {
                ctx.charge = self.app.bodies.charge();
            }
            let bounds = Bounds { size: control::BODY_LIMIT, ..self.bounds() };
            request.body = read::read(session, bounds, &mut ctx.charge).await?;
        }
        // Not here: a list of a hundred thousand programs would hold up all that this worker serves.
        let app = Arc::clone(&self.app);
        let response = self.background.spawn(async move { control::handle(&app, request).await }).await;
        let response = response.map_err(|_| Refusal::Internal)?;
        ctx.answer.status = response.status.as_u16();
        reply::control(session, &ctx.id, response).await.map_err(|e| Stop::Gone(e.into_down()))?;
        Ok(Next::Answered)
    }

    /// Reads a step, and finds out all that the gate wants to know of it.
    async fn inference(
        &self,
        session: &mut ServerSession,
        ctx: &mut Ctx,
        inference: Inference,
    ) -> Result<(PoolId, StepInfo), Stop> {
        ctx.inference = true;
        let body = self.body(session, ctx).await?;
        let envelope = Envelope::scan(body, self.app.settings().limits.json_depth)?;
        let model = envelope.model();
        let pool = self.pool_of(model.as_deref())?;
        let headers = &session.req_header().headers;
        ctx.program = self.program_of(ctx, headers, &envelope, (pool.0, inference))?;
        let class = envelope.class();
        let preferred = match ctx.program {
            Some(_) => None,
            None => self.app.fleet.preferred(pool, &class.to_be_bytes()),
        };
        let info = StepInfo {
            program: ctx.program.clone(),
            class,
            prompt_bytes: envelope.prompt_bytes(),
            max_output: envelope.max_output(),
            preferred,
            last: final_step(headers),
        };
        let edits = Edits {
            model: model.as_deref().and_then(|model| self.app.fleet.canonical(pool, model)),
            usage: inference.ask_usage(self.app.settings().models[pool.0].engine),
        };
        let Forwarded { body, usage_added } = envelope.forward(&edits);
        ctx.body = Some(body);
        ctx.strip_usage = usage_added;
        Ok((pool, info))
    }

    /// The pool of a request that is passed through. Its body is read all the same: so the model is known, no client
    /// holds a place on a backend while its body trickles in, and all bodies are bounded.
    async fn passed(&self, session: &mut ServerSession, ctx: &mut Ctx) -> Result<PoolId, Stop> {
        let mut pool = self.app.fleet.pool_for(None).unwrap_or(PoolId(0));
        if session.is_body_empty() {
            return Ok(pool);
        }
        let body = self.body(session, ctx).await?;
        let settings = self.app.settings();
        // What is no JSON, such as a form with an audio file, goes to the first pool.
        if settings.models.len() > 1
            && let Ok(envelope) = Envelope::scan(body.clone(), settings.limits.json_depth)
        {
            pool = self.pool_of(envelope.model().as_deref())?;
        }
        ctx.body = Some(body);
        Ok(pool)
    }

    async fn body(&self, session: &mut ServerSession, ctx: &mut Ctx) -> Result<Bytes, Stop> {
        ctx.charge = self.app.bodies.charge();
        read::read(session, self.bounds(), &mut ctx.charge).await
    }

    fn pool_of(&self, model: Option<&str>) -> Result<PoolId, Refusal> {
        let unknown = || Refusal::UnknownModel(echo(model.unwrap_or_default()));
        self.app.fleet.pool_for(model).ok_or_else(unknown)
    }

    fn program_of(
        &self,
        ctx: &mut Ctx,
        headers: &http::HeaderMap,
        envelope: &Envelope,
        place: (usize, Inference),
    ) -> Result<Option<crate::scheduler::ProgramKey>, Refusal> {
        let tenant = ctx.key.as_ref().map_or(&self.nobody, |key| &key.tenant);
        let settings = self.app.settings();
        let found = settings.sources.find(headers, envelope, tenant)?;
        let metrics = &self.app.telemetry.metrics;
        if let Some((program, source)) = found {
            metrics.identity_source(source);
            return Ok(Some(program));
        }
        let anonymous = settings.programs.anonymous;
        if anonymous == Anonymous::Fingerprint
            && let Some(conversation) = Conversation::of(envelope, self.app.fingerprints.scope((tenant, place)))
        {
            metrics.identity_source(FINGERPRINT);
            let bounds = fingerprint::Bounds { max: settings.programs.max, idle_ttl: settings.programs.idle_ttl };
            let trail = self.app.fingerprints.step(bounds, &conversation);
            let program = settings.sources.key(tenant, &trail.id());
            ctx.trail = Some(trail);
            return Ok(Some(program));
        }
        metrics.identity_source(NO_IDENTITY);
        Ok((anonymous == Anonymous::Default).then(|| settings.sources.key(tenant, "default")))
    }

    fn bounds(&self) -> Bounds {
        let config = self.app.settings();
        Bounds { size: config.limits.body, pause: config.timeouts.request_header }
    }
}

/// The client is on this machine.
fn is_local(session: &ServerSession) -> bool {
    let address = session.client_addr().and_then(|address| address.as_inet());
    address.is_some_and(|address| address.ip().to_canonical().is_loopback())
}

/// Waits for the gate, or for the client to leave.
pub async fn admitted(session: &mut ServerSession, ctx: &mut Ctx) -> Result<Admission, Stop> {
    let Some(step) = &mut ctx.step else {
        return Err(Refusal::Internal.into());
    };
    let admission = wait(session, step).await?;
    ctx.held = admission.held;
    Ok(admission)
}

async fn wait(session: &mut ServerSession, step: &mut Step) -> Result<Admission, Stop> {
    tokio::select! {
        biased;
        admission = step.admitted() => Ok(admission?),
        gone = departure(session) => Err(Stop::Gone(gone)),
    }
}
