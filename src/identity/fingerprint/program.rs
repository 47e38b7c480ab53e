//! What is known of one program without an id.

use super::answer::ReplyHash;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// What is known of one program.
#[derive(Debug)]
pub(super) struct ProgramEntry {
    pub place: Position,
    /// What the model said to the last step.
    pub answer: ReplyHash,
    /// It had more than one step.
    pub grown: bool,
    /// The place that the answer's name gives, 0 if it has none.
    pub named: u64,
    /// Counts the steps; what an earlier one tells of its end is of no interest.
    pub step: u32,
    /// Requests for the last step that are in flight.
    pub flying: u32,
    /// The last step was answered.
    pub done: bool,
    pub used: Duration,
}

/// The end of what a program has sent: the hash of a prefix, and of the few bytes of a text behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub at: u64,
    tail: u64,
    tail_len: u16,
}

// === impl Position ===

impl Position {
    pub fn new(at: u64, tail: &[u8]) -> Self {
        Self { at, tail: xxh3_64(tail), tail_len: tail.len() as u16 }
    }

    /// What of `rest`, which comes behind the prefix that was hashed, is behind this place; `None` if the place is not
    /// in it.
    pub fn behind<'a>(&self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (tail, after) = rest.split_at_checked(self.tail_len.into())?;
        (xxh3_64(tail) == self.tail).then_some(after)
    }
}
