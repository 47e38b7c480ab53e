//! What has happened since the last fill. Only that can let in whom the last fill did not, so an event costs no
//! more than what it changed. What time alone changes (an idle program becomes evictable, patience ends, what was
//! learned drifts) is looked at once a tick.

use super::event::BackendId;
use super::program::Pid;
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub struct Dirty {
    /// Everybody is to be looked at, everywhere.
    pub all: bool,
    /// There may be more room on these than there was.
    pub backends: BTreeSet<BackendId>,
    /// These have come to wait.
    pub programs: Vec<Pid>,
}

/// Where to look for a place.
#[derive(Clone, Copy, Debug)]
pub enum Candidates<'a> {
    Everywhere,
    Only(&'a BTreeSet<BackendId>),
}

// === impl Dirty ===

impl Dirty {
    pub fn is_empty(&self) -> bool {
        !self.all && self.backends.is_empty() && self.programs.is_empty()
    }

    /// Where there can be a place for the program that there was not before.
    pub fn candidates(&self, program: Pid) -> Candidates<'_> {
        if self.all || self.programs.contains(&program) {
            Candidates::Everywhere
        } else {
            Candidates::Only(&self.backends)
        }
    }
}

// === impl Candidates ===

impl Candidates<'_> {
    pub fn is_empty(self) -> bool {
        matches!(self, Self::Only(these) if these.is_empty())
    }

    pub fn contains(self, backend: BackendId) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Only(these) => these.contains(&backend),
        }
    }
}
