//! The hold queue, and the notes on which programs have to be looked at again.
//!
//! A program that found no room in the last fill can find some now only where something has changed. So an event costs
//! no more work than its changes. Some changes come with time alone: an idle program becomes evictable, patience ends,
//! learned values drift. They are looked at once a tick.

use crate::event::{BackendId, StepId};
use crate::program::Pid;
use std::collections::BTreeSet;
use std::time::Duration;

/// The hold queue. A program waits as a whole: all its held steps go together. Each set is sorted in the order in which
/// it is used.
#[derive(Debug, Default)]
pub struct Queue {
    /// Waiting programs with context, oldest program first.
    pub started: BTreeSet<(Duration, Pid)>,
    /// The same programs as in `started`, longest wait first.
    pub longest: BTreeSet<(Duration, Pid)>,
    /// Waiting programs without context, in the order of their arrival.
    pub fresh: BTreeSet<(Duration, Pid)>,
    /// Steps that go by load: those without a program, and all steps where routing is not by program. They wait only
    /// while dispatch is frozen or no backend that they may go to is usable.
    pub unlabelled: BTreeSet<StepId>,
    /// Every held step, longest wait first.
    pub steps: BTreeSet<(Duration, StepId)>,
    /// Steps that the event under way has held. Those that are still held when the event is over are announced.
    pub unannounced: Vec<StepId>,
}

/// Notes on what has changed since the last fill.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Whether every program is to be looked at, for every backend.
    pub all: bool,
    /// Backends that may have more room than they had.
    pub backends: BTreeSet<BackendId>,
    /// Programs that have begun to wait.
    pub programs: Vec<Pid>,
}

/// The backends on which a program may find room that was not there before.
#[derive(Clone, Copy, Debug)]
pub enum Candidates<'a> {
    Everywhere,
    Only(&'a BTreeSet<BackendId>),
}

impl Queue {
    pub fn len(&self) -> usize {
        self.steps.len()
    }
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        !self.all && self.backends.is_empty() && self.programs.is_empty()
    }

    pub fn candidates(&self, program: Pid) -> Candidates<'_> {
        let anew = self.all || self.programs.contains(&program);
        if anew { Candidates::Everywhere } else { Candidates::Only(&self.backends) }
    }
}

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
