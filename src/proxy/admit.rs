//! From the request's head to a place on a backend: who asks, for what, for which program, and when it may go.

use super::Proxy;
use super::body::{self, Bounds};
use super::ctx::{Ctx, Guards, Kind, is_usable_id, new_id};
use super::failure::Stop;
use super::route::{Inference, Route, is_ambiguous, normal};
use super::{head, reply};
use crate::auth::Key;
use crate::body::envelope::{Edits, Envelope, Forwarded};
use crate::config::Anonymous;
use crate::control::{self, ControlRequest, ControlRoute, Side};
use crate::error::{Refusal, echo};
use crate::exchange::departure;
use crate::gate::{Admission, Arrival, PoolId, Step};
use crate::identity::final_step;
use crate::identity::fingerprint::{self, Conversation};
use crate::scheduler::ProgramKey;
use crate::telemetry::{FINGERPRINT, NO_IDENTITY};
use bytes::Bytes;
use http::{HeaderMap, Method};
use pingora_limits::inflight::Guard;
use pingora_proxy::Session;
use std::sync::Arc;

impl Proxy {
    /// Lets a request in: `true` when it has been answered, `false` when it may go to a backend.
    ///
    /// # Errors
    /// Why the request goes no further.
    pub(super) async fn admit(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool, Stop> {
        self.prepare_connection(session);
        self.name(session, ctx);
        let (route, path) = self.route(session)?;
        if let Route::Control(route) = route {
            ctx.kind = Kind::Control;
            self.control(session, ctx, route, path).await?;
            return Ok(true);
        }
        ctx.path = match session.req_header().uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        self.check_caller(session, ctx, &route)?;
        let (pool, info) = match route {
            Route::Inference(inference) => self.inference(session, ctx, inference).await?,
            _ => (self.passed(session, ctx).await?, Arrival::default()),
        };
        ctx.work.pool = Some(pool);
        ctx.work.step = Some(self.app.gate.enter(pool, info));
        ctx.work.admission = Some(admitted(session, ctx).await?);
        self.app.retries.request(pool);
        Ok(false)
    }

    fn prepare_connection(&self, session: &mut Session) {
        session.set_pipelining_enabled(true);
        // Bodies are timed where they are read.
        session.set_read_timeout(None);
        // A client that does not read holds a place on a backend.
        session.set_write_timeout(Some(self.app.settings().timeouts.stream_idle));
        if self.app.draining() {
            session.set_keepalive(None);
        }
    }

    /// Gives the request its id and the path under which it is logged if it is refused.
    fn name(&self, session: &Session, ctx: &mut Ctx) {
        let request = session.req_header();
        let id = request.headers.get(&reply::REQUEST_ID).filter(|id| is_usable_id(id));
        ctx.id = id.cloned().unwrap_or_else(new_id);
        if self.listener == Side::Main {
            ctx.path = echo(request.uri.path());
        }
    }

    /// The route of the request, and its path in normal form.
    fn route(&self, session: &mut Session) -> Result<(Route, String), Refusal> {
        if let Some(fault) = head::fault(session) {
            // Where the next request begins is in doubt.
            session.set_keepalive(None);
            return Err(Refusal::InvalidRequest(fault));
        }
        let request = session.req_header();
        let unknown = || Refusal::NotFound(echo(request.uri.path()));
        let path = normal(request.uri.path()).ok_or(Refusal::InvalidPath)?;
        match Route::of(&request.method, &path) {
            route @ Route::Control(_) => Ok((route, path.into_owned())),
            Route::Unknown => Err(unknown()),
            _ if self.listener != Side::Main => Err(unknown()),
            _ if is_ambiguous(&path) => Err(Refusal::InvalidPath),
            route => Ok((route, path.into_owned())),
        }
    }

    /// Checks method, key, and the key's limits.
    fn check_caller(&self, session: &Session, ctx: &mut Ctx, route: &Route) -> Result<(), Refusal> {
        let request = session.req_header();
        if let Route::Inference(_) = route
            && request.method != Method::POST
        {
            return Err(Refusal::MethodNotAllowed);
        }
        let caller = &mut ctx.caller;
        caller.key = self.app.settings().keys.check(&request.headers)?.cloned();
        caller.key_permit = self.permit_of(caller.key.as_deref())?;
        let (open, in_flight) = (self.app.open.enter(), self.app.telemetry.metrics.in_flight());
        caller.guards = Some(Guards { _open: open, _in_flight: in_flight });
        Ok(())
    }

    /// The key's permit for one more request in flight.
    fn permit_of(&self, key: Option<&Key>) -> Result<Option<Guard>, Refusal> {
        key.map(|key| self.limits.enter(&self.app.settings().limits.per_key, key)).transpose()
    }

    async fn control(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        route: ControlRoute,
        path: String,
    ) -> Result<(), Stop> {
        let request = session.req_header();
        let on_main = self.listener == Side::Main;
        if on_main && route.needs_key() {
            ctx.caller.key = self.app.settings().keys.check(&request.headers)?.cloned();
        }
        let mut request = ControlRequest {
            method: request.method.clone(),
            path,
            query: request.uri.query().map(str::to_owned),
            headers: request.headers.clone(),
            body: Bytes::new(),
            listener: self.listener,
            local: is_local(session),
            tenant: ctx.caller.key.as_ref().map(|key| Arc::clone(&key.tenant)),
        };
        if route.reads_body() {
            if on_main {
                ctx.payload.charge = self.app.bodies.charge();
            }
            let bounds = Bounds { size: control::BODY_LIMIT, ..self.bounds() };
            request.body = body::read(session, bounds, &mut ctx.payload.charge).await?;
        }
        // In the background: a list of a hundred thousand programs would hold up all that this worker serves.
        let app = Arc::clone(&self.app);
        let response = self.background.spawn(async move { control::handle(&app, request).await }).await;
        let response = response.map_err(|_| Refusal::Internal)?;
        ctx.answer.status = response.status.as_u16();
        reply::control(session, &ctx.id, response).await.map_err(|e| Stop::Gone(e.into_down()))
    }

    /// Reads a step, and finds out all that the gate wants to know of it.
    async fn inference(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        inference: Inference,
    ) -> Result<(PoolId, Arrival), Stop> {
        ctx.kind = Kind::Inference;
        let body = self.body(session, ctx).await?;
        let envelope = Envelope::scan(body, self.app.settings().limits.json_depth)?;
        let model = envelope.model();
        let pool = self.pool_of(model.as_deref())?;
        let headers = &session.req_header().headers;
        ctx.work.program = self.program_of(ctx, headers, &envelope, (pool.0, inference))?;
        let class = envelope.class();
        let preferred = match ctx.work.program {
            Some(_) => None,
            None => self.app.fleet.preferred(pool, &class.to_be_bytes()),
        };
        let info = Arrival {
            program: ctx.work.program.clone(),
            class,
            prompt_bytes: envelope.prompt_bytes(),
            max_output: envelope.max_output(),
            preferred,
            last: final_step(headers),
            ..Arrival::default()
        };
        let edits = Edits {
            model: model.as_deref().and_then(|model| self.app.fleet.canonical(pool, model)),
            usage: inference.ask_usage(self.app.settings().models[pool.0].engine),
        };
        let Forwarded { body, usage_added } = envelope.forward(&edits);
        ctx.payload.body = Some(body);
        ctx.payload.strip_usage = usage_added;
        Ok((pool, info))
    }

    /// The pool of a request that is passed through. Its body is read like a step's: the model is in it, no client holds
    /// a place on a backend while its body trickles in, and all bodies are bounded.
    async fn passed(&self, session: &mut Session, ctx: &mut Ctx) -> Result<PoolId, Stop> {
        let mut pool = self.app.fleet.pool_for(None).unwrap_or(PoolId(0));
        if session.is_body_empty() {
            return Ok(pool);
        }
        let body = self.body(session, ctx).await?;
        let settings = self.app.settings();
        // A body that is no JSON, such as a form with an audio file, goes to the first pool.
        if settings.models.len() > 1
            && let Ok(envelope) = Envelope::scan(body.clone(), settings.limits.json_depth)
        {
            pool = self.pool_of(envelope.model().as_deref())?;
        }
        ctx.payload.body = Some(body);
        Ok(pool)
    }

    async fn body(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Bytes, Stop> {
        ctx.payload.charge = self.app.bodies.charge();
        body::read(session, self.bounds(), &mut ctx.payload.charge).await
    }

    fn pool_of(&self, model: Option<&str>) -> Result<PoolId, Refusal> {
        let unknown = || Refusal::UnknownModel(echo(model.unwrap_or_default()));
        self.app.fleet.pool_for(model).ok_or_else(unknown)
    }

    fn program_of(
        &self,
        ctx: &mut Ctx,
        headers: &HeaderMap,
        envelope: &Envelope,
        place: (usize, Inference),
    ) -> Result<Option<ProgramKey>, Refusal> {
        let tenant = ctx.caller.key.as_ref().map_or(&self.nobody, |key| &key.tenant);
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
            let retention = fingerprint::Retention { max: settings.programs.max, idle_ttl: settings.programs.idle_ttl };
            let trail = self.app.fingerprints.step(retention, &conversation);
            let program = settings.sources.key(tenant, &trail.id());
            ctx.work.trail = Some(trail);
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

/// Whether the client is on this machine.
fn is_local(session: &Session) -> bool {
    let address = session.client_addr().and_then(|address| address.as_inet());
    address.is_some_and(|address| address.ip().to_canonical().is_loopback())
}

/// Waits for the gate, or for the client to leave.
pub async fn admitted(session: &mut Session, ctx: &mut Ctx) -> Result<Admission, Stop> {
    let Some(step) = &mut ctx.work.step else {
        return Err(Refusal::Internal.into());
    };
    let admission = wait(session, step).await?;
    ctx.work.held = admission.held;
    Ok(admission)
}

async fn wait(session: &mut Session, step: &mut Step) -> Result<Admission, Stop> {
    tokio::select! {
        biased;
        admission = step.admitted() => Ok(admission?),
        gone = departure(session) => Err(Stop::Gone(gone)),
    }
}
