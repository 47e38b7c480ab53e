//! `GET /v1/models`: the union over healthy backends, and the names that the configuration adds.

use super::core::Core;
use super::member::Member;
use super::pools::ModelPool;
use crate::units::unix_time;
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The last answer. Its lock is held over the fetch, so that many clients cause one.
pub(super) struct ModelsCache {
    answer: Mutex<Option<(Instant, Bytes)>>,
    /// Unix time in seconds: `created` of the names that the configuration adds.
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
struct ModelName<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<&'a str>,
}

#[derive(Serialize)]
struct ModelUnion {
    object: &'static str,
    data: Vec<Box<RawValue>>,
}

/// Entries in the order in which they first appear, each id once.
#[derive(Default)]
struct CollectedModels {
    seen: HashSet<String>,
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

    async fn collect(&self, core: &Core) -> Bytes {
        let mut up: Vec<Arc<Member>> = core.registry.all().iter().filter(|member| member.is_up()).cloned().collect();
        up.dedup_by(|a, b| a.backend.server() == b.backend.server());
        let lists = join_all(up.iter().map(|member| ask(member, core.timing.page_limit))).await;

        let mut collected = CollectedModels::default();
        lists.into_iter().flatten().for_each(|entry| collected.add(entry));
        for (id, pool) in core.pools.iter() {
            if up.iter().any(|member| member.backend.pool == id) {
                self.name(pool, &mut collected);
            }
        }
        let union = ModelUnion { object: "list", data: collected.data };
        serde_json::to_vec(&union).map(Bytes::from).unwrap_or_default()
    }

    /// Lists the pool's name and aliases, unless a backend did.
    fn name(&self, pool: &ModelPool, collected: &mut CollectedModels) {
        let aliases = pool.aliases.load();
        let names = std::iter::once(&pool.name).chain(&**aliases);
        for id in names.filter(|name| !name.is_empty()) {
            let root = if pool.name.is_empty() { id } else { &pool.name };
            let parent = (root != id).then_some(root.as_str());
            let (object, owned_by) = ("model", "thundergate");
            let named = ModelName { id, object, created: self.created, owned_by, root, parent };
            if let Ok(entry) = serde_json::value::to_raw_value(&named) {
                collected.add(entry);
            }
        }
    }
}

// === impl CollectedModels ===

impl CollectedModels {
    fn add(&mut self, entry: Box<RawValue>) {
        let id = serde_json::from_str::<ModelId>(entry.get());
        if id.is_ok_and(|ModelId { id }| self.seen.insert(id)) {
            self.data.push(entry);
        }
    }
}

/// A backend that does not answer in time, or in another shape, adds nothing.
async fn ask(member: &Member, limit: Duration) -> Vec<Box<RawValue>> {
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
