//! The state of one program without an id.

use super::answer::ReplyHash;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// The state of one program.
#[derive(Debug)]
pub(super) struct ProgramEntry {
    /// The end of all that the last step sent.
    pub place: Position,
    /// Hash of the model's answer to the last step.
    pub answer: ReplyHash,
    /// Whether the program had more than one step.
    pub grown: bool,
    /// Position that follows from the answer's name; 0 if the answer has none.
    pub named: u64,
    /// Number of the last step. The end of an earlier step is ignored.
    pub step: u32,
    /// Requests in flight for the last step.
    pub flying: u32,
    /// Whether the last step was answered.
    pub done: bool,
    /// Time of the last use.
    pub used: Duration,
}

/// The end of what a program has sent: the hash of a prefix, and of the few bytes of a text behind that prefix.
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

    /// The part of `rest` that is behind this position, where `rest` begins behind the hashed prefix. `None` if `rest` does
    /// not contain this position.
    pub fn behind<'a>(&self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (tail, after) = rest.split_at_checked(self.tail_len.into())?;
        (xxh3_64(tail) == self.tail).then_some(after)
    }
}
