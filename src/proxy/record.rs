//! The end of a request: what is counted and written down.

use super::Proxy;
use super::ctx::{Ctx, Kind};
use super::failure::CLIENT_GONE;
use super::observe::Observer;
use crate::scheduler::{Outcome, Usage};
use crate::telemetry::{AccessRecord, StepTimes, UpstreamError};
use crate::units::{BYTES_PER_TOKEN, Tokens, wall_clock};
use pingora::Error;
use pingora_proxy::Session;
use std::sync::Arc;
use std::time::Instant;

impl Proxy {
    pub(super) fn record(&self, session: &Session, e: Option<&Error>, ctx: &mut Ctx) {
        if e.is_none() && ctx.answer.status != 0 {
            // An answer of the proxy's own has no last piece.
            ctx.report_answer();
        } else {
            ctx.report_outcome(Outcome::Abandoned);
        }
        let ended = Instant::now();
        let written = session.response_written().map(|head| head.status.as_u16());
        let status = written.unwrap_or(CLIENT_GONE);
        let telemetry = &self.app.telemetry;
        let metrics = telemetry.metrics.model(ctx.work.pool);
        if ctx.answer.departed {
            telemetry.metrics.client_disconnected();
        }
        if ctx.kind == Kind::Control {
            return;
        }
        metrics.request_finished(status, ended - ctx.arrived);
        if let Some(usage) = ctx.answer.usage {
            metrics.usage(usage);
        }
        if let (Some(key), Some(usage)) = (&ctx.caller.key, ctx.answer.usage.or_else(|| guessed(ctx))) {
            self.limits.used(key, usage);
        }
        if let (500.., None, Some(backend)) = (status, &ctx.answer.refusal, &ctx.target.backend) {
            telemetry.metrics.upstream_error(&backend.url, UpstreamError::Status5xx);
        }
        self.profile(ended, ctx);
        let model = ctx.work.pool.map(|_| Arc::clone(metrics.name()));
        telemetry.access(|| access(session, status, ended, ctx, model));
    }

    fn profile(&self, ended: Instant, ctx: &Ctx) {
        let (Some(profiles), Some(program)) = (self.app.telemetry.profiles(), &ctx.work.program) else {
            return;
        };
        let (Some((sent, _)), Some(first)) = (ctx.answer.sent, ctx.answer.first) else {
            return;
        };
        let last = ctx.answer.last.unwrap_or(ended);
        let times = StepTimes {
            arrived: ctx.arrived,
            pause: ctx.work.held,
            prefill: first - sent,
            decode: last - first,
            ended,
            usage: ctx.answer.usage,
        };
        profiles.step_finished(program, &times);
    }
}

/// An estimate of what a step used whose usage was not seen: a client that leaves before the last event is not served
/// for nothing.
fn guessed(ctx: &Ctx) -> Option<Usage> {
    let refused = !matches!(ctx.answer.status, 0 | 200..=299);
    let (_, bytes) = ctx.answer.sent.filter(|_| ctx.kind == Kind::Inference && !refused)?;
    let prompt = Tokens(bytes as u64 / BYTES_PER_TOKEN);
    let completion = Tokens(ctx.answer.observer.as_ref().map_or(0, Observer::output));
    Some(Usage { prompt, completion, cached: None })
}

fn access(session: &Session, status: u16, ended: Instant, ctx: &Ctx, model: Option<Arc<str>>) -> AccessRecord {
    let request = session.req_header();
    let duration = ended - ctx.arrived;
    let client = session.client_addr().and_then(|address| address.as_inet()).copied();
    AccessRecord {
        time: wall_clock() - duration,
        request_id: String::from_utf8_lossy(ctx.id.as_bytes()).into_owned(),
        client,
        method: request.method.clone(),
        path: ctx.path.split('?').next().unwrap_or_default().to_owned(),
        status,
        model,
        program: ctx.work.program.as_ref().map(|program| program.id.clone()),
        backend: ctx.target.backend.as_ref().map(|backend| backend.url.clone()),
        held: ctx.work.held,
        ttft: ctx.answer.first.map(|first| first - ctx.arrived),
        duration,
        usage: ctx.answer.usage,
        bytes_in: session.body_bytes_read() as u64,
        bytes_out: session.body_bytes_sent() as u64,
        error: ctx.answer.refusal.as_ref().map(crate::error::Refusal::code),
    }
}
