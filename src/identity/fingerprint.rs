//! Which program a step without an id belongs to: the program whose last prompt is the start of this step's prompt.
//!
//! An agent sends its whole conversation with each step: all of its last prompt, then the last answer and the output of its
//! tools. So each program has a *position*: the rolling hash over all that its last step sent. A step continues the program
//! whose position is the hash of one of the step's prefixes, and moves that program's position to the step's own end. A
//! beginning that thousands of agents share is no program's position once these agents have gone on. Programs that have
//! sent the same so far (samples of one task) share a position and are told apart by the answers that they got.

mod answer;
mod canon;
mod conversation;
mod program;
mod table;

#[cfg(test)]
mod tests;

pub use answer::{ReplyDigest, ReplyHash};
pub use conversation::Conversation;
pub use table::{End, Retention, StepHandle, Table};

use parking_lot::Mutex;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::time::Instant;

/// All unlabelled conversations of this process.
#[derive(Debug)]
pub struct Fingerprints {
    table: Mutex<Table>,
    start: Instant,
    /// Secret of the hash of a scope, so that nobody can make two prompts with the same hash on purpose.
    secret: RandomState,
}

/// A step of a recognised program, from its arrival to the end of its answer. A drop before [`Fingerprint::answered`] means
/// that the step failed.
#[derive(Debug)]
pub struct Fingerprint {
    all: Arc<Fingerprints>,
    handle: StepHandle,
    /// Digest of the answer so far; `None` once the step is over.
    digest: Option<ReplyDigest>,
}

// === impl Fingerprints ===

impl Fingerprints {
    /// The hash of the scope within which prompts are compared: the same tenant, pool and endpoint.
    #[must_use]
    pub fn scope(&self, of: impl Hash) -> u64 {
        self.secret.hash_one(of)
    }

    /// The program that the conversation belongs to: a new one if the conversation continues none.
    #[must_use]
    pub fn step(self: &Arc<Self>, retention: Retention, conversation: &Conversation<'_>) -> Fingerprint {
        let handle = self.table.lock().step(self.start.elapsed(), retention, conversation);
        let digest = Some(handle.digest());
        Fingerprint { all: Arc::clone(self), handle, digest }
    }
}

impl Default for Fingerprints {
    fn default() -> Self {
        Self { table: Mutex::default(), start: Instant::now(), secret: RandomState::new() }
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// The program's id.
    #[must_use]
    pub fn id(&self) -> String {
        self.handle.id()
    }

    fn finish(&self, end: End) {
        self.all.table.lock().finish(self.all.start.elapsed(), &self.handle, end);
    }

    /// Takes in a piece of the answer.
    pub fn heard(&mut self, piece: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.feed(piece);
        }
    }

    /// Ends the step: its answer came whole. Must be called before the client has the last byte, since the client's next
    /// step may follow at once.
    pub fn answered(mut self) {
        if let Some(digest) = self.digest.take() {
            let (answer, name) = digest.read();
            self.finish(End::Answered { answer, name });
        }
    }
}

impl Drop for Fingerprint {
    fn drop(&mut self) {
        if self.digest.is_some() {
            self.finish(End::Broken);
        }
    }
}
