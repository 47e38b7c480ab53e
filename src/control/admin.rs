//! Who may use the admin listener, and who may change the fleet and the configuration.

use super::message::{ControlRequest, ControlResponse, Side};
use crate::app::App;
use crate::config::{Admin, Secret};
use crate::error::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Lets a request pass when no token is set, or when the request brings the token: as `Bearer TOKEN`, or, so that a
/// browser can open `/console`, as the password of HTTP basic authentication. A browser also sends that password when
/// another site makes it send a request, so a password is enough for safe methods only.
///
/// # Errors
/// `AdminUnauthorized`.
pub(super) fn authorize(admin: Option<&Admin>, request: &ControlRequest) -> Result<(), Refusal> {
    let Some(token) = admin.and_then(|admin| admin.token.as_ref()) else {
        return Ok(());
    };
    let given = request.headers.get(AUTHORIZATION);
    let (scheme, value) =
        given.and_then(|value| value.to_str().ok()?.split_once(' ')).ok_or(Refusal::AdminUnauthorized)?;
    let allowed = if scheme.eq_ignore_ascii_case("bearer") {
        is_secret(value.trim().as_bytes(), token)
    } else if scheme.eq_ignore_ascii_case("basic") && request.method.is_safe() {
        basic_password(value.trim()).is_some_and(|given| is_secret(&given, token))
    } else {
        false
    };
    allowed.then_some(()).ok_or(Refusal::AdminUnauthorized)
}

/// Compares in a time that tells neither content nor length of the secret.
fn is_secret(given: &[u8], secret: &Secret) -> bool {
    // Validation refuses a malformed hash.
    secret.digest().is_ok_and(|digest| Sha256::digest(given).as_slice().ct_eq(&digest).into())
}

/// Whether a request may add backends, or have the configuration read again. These two do more than any other call: a
/// backend reads prompts, the proxy connects to the backend's address, and the answer to a reload quotes mistakes in the
/// configuration. So they need the admin token. Where no token is set, the client must be on this machine, without a proxy
/// between (its own clients could be anywhere) and no browser (a browser sends what any page tells it to send).
pub(super) fn is_operator(app: &App, request: &ControlRequest) -> bool {
    let settings = app.settings();
    let admin = settings.admin.as_ref();
    let with_token = request.listener == Side::Admin && admin.is_some_and(|admin| admin.token.is_some());
    let between = ["x-forwarded-for", "forwarded", "x-real-ip", "via", "origin", "sec-fetch-site"];
    with_token || (request.local && !between.iter().any(|name| request.headers.contains_key(*name)))
}

/// The refusal says how to do it right, for trainers on other machines that add their workers.
pub(super) fn not_an_operator() -> ControlResponse {
    ControlResponse::detail(
        StatusCode::FORBIDDEN,
        "From this machine alone unless `admin.listen` and `admin.token` are set: send it there, with \
         `Authorization: Bearer TOKEN`",
    )
}

fn basic_password(encoded: &str) -> Option<Vec<u8>> {
    let decoded = STANDARD.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}
