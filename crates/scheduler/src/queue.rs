//! The hold queue: who waits, in which order they are looked at.

use super::event::StepId;
use super::program::Pid;
use std::collections::BTreeSet;
use std::time::Duration;

/// Programs wait as wholes: all their held steps go together. Every set is in the order of its use.
#[derive(Debug, Default)]
pub struct Queue {
    /// Programs with context, oldest program first.
    pub started: BTreeSet<(Duration, Pid)>,
    /// The same, longest wait first.
    pub longest: BTreeSet<(Duration, Pid)>,
    /// Programs without, in order of arrival.
    pub fresh: BTreeSet<(Duration, Pid)>,
    /// Steps without a program: they wait only while no backend is usable, or dispatch is frozen.
    pub unlabelled: BTreeSet<StepId>,
    /// Every held step, longest wait first.
    pub steps: BTreeSet<(Duration, StepId)>,
    /// Held by the event under way: to be announced if they still are when it is over.
    pub unannounced: Vec<StepId>,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.steps.len()
    }
}
