//! All backends, in the order in which they came. They are read on every request, from a snapshot that writers replace.

use super::member::FleetMember;
use crate::scheduler::BackendId;
use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Registry {
    /// Backends sorted by id, since ids only grow.
    members: ArcSwap<Vec<Arc<FleetMember>>>,
    /// Id of the next backend. Only the holder of this lock may replace `members`.
    next: Mutex<u32>,
}

// === impl Registry ===

impl Registry {
    pub(super) fn all(&self) -> Guard<Arc<Vec<Arc<FleetMember>>>> {
        self.members.load()
    }

    pub(super) fn with<T>(&self, id: BackendId, read: impl FnOnce(&Arc<FleetMember>) -> T) -> Option<T> {
        let members = self.members.load();
        let at = members.binary_search_by_key(&id, |member| member.backend.id).ok()?;
        Some(read(&members[at]))
    }

    /// Adds the backend that `make` makes for a new id. `announce` is called before any other task can find the
    /// backend.
    pub(super) fn insert(
        &self,
        make: impl FnOnce(BackendId) -> Result<FleetMember, String>,
        announce: impl FnOnce(&FleetMember),
    ) -> Result<Arc<FleetMember>, String> {
        let mut next = self.next.lock();
        let member = Arc::new(make(BackendId(*next))?);
        let mut members = Vec::clone(&self.members.load());
        let twin = members.iter().any(|other| {
            let (a, b) = (&member.backend, &other.backend);
            // A server is there either as a whole or by its ranks.
            let apart = a.rank.is_some() && b.rank.is_some() && a.rank != b.rank;
            a.pool == b.pool && a.server() == b.server() && !apart && !other.is_draining()
        });
        if twin {
            return Err(format!("{} is a backend of this pool already", member.backend.url));
        }
        announce(&member);
        members.push(Arc::clone(&member));
        self.members.store(Arc::new(members));
        *next += 1;
        Ok(member)
    }

    pub(super) fn forget(&self, id: BackendId) {
        let _writer = self.next.lock();
        let mut members = Vec::clone(&self.members.load());
        members.retain(|member| member.backend.id != id);
        self.members.store(Arc::new(members));
    }
}
