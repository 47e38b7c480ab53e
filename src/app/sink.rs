//! The gate as the fleet's sink: events of the fleet go to the schedulers through it.

use crate::fleet::Sink;
use crate::gate::Gate;
use crate::scheduler::{BackendId, Event, PoolId};

impl Sink for Gate {
    fn tell(&self, pool: PoolId, event: Event) {
        Self::tell(self, pool, event);
    }

    fn in_flight(&self, pool: PoolId, backend: BackendId) -> usize {
        let loads = self.loads().into_iter();
        loads.filter(|(of, load)| *of == pool && load.backend == backend).map(|(_, load)| load.in_flight).sum()
    }
}
