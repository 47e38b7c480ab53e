//! The selection for steps without a program: `pingora-load-balancing`'s [`BackendSelection`], by its Ketama hash.
//!
//! The selection and the scheduler's placement meet in one field. For a step with a program, the scheduler chooses
//! alone: program affinity means that the step goes where its program's KV cache is. For a step without a program, the
//! proxy hashes the start of the prompt here, and passes the backend that the hash selects as `Arrival::preferred`. The
//! scheduler sends the step to the least loaded backend, and to the preferred one where several are equally loaded. So
//! prompts with the same beginning go to the same backend, and find this beginning in its prefix cache, unless load
//! says otherwise.

use super::backend::Backend;
use crate::scheduler::BackendId;
use pingora_core::protocols::l4::socket::SocketAddr as LbAddr;
use pingora_load_balancing::selection::{BackendIter, BackendSelection, Consistent};
use pingora_load_balancing::{Backend as LbBackend, Extensions};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Largest weight on the ring. The ring has 160 points for each unit of weight, so larger weights are scaled down.
const MAX_WEIGHT: u32 = 100;

/// The usable backends of one pool, on a hash ring.
pub(super) struct Selection(Arc<Consistent>);

// === impl Selection ===

impl Selection {
    /// Builds the ring from all `backends` of the pool, each given with whether it is usable now. Unusable backends
    /// have no point on the ring. Their weights still count for the scale, so that the points of the others stay where
    /// they are.
    pub(super) fn build<'a>(backends: impl Iterator<Item = (&'a Backend, bool)> + Clone) -> Self {
        let weights = backends.clone().map(|(backend, _)| backend.settings().weight);
        let unit = weights.clone().fold(0, gcd).max(1);
        let largest = weights.max().unwrap_or(0) / unit;
        let points = |weight: u32| match weight / unit {
            0 => 0,
            weight if largest <= MAX_WEIGHT => weight,
            weight => (u64::from(weight) * u64::from(MAX_WEIGHT) / u64::from(largest)).max(1) as u32,
        };
        let usable: BTreeSet<LbBackend> = backends
            .filter(|(backend, usable)| *usable && backend.settings().weight > 0)
            .map(|(backend, _)| node(backend, points(backend.settings().weight) as usize))
            .collect();
        Self(Arc::new(Consistent::build(&usable)))
    }

    /// The backend that `key` belongs to; `None` on an empty ring.
    pub(super) fn pick(&self, key: &[u8]) -> Option<BackendId> {
        self.0.iter(key).next()?.ext.get::<BackendId>().copied()
    }
}

/// One backend on the ring. Its key there is an address made from the URL, not the address that the name leads to. So
/// the choice outlives a new IP and is the same in every instance, and two backends behind one address stay two.
fn node(backend: &Backend, weight: usize) -> LbBackend {
    let digest = Sha256::digest(backend.url.as_bytes());
    let mut address = [0; 16];
    address.copy_from_slice(&digest[..16]);
    let mut ext = Extensions::new();
    ext.insert(backend.id);
    let addr = LbAddr::Inet(SocketAddr::from((Ipv6Addr::from(address), 0)));
    LbBackend { addr, weight, ext }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Origin;
    use crate::scheduler::PoolId;
    use std::collections::BTreeMap;

    fn backend(id: u32, weight: u32) -> Backend {
        let at = crate::config::Backend::at(&format!("http://gpu{id}:8000")).unwrap();
        let config = crate::config::Backend { weight, ..at };
        Backend::new(BackendId(id), PoolId(0), &config, None, Origin::File).unwrap()
    }

    fn ring(backends: &[(Backend, bool)]) -> Selection {
        Selection::build(backends.iter().map(|(backend, usable)| (backend, *usable)))
    }

    fn shares(ring: &Selection) -> BTreeMap<BackendId, usize> {
        let mut shares = BTreeMap::new();
        for key in 0..10_000_u32 {
            *shares.entry(ring.pick(&key.to_be_bytes()).unwrap()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn an_empty_ring_prefers_nobody() {
        assert_eq!(ring(&[]).pick(b"x"), None);
        assert_eq!(ring(&[(backend(1, 1), false), (backend(2, 0), true)]).pick(b"x"), None);
    }

    #[test]
    fn keys_of_a_lost_backend_move_and_no_others() {
        let all = ring(&[(backend(1, 100), true), (backend(2, 150), true), (backend(3, 50), true)]);
        let less = ring(&[(backend(1, 100), true), (backend(2, 150), false), (backend(3, 50), true)]);
        let mut moved = 0;
        for key in 0..1_000_u32 {
            let key = key.to_be_bytes();
            let (before, after) = (all.pick(&key).unwrap(), less.pick(&key).unwrap());
            if before == BackendId(2) {
                moved += 1;
                assert_ne!(after, BackendId(2));
            } else {
                assert_eq!(before, after);
            }
        }
        assert!(moved > 0);
    }

    #[test]
    fn shares_follow_weights_however_large() {
        for scale in [1, 7, 1_000_000_000] {
            let shares = shares(&ring(&[(backend(1, scale), true), (backend(2, 3 * scale), true)]));
            let share = shares[&BackendId(2)] as f64 / 10_000.0;
            assert!((0.65..0.85).contains(&share), "{scale}: {share}");
        }
        let odd = ring(&[(backend(1, 1), true), (backend(2, u32::MAX), true)]);
        assert_eq!(shares(&odd).len(), 2, "a small weight still counts");
    }
}
