//! The switch that stops dispatch in every pool while new weights go to the backends.

use super::Gate;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// The switch; all clones share one state.
#[derive(Clone)]
pub struct WeightSync {
    gate: Gate,
    state: Arc<Mutex<Freeze>>,
}

#[derive(Default)]
struct Freeze {
    active: bool,
    /// Count of calls that begin or end a freeze. A timer compares it, to know whether its own begin is still the last
    /// call.
    generation: u64,
}

// === impl WeightSync ===

impl WeightSync {
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self { gate, state: Arc::default() }
    }

    #[must_use]
    pub fn active(&self) -> bool {
        self.state.lock().active
    }

    /// Stops dispatch for `timeout` at most. A second call starts the time anew. Needs a Tokio runtime.
    pub fn begin(&self, timeout: Duration) {
        let generation = self.set(true);
        let sync = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            sync.expire(generation, timeout);
        });
    }

    /// Lets dispatch go on.
    pub fn end(&self) {
        self.set(false);
    }

    fn set(&self, active: bool) -> u64 {
        // The gate is told under the lock, so that begins and ends reach the gate in order.
        let mut state = self.state.lock();
        state.generation += 1;
        state.active = active;
        self.gate.freeze(active);
        state.generation
    }

    fn expire(&self, generation: u64, timeout: Duration) {
        let mut state = self.state.lock();
        if state.active && state.generation == generation {
            log::warn!("weight sync did not end within {timeout:?}: dispatch goes on");
            state.active = false;
            self.gate.freeze(false);
        }
    }
}
