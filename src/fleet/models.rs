//! `GET /v1/models`: the union over healthy backends, and the names that the configuration adds.

use super::core::Core;
use super::member::FleetMember;
use super::pools::ModelPool;
use crate::scheduler::PoolId;
use crate::units::unix_time;
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The last answer. The lock is held during the fetch, so that many clients cause only one.
pub(super) struct ModelsCache {
    answer: Mutex<Option<(Instant, Bytes)>>,
    /// Value of `created` for the names that the configuration adds: Unix time in seconds.
    created: u64,
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct ModelId {
    id: String,
}

#[derive(Serialize)]
struct ModelUnion {
    object: &'static str,
    data: Vec<Box<RawValue>>,
}

// === impl ModelsCache ===

impl ModelsCache {
    pub(super) fn new() -> Self {
        Self { answer: Mutex::default(), created: unix_time().as_secs() }
    }

    pub(super) async fn get(&self, core: &Core) -> Bytes {
        let mut answer = self.answer.lock().await;
        if let Some((at, body)) = &*answer
            && at.elapsed() < core.timing.models_age
        {
            return body.clone();
        }
        let body = self.collect(core).await;
        *answer = Some((Instant::now(), body.clone()));
        body
    }

    /// Asks all servers. Entries stand in the order of their first appearance; each id appears once.
    async fn collect(&self, core: &Core) -> Bytes {
        let all = Arc::clone(&core.registry.all());
        let mut up: Vec<&Arc<FleetMember>> = all.iter().filter(|member| member.is_up()).collect();
        up.dedup_by(|a, b| a.backend.server() == b.backend.server());
        let told = join_all(up.iter().map(|member| ask(member, core.timing.page_limit))).await;
        let is_up = |id: PoolId| up.iter().any(|member| member.backend.pool == id);
        let named = core.pools.iter().filter(|(id, _)| is_up(*id)).flat_map(|(_, pool)| self.names(pool));

        let mut seen = HashSet::new();
        let mut is_new = |entry: &RawValue| {
            let id = serde_json::from_str(entry.get());
            id.is_ok_and(|ModelId { id }| seen.insert(id))
        };
        let data = told.into_iter().flatten().chain(named).filter(|entry| is_new(entry)).collect();
        serde_json::to_vec(&ModelUnion { object: "list", data }).map(Bytes::from).unwrap_or_default()
    }

    /// Entries for the pool's name and aliases.
    fn names(&self, pool: &ModelPool) -> Vec<Box<RawValue>> {
        let aliases = pool.aliases.load();
        let names = std::iter::once(&pool.name).chain(&**aliases).filter(|name| !name.is_empty());
        let entry = |id: &String| {
            let root = if pool.name.is_empty() { id } else { &pool.name };
            let entry = json!({
                "id": id,
                "object": "model",
                "created": self.created,
                "owned_by": "thundergate",
                "root": root,
                "parent": (root != id).then_some(root),
            });
            serde_json::value::to_raw_value(&entry).ok()
        };
        names.filter_map(entry).collect()
    }
}

/// The models that one server lists. A server that does not answer in time, or answers in another form, adds nothing.
async fn ask(member: &FleetMember, limit: Duration) -> Vec<Box<RawValue>> {
    let Some(client) = member.client.load_full() else {
        return Vec::new();
    };
    match client.fetch(&member.backend, "/v1/models", limit).await {
        Ok(page) => serde_json::from_slice::<ModelList>(&page).map(|list| list.data).unwrap_or_default(),
        Err(reason) => {
            log::debug!("models of {}: {reason}", member.backend.url);
            Vec::new()
        }
    }
}
