//! The receiver of all news of the backends.

use crate::scheduler::{BackendId, Event, PoolId};

/// Receiver of every change of a backend: the schedulers, behind their gate. [`Sink::tell`] must not call the fleet
/// back, since the fleet holds locks during the call.
pub trait Sink: Send + Sync + 'static {
    fn tell(&self, pool: PoolId, event: Event);
    /// Number of steps in flight on a backend.
    fn in_flight(&self, pool: PoolId, backend: BackendId) -> usize;
}
