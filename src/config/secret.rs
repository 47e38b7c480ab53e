//! Keys and tokens, which are never printed.

use garde::Validate;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A key or token. `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema, Validate)]
#[serde(transparent)]
#[schemars(inline)]
#[garde(transparent)]
pub struct Secret(#[garde(custom(printable))] pub String);

impl Secret {
    /// SHA-256 of the secret, which may be given as `sha256:` and its hash.
    ///
    /// # Errors
    /// What was expected.
    pub fn digest(&self) -> Result<[u8; 32], &'static str> {
        let Some(hex) = self.0.strip_prefix("sha256:") else {
            return Ok(Sha256::digest(&self.0).into());
        };
        let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        let whole = hex.len() == 64 && digits.len() == 64;
        bytes.try_into().ok().filter(|_| whole).ok_or("expected 64 hex digits after `sha256:`")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A secret that may be given as a hash.
pub(super) fn hash(secret: &Secret, (): &()) -> garde::Result {
    secret.digest().map(drop).map_err(garde::Error::new)
}

/// The same, where there may be none.
pub(super) fn some_hash(secret: &Option<Secret>, context: &()) -> garde::Result {
    secret.as_ref().map_or(Ok(()), |secret| hash(secret, context))
}

/// What goes into or comes out of an `Authorization` header.
fn printable(text: &str, (): &()) -> garde::Result {
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        _ if text.is_empty() => Err(garde::Error::new("must not be empty")),
        true => Ok(()),
        false => Err(garde::Error::new("expected printable ASCII without spaces")),
    }
}
