//! Which program a step without an id belongs to: the one whose last prompt is the start of this step's prompt.
//!
//! An agent sends its whole conversation with each step, the last answer and what its tools printed appended. So each
//! program has a *place*: the rolling hash over all that its last step sent. A step goes on with the program whose place
//! is among its own prefixes, and moves it to its own end. Beginnings that thousands of agents share are nobody's place
//! once these agents have gone on. Programs that have sent the same so far (samples of one task) share a place and are
//! told apart by the answer that each of them got.

mod answer;
mod canon;
mod conversation;
mod program;
mod table;

#[cfg(test)]
mod tests;

pub use answer::{ReplyDigest, ReplyHash};
pub use conversation::Conversation;
pub use table::{Bounds, End, Table, StepHandle};

use parking_lot::Mutex;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::time::Instant;

/// All unlabelled conversations of this process.
#[derive(Debug)]
pub struct Fingerprints {
    table: Mutex<Table>,
    start: Instant,
    /// So that nobody can make two prompts on purpose that hash to the same.
    secret: RandomState,
}

/// A step of a recognised program, from its arrival to the end of its answer. Dropped before: it failed.
#[derive(Debug)]
pub struct Fingerprint {
    all: Arc<Fingerprints>,
    handle: StepHandle,
    /// `None`: the step is over.
    digest: Option<ReplyDigest>,
}

// === impl Fingerprints ===

impl Fingerprints {
    #[must_use]
    pub fn new() -> Self {
        Self { table: Mutex::default(), start: Instant::now(), secret: RandomState::new() }
    }

    /// What prompts may be compared within: the same tenant, pool and endpoint.
    #[must_use]
    pub fn scope(&self, of: impl Hash) -> u64 {
        self.secret.hash_one(of)
    }

    /// The program that the conversation belongs to, a new one if it goes on with none.
    #[must_use]
    pub fn step(self: &Arc<Self>, bounds: Bounds, conversation: &Conversation<'_>) -> Fingerprint {
        let handle = self.table.lock().step(self.start.elapsed(), bounds, conversation);
        let digest = Some(handle.digest());
        Fingerprint { all: Arc::clone(self), handle, digest }
    }
}

impl Default for Fingerprints {
    fn default() -> Self {
        Self::new()
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

    /// Some of the answer came.
    pub fn heard(&mut self, piece: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.feed(piece);
        }
    }

    /// The answer came whole. To be said before the client has its last byte.
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
