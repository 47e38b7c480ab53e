//! The retry budget: it limits how many requests are tried again, so that retries do not become the load of a failing
//! fleet.
//!
//! `tower`'s `TpsBudget` has the same window and reserve, but rounds 1/share down to a whole number: with a share of
//! 0.7 it would grant a retry for every request.

use crate::gate::PoolId;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use tokio::time::Instant;

/// Seconds that the budget looks back.
const WINDOW: u64 = 10;

/// Retries a second that are granted even without requests, since all steps of one backend may fail at the same moment.
/// Finagle and linkerd have the same reserve and window.
const RESERVE: u64 = 10;

/// The budgets of all pools.
#[derive(Debug)]
pub struct Retries {
    start: Instant,
    pools: Vec<[Second; WINDOW as usize]>,
}

/// Counts of one second. When two threads enter a new second at the same time, a count may be lost, which harms nobody.
#[derive(Debug, Default)]
struct Second {
    /// Number of the second: seconds since the start, plus one.
    number: AtomicU64,
    requests: AtomicU32,
    retries: AtomicU32,
}

// === impl Retries ===

impl Retries {
    #[must_use]
    pub fn new(pools: usize) -> Self {
        let pools = (0..pools).map(|_| Default::default()).collect();
        Self { start: Instant::now(), pools }
    }

    /// Counts a request that goes to the pool for the first time.
    pub fn request(&self, pool: PoolId) {
        if let Some((second, _)) = self.now(pool) {
            second.requests.fetch_add(1, Relaxed);
        }
    }

    /// Takes one retry out of the pool's budget. `budget` is the share of recent requests that may be tried again.
    /// `false`: the budget is used up.
    #[must_use]
    pub fn take(&self, pool: PoolId, budget: f64) -> bool {
        let Some((second, number)) = self.now(pool) else {
            return false;
        };
        let recent = self.pools[pool.0].iter().filter(|slot| slot.number.load(Relaxed) + WINDOW > number);
        let (requests, retries) = recent.fold((0, 0), |(requests, retries), slot| {
            (requests + u64::from(slot.requests.load(Relaxed)), retries + u64::from(slot.retries.load(Relaxed)))
        });
        let left = (retries as f64) < budget * requests as f64 + (RESERVE * WINDOW) as f64;
        if left {
            second.retries.fetch_add(1, Relaxed);
        }
        left
    }

    fn now(&self, pool: PoolId) -> Option<(&Second, u64)> {
        let number = self.start.elapsed().as_secs() + 1;
        let second = self.pools.get(pool.0)?.get((number % WINDOW) as usize)?;
        let before = second.number.load(Relaxed);
        if before != number && second.number.compare_exchange(before, number, Relaxed, Relaxed).is_ok() {
            second.requests.store(0, Relaxed);
            second.retries.store(0, Relaxed);
        }
        Some((second, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::advance;

    const POOL: PoolId = PoolId(1);

    fn granted(retries: &Retries, pool: PoolId) -> usize {
        (0..10_000).take_while(|_| retries.take(pool, 0.2)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_the_recent_requests_and_a_reserve_may_be_tried_again() {
        let retries = Retries::new(2);
        assert_eq!(granted(&retries, POOL), 100, "the reserve");
        for _ in 0..10 {
            for _ in 0..100 {
                retries.request(POOL);
            }
            advance(Duration::from_secs(1)).await;
        }
        // The first second, with the retries that were granted in it, is outside the window now.
        assert_eq!(granted(&retries, POOL), 100 + 180);
        assert_eq!(granted(&retries, POOL), 0);
        assert_eq!(granted(&retries, PoolId(0)), 100, "each pool has its own");
        advance(Duration::from_secs(WINDOW)).await;
        assert_eq!(granted(&retries, POOL), 100);
        assert!(!retries.take(PoolId(7), 0.2));
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_outage_at_most_the_share_is_added_to_the_load() {
        let retries = Retries::new(2);
        let mut sent = 0;
        for _ in 0..60 {
            for _ in 0..1_000 {
                retries.request(POOL);
                sent += usize::from(retries.take(POOL, 0.2));
            }
            advance(Duration::from_secs(1)).await;
        }
        let asked = 60_000.0;
        assert!((sent as f64) <= 0.2 * asked + 600.0, "{sent}");
        assert!((sent as f64) >= 0.19 * asked, "{sent}");
    }
}
