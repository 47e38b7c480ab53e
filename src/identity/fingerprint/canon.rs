//! Hashes a JSON value by its meaning, not by its spelling.
//!
//! A client writes the messages of a conversation in nearly the same way each time. The hash leaves out all that may differ
//! from step to step: the order of members, white space, members that are `null`, and the marks for Anthropic's prompt
//! cache. These marks move to the newest message: a text with a mark is written as a list of one part, and a text without
//! as a plain string.

use crate::body::quoted;
use memchr::memchr2;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seeds of the hashes of different kinds of values.
const STRING: u64 = 1;
const OTHER: u64 = 2;
const ARRAY: u64 = 3;
const OBJECT: u64 = 4;
/// The hash of a value that counts as absent.
const NOTHING: u64 = 0;

/// Depth from which on a value is hashed as it is written.
const DEPTH: usize = 64;

/// Start of a text that Claude Code writes anew for each request. Engines leave that text out.
const BILLING_HEADER: &[u8] = b"x-anthropic-billing-header";

/// Types of items of the responses API that come from the model.
const MODEL_ITEMS: [&[u8]; 4] = [b"\"function_call\"", b"\"reasoning\"", b"\"custom_tool_call\"", b"\"mcp_call\""];

/// A part of a conversation: a message, or one part of a message with several, since clients also append to the last
/// message.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub hash: u64,
    /// Position of the message.
    pub start: usize,
    pub end: usize,
    /// Whether this is the first part of its message.
    pub first: bool,
    /// Whether the model said this.
    pub answer: bool,
}

/// The parts of an array of messages or items; `None` if `raw` is no array, or an empty one. `raw` must be valid JSON.
pub fn turns(raw: &[u8]) -> Option<Vec<Turn>> {
    let mut walk = Walk { bytes: raw, at: 0, depth: 0 };
    if walk.peek() != b'[' {
        return None;
    }
    let mut turns = Vec::new();
    walk.each(|walk| {
        let (start, from) = (walk.at, turns.len());
        let mut part = |hash| turns.push(Turn { hash, start, end: 0, first: false, answer: false });
        let answer = match walk.peek() {
            b'{' => walk.message(&mut part),
            _ => {
                part(walk.value());
                false
            }
        };
        turns[from].first = true;
        for turn in &mut turns[from..] {
            (turn.end, turn.answer) = (walk.at, answer);
        }
    });
    Some(turns).filter(|turns| !turns.is_empty())
}

/// The hash of one value of valid JSON; 0 for `null`, and for an empty text.
pub fn hash(raw: &[u8]) -> u64 {
    match raw {
        [] => NOTHING,
        bytes => Walk { bytes, at: 0, depth: 0 }.value(),
    }
}

/// The rolling hash with one more value.
pub fn link(chain: u64, next: u64) -> u64 {
    xxh3_64_with_seed(&next.to_le_bytes(), chain)
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Number of open objects and arrays.
    depth: usize,
}

// === impl Walk ===

impl<'a> Walk<'a> {
    /// The next byte; behind the end a closing brace, which ends every loop.
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(b'}')
    }

    fn blank(&mut self) {
        while let b' ' | b'\n' | b'\r' | b'\t' = self.peek() {
            if self.at >= self.bytes.len() {
                return;
            }
            self.at += 1;
        }
    }

    fn value(&mut self) -> u64 {
        match self.peek() {
            b'"' => text(self.string()),
            b'{' | b'[' if self.depth >= DEPTH => {
                let start = self.at;
                self.skip();
                xxh3_64_with_seed(&self.bytes[start..self.at], OTHER)
            }
            b'{' => self.object(),
            b'[' => {
                let mut hash = ARRAY;
                self.each(|walk| hash = link(hash, walk.value()));
                hash
            }
            _ => self.scalar(),
        }
    }

    fn object(&mut self) -> u64 {
        let mut sum = OBJECT;
        self.each(|walk| {
            let key = walk.key();
            let lone = key == b"content" && walk.peek() == b'"';
            let value = match walk.value() {
                _ if key == b"cache_control" => NOTHING,
                text if lone && text != NOTHING => link(ARRAY, text_part(text)),
                value => value,
            };
            sum = sum.wrapping_add(member(key, value));
        });
        sum
    }

    /// Passes the hashes of a message's parts to `part`, one at least. Members beside the content belong to the first part.
    /// Returns whether the model said the message.
    fn message(&mut self, mut part: impl FnMut(u64)) -> bool {
        let (mut head, mut parts, mut answer) = (OBJECT, SmallVec::<[u64; 4]>::new(), false);
        self.each(|walk| {
            let key = walk.key();
            match (key, walk.peek()) {
                (b"content", b'[') => walk.each(|walk| parts.push(walk.value())),
                (b"content", b'"') => {
                    let text = text(walk.string());
                    parts.extend((text != NOTHING).then(|| text_part(text)));
                }
                _ => {
                    let start = walk.at;
                    let value = walk.value();
                    let raw = walk.bytes.get(start..walk.at).unwrap_or_default();
                    answer |= match key {
                        b"role" => raw == b"\"assistant\"",
                        b"type" => MODEL_ITEMS.contains(&raw),
                        _ => false,
                    };
                    if key != b"cache_control" {
                        head = head.wrapping_add(member(key, value));
                    }
                }
            }
        });
        let (first, more) = parts.split_first().unwrap_or((&NOTHING, &[]));
        part(link(head, *first));
        more.iter().for_each(|hash| part(*hash));
        answer
    }

    /// Goes past a key and its colon.
    fn key(&mut self) -> &'a [u8] {
        let key = self.string();
        self.blank();
        self.at += 1;
        self.blank();
        key
    }

    /// Walks an object or array. `each` is called in front of every member or element.
    fn each(&mut self, mut each: impl FnMut(&mut Self)) {
        self.at += 1;
        self.depth += 1;
        self.blank();
        while !matches!(self.peek(), b'}' | b']') {
            each(self);
            self.blank();
            if self.peek() != b',' {
                break;
            }
            self.at += 1;
            self.blank();
        }
        self.depth -= 1;
        self.at = (self.at + 1).min(self.bytes.len());
    }

    /// Goes past a string. Returns the bytes between its quotes, as they are written.
    fn string(&mut self) -> &'a [u8] {
        let start = (self.at + 1).min(self.bytes.len());
        let mut at = quoted::skim(self.bytes, start).at;
        while let Some(found) = memchr2(b'"', b'\\', self.bytes.get(at..).unwrap_or_default()) {
            at += found;
            if self.bytes[at] == b'"' {
                self.at = at + 1;
                return &self.bytes[start..at];
            }
            at += 2;
        }
        self.at = self.bytes.len();
        &self.bytes[start..]
    }

    fn scalar(&mut self) -> u64 {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let ends = |byte: &u8| b",]} \n\r\t".contains(byte);
        let raw = &rest[..rest.iter().position(ends).unwrap_or(rest.len())];
        self.at += raw.len();
        if raw == b"null" { NOTHING } else { xxh3_64_with_seed(raw, OTHER) }
    }

    /// Goes past an object or array of any depth.
    fn skip(&mut self) {
        let mut open = 0usize;
        while self.at < self.bytes.len() {
            match self.peek() {
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => open += 1,
                b'}' | b']' => open -= 1,
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                return;
            }
        }
    }
}

fn text(raw: &[u8]) -> u64 {
    if raw.is_empty() || raw.starts_with(BILLING_HEADER) { NOTHING } else { xxh3_64_with_seed(raw, STRING) }
}

/// The hash of a member. The hashes of members are added, so that their order does not count.
fn member(key: &[u8], value: u64) -> u64 {
    if value == NOTHING { 0 } else { xxh3_64_with_seed(key, value) }
}

/// The hash of `{"type": "text", "text": …}`.
fn text_part(text_hash: u64) -> u64 {
    OBJECT.wrapping_add(member(b"type", text(b"text"))).wrapping_add(member(b"text", text_hash))
}
