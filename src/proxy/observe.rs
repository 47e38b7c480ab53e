//! Watches an answer on its way to the client: its usage, its progress, its end. Takes out the usage event that only
//! the proxy asked for. An observer never waits for more than one event and never holds a whole answer.

mod event;
mod sse;
mod usage;

#[cfg(test)]
mod tests;

use crate::scheduler::Usage;
use bytes::Bytes;
use sse::Sse;
use usage::UsageScan;

/// Observer of one answer. It is fed every byte of the answer, in order, however the answer is split into chunks.
#[derive(Debug)]
pub struct Observer(Kind);

#[derive(Debug)]
enum Kind {
    Sse(Sse),
    Json(UsageScan),
}

impl Observer {
    /// An observer of a `text/event-stream`. With `strip_usage`, an event with a `usage` object and empty `choices` is
    /// taken out; everything else passes byte for byte.
    #[must_use]
    pub fn sse(strip_usage: bool) -> Self {
        Self(Kind::Sse(Sse::new(strip_usage)))
    }

    /// An observer of an answer in one JSON object, which always passes unchanged.
    #[must_use]
    pub fn json() -> Self {
        Self(Kind::Json(UsageScan::default()))
    }

    /// Looks at a chunk, and gives the bytes that may go to the client now (maybe none). Where nothing is taken out,
    /// these bytes are the chunk itself, not a copy.
    pub fn feed(&mut self, chunk: Bytes) -> Bytes {
        match &mut self.0 {
            Kind::Sse(sse) => sse.feed(chunk),
            Kind::Json(scan) => {
                scan.feed(&chunk);
                chunk
            }
        }
    }

    /// Ends the answer: gives the bytes that were still held back.
    pub fn finish(&mut self) -> Bytes {
        match &mut self.0 {
            Kind::Sse(sse) => sse.finish(),
            Kind::Json(_) => Bytes::new(),
        }
    }

    /// Token counts that the backend has told so far.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        match &self.0 {
            Kind::Sse(sse) => sse.seen.usage.total(),
            Kind::Json(scan) => scan.usage().total(),
        }
    }

    /// Number of output tokens so far: one for each event that carries output, or the count in the usage if that count
    /// is larger.
    #[must_use]
    pub fn output(&self) -> u64 {
        let counted = self.usage().map_or(0, |usage| usage.completion.0);
        match &self.0 {
            Kind::Sse(sse) => sse.seen.outputs.max(counted),
            Kind::Json(_) => counted,
        }
    }

    /// Whether any output has been seen.
    #[must_use]
    pub fn started(&self) -> bool {
        match &self.0 {
            Kind::Sse(sse) => sse.seen.outputs > 0,
            Kind::Json(scan) => scan.started(),
        }
    }

    /// Whether the answer came to its own end: `[DONE]`, a last event, or the end of the JSON object.
    #[must_use]
    pub fn ended(&self) -> bool {
        match &self.0 {
            Kind::Sse(sse) => sse.seen.ended,
            Kind::Json(scan) => scan.ended(),
        }
    }
}
