//! The client while its backend works: whoever leaves is noticed at once.

use super::{IdleTimer, Result};
use pingora_core::{Error, ErrorType};
use pingora_proxy::Session;
use std::future::Future;

/// Waits for the backend, unless the client leaves or the backend is silent for too long before.
///
/// # Errors
/// Of the client when it has gone; `ReadTimedout` of the backend when it was silent.
pub async fn watched<T>(
    session: &mut Session,
    idle: Option<&mut IdleTimer<'_>>,
    backend: impl Future<Output = T>,
) -> Result<T> {
    let silence = async {
        match idle {
            Some(idle) => idle.over().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        came = backend => Ok(came),
        gone = departure(session) => Err(gone),
        () = silence => Err(Error::explain(ErrorType::ReadTimedout, "it is silent").into_up()),
    }
}

/// Returns when the client has gone. What it sends ahead of time is kept for its next request.
pub async fn departure(session: &mut Session) -> Box<Error> {
    loop {
        if let Err(e) = session.downstream_session.read_body_or_idle(true).await {
            return e.into_down();
        }
    }
}
