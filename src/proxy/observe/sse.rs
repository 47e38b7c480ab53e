//! Finds the events in a stream of chunks, and takes out those that are not for the client.

use super::event::{Seen, ends_choice, fingerprint, line_len, may_only_report_usage};
use super::usage::UsageScan;
use bytes::Bytes;
use memchr::memrchr;
use std::ops::Range;

/// Number of bytes of an event that are kept, to look at the whole event or to hold it back. A usage event has a few
/// hundred bytes. The last event of the responses API repeats the whole answer, so its size has no bound.
const MAX_KEPT: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Sse {
    pub seen: Seen,
    /// Whether events that only report usage are taken out.
    strip: bool,
    place: Place,
    /// Whether no byte of the current line has come yet.
    line_start: bool,
    /// Whether the last byte was a CR. If a LF follows, it belongs to that CR.
    after_cr: bool,
    /// Whether the CR at the end of the last chunk was taken out.
    cr_taken_out: bool,
    /// Bytes of the current event that came in earlier chunks.
    kept: Vec<u8>,
    /// Number of bytes in `kept` that the client has already.
    passed: usize,
    /// The event before the current one, held back because it ends a choice. When usage is asked for, vLLM writes
    /// `system_fingerprint` on the usage event and not on the end of the choice. The proxy puts this member back where
    /// it would stand if nobody had asked.
    choice_end: Vec<u8>,
    /// The scan of an event that is too large for `kept`.
    large: Option<UsageScan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Between,
    /// Inside a comment line before an event. The comment is no part of the event.
    Comment,
    /// Inside an event: from its first line that is no comment to its blank line.
    Event,
}

/// Bytes of a chunk that go to the client. Parts of the chunk may be replaced, in order.
#[derive(Default)]
struct Output {
    edits: Vec<(Range<usize>, Vec<u8>)>,
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
            passed: 0,
            choice_end: Vec::new(),
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
                if matches!(chunk[at], b':' | b'\n' | b'\r') {
                    self.let_choice_end_go(at, &mut output);
                }
                self.place = match chunk[at] {
                    b':' => Place::Comment,
                    b'\n' | b'\r' => Place::Between,
                    _ => Place::Event,
                };
            }
            let Some(len) = line_len(&chunk[at..]) else {
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
        let mut rest = std::mem::take(&mut self.choice_end);
        rest.extend_from_slice(&event[std::mem::take(&mut self.passed).min(event.len())..]);
        Bytes::from(rest)
    }

    /// Handles a LF at the start of a chunk, which may belong to a CR at the end of the last chunk. Gives the position
    /// to go on from.
    fn rest_of_crlf(&mut self, first: u8, output: &mut Output) -> usize {
        let taken_out = std::mem::take(&mut self.cr_taken_out);
        if !std::mem::take(&mut self.after_cr) || first != b'\n' {
            return 0;
        }
        if taken_out {
            output.replace(0..1, Vec::new());
            if !self.choice_end.is_empty() {
                self.choice_end.push(b'\n');
            }
        }
        1
    }

    /// The position where the next line starts, given the position `at` of a line end.
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

    /// Takes in an event that ends in this chunk. `part` is the last part of the event.
    fn event_end(&mut self, chunk: &[u8], part: Range<usize>, output: &mut Output) {
        let bytes = &chunk[part.clone()];
        if self.takes_as_large(bytes, part.start, output) {
            if let Some(scan) = self.large.take() {
                self.seen.usage.merge(scan.usage());
            }
            return;
        }
        let held = self.kept.len();
        let (only_usage, event) = if held == 0 {
            (self.seen.event(bytes), bytes)
        } else {
            self.kept.extend_from_slice(bytes);
            (self.seen.event(&self.kept), self.kept.as_slice())
        };
        let passed = std::mem::take(&mut self.passed);
        if self.strip && only_usage && passed == 0 {
            if let Some(fingerprint) = fingerprint(event) {
                insert_member(&mut self.choice_end, b"system_fingerprint", fingerprint);
            }
            self.cr_taken_out = self.after_cr;
            self.let_choice_end_go(part.start, output);
            output.replace(part, Vec::new());
        } else if self.strip && ends_choice(event) {
            let held_back = if held == 0 { bytes.to_vec() } else { event[passed..].to_vec() };
            self.let_choice_end_go(part.start, output);
            self.cr_taken_out = self.after_cr;
            self.choice_end = held_back;
            output.replace(part, Vec::new());
        } else {
            let held_back = event.get(passed..held).map(<[u8]>::to_vec).unwrap_or_default();
            self.let_choice_end_go(part.start, output);
            output.replace(part.start..part.start, held_back);
        }
        self.kept.clear();
    }

    /// Takes in a chunk that ends inside an event. The event's part of this chunk begins at `start`.
    fn event_goes_on(&mut self, chunk: &[u8], start: usize, output: &mut Output) {
        let bytes = &chunk[start..];
        if self.takes_as_large(bytes, start, output) {
            return;
        }
        let held = self.kept.len();
        self.kept.extend_from_slice(bytes);
        let undecided = self.passed == 0 && may_only_report_usage(&self.kept);
        if self.strip && (undecided || ends_choice(&self.kept)) {
            output.replace(start..chunk.len(), Vec::new());
        } else {
            self.let_choice_end_go(start, output);
            output.replace(start..start, self.kept[self.passed..held].to_vec());
            self.passed = self.kept.len();
        }
    }

    /// Whether the event becomes too large to be kept with the part of it that begins at `start`. Such an event passes
    /// unchanged and is only searched for its usage. The bytes kept of it do not depend on how the event is split.
    fn takes_as_large(&mut self, bytes: &[u8], start: usize, output: &mut Output) -> bool {
        if let Some(scan) = &mut self.large {
            scan.feed(bytes);
            return true;
        }
        let held = self.kept.len();
        if held + bytes.len() <= MAX_KEPT {
            return false;
        }
        self.let_choice_end_go(start, output);
        output.replace(start..start, self.kept[std::mem::take(&mut self.passed)..].to_vec());
        let (first, rest) = bytes.split_at(MAX_KEPT - held);
        self.kept.extend_from_slice(first);
        let mut scan = self.seen.large_event(&std::mem::take(&mut self.kept));
        scan.feed(rest);
        self.large = Some(scan);
        true
    }

    /// Sends the end of a choice that was held back, in front of the byte at `at`.
    fn let_choice_end_go(&mut self, at: usize, output: &mut Output) {
        output.replace(at..at, std::mem::take(&mut self.choice_end));
    }
}

/// Adds a member to the object in `event`, as the last member. `value` is JSON.
fn insert_member(event: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if let Some(end) = memrchr(b'}', event).filter(|&end| event[end + 1..].trim_ascii().is_empty()) {
        let member = [b",\"", name, b"\":", value].concat();
        event.splice(end..end, member);
    }
}

// === impl Output ===

impl Output {
    fn replace(&mut self, part: Range<usize>, by: Vec<u8>) {
        if !part.is_empty() || !by.is_empty() {
            self.edits.push((part, by));
        }
    }

    fn of(self, chunk: Bytes) -> Bytes {
        match self.edits.as_slice() {
            [] => return chunk,
            [(part, by)] if by.is_empty() && part.start == 0 => return chunk.slice(part.end..),
            [(part, by)] if by.is_empty() && part.end == chunk.len() => return chunk.slice(..part.start),
            _ => {}
        }
        let added: usize = self.edits.iter().map(|(_, by)| by.len()).sum();
        let mut out = Vec::with_capacity(chunk.len() + added);
        let mut from = 0;
        for (part, by) in self.edits {
            out.extend_from_slice(&chunk[from..part.start]);
            out.extend_from_slice(&by);
            from = part.end;
        }
        out.extend_from_slice(&chunk[from..]);
        Bytes::from(out)
    }
}
