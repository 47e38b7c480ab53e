//! `limits.per_key`: how much one API key may ask for.

use super::auth::Key;
use crate::config::PerKey;
use crate::error::Refusal;
use crate::scheduler::Usage;
use pingora_limits::inflight::{Guard, Inflight};
use pingora_limits::rate::{Rate, RateComponents};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// What all keys have used. A key is counted by its name.
pub struct Limits {
    requests: Rate,
    tokens: Rate,
    concurrent: Inflight,
}

// === impl Limits ===

impl Limits {
    #[must_use]
    pub fn new() -> Self {
        Self { requests: Rate::new(MINUTE), tokens: Rate::new(MINUTE), concurrent: Inflight::new() }
    }

    /// Counts a request of `key` within the limits of `per_key`; the guard counts as one in flight until it is dropped.
    ///
    /// # Errors
    /// `RateLimited`.
    pub fn enter(&self, per_key: &PerKey, key: &Key) -> Result<Guard, Refusal> {
        within(&self.requests, key, per_key.requests_per_minute, "requests_per_minute")?;
        within(&self.tokens, key, per_key.tokens_per_minute, "tokens_per_minute")?;
        let (guard, in_flight) = self.concurrent.incr(&key.name, 1);
        if per_key.concurrent.is_some_and(|limit| in_flight > signed(limit)) {
            return Err(refused("concurrent", Duration::from_secs(1)));
        }
        self.requests.observe(&key.name, 1);
        Ok(guard)
    }

    /// Counts what a step of `key` used.
    pub fn used(&self, key: &Key, usage: Usage) {
        let tokens = usage.prompt + usage.completion;
        self.tokens.observe(&key.name, signed(tokens.0));
    }
}

/// The last minute is taken as what is left of the previous window plus the current one.
fn within(rate: &Rate, key: &Key, limit: Option<u64>, what: &str) -> Result<(), Refusal> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let (used, left) = rate.rate_with(&key.name, |window: RateComponents| {
        let left = 1.0 - window.current_interval_fraction;
        let used = window.prev_samples as f64 * left + window.curr_samples as f64;
        (used, window.interval.mul_f64(left.max(0.0)))
    });
    match used < limit as f64 {
        true => Ok(()),
        false => Err(refused(what, left.max(Duration::from_secs(1)))),
    }
}

fn refused(what: &str, retry_after: Duration) -> Refusal {
    Refusal::RateLimited { what: format!("limits.per_key.{what}"), retry_after }
}

fn signed(count: u64) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::auth::Keys;
    use super::*;
    use crate::config::{ApiKey, Auth, Secret};
    use crate::units::Tokens;
    use http::{HeaderMap, HeaderValue};
    use std::sync::Arc;

    fn key(name: &str) -> Arc<Key> {
        let auth = Auth { keys: vec![ApiKey { name: name.into(), key: Secret("k".into()), tenant: String::new() }] };
        let headers = HeaderMap::from_iter([("x-api-key".parse().expect("a name"), HeaderValue::from_static("k"))]);
        let keys = Keys::new(&auth);
        let key = keys.check(&headers).expect("the key").expect("keys are required");
        Arc::clone(key)
    }

    #[test]
    fn requests_over_the_limit_are_refused_for_that_key_only() {
        let limits = Limits::new();
        let limits = |key| limits.enter(&PerKey { requests_per_minute: Some(2), ..PerKey::default() }, key);
        let (one, other) = (key("one"), key("other"));
        for _ in 0..2 {
            assert!(limits(&one).is_ok());
        }
        let refusal = limits(&one).expect_err("the third");
        assert_eq!((refusal.code(), refusal.status().as_u16()), ("rate_limited", 429));
        assert!(refusal.retry_after().is_some_and(|wait| wait <= MINUTE && wait > Duration::ZERO));
        assert!(limits(&other).is_ok());
    }

    #[test]
    fn tokens_used_count_against_the_next_request() {
        let limits = Limits::new();
        let per_key = PerKey { tokens_per_minute: Some(100), ..PerKey::default() };
        let key = key("one");
        limits.used(&key, Usage { prompt: Tokens(60), completion: Tokens(39), cached: None });
        assert!(limits.enter(&per_key, &key).is_ok());
        limits.used(&key, Usage { prompt: Tokens(1), completion: Tokens(0), cached: None });
        assert!(limits.enter(&per_key, &key).is_err());
    }

    #[test]
    fn a_place_in_flight_is_given_back_with_its_guard() {
        let limits = Limits::new();
        let per_key = PerKey { concurrent: Some(1), ..PerKey::default() };
        let key = key("one");
        let first = limits.enter(&per_key, &key).expect("the first");
        assert!(limits.enter(&per_key, &key).is_err());
        assert!(limits.enter(&per_key, &key).is_err(), "a refusal takes no place");
        drop(first);
        assert!(limits.enter(&per_key, &key).is_ok());
    }
}
