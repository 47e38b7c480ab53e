//! Finds the events in a stream of chunks, and takes out those that are not for the client.

use super::event::{Seen, may_only_report_usage};
use super::usage::UsageScan;
use bytes::Bytes;
use memchr::memchr2;
use std::ops::Range;

/// How much of an event is kept, to look at it whole or to hold it back. A usage event has a few hundred
/// bytes; the last event of the responses API repeats the whole answer.
const MAX_KEPT: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Sse {
    pub seen: Seen,
    /// Take out events that only report usage.
    strip: bool,
    place: Place,
    /// No byte of the current line has come yet.
    line_start: bool,
    /// The last byte was a CR: a LF that follows belongs to it.
    after_cr: bool,
    /// That CR was taken out.
    cr_taken_out: bool,
    /// What came of the current event in earlier chunks.
    kept: Vec<u8>,
    /// The client has those bytes already.
    passed: bool,
    /// In place of `kept`, for an event that is too large.
    large: Option<UsageScan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Between,
    /// In a comment line before an event, which is not part of it.
    Comment,
    /// In an event: from its first line that is no comment to its blank line.
    Event,
}

/// What of a chunk goes to the client.
#[derive(Default)]
struct Output {
    /// Held back from earlier chunks, goes first.
    before: Vec<u8>,
    /// Parts of the chunk that do not go, in order.
    without: Vec<Range<usize>>,
}

// === impl Sse ===

impl Sse {
    pub fn new(strip: bool) -> Self {
        Self {
            seen: Seen::default(),
            strip,
            place: Place::Between,
            line_start: true,
            after_cr: false,
            cr_taken_out: false,
            kept: Vec::new(),
            passed: false,
            large: None,
        }
    }

    pub fn feed(&mut self, chunk: Bytes) -> Bytes {
        if chunk.is_empty() {
            return chunk;
        }
        let mut output = Output::default();
        let mut start = self.rest_of_crlf(chunk[0], &mut output);
        let mut at = start;
        if self.place == Place::Event {
            start = 0;
        }
        while at < chunk.len() {
            if self.line_start && self.place == Place::Between {
                start = at;
                self.place = match chunk[at] {
                    b':' => Place::Comment,
                    b'\n' | b'\r' => Place::Between,
                    _ => Place::Event,
                };
            }
            let Some(len) = memchr2(b'\n', b'\r', &chunk[at..]) else {
                self.line_start = false;
                break;
            };
            let blank = self.line_start && len == 0;
            at = self.line_end(&chunk, at + len);
            match self.place {
                Place::Event if !blank => {}
                Place::Event => {
                    self.event_end(&chunk, start..at, &mut output);
                    self.place = Place::Between;
                }
                Place::Comment | Place::Between => self.place = Place::Between,
            }
            self.line_start = true;
        }
        if self.place == Place::Event {
            self.event_goes_on(&chunk, start, &mut output);
        }
        output.of(chunk)
    }

    pub fn finish(&mut self) -> Bytes {
        let event = std::mem::take(&mut self.kept);
        if let Some(scan) = self.large.take() {
            self.seen.usage.merge(scan.usage());
        } else {
            self.seen.event(&event);
        }
        if self.passed { Bytes::new() } else { Bytes::from(event) }
    }

    /// A LF at the start of a chunk may belong to a CR at the end of the last one. Gives where to go on.
    fn rest_of_crlf(&mut self, first: u8, output: &mut Output) -> usize {
        let taken_out = std::mem::take(&mut self.cr_taken_out);
        if !std::mem::take(&mut self.after_cr) || first != b'\n' {
            return 0;
        }
        if taken_out {
            output.without.push(0..1);
        }
        1
    }

    /// Gives where the line after the line end at `at` starts.
    fn line_end(&mut self, chunk: &[u8], at: usize) -> usize {
        match chunk[at..] {
            [b'\r', b'\n', ..] => at + 2,
            [b'\r'] => {
                self.after_cr = true;
                at + 1
            }
            _ => at + 1,
        }
    }

    /// An event ends in this chunk, of which `part` is its last part.
    fn event_end(&mut self, chunk: &[u8], part: Range<usize>, output: &mut Output) {
        let bytes = &chunk[part.clone()];
        if let Some(mut scan) = self.large.take() {
            scan.feed(bytes);
            self.seen.usage.merge(scan.usage());
            self.passed = false;
            return;
        }
        let held = self.kept.len();
        let only_usage = if held == 0 {
            self.seen.event(bytes)
        } else {
            self.kept.extend_from_slice(bytes);
            self.seen.event(&self.kept)
        };
        if self.passed {
            self.kept.clear();
        } else if self.strip && only_usage {
            self.kept.clear();
            self.cr_taken_out = self.after_cr;
            output.without.push(part);
        } else {
            self.kept.truncate(held);
            output.before.append(&mut self.kept);
        }
        self.passed = false;
    }

    /// The chunk ends inside an event, whose part of the chunk starts at `start`.
    fn event_goes_on(&mut self, chunk: &[u8], start: usize, output: &mut Output) {
        let bytes = &chunk[start..];
        if let Some(scan) = &mut self.large {
            scan.feed(bytes);
            return;
        }
        let held = self.kept.len();
        self.kept.extend_from_slice(bytes);
        if !self.passed {
            let large = self.kept.len() > MAX_KEPT;
            if self.strip && !large && may_only_report_usage(&self.kept) {
                output.without.push(start..chunk.len());
            } else {
                self.passed = true;
                output.before.extend_from_slice(&self.kept[..held]);
            }
        }
        if self.kept.len() > MAX_KEPT {
            self.large = Some(self.seen.large_event(&self.kept));
            self.kept = Vec::new();
        }
    }
}

// === impl Output ===

impl Output {
    fn of(self, chunk: Bytes) -> Bytes {
        let Self { before: mut out, without } = self;
        match without.as_slice() {
            [] if out.is_empty() => return chunk,
            [only] if out.is_empty() && only.start == 0 => return chunk.slice(only.end..),
            [only] if out.is_empty() && only.end == chunk.len() => {
                return chunk.slice(..only.start);
            }
            _ => {}
        }
        out.reserve_exact(chunk.len());
        let mut from = 0;
        for range in without {
            out.extend_from_slice(&chunk[from..range.start]);
            from = range.end;
        }
        out.extend_from_slice(&chunk[from..]);
        Bytes::from(out)
    }
}
