//! `GET /events`: scheduler decisions as server-sent events.

use super::message::{ControlBody, ControlResponse};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderName, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Time between two comments that keep the stream open: shorter than the idle timeouts of common proxies (30 s and more).
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event for each decision from now on. The stream begins with a comment, so that the response header goes out at
/// once.
pub(super) fn stream(decisions: Receiver<Arc<str>>) -> ControlResponse {
    let hello = stream::once(async { Bytes::from_static(b": connected\n\n") });
    let events = stream::unfold(decisions, async |mut decisions| Some((next(&mut decisions).await?, decisions)));
    let mut response = ControlResponse::new(StatusCode::OK, "text/event-stream", Bytes::new())
        .with(HeaderName::from_static("x-accel-buffering"), "no");
    response.body = ControlBody::Stream(hello.chain(events).boxed());
    response
}

/// The next event; `None` when the gate is gone.
async fn next(decisions: &mut Receiver<Arc<str>>) -> Option<Bytes> {
    match tokio::time::timeout(KEEP_ALIVE, decisions.recv()).await {
        Ok(Ok(json)) => Some(Bytes::from(format!("data: {json}\n\n"))),
        Ok(Err(RecvError::Lagged(lost))) => Some(Bytes::from(format!(": too slow, {lost} events lost\n\n"))),
        Ok(Err(RecvError::Closed)) => None,
        Err(_) => Some(Bytes::from_static(b": keep-alive\n\n")),
    }
}

#[cfg(test)]
mod tests;
