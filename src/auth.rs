//! API keys: who a client is.

use crate::config::Auth;
use crate::error::Refusal;
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// All keys by their SHA-256. A key that a client shows is hashed before it is looked up, so that the time of the search
/// tells nothing of any key and does not grow with the number of keys.
pub struct Keys {
    by_hash: HashMap<[u8; 32], Arc<Key>>,
    required: bool,
}

/// One key of `auth.keys`.
pub struct Key {
    pub name: String,
    pub tenant: Arc<str>,
}

// === impl Keys ===

impl Keys {
    /// Without keys in `auth`, every client may.
    #[must_use]
    pub fn new(auth: &Auth) -> Self {
        let key = |key: &crate::config::ApiKey| {
            let entry = Arc::new(Key { name: key.name.clone(), tenant: key.tenant().into() });
            // Validation refuses a malformed hash. Here the entry is left out, and nobody has that key.
            Some((key.key.digest().ok()?, entry))
        };
        Self { by_hash: auth.keys.iter().filter_map(key).collect(), required: !auth.keys.is_empty() }
    }

    /// Whether clients need a key.
    #[must_use]
    pub fn required(&self) -> bool {
        self.required
    }

    /// Whose key the request has, in `Authorization: Bearer` or `x-api-key`. `None`: no key is needed.
    ///
    /// # Errors
    /// `Unauthorized` for a missing or unknown key.
    pub fn check(&self, headers: &HeaderMap) -> Result<Option<&Arc<Key>>, Refusal> {
        if !self.required() {
            return Ok(None);
        }
        let shown = [bearer(headers), headers.get("x-api-key").map(|key| key.as_bytes())];
        let find = |shown: &[u8]| self.by_hash.get(<[u8; 32]>::from(Sha256::digest(shown)).as_slice());
        let key = shown.into_iter().flatten().find_map(find);
        key.map(Some).ok_or(Refusal::Unauthorized)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ApiKey, Secret};
    use http::HeaderValue;

    fn keys() -> Keys {
        let key = |name: &str, tenant: &str| ApiKey {
            name: name.into(),
            key: Secret(format!("secret-{name}")),
            tenant: tenant.into(),
        };
        Keys::new(&Auth { keys: vec![key("one", "a"), key("two", "")] })
    }

    fn tenant(name: &'static str, value: &'static str) -> Option<String> {
        let headers = HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_static(value))]);
        let keys = keys();
        let key = keys.check(&headers).ok()?;
        key.map(|key| key.tenant.to_string())
    }

    #[test]
    fn a_key_is_taken_from_either_header_and_names_its_tenant() {
        assert_eq!(tenant("authorization", "Bearer secret-one").as_deref(), Some("a"));
        assert_eq!(tenant("authorization", "bearer  secret-two").as_deref(), Some("two"));
        assert_eq!(tenant("x-api-key", "secret-one").as_deref(), Some("a"));
    }

    #[test]
    fn anything_but_a_whole_key_is_refused() {
        for value in ["Bearer secret-on", "Bearer secret-one2", "Basic secret-one", "secret-one", "Bearer", ""] {
            assert_eq!(tenant("authorization", value), None, "{value}");
        }
        assert_eq!(keys().check(&HeaderMap::new()).err(), Some(Refusal::Unauthorized));
    }

    #[test]
    fn a_key_may_be_known_by_its_hash_alone() {
        let hash = format!("sha256:{:X}", Sha256::digest("secret-one"));
        let key = ApiKey { name: "one".into(), key: Secret(hash.clone()), tenant: String::new() };
        let keys = Keys::new(&Auth { keys: vec![key] });
        let shown = |key: &str| {
            let headers = HeaderMap::from_iter([("x-api-key".parse().unwrap(), HeaderValue::try_from(key).unwrap())]);
            keys.check(&headers).is_ok()
        };
        assert!(shown("secret-one"));
        assert!(!shown(&hash), "the hash is not the key");
        assert!(!shown("secret-two"));
        let broken = ApiKey { name: "one".into(), key: Secret("sha256:1".into()), tenant: String::new() };
        assert!(Keys::new(&Auth { keys: vec![broken] }).check(&HeaderMap::new()).is_err(), "nobody, and not everybody");
    }

    #[test]
    fn without_keys_everybody_may() {
        let keys = Keys::new(&Auth::default());
        assert!(keys.check(&HeaderMap::new()).is_ok_and(|key| key.is_none()));
    }
}
