//! Finds token counts in JSON that comes in pieces, whatever its size: `usage` objects, and SGLang's `meta_info`.

use crate::body::marks::{Marker, Marks};
use crate::scheduler::Usage;
use crate::units::Tokens;
use serde::Deserialize;
use smallvec::SmallVec;

/// Size in bytes beyond which an object is not taken for a `usage` object. The largest in use is below 1 KiB.
const MAX_USAGE: usize = 16 * 1024;

/// Largest count that is believed: a hundred times the largest context there is. Ledgers add counts up.
const MAX_COUNT: u64 = 1 << 30;

/// Length of `completion_tokens` in bytes.
const LONGEST_KEY: usize = 17;

/// Token counts that are known so far. The messages API tells them in several events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: Option<u64>,
}

/// Follows a JSON text and reads its token counts. They stand in the `usage` of the outermost object, and in the
/// `usage` of a `response` or `message` directly inside that object. SGLang's counts stand in `meta_info`, which may
/// have megabytes; if the text is an array of such objects, their counts are added. Anything in front of the first
/// brace is passed over.
#[derive(Debug, Default)]
pub(super) struct UsageScan {
    marker: Marker,
    /// Number of objects and arrays that are open now.
    depth: usize,
    /// Depth of the objects that count: 1 if the text began with an array, else 0.
    base: usize,
    /// Whether the scan is in a string that may be a key.
    in_word: bool,
    /// Start of a word that began in an earlier piece, as long as the word may be a key that matters.
    word: SmallVec<[u8; LONGEST_KEY + 1]>,
    /// The last word, read as a key.
    last: Key,
    /// Keys that lead to the current place, at depths 1 and 2 below `base`.
    keys: [Key; 2],
    /// Whether the scan is between the colon and the end of a count in `meta_info`.
    in_number: bool,
    /// Value of that count by its digits so far; `None` before the first digit.
    number: Option<u64>,
    meta: Counts,
    /// Copy of the object that is being captured, and the depth at which the object ends.
    capture: Option<(Vec<u8>, usize)>,
    counts: Counts,
    ended: bool,
}

/// A piece of the text, and the position where its unfinished part begins.
struct Piece<'a> {
    bytes: &'a [u8],
    word: usize,
    number: usize,
    capture: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    #[default]
    Other,
    Usage,
    /// Key `response` or `message`.
    Wrapper,
    Meta,
    /// Counts in `meta_info`: this key and the next ones.
    Prompt,
    Completion,
    Cached,
}

/// A `usage` object in all its spellings: chat and text completions, responses, messages.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

// === impl UsageScan ===

impl UsageScan {
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut piece = Piece { bytes, word: 0, number: 0, capture: 0 };
        let mut marker = self.marker;
        marker.feed(bytes, |at, marks| self.block(&mut piece, at, &marks));
        self.marker = marker;
        if self.in_word {
            self.keep_word(&bytes[piece.word..]);
        }
        if self.in_number {
            self.digits(&bytes[piece.number..]);
        }
        self.copy(&bytes[piece.capture..]);
    }

    pub fn usage(&self) -> Counts {
        self.counts
    }

    pub fn started(&self) -> bool {
        self.depth > 0 || self.ended
    }

    /// Whether the outermost object or array is closed.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Number of bytes copied and not yet read.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.capture.as_ref().map_or(0, |(object, _)| object.len())
    }

    /// Takes in the block that starts at `start`.
    fn block(&mut self, piece: &mut Piece<'_>, start: usize, marks: &Marks) {
        let closes = marks.closes.count_ones() as usize;
        if self.capture.is_none() && self.below() > 2 + closes {
            self.depth = self.depth + marks.opens.count_ones() as usize - closes;
            return;
        }
        let mut left = u64::MAX;
        loop {
            let here = left & self.wanted(marks);
            if here == 0 {
                return;
            }
            // The rest are the marks behind the lowest one.
            left = !(here ^ here.wrapping_sub(1));
            self.mark(piece, start + here.trailing_zeros() as usize);
        }
    }

    /// The marks of a block that matter at this place. Keys are read down to depth 2 only.
    fn wanted(&self, marks: &Marks) -> u64 {
        let brackets = marks.opens | marks.closes;
        if self.capture.is_some() || self.below() > 2 {
            return brackets;
        }
        let ends = if self.in_number { marks.commas } else { 0 };
        brackets | marks.quotes | marks.colons | ends
    }

    fn mark(&mut self, piece: &mut Piece<'_>, at: usize) {
        match piece.bytes[at] {
            b'"' if self.in_word => {
                self.in_word = false;
                self.last = self.word_ends(&piece.bytes[piece.word..at]);
            }
            b'"' => {
                (self.in_word, self.in_number) = (true, false);
                piece.word = at + 1;
            }
            b':' => {
                self.key();
                piece.number = at + 1;
            }
            b',' => self.number_end(&piece.bytes[piece.number..at]),
            open @ (b'{' | b'[') => {
                self.in_number = false;
                if open == b'[' {
                    self.base += usize::from(self.depth == 0);
                } else if self.capture.is_none() && self.at_usage() {
                    self.capture = Some((Vec::new(), self.depth));
                    piece.capture = at;
                }
                self.open();
            }
            _ => {
                if self.in_number {
                    self.number_end(&piece.bytes[piece.number..at]);
                }
                self.close(&piece.bytes[piece.capture..=at]);
            }
        }
    }

    /// Keeps the part of a word that goes on in the next piece.
    fn keep_word(&mut self, part: &[u8]) {
        let room = part.len().min(LONGEST_KEY + 1 - self.word.len());
        self.word.extend_from_slice(&part[..room]);
    }

    fn word_ends(&mut self, part: &[u8]) -> Key {
        if self.word.is_empty() {
            return Key::of(part);
        }
        self.keep_word(part);
        let key = Key::of(&self.word);
        self.word.clear();
        key
    }

    /// Takes in that the last word was a key.
    fn key(&mut self) {
        let below = self.below();
        if let Some(key) = below.checked_sub(1).and_then(|n| self.keys.get_mut(n)) {
            *key = self.last;
        }
        self.number = None;
        let is_count = matches!(self.last, Key::Prompt | Key::Completion | Key::Cached);
        self.in_number = is_count && below == 2 && self.keys[0] == Key::Meta;
    }

    /// The depth below the outermost array, if there is one.
    fn below(&self) -> usize {
        self.depth.saturating_sub(self.base)
    }

    fn digits(&mut self, part: &[u8]) {
        for byte in part.iter().filter(|byte| byte.is_ascii_digit()) {
            let before = self.number.unwrap_or(0);
            self.number = Some(before.saturating_mul(10).saturating_add(u64::from(byte - b'0')));
        }
    }

    fn number_end(&mut self, part: &[u8]) {
        self.digits(part);
        self.in_number = false;
        let Some(number) = self.number.take() else { return };
        match self.keys[1] {
            Key::Prompt => self.meta.prompt = Some(number),
            Key::Completion => self.meta.completion = Some(number),
            Key::Cached => self.meta.cached = Some(number),
            _ => {}
        }
    }

    /// Whether an object that starts here is a `usage` that counts.
    fn at_usage(&self) -> bool {
        match self.below() {
            1 => self.keys[0] == Key::Usage,
            2 => self.keys == [Key::Wrapper, Key::Usage],
            _ => false,
        }
    }

    fn open(&mut self) {
        self.depth += 1;
        if self.below() == 2 {
            self.keys[1] = Key::Other;
        }
    }

    /// Takes in a closing bracket. `copied` holds the bytes that a capture under way has not copied yet, the bracket
    /// included.
    fn close(&mut self, copied: &[u8]) {
        if self.below() == 2 && self.keys[0] == Key::Meta {
            self.counts.add(std::mem::take(&mut self.meta));
        }
        self.depth = self.depth.saturating_sub(1);
        self.ended |= self.depth == 0;
        if matches!(self.capture, Some((_, depth)) if depth == self.depth) {
            self.copy(copied);
            if let Some((object, _)) = self.capture.take() {
                self.counts.update(&object);
            }
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        if let Some((object, _)) = &mut self.capture {
            if object.len() + bytes.len() > MAX_USAGE {
                self.capture = None;
            } else {
                object.extend_from_slice(bytes);
            }
        }
    }
}

// === impl Key ===

impl Key {
    fn of(word: &[u8]) -> Self {
        match word {
            b"usage" => Self::Usage,
            b"response" | b"message" => Self::Wrapper,
            b"meta_info" => Self::Meta,
            b"prompt_tokens" => Self::Prompt,
            b"completion_tokens" => Self::Completion,
            b"cached_tokens" => Self::Cached,
            _ => Self::Other,
        }
    }
}

// === impl Counts ===

impl Counts {
    /// Takes in one `usage` object. Anything else in `object` is passed over.
    fn update(&mut self, object: &[u8]) {
        // UTF-8 is checked once for the whole object, not string by string.
        let text = simdutf8::basic::from_utf8(object);
        if let Some(wire) = text.ok().and_then(|text| serde_json::from_str::<Wire>(text).ok()) {
            self.merge(wire.counts());
        }
    }

    /// Takes in later counts, which replace earlier ones. The prompt's count does not shrink: some events leave parts
    /// of the prompt out.
    pub fn merge(&mut self, later: Self) {
        self.prompt = self.prompt.max(later.prompt);
        self.completion = later.completion.or(self.completion);
        self.cached = later.cached.or(self.cached);
    }

    /// Adds the counts of one of several answers that came together. A count that one answer does not tell is not known
    /// for all.
    pub fn add(&mut self, other: Self) {
        if !self.any() {
            *self = other;
            return;
        }
        let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        self.prompt = sum(self.prompt, other.prompt);
        self.completion = sum(self.completion, other.completion);
        self.cached = sum(self.cached, other.cached);
    }

    pub fn any(self) -> bool {
        self.prompt.is_some() || self.completion.is_some()
    }

    /// The usage in the form that the scheduler is told.
    pub fn total(self) -> Option<Usage> {
        self.any().then(|| Usage {
            prompt: Tokens(self.prompt.unwrap_or(0)),
            completion: Tokens(self.completion.unwrap_or(0)),
            cached: self.cached.map(Tokens),
        })
    }
}

// === impl Wire ===

impl Wire {
    fn counts(self) -> Counts {
        let possible = |count: Option<u64>| count.filter(|count| *count <= MAX_COUNT);
        let cached = |details: Option<Details>| possible(details.and_then(|details| details.cached_tokens));
        let outside = [self.cache_read_input_tokens, self.cache_creation_input_tokens].map(possible);
        // In the messages API `input_tokens` leaves out the tokens that the cache read and wrote.
        let input = possible(self.input_tokens).map(|input| input + outside.iter().flatten().sum::<u64>());
        let prompt = possible(self.prompt_tokens).or(input);
        let completion = possible(self.completion_tokens.or(self.output_tokens));
        let rest = possible(self.total_tokens).zip(prompt);
        Counts {
            prompt,
            completion: completion.or(rest.map(|(total, prompt)| total.saturating_sub(prompt))),
            cached: cached(self.prompt_tokens_details).or(cached(self.input_tokens_details)).or(outside[0]),
        }
    }
}
