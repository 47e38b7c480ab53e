//! The answer on its way back: observed, never held, and the step settled as soon as its last byte is seen.

use super::Proxy;
use super::ctx::Ctx;
use super::observe::Observer;
use super::reply::REQUEST_ID;
use crate::fleet::Fault;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use std::time::{Duration, Instant};

const BACKEND: HeaderName = HeaderName::from_static("x-thundergate-backend");
const HELD: HeaderName = HeaderName::from_static("x-thundergate-held-ms");

/// How long a stream that has said its last word may take to close: its client waits for that end.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Proxy {
    pub(super) fn response_head(&self, head: &mut ResponseHeader, ctx: &mut Ctx) -> pingora::Result<()> {
        if head.status.is_informational() {
            return Ok(());
        }
        ctx.answer.status = head.status.as_u16();
        ctx.expect_within(self.app.settings().timeouts.stream_idle);
        ctx.heard();
        if let (Some(backend), Some(fault)) = (&ctx.backend, Fault::of_status(ctx.answer.status)) {
            self.app.fleet.failed(backend.id, fault);
        }
        head.insert_header(REQUEST_ID, ctx.id.clone())?;
        head.insert_header(HELD, ctx.held.as_millis().to_string())?;
        if let Some(backend) = &ctx.backend {
            head.insert_header(BACKEND, &backend.url)?;
        }
        if let Some(key) = &ctx.key {
            self.limits.tell(&self.app.settings().limits.per_key, key, head)?;
        }
        if ctx.inference && head.status.is_success() && !is_encoded(head) {
            self.observe(head, ctx)?;
        }
        Ok(())
    }

    fn observe(&self, head: &mut ResponseHeader, ctx: &mut Ctx) -> pingora::Result<()> {
        let kind = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if kind.eq_ignore_ascii_case(b"text/event-stream") {
            ctx.answer.events = true;
            ctx.answer.observer = Some(Observer::sse(ctx.strip_usage));
            if ctx.strip_usage && head.remove_header(&header::CONTENT_LENGTH).is_some() {
                head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
            }
        } else {
            ctx.answer.observer = Some(Observer::json());
        }
        Ok(())
    }

    /// One piece of the answer, `end` with the last.
    pub(super) fn response_piece(&self, body: &mut Option<Bytes>, end: bool, ctx: &mut Ctx) {
        ctx.expect_within(self.app.settings().timeouts.stream_idle);
        ctx.heard();
        if let (Some(trail), Some(piece)) = (&mut ctx.trail, body.as_ref()) {
            trail.heard(piece);
        }
        if let Some(mut observer) = ctx.answer.observer.take() {
            let seen = body.take().map(|piece| observer.feed(piece));
            *body = match end {
                true => Some(joined(seen.unwrap_or_default(), observer.finish())),
                false => seen,
            };
            ctx.answer.usage = observer.usage();
            self.time(&observer, ctx);
            if end || observer.ended() {
                ctx.settle_by_status();
            }
            if ctx.answer.events && observer.ended() {
                ctx.expect_within(LAST_WORD.min(self.app.settings().timeouts.stream_idle));
            }
            ctx.answer.observer = Some(observer);
        } else if end {
            ctx.settle_by_status();
        }
        if let Some(piece) = body {
            ctx.answer.note_tail(piece);
        }
    }

    /// First token, gaps between tokens, progress.
    fn time(&self, observer: &Observer, ctx: &mut Ctx) {
        if !observer.started() {
            return;
        }
        let now = Instant::now();
        let metrics = self.app.telemetry.metrics.model(ctx.pool);
        match ctx.answer.last.replace(now) {
            None => {
                ctx.answer.first = Some(now);
                metrics.ttft(now - ctx.arrived);
            }
            Some(last) if ctx.answer.events => metrics.inter_token(now - last),
            Some(_) => {}
        }
        if let Some(step) = &mut ctx.step {
            if ctx.answer.first == Some(now) {
                step.first_token();
            }
            step.progress(observer.output());
        }
    }
}

/// The observer cannot read it.
fn is_encoded(head: &ResponseHeader) -> bool {
    head.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity")
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    if second.is_empty() {
        return first;
    }
    if first.is_empty() {
        return second;
    }
    let mut both = BytesMut::with_capacity(first.len() + second.len());
    both.extend_from_slice(&first);
    both.extend_from_slice(&second);
    both.freeze()
}

// === impl Answer ===

impl super::ctx::Answer {
    pub(super) fn note_tail(&mut self, piece: &[u8]) {
        match piece {
            [.., a, b] => self.tail = [*a, *b],
            [b] => self.tail = [self.tail[1], *b],
            [] => {}
        }
    }
}
