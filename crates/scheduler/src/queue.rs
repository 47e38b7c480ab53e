//! Who waits, and who has to be looked at again.
//!
//! Only what has changed since the last fill can let in a program that the last fill did not, so an event costs no
//! more than what it changed. What changes by time alone (an idle program becomes evictable, patience ends, what was
//! learned drifts) is looked at once a tick.

use crate::event::{BackendId, StepId};
use crate::program::Pid;
use std::collections::BTreeSet;
use std::time::Duration;

/// The hold queue. A program waits as a whole: all its held steps go together. Each set is in the order of its use.
#[derive(Debug, Default)]
pub struct Queue {
    /// Waiting programs with context, oldest program first.
    pub started: BTreeSet<(Duration, Pid)>,
    /// The programs of `started` again, longest wait first.
    pub longest: BTreeSet<(Duration, Pid)>,
    /// Waiting programs without context, in the order of their arrival.
    pub fresh: BTreeSet<(Duration, Pid)>,
    /// Steps without a program: they wait only while no backend is usable, or dispatch is frozen.
    pub unlabelled: BTreeSet<StepId>,
    /// Every held step, longest wait first.
    pub steps: BTreeSet<(Duration, StepId)>,
    /// Steps that the event under way has held: each that is still held when the event is over is announced.
    pub unannounced: Vec<StepId>,
}

/// What has changed since the last fill.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Every program is to be looked at, on every backend.
    pub all: bool,
    /// Backends that may have more room than they had.
    pub backends: BTreeSet<BackendId>,
    /// Programs that have come to wait.
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
