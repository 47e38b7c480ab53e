//! The answer on its way back: observed, never held, and the step settled as soon as its last byte is seen.

use super::Proxy;
use super::ctx::{Answer, Ctx, Kind};
use super::observe::Observer;
use super::reply::REQUEST_ID;
use super::upstream::is_websocket;
use crate::fleet::BackendFault;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use std::time::Instant;

const BACKEND: HeaderName = HeaderName::from_static("x-thundergate-backend");
const HELD: HeaderName = HeaderName::from_static("x-thundergate-held-ms");

impl Proxy {
    pub(super) fn response_head(&self, session: &Session, head: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !is_websocket(session.req_header()) {
                // The client would take what follows for another protocol.
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, "101 without having been asked").into_up());
            }
            ctx.answer.status = head.status.as_u16();
            ctx.payload.release();
            return Ok(());
        }
        if head.status.is_informational() {
            return Ok(());
        }
        ctx.answer.status = head.status.as_u16();
        // A conversation of a megabyte is not kept for as long as its answer takes.
        ctx.payload.release();
        ctx.heard();
        if let (Some(backend), Some(fault)) = (&ctx.target.backend, BackendFault::of_status(ctx.answer.status)) {
            self.app.fleet.failed(backend.id, fault);
        }
        head.insert_header(REQUEST_ID, ctx.id.clone())?;
        head.insert_header(HELD, ctx.work.held.as_millis().to_string())?;
        if let Some(backend) = &ctx.target.backend {
            head.insert_header(BACKEND, &backend.url)?;
        }
        if let Some(key) = &ctx.caller.key {
            self.limits.tell(&self.app.settings().limits.per_key, key, head)?;
        }
        if ctx.kind == Kind::Inference && head.status.is_success() && !is_encoded(head) {
            let chunks = session.req_header().version > Version::HTTP_10;
            observe(head, chunks, ctx)?;
        }
        Ok(())
    }

    /// Makes a piece of the answer into what the client is to get of it; `end` with the last.
    pub(super) fn response_piece(&self, piece: &mut Option<Bytes>, end: bool, ctx: &mut Ctx) {
        ctx.heard();
        if let (Some(trail), Some(piece)) = (&mut ctx.work.trail, &piece) {
            trail.heard(piece);
        }
        if let Some(mut observer) = ctx.answer.observer.take() {
            let mut seen = piece.take().map(|piece| observer.feed(piece));
            if end {
                seen = Some(joined(seen.unwrap_or_default(), observer.finish()));
            }
            *piece = seen;
            ctx.answer.usage = observer.usage();
            self.time(&observer, ctx);
            if end || observer.ended() {
                ctx.report_answer();
            }
            ctx.answer.observer = Some(observer);
        } else if end {
            ctx.report_answer();
        }
        ctx.answer.note_tail(piece.as_deref().unwrap_or_default());
    }

    /// Times the first token and the gaps between tokens, and tells the gate how far the step is.
    fn time(&self, observer: &Observer, ctx: &mut Ctx) {
        if !observer.started() {
            return;
        }
        let now = Instant::now();
        let metrics = self.app.telemetry.metrics.model(ctx.work.pool);
        match ctx.answer.last.replace(now) {
            None => {
                ctx.answer.first = Some(now);
                metrics.ttft(now - ctx.arrived);
            }
            Some(last) if ctx.answer.events => metrics.inter_token(now - last),
            Some(_) => {}
        }
        if let Some(step) = &mut ctx.work.step {
            if ctx.answer.first == Some(now) {
                step.first_token();
            }
            step.progress(observer.output());
        }
    }
}

/// `chunks`: the client knows chunks. For one that does not, the end of the connection ends a body without a length.
fn observe(head: &mut ResponseHeader, chunks: bool, ctx: &mut Ctx) -> Result<()> {
    let kind = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if kind.eq_ignore_ascii_case(b"text/event-stream") {
        ctx.answer.events = true;
        ctx.answer.observer = Some(Observer::sse(ctx.payload.strip_usage));
        if ctx.payload.strip_usage && head.remove_header(&header::CONTENT_LENGTH).is_some() && chunks {
            head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
    } else {
        ctx.answer.observer = Some(Observer::json());
    }
    Ok(())
}

/// Whether the body is compressed: the observer cannot read it then.
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

impl Answer {
    pub(super) fn note_tail(&mut self, piece: &[u8]) {
        match piece {
            [.., a, b] => self.tail = [*a, *b],
            [b] => self.tail = [self.tail[1], *b],
            [] => {}
        }
    }
}
