//! A request and its answer on the connection to a backend. The request goes out in one write, the answer goes on as it
//! comes; meanwhile the client is watched, so that a backend computes for nobody.

mod framing;
mod head;
mod links;

pub use head::{is_ours, nominated, put};
pub use links::{Link, Links};

use super::Proxy;
use super::ctx::Ctx;
use crate::body::budget::Charge;
use crate::body::read::Stop;
use crate::fleet::PendingAnswer;
use crate::patience::Patience;
use bytes::Bytes;
use framing::{Framing, Misframed};
use head::AnswerHead;
use http::{StatusCode, header};
use pingora_core::Error;
use pingora_core::protocols::http::ServerSession;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Why an exchange did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The client left, or does not take its answer.
    #[error("{0}")]
    Client(Box<Error>),
    /// The backend does not have the whole request, and has said nothing.
    #[error("it did not take the whole request")]
    Unsent,
    /// It said nothing for too long.
    #[error("it is silent")]
    Silent,
    /// It closed, or what it said is no answer.
    #[error("{0}")]
    Lost(String),
}

impl Proxy {
    /// Brings the request to a backend, as often as it takes, and the answer to the client.
    ///
    /// # Errors
    /// What the client is to be told, if it is still there.
    pub(super) async fn deliver(&self, session: &mut ServerSession, ctx: &mut Ctx) -> Result<(), Stop> {
        if let Some(pool) = ctx.pool {
            self.app.retries.request(pool);
        }
        loop {
            let mut link = self.link(session, ctx).await?;
            match self.exchange(session, ctx, &mut link).await {
                Ok(persists) => {
                    if persists {
                        self.links.keep(link);
                    }
                    return Ok(());
                }
                Err(broken) => {
                    if !self.broken(session, ctx, broken).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether the connection may carry another request.
    async fn exchange(&self, session: &mut ServerSession, ctx: &mut Ctx, link: &mut Link) -> Result<bool, Broken> {
        let settings = self.app.settings();
        let (first_byte, idle) = (settings.timeouts.first_byte, settings.timeouts.stream_idle);
        drop(settings);
        let head = self.request_head(session.req_header(), ctx);
        let body = ctx.body.clone().unwrap_or_default();
        if let (true, Some(backend)) = (ctx.inference, &ctx.backend) {
            ctx.awaited = Some(PendingAnswer::begin(backend, body.len()));
        }
        let now = Instant::now();
        ctx.answer.sent = Some((now, body.len()));
        let mut timer = pin!(sleep(first_byte.min(idle)));
        let mut patience = Patience::new(timer.as_mut(), now + first_byte.min(idle));
        let sent = match watched(session, &mut patience, link.send(&head, &body)).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(_)) | Err(Broken::Silent) => return Err(Broken::Unsent),
            Err(broken) => return Err(broken),
        };
        drop(body);
        patience.deadline = now + first_byte;
        let AnswerHead { mut head, mut framing, persists } = answer_head(session, &mut patience, link).await?;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !session.is_upgrade_req() {
                return Err(Broken::Lost("101 without having been asked".to_owned()));
            }
            ctx.answer.status = head.status.as_u16();
            session.write_response_header(head).await.map_err(Broken::client)?;
            return tunnel(session, link, idle).await;
        }
        // It will not be sent again: a conversation of a megabyte is not kept for as long as its answer takes.
        (ctx.body, ctx.charge) = (None, Charge::default());
        patience.deadline = Instant::now() + idle;
        self.response_head(&mut head, ctx).map_err(Broken::Client)?;
        if !framing.is_whole() && !head.headers.contains_key(header::CONTENT_LENGTH) {
            head::frame(&mut head, session.req_header().version).map_err(Broken::Client)?;
        }
        session.write_response_header(head).await.map_err(Broken::client)?;
        self.pass_on(session, ctx, link, &mut framing, &mut patience, idle).await?;
        Ok(persists && sent)
    }

    /// The body of the answer, to its end.
    async fn pass_on(
        &self,
        session: &mut ServerSession,
        ctx: &mut Ctx,
        link: &mut Link,
        framing: &mut Framing,
        patience: &mut Patience<'_>,
        idle: Duration,
    ) -> Result<(), Broken> {
        let mut closed = false;
        loop {
            let (piece, fault) = framing.take(&mut link.read);
            let end = framing.is_whole() || (closed && framing.ends_by_close());
            if end || !piece.is_empty() {
                let now = Instant::now();
                let piece = self.response_piece(piece, end, now, ctx);
                patience.deadline = now + ctx.answer.patience(idle);
                session.write_response_body(piece, end).await.map_err(Broken::client)?;
            }
            if end {
                return Ok(());
            }
            fault?;
            if closed {
                return Err(Broken::Lost("it broke off its answer".to_owned()));
            }
            closed = watched(session, patience, link.more()).await?? == 0;
        }
    }
}

/// The head that counts; those before it are for a client of HTTP/1.1 that waits for them.
async fn answer_head(
    session: &mut ServerSession,
    patience: &mut Patience<'_>,
    link: &mut Link,
) -> Result<AnswerHead, Broken> {
    loop {
        let Some(answer) = head::take(&mut link.read, &session.req_header().method)? else {
            if watched(session, patience, link.more()).await?? == 0 {
                return Err(Broken::Lost("it closed the connection without an answer".to_owned()));
            }
            continue;
        };
        let status = answer.head.status;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        // A client that waited for 100 had it before its body was read.
        if status != StatusCode::CONTINUE && session.req_header().version == http::Version::HTTP_11 {
            session.write_response_header(answer.head).await.map_err(Broken::client)?;
        }
    }
}

/// Another protocol from here on: what either side says goes to the other until one of them closes, or both are silent
/// for `idle`. Whatever ends it, nothing is added to what was said.
async fn tunnel(session: &mut ServerSession, link: &mut Link, idle: Duration) -> Result<bool, Broken> {
    loop {
        let said = link.read.split().freeze();
        session.write_response_body(said, false).await.map_err(Broken::client)?;
        let goes_on = tokio::select! {
            read = link.more() => read.is_ok_and(|bytes| bytes > 0),
            said = session.read_request_body() => match said.map_err(Broken::client)? {
                Some(said) => matches!(timeout(idle, link.write(&said)).await, Ok(Ok(()))),
                None => false,
            },
            () = sleep(idle) => false,
        };
        if !goes_on {
            session.write_response_body(Bytes::new(), true).await.map_err(Broken::client)?;
            return Ok(false);
        }
    }
}

/// Waits for the backend, unless the client leaves or patience ends before.
async fn watched<T>(
    session: &mut ServerSession,
    patience: &mut Patience<'_>,
    backend: impl Future<Output = T>,
) -> Result<T, Broken> {
    tokio::select! {
        biased;
        came = backend => Ok(came),
        gone = departure(session) => Err(Broken::client(gone)),
        () = patience.over() => Err(Broken::Silent),
    }
}

/// Returns when the client has gone. What it sends ahead of time is kept for its next request.
pub async fn departure(session: &mut ServerSession) -> Box<Error> {
    loop {
        if let Err(e) = session.read_body_or_idle(true).await {
            return e.into_down();
        }
    }
}

// === impl Broken ===

impl Broken {
    fn client(e: Box<Error>) -> Self {
        Self::Client(e.into_down())
    }
}

impl From<Misframed> for Broken {
    fn from(fault: Misframed) -> Self {
        Self::Lost(fault.to_string())
    }
}

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Self {
        Self::Lost(e.to_string())
    }
}
