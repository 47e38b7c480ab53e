//! What is known of each backend: address, health, capacity, gauges.

use crate::gate::{Gate, PoolId};
use crate::scheduler::BackendId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A backend as configured.
#[derive(Debug)]
pub struct Backend {
    pub id: BackendId,
    pub pool: PoolId,
    /// As the user wrote it, without a trailing slash: the key in ThunderAgent's JSON.
    pub url: String,
    /// `host:port`, what goes upstream as `Host`.
    pub authority: String,
    pub tls: bool,
    /// Path in front of every request (`http://gpu/prefix`), empty or without a trailing slash.
    pub prefix: String,
    pub api_key: Option<crate::config::Secret>,
    pub weight: u32,
}

/// Everything the control API shows of a backend.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    pub backend: Arc<Backend>,
    pub healthy: bool,
    pub draining: bool,
    /// Last scrape; `None` before the first.
    pub gauges: Option<Gauges>,
    pub scrape_age: Option<Duration>,
}

/// One reading of a backend's `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    pub block_size: u64,
    pub num_gpu_blocks: u64,
    pub capacity_tokens: u64,
    pub running: f64,
    pub waiting: f64,
    pub kv_usage: f64,
    pub prefix_queries: f64,
    pub prefix_hits: f64,
    pub prompt_tokens: f64,
    pub generation_tokens: f64,
    pub preemptions: f64,
    pub requests_completed: f64,
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {}

impl Fleet {
    pub fn new(_pools: &[crate::config::Pool], _metrics: &crate::config::Metrics, _gate: Gate) -> Self {
        unimplemented!()
    }
    /// Health checks and scrapes of every backend; runs until the process ends. Spawns a task per backend.
    pub async fn run(&self) {
        unimplemented!()
    }
    pub fn get(&self, _id: BackendId) -> Option<Arc<Backend>> {
        unimplemented!()
    }
    /// Where to connect; `None` while the name does not resolve.
    pub fn address(&self, _id: BackendId) -> Option<SocketAddr> {
        unimplemented!()
    }
    pub fn statuses(&self) -> Vec<BackendStatus> {
        unimplemented!()
    }
    /// Which pool serves `model`; the empty-named pool serves any.
    pub fn pool_for(&self, _model: Option<&str>) -> Option<PoolId> {
        unimplemented!()
    }
    /// The consistent hash's choice among the pool's healthy backends.
    pub fn preferred(&self, _pool: PoolId, _hash_of: &[u8]) -> Option<BackendId> {
        unimplemented!()
    }
    /// A connection to it was refused or timed out: counts against its health at once.
    pub fn connect_failed(&self, _id: BackendId) {
        unimplemented!()
    }
    /// Adds a backend at run time.
    pub fn add(&self, _pool: PoolId, _backend: crate::config::Backend) -> Result<BackendId, String> {
        unimplemented!()
    }
    /// Drains a backend, then forgets it once nothing is in flight there.
    pub fn remove(&self, _id: BackendId) -> bool {
        unimplemented!()
    }
    /// The union of `GET /v1/models` over healthy backends of all pools, aliases included, as a JSON body.
    pub async fn models(&self) -> bytes::Bytes {
        unimplemented!()
    }
    /// Clients may be served: at least one backend is usable.
    pub fn ready(&self) -> bool {
        unimplemented!()
    }
}
