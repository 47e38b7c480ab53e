//! Who hears of the backends.

use crate::scheduler::{BackendId, Event, PoolId};

/// What is told of every change of a backend: the schedulers, behind their gate. [`Sink::tell`] must not call the
/// fleet back, which holds locks meanwhile.
pub trait Sink: Send + Sync + 'static {
    fn tell(&self, pool: PoolId, event: Event);
    /// Steps in flight on a backend.
    fn in_flight(&self, pool: PoolId, backend: BackendId) -> usize;
}
