//! `/weight_sync`: a trainer has all dispatch held while it sends new weights to the backends.

use super::message::{ControlRequest, ControlResponse};
use crate::app::App;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use url::form_urlencoded;

/// Time after which dispatch goes on if nobody ends the weight sync: a trainer that died must not stop the fleet for ever.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

#[derive(Default, Deserialize)]
struct Begin {
    /// Time limit, seconds.
    timeout: Option<f64>,
}

/// `POST /weight_sync/begin`, with `timeout` (seconds) in the query or in a JSON body.
pub(super) fn begin(app: &App, request: &ControlRequest) -> ControlResponse {
    match timeout(request) {
        Ok(timeout) => {
            app.weight_sync.begin(timeout);
            ControlResponse::json(&json!({"status": "ok", "weight_sync_active": true}))
        }
        Err(detail) => ControlResponse::bad_request(detail),
    }
}

/// `POST /weight_sync/end`.
pub(super) fn end(app: &App) -> ControlResponse {
    app.weight_sync.end();
    ControlResponse::json(&json!({"status": "ok", "weight_sync_active": false}))
}

fn timeout(request: &ControlRequest) -> Result<Duration, String> {
    let query = request.query.as_deref().unwrap_or_default();
    let mut query = form_urlencoded::parse(query.as_bytes());
    let seconds = if let Some((_, value)) = query.find(|(key, _)| key == "timeout") {
        Some(value.parse().map_err(|_| "timeout: not a number")?)
    } else if request.body.is_empty() {
        None
    } else {
        let begin: Begin = serde_json::from_slice(&request.body).map_err(|e| e.to_string())?;
        begin.timeout
    };
    let Some(seconds) = seconds else {
        return Ok(DEFAULT_TIMEOUT);
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|timeout| !timeout.is_zero() && *timeout <= MAX_TIMEOUT)
        .ok_or_else(|| "timeout: more than 0 and at most 86400 seconds".to_owned())
}
