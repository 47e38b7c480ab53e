//! The answer on its way back: observed, never held, and the step settled as soon as its last byte is seen.

use super::Proxy;
use super::ctx::Ctx;
use super::observe::Observer;
use super::reply::REQUEST_ID;
use crate::fleet::BackendFault;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, header};
use pingora_http::ResponseHeader;
use std::time::{Duration, Instant};

const BACKEND: HeaderName = HeaderName::from_static("x-thundergate-backend");
const HELD: HeaderName = HeaderName::from_static("x-thundergate-held-ms");

/// How long a stream that has said its last word may take to close: its client waits for that end.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Proxy {
    pub(super) fn response_head(&self, head: &mut ResponseHeader, ctx: &mut Ctx) -> pingora_core::Result<()> {
        ctx.answer.status = head.status.as_u16();
        ctx.heard();
        if let (Some(backend), Some(fault)) = (&ctx.backend, BackendFault::of_status(ctx.answer.status)) {
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
            observe(head, ctx);
        }
        Ok(())
    }

    /// One piece of the answer, `end` with the last: what the client is to get of it.
    pub(super) fn response_piece(&self, piece: Bytes, end: bool, now: Instant, ctx: &mut Ctx) -> Bytes {
        ctx.heard();
        if let Some(trail) = &mut ctx.trail {
            trail.heard(&piece);
        }
        let mut seen = piece;
        if let Some(mut observer) = ctx.answer.observer.take() {
            seen = observer.feed(seen);
            if end {
                seen = joined(seen, observer.finish());
            }
            ctx.answer.usage = observer.usage();
            self.time(&observer, now, ctx);
            if end || observer.ended() {
                ctx.settle_by_status();
            }
            ctx.answer.observer = Some(observer);
        } else if end {
            ctx.settle_by_status();
        }
        ctx.answer.note_tail(&seen);
        seen
    }

    /// First token, gaps between tokens, progress.
    fn time(&self, observer: &Observer, now: Instant, ctx: &mut Ctx) {
        if !observer.started() {
            return;
        }
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

fn observe(head: &mut ResponseHeader, ctx: &mut Ctx) {
    let kind = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if kind.eq_ignore_ascii_case(b"text/event-stream") {
        ctx.answer.events = true;
        ctx.answer.observer = Some(Observer::sse(ctx.strip_usage));
        if ctx.strip_usage {
            head.remove_header(&header::CONTENT_LENGTH);
        }
    } else {
        ctx.answer.observer = Some(Observer::json());
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
    /// How long the next piece may take.
    pub(super) fn patience(&self, idle: Duration) -> Duration {
        match &self.observer {
            Some(observer) if self.events && observer.ended() => LAST_WORD.min(idle),
            _ => idle,
        }
    }

    pub(super) fn note_tail(&mut self, piece: &[u8]) {
        match piece {
            [.., a, b] => self.tail = [*a, *b],
            [b] => self.tail = [self.tail[1], *b],
            [] => {}
        }
    }
}
