//! All backends, in the order in which they came. Read on every request: a snapshot that writers replace.

use super::Entry;
use crate::scheduler::BackendId;
use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Registry {
    /// Sorted by id, as ids only grow.
    entries: ArcSwap<Vec<Arc<Entry>>>,
    /// The id of the next backend; whoever holds the lock may replace `entries`.
    next: Mutex<u32>,
}

// === impl Registry ===

impl Registry {
    pub(super) fn all(&self) -> Guard<Arc<Vec<Arc<Entry>>>> {
        self.entries.load()
    }

    pub(super) fn with<T>(&self, id: BackendId, read: impl FnOnce(&Arc<Entry>) -> T) -> Option<T> {
        let entries = self.entries.load();
        let at = entries.binary_search_by_key(&id, |entry| entry.backend.id).ok()?;
        Some(read(&entries[at]))
    }

    /// Adds what `make` makes of a fresh id; `announce` is called before anybody can find it.
    pub(super) fn insert(
        &self,
        make: impl FnOnce(BackendId) -> Result<Entry, String>,
        announce: impl FnOnce(&Entry),
    ) -> Result<Arc<Entry>, String> {
        let mut next = self.next.lock();
        let entry = Arc::new(make(BackendId(*next))?);
        let mut entries = Vec::clone(&self.entries.load());
        let twin = entries.iter().any(|other| {
            let (a, b) = (&entry.backend, &other.backend);
            // A server is there as a whole or by its ranks.
            let apart = a.rank.is_some() && b.rank.is_some() && a.rank != b.rank;
            a.pool == b.pool && a.server() == b.server() && !apart && !other.is_draining()
        });
        if twin {
            return Err(format!("{} is a backend of this pool already", entry.backend.url));
        }
        announce(&entry);
        entries.push(Arc::clone(&entry));
        self.entries.store(Arc::new(entries));
        *next += 1;
        Ok(entry)
    }

    pub(super) fn forget(&self, id: BackendId) {
        let _writer = self.next.lock();
        let mut entries = Vec::clone(&self.entries.load());
        entries.retain(|entry| entry.backend.id != id);
        self.entries.store(Arc::new(entries));
    }
}
