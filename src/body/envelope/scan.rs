//! Walks a JSON text once, checks all of its grammar and builds nothing.
//!
//! The grammar is that of Python's `json`, with which the engines read bodies: JSON, plus `NaN`, `Infinity` and
//! `-Infinity`, plus escapes of lone surrogates. Python and this scanner both refuse raw control characters in strings,
//! leading zeros, comments and trailing commas.

use super::fault::{Complaint, JsonFault};
use super::text;
use crate::body::quoted::{self, Skimmed};
use std::borrow::Cow;

/// Length in bytes up to which a string is scanned eight bytes at a time, which is fastest for keys and single words.
const SHORT: usize = 32;

/// Bytes `start..end` of the body. No JSON value is empty, so an empty span means that the field is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
}

/// A member's key: the position of its opening quote, and its text with escapes resolved.
pub(super) struct MemberKey<'a> {
    pub start: usize,
    pub text: Cow<'a, str>,
}

pub(super) struct Scanner<'a> {
    text: &'a str,
    /// Position of the next byte to look at.
    pub at: usize,
    nesting: Nesting,
    /// Largest number of containers that may be open at once.
    limit: usize,
}

/// The open containers, one bit each: set for an object, clear for an array. The lowest bit is the innermost container.
#[derive(Default)]
struct Nesting {
    depth: usize,
    bits: u64,
    /// Full words for the outer levels; empty up to a depth of 64.
    outer: Vec<u64>,
}

// === impl Scanner ===

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str, limit: usize) -> Self {
        Self { text, at: 0, nesting: Nesting::default(), limit }
    }

    pub fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Goes past white space.
    pub fn blank(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Checks that nothing but white space is left.
    pub fn end(&mut self) -> Result<(), JsonFault> {
        self.blank();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.fault(Complaint::TrailingBytes)),
        }
    }

    /// Goes past the value that starts here, of any type and depth.
    pub fn skip(&mut self) -> Result<(), JsonFault> {
        let floor = self.nesting.depth;
        loop {
            match self.peek() {
                Some(b'"') => self.string().map(drop)?,
                Some(b'{') => {
                    self.enter(true)?;
                    if self.peek() == Some(b'}') {
                        self.leave();
                    } else {
                        self.skip_key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.enter(false)?;
                    if self.peek() == Some(b']') {
                        self.leave();
                    } else {
                        continue;
                    }
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => self.literal()?,
            }
            if !self.next_value(floor)? {
                return Ok(());
            }
        }
    }

    /// Goes from the end of a value to the next value that is nested deeper than `floor`; `false` if there is none.
    fn next_value(&mut self, floor: usize) -> Result<bool, JsonFault> {
        while self.nesting.depth > floor {
            self.blank();
            match (self.peek(), self.nesting.in_object()) {
                (Some(b','), in_object) => {
                    self.at += 1;
                    self.blank();
                    if in_object {
                        self.skip_key()?;
                    }
                    return Ok(true);
                }
                (Some(b'}'), true) | (Some(b']'), false) => self.leave(),
                _ => return Err(self.fault(Complaint::NoCommaOrEnd)),
            }
        }
        Ok(false)
    }

    /// Walks the members of the object that starts here. `each` is called in front of every value and must go past that
    /// value.
    pub fn members(
        &mut self,
        mut each: impl FnMut(&mut Self, MemberKey<'a>) -> Result<(), JsonFault>,
    ) -> Result<(), JsonFault> {
        self.enter(true)?;
        if self.peek() == Some(b'}') {
            self.leave();
            return Ok(());
        }
        loop {
            let key = self.key()?;
            each(self, key)?;
            if !self.goes_on(b'}')? {
                return Ok(());
            }
        }
    }

    /// Walks the elements of the array that starts here. `each` is called as in [`Self::members`].
    pub fn elements(
        &mut self,
        mut each: impl FnMut(&mut Self, usize) -> Result<(), JsonFault>,
    ) -> Result<(), JsonFault> {
        self.enter(false)?;
        if self.peek() == Some(b']') {
            self.leave();
            return Ok(());
        }
        for index in 0.. {
            each(self, index)?;
            if !self.goes_on(b']')? {
                break;
            }
        }
        Ok(())
    }

    /// Whether another member or element follows. If none does, goes past the bracket `close`.
    fn goes_on(&mut self, close: u8) -> Result<bool, JsonFault> {
        self.blank();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.blank();
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.leave();
                Ok(false)
            }
            _ => Err(self.fault(Complaint::NoCommaOrEnd)),
        }
    }

    fn enter(&mut self, object: bool) -> Result<(), JsonFault> {
        if self.nesting.depth >= self.limit {
            return Err(self.complain(Complaint::TooDeep));
        }
        self.nesting.push(object);
        self.at += 1;
        self.blank();
        Ok(())
    }

    fn leave(&mut self) {
        self.nesting.pop();
        self.at += 1;
    }

    fn key(&mut self) -> Result<MemberKey<'a>, JsonFault> {
        let start = self.at;
        let (end, escaped) = self.skip_key()?;
        let raw = &self.text[start + 1..end - 1];
        let text = if escaped { text::decode(raw) } else { Cow::Borrowed(raw) };
        Ok(MemberKey { start, text })
    }

    /// Goes past a key and its colon, to the value. Returns the end of the key, and whether the key has escapes.
    fn skip_key(&mut self) -> Result<(usize, bool), JsonFault> {
        if self.peek() != Some(b'"') {
            return Err(self.fault(Complaint::NoKey));
        }
        let escaped = self.string()?;
        let end = self.at;
        self.blank();
        if self.peek() != Some(b':') {
            return Err(self.fault(Complaint::NoColon));
        }
        self.at += 1;
        self.blank();
        Ok((end, escaped))
    }

    /// Goes past a string. Returns whether the string has escapes.
    fn string(&mut self) -> Result<bool, JsonFault> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut at = start + plain(&bytes[start..bytes.len().min(start + SHORT)]);
        let mut escaped = false;
        if bytes.get(at) != Some(&b'"') {
            Skimmed { at, escaped } = quoted::skim(bytes, at);
        }
        loop {
            at += plain(&bytes[at..]);
            match bytes[at..] {
                [b'"', ..] => {
                    self.at = at + 1;
                    return Ok(escaped);
                }
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => at += 2,
                [b'\\', b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(u8::is_ascii_hexdigit) => {
                    at += 6;
                }
                [] | [b'\\'] => {
                    self.at = bytes.len();
                    return Err(self.complain(Complaint::CutShort));
                }
                [byte, ..] => {
                    self.at = at;
                    return Err(self.complain(match byte {
                        b'\\' => Complaint::BadEscape,
                        _ => Complaint::ControlCharacter,
                    }));
                }
            }
            escaped = true;
        }
    }

    fn number(&mut self) -> Result<(), JsonFault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.peek() == Some(b'I') {
                return self.literal();
            }
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// Goes past digits. At least one is required.
    fn digits(&mut self) -> Result<(), JsonFault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.fault(Complaint::BadNumber));
        }
        Ok(())
    }

    fn literal(&mut self) -> Result<(), JsonFault> {
        let tail = &self.text.as_bytes()[self.at..];
        let known: [&[u8]; 5] = [b"true", b"false", b"null", b"NaN", b"Infinity"];
        match known.iter().find(|word| tail.starts_with(word)) {
            Some(word) => {
                self.at += word.len();
                Ok(())
            }
            None => Err(self.fault(Complaint::NoValue)),
        }
    }

    pub fn complain(&self, what: Complaint) -> JsonFault {
        JsonFault { what, at: self.at }
    }

    /// A complaint about the byte here. At the end of the text the complaint is always `CutShort`.
    fn fault(&self, what: Complaint) -> JsonFault {
        self.complain(match self.peek() {
            Some(_) => what,
            None => Complaint::CutShort,
        })
    }
}

/// Number of leading bytes that stand for themselves in a string: bytes that are no quote, backslash or control
/// character. The loop tests eight bytes at a time. Its tests on a word are exact up to the first hit, and only the
/// first hit is used.
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const TOPS: u64 = ONES << 7;
    let mut at = 0;
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * b'"' as u64);
        let backslash = word ^ (ONES * b'\\' as u64);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let hits = (control | (quote.wrapping_sub(ONES) & !quote) | (backslash.wrapping_sub(ONES) & !backslash)) & TOPS;
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let tail = bytes.get(at..).unwrap_or_default();
    let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    at + tail.iter().position(special).unwrap_or(tail.len())
}

// === impl Nesting ===

impl Nesting {
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.bits);
        }
        self.bits = self.bits << 1 | u64::from(object);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.bits >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.bits = self.outer.pop().unwrap_or_default();
        }
    }

    fn in_object(&self) -> bool {
        self.bits & 1 == 1
    }
}

// === impl Span ===

impl Span {
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}
