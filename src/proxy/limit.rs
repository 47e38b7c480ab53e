//! `limits.per_key`: how much one API key may ask for.

use crate::auth::Key;
use crate::config::PerKey;
use crate::error::Refusal;
use crate::scheduler::Usage;
use http::HeaderName;
use pingora::http::ResponseHeader;
use pingora_limits::inflight::{Guard, Inflight};
use pingora_limits::rate::{Rate, RateComponents};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Size of the sketch that `Rate` counts in; a sketch never counts too little. With as many hashes and columns as
/// `Inflight` has, no two of a thousand keys are expected to be counted together.
const HASHES: usize = 4;
const COLUMNS: usize = 8192;

/// What a client is told to wait for one of its key's steps to end. Nobody can know when.
const CONCURRENT_RETRY: Duration = Duration::from_secs(1);

/// The use that all keys have made. A key is counted by its name.
pub struct Limits {
    requests: Quota,
    tokens: Quota,
    in_flight: Inflight,
}

/// A limit on what a key may use in a minute.
struct Quota {
    rate: Rate,
    /// The setting in the YAML.
    key: &'static str,
    /// `x-ratelimit-limit-…`, `-remaining-…`, `-reset-…`, as OpenAI has them.
    headers: [HeaderName; 3],
}

/// The last minute of one key: what is left of the window before this one, plus this one.
#[derive(Clone, Copy, Debug)]
struct Spent {
    before: f64,
    now: f64,
    /// The part of the window that is over, 0 to 1.
    fraction: f64,
}

// === impl Limits ===

impl Limits {
    #[must_use]
    pub fn new() -> Self {
        let quota = |key, headers: [&'static str; 3]| {
            let rate = Rate::new_with_estimator_config(MINUTE, HASHES, COLUMNS);
            Quota { rate, key, headers: headers.map(HeaderName::from_static) }
        };
        Self {
            requests: quota(
                "limits.per_key.requests_per_minute",
                ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ),
            tokens: quota(
                "limits.per_key.tokens_per_minute",
                ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
            ),
            in_flight: Inflight::new(),
        }
    }

    /// Counts a request of `key` within the limits of `per_key`; the guard counts as one in flight until it is
    /// dropped. A refused request counts for nothing: a client that keeps on asking is not kept out by its asking.
    ///
    /// # Errors
    /// `RateLimited`.
    pub fn enter(&self, per_key: &PerKey, key: &Key) -> Result<Guard, Refusal> {
        let (guard, in_flight) = self.in_flight.incr(&key.name, 1);
        if per_key.concurrent.is_some_and(|limit| in_flight > signed(limit)) {
            return Err(refused("limits.per_key.concurrent", CONCURRENT_RETRY));
        }
        self.tokens.check(key, per_key.tokens_per_minute, 0)?;
        // Counted first: of two that come at once for the last place, one has to see the other.
        let requests = &self.requests;
        requests.rate.observe(&key.name, 1);
        let checked = requests.check(key, per_key.requests_per_minute, 1);
        checked.inspect_err(|_| _ = requests.rate.observe(&key.name, -1))?;
        Ok(guard)
    }

    /// Counts what a step of `key` used. The use is known only afterwards, so the last step may go beyond the limit.
    pub fn used(&self, key: &Key, usage: Usage) {
        self.tokens.rate.observe(&key.name, signed((usage.prompt + usage.completion).0));
    }

    /// Writes what `key` has left into an answer.
    ///
    /// # Errors
    /// Never: numbers are valid header values.
    pub fn tell(&self, per_key: &PerKey, key: &Key, head: &mut ResponseHeader) -> pingora_core::Result<()> {
        let quotas = [(&self.requests, per_key.requests_per_minute), (&self.tokens, per_key.tokens_per_minute)];
        for (quota, limit) in quotas {
            let Some(total) = limit else { continue };
            let spent = quota.spent(key);
            let [limit, remaining, reset] = &quota.headers;
            head.insert_header(limit, total)?;
            head.insert_header(remaining, total.saturating_sub(spent.total().ceil() as u64))?;
            head.insert_header(reset, format!("{}s", spent.until_zero().as_secs_f64().ceil()))?;
        }
        Ok(())
    }
}

// === impl Quota ===

impl Quota {
    fn spent(&self, key: &Key) -> Spent {
        self.rate.rate_with(&key.name, |window: RateComponents| Spent {
            before: window.prev_samples as f64,
            now: window.curr_samples as f64,
            fraction: window.current_interval_fraction,
        })
    }

    /// `own`: the part of the count that the request itself has added.
    fn check(&self, key: &Key, limit: Option<u64>, own: u64) -> Result<(), Refusal> {
        let Some(limit) = limit.map(|limit| limit as f64) else {
            return Ok(());
        };
        let spent = self.spent(key);
        let spent = Spent { now: spent.now - own as f64, ..spent };
        match spent.total() < limit {
            true => Ok(()),
            false => Err(refused(self.key, spent.until_below(limit))),
        }
    }
}

// === impl Spent ===

impl Spent {
    fn total(self) -> f64 {
        self.before * (1.0 - self.fraction) + self.now
    }

    /// The time in which nothing must be spent for the total to fall below `limit`.
    fn until_below(self, limit: f64) -> Duration {
        // `count * (1 - f) < room`, as the window that `count` was spent in moves out of sight.
        let fades = |count: f64, room: f64| if count > 0.0 { (1.0 - room / count).max(0.0) } else { 0.0 };
        let windows = match self.now < limit {
            true => fades(self.before, limit - self.now) - self.fraction,
            false => 1.0 - self.fraction + fades(self.now, limit),
        };
        MINUTE.mul_f64(windows.max(0.0))
    }

    fn until_zero(self) -> Duration {
        let windows = match (self.before > 0.0, self.now > 0.0) {
            (_, true) => 2.0 - self.fraction,
            (true, false) => 1.0 - self.fraction,
            (false, false) => 0.0,
        };
        MINUTE.mul_f64(windows)
    }
}

/// A client that comes back in time is let in: the wait is told in whole seconds, rounded up.
fn refused(what: &str, retry_after: Duration) -> Refusal {
    Refusal::RateLimited { what: what.to_owned(), retry_after: retry_after.max(Duration::from_secs(1)) }
}

fn signed(count: u64) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Keys;
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
        let (limits, per_key) = (Limits::new(), PerKey { requests_per_minute: Some(2), ..PerKey::default() });
        let (one, other) = (key("one"), key("other"));
        for _ in 0..2 {
            assert!(limits.enter(&per_key, &one).is_ok());
        }
        let refusal = limits.enter(&per_key, &one).expect_err("the third");
        assert_eq!((refusal.code(), refusal.status().as_u16()), ("rate_limited", 429));
        assert!(refusal.retry_after().is_some_and(|wait| wait <= MINUTE && wait > Duration::ZERO));
        assert!(limits.enter(&per_key, &other).is_ok());
    }

    #[test]
    fn tokens_used_count_against_the_next_request() {
        let (limits, per_key) = (Limits::new(), PerKey { tokens_per_minute: Some(100), ..PerKey::default() });
        let key = key("one");
        limits.used(&key, Usage { prompt: Tokens(60), completion: Tokens(39), cached: None });
        assert!(limits.enter(&per_key, &key).is_ok());
        limits.used(&key, Usage { prompt: Tokens(1), completion: Tokens(0), cached: None });
        assert!(limits.enter(&per_key, &key).is_err());
    }

    #[test]
    fn a_place_in_flight_is_given_back_with_its_guard() {
        let (limits, per_key) = (Limits::new(), PerKey { concurrent: Some(1), ..PerKey::default() });
        let key = key("one");
        let first = limits.enter(&per_key, &key).expect("the first");
        assert!(limits.enter(&per_key, &key).is_err());
        assert!(limits.enter(&per_key, &key).is_err(), "a refusal takes no place");
        let told = limits.enter(&per_key, &key).expect_err("no place").retry_after();
        assert_eq!(told, Some(Duration::from_secs(1)));
        drop(first);
        assert!(limits.enter(&per_key, &key).is_ok());
    }

    #[test]
    fn of_many_that_come_at_once_no_more_than_the_limit_get_in() {
        let (limits, per_key) = (Limits::new(), PerKey { requests_per_minute: Some(100), ..PerKey::default() });
        let (limits, per_key, key) = (&limits, &per_key, &*key("one"));
        let admitted = std::thread::scope(|scope| {
            let one = || (0..50).filter(|_| limits.enter(per_key, key).is_ok()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<usize>()
        });
        assert!(admitted <= 100, "{admitted}");
        // Two that see each other may both be refused; asked again, the rest gets in.
        assert_eq!(admitted + (0..100).filter(|_| limits.enter(per_key, key).is_ok()).count(), 100);
    }

    #[test]
    fn who_waits_as_told_is_below_the_limit() {
        for (before, now, fraction, limit) in [
            (100.0, 0.0, 0.0, 100.0),
            (100.0, 50.0, 0.25, 100.0),
            (0.0, 100.0, 0.5, 100.0),
            (0.0, 250.0, 0.9, 100.0),
            (500.0, 500.0, 0.1, 1.0),
        ] {
            let spent = Spent { before, now, fraction };
            assert!(spent.total() >= limit, "{spent:?}");
            let at = |wait: Duration| {
                let windows = fraction + wait.as_secs_f64() / 60.0;
                match windows {
                    ..1.0 => Spent { fraction: windows, ..spent },
                    ..2.0 => Spent { before: now, now: 0.0, fraction: windows - 1.0 },
                    _ => Spent { before: 0.0, now: 0.0, fraction: 0.0 },
                }
            };
            let wait = spent.until_below(limit);
            assert!(at(wait + Duration::from_millis(1)).total() < limit, "{spent:?} after {wait:?}");
            let early = wait.saturating_sub(Duration::from_secs(1));
            assert!(at(early).total() >= limit || wait < Duration::from_secs(1), "{spent:?}: {wait:?} is too long");
            assert!(at(spent.until_zero()).total() < 1e-9, "{spent:?}");
        }
    }

    #[test]
    fn an_answer_tells_what_is_left() {
        let per_key = PerKey { requests_per_minute: Some(3), tokens_per_minute: Some(100), concurrent: None };
        let (limits, key) = (Limits::new(), key("one"));
        let _guard = limits.enter(&per_key, &key).expect("the first");
        limits.used(&key, Usage { prompt: Tokens(100), completion: Tokens(50), cached: None });
        let mut head = ResponseHeader::build(200, None).expect("a head");
        limits.tell(&per_key, &key, &mut head).expect("numbers");
        let told = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        assert_eq!(told("x-ratelimit-limit-requests").as_deref(), Some("3"));
        assert_eq!(told("x-ratelimit-remaining-requests").as_deref(), Some("2"));
        assert_eq!(told("x-ratelimit-limit-tokens").as_deref(), Some("100"));
        assert_eq!(told("x-ratelimit-remaining-tokens").as_deref(), Some("0"));
        let reset = told("x-ratelimit-reset-tokens").expect("a time");
        let seconds: u64 = reset.strip_suffix('s').expect("seconds").parse().expect("a number");
        assert!((60..=120).contains(&seconds), "{reset}");
    }
}
