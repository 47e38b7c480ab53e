//! The proxy's own answers: refusals and the control API.

use super::Proxy;
use super::ctx::Ctx;
use crate::control::{ControlBody, ControlResponse};
use crate::error::Refusal;
use crate::exchange::{HeadFault, departure};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderName, HeaderValue, Method, Version, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;
use std::time::Duration;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ERROR: HeaderName = HeaderName::from_static("x-thundergate-error");

/// Bytes of a body that nobody wants: up to this size it is read and thrown away, so that its connection can go on.
const WORTH_READING: u64 = 64 * 1024;

/// The time in which a client that is still sending can see that it was refused. Closing at once would reset the
/// connection, and the answer would be lost with it.
const LINGER: Duration = Duration::from_secs(2);

impl Proxy {
    /// Sends `refusal` in OpenAI's shape.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) async fn refuse(&self, session: &mut Session, ctx: &Ctx, refusal: &Refusal) -> Result<()> {
        let mut head = refusal_head(refusal)?;
        head.insert_header(REQUEST_ID, ctx.id.clone())?;
        if let Some(key) = &ctx.caller.key {
            self.limits.tell(&self.app.settings().limits.per_key, key, &mut head)?;
        }
        whole(session, head, refusal.body()).await
    }
}

fn refusal_head(refusal: &Refusal) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(refusal.status(), Some(8))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(ERROR, refusal.code())?;
    if let Some(wait) = refusal.retry_after() {
        head.insert_header(header::RETRY_AFTER, wait.as_secs_f64().ceil().max(1.0).to_string())?;
    }
    match refusal {
        Refusal::Unauthorized => head.insert_header(header::WWW_AUTHENTICATE, "Bearer")?,
        // Endpoints with more methods answer for themselves.
        Refusal::MethodNotAllowed => head.insert_header(header::ALLOW, "POST")?,
        _ => {}
    }
    Ok(head)
}

/// The answer to a client that asked for nothing that could be read. Its request has no id, and its connection ends.
///
/// # Errors
/// Never: its headers are constants and numbers.
pub fn to_no_request(fault: HeadFault) -> Result<(ResponseHeader, Bytes)> {
    let refusal = match fault {
        HeadFault::Unreadable => Refusal::InvalidRequest("its head cannot be read"),
        HeadFault::Connect => Refusal::MethodNotAllowed,
        HeadFault::Late(limit) => Refusal::RequestTimeout { what: "head", limit },
        HeadFault::TooLarge(limit) => Refusal::HeadTooLarge { limit },
    };
    let (mut head, body) = (refusal_head(&refusal)?, refusal.body());
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    Ok((head, body))
}

/// Sends what the control API answered.
///
/// # Errors
/// The client is gone.
pub async fn control(session: &mut Session, id: &HeaderValue, response: ControlResponse) -> Result<()> {
    let mut head = ResponseHeader::build(response.status, Some(response.headers.len() + 4))?;
    for (name, value) in response.headers {
        head.insert_header(name, value)?;
    }
    head.insert_header(REQUEST_ID, id.clone())?;
    match response.body {
        ControlBody::Full(body) => whole(session, head, body).await,
        ControlBody::Stream(mut parts) => {
            if session.req_header().version > Version::HTTP_10 {
                head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
            }
            session.write_response_header(Box::new(head), false).await?;
            loop {
                tokio::select! {
                    part = parts.next() => match part {
                        Some(part) => session.write_response_body(Some(part), false).await?,
                        None => return session.write_response_body(None, true).await,
                    },
                    gone = departure(session) => return Err(gone),
                }
            }
        }
    }
}

async fn whole(session: &mut Session, mut head: ResponseHeader, body: Bytes) -> Result<()> {
    discard(session).await;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    let empty = body.is_empty() || session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body((!empty).then_some(body), true).await?;
    linger(session).await;
    Ok(())
}

/// Reads the rest of a small request body.
async fn discard(session: &mut Session) {
    let length =
        session.get_header(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let waits = session.get_header(header::EXPECT).is_some();
    if !waits && length.is_some_and(|length| length <= WORTH_READING) {
        let drained = session.drain_request_body();
        // Too slow is not fatal: the connection ends with the answer then.
        let _ = tokio::time::timeout(LINGER, drained).await;
    }
}

/// Lets a client that is still sending read the answer.
async fn linger(session: &mut Session) {
    if session.is_http2() || session.is_body_done() {
        return;
    }
    session.shutdown().await;
    let rest = async { while let Ok(Some(_)) = session.read_request_body().await {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
}
