//! Who may use the admin listener.

use super::ControlRequest;
use crate::config::Admin;
use crate::error::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Lets a request pass when no token is set, or when it brings the token: as `Bearer TOKEN`, or, so that a browser
/// can open `/console`, as the password of HTTP basic authentication. A browser sends that one by itself, also when
/// another site makes it: it reads only.
pub(super) fn authorize(admin: Option<&Admin>, request: &ControlRequest) -> Result<(), Refusal> {
    let Some(token) = admin.and_then(|admin| admin.token.as_ref()) else {
        return Ok(());
    };
    let given = request.headers.get(AUTHORIZATION);
    let (scheme, value) =
        given.and_then(|value| value.to_str().ok()?.split_once(' ')).ok_or(Refusal::AdminUnauthorized)?;
    let allowed = if scheme.eq_ignore_ascii_case("bearer") {
        same_secret(value.trim().as_bytes(), token.0.as_bytes())
    } else if scheme.eq_ignore_ascii_case("basic") && request.method.is_safe() {
        basic_password(value.trim()).is_some_and(|given| same_secret(&given, token.0.as_bytes()))
    } else {
        false
    };
    allowed.then_some(()).ok_or(Refusal::AdminUnauthorized)
}

/// Compares in a time that tells neither content nor length.
fn same_secret(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a).ct_eq(&Sha256::digest(b)).into()
}

fn basic_password(encoded: &str) -> Option<Vec<u8>> {
    let decoded = STANDARD.decode(encoded).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}
