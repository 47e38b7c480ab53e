//! Finds token counts in JSON that comes in pieces, whatever its size: `usage` objects, and SGLang's `meta_info`.

use crate::scheduler::Usage;
use crate::units::Tokens;
use memchr::memchr2;
use serde::Deserialize;

/// A `usage` object larger than this is not one. The largest in use is below 1 KiB.
const MAX_USAGE: usize = 16 * 1024;

/// A count above this is none: a hundred times the largest context there is. Ledgers add them up.
const MAX_COUNT: u64 = 1 << 30;

/// Token counts that are known so far; the messages API tells them in several events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: Option<u64>,
}

/// Follows a JSON text and reads the `usage` of the outermost object, and of the `response` or `message`
/// directly inside it; and the counts in `meta_info`, which may be megabytes, in an array of such objects their sum.
/// Anything in front of the first brace is passed over.
#[derive(Debug, Default)]
pub(super) struct UsageScan {
    place: Place,
    /// Objects and arrays open now.
    depth: usize,
    /// 1 within the outermost array, if that is what it began with.
    base: usize,
    /// The last string, if it is short enough to be a key that matters.
    word: [u8; 17],
    /// Its length; more than there is room for if it is too long, or has escapes.
    word_len: usize,
    /// The keys on the way here, at depths 1 and 2 below `base`.
    keys: [Key; 2],
    /// What was read of a number in `meta_info`.
    number: Option<u64>,
    meta: Counts,
    /// The object that is being copied, and the depth it ends at.
    capture: Option<(Vec<u8>, usize)>,
    counts: Counts,
    ended: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Outside,
    String,
    /// Behind a backslash in a string.
    Escape,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    #[default]
    Other,
    Usage,
    /// `response` or `message`.
    Wrapper,
    Meta,
    /// The counts in `meta_info`.
    Prompt,
    Completion,
    Cached,
}

/// `usage` in all its spellings: chat and text completions, responses, messages.
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
        let mut at = 0;
        let mut capture_from = 0;
        while at < bytes.len() {
            match self.place {
                Place::String => at = self.string(bytes, at),
                Place::Escape => {
                    self.place = Place::String;
                    at += 1;
                }
                Place::Outside => {
                    match bytes[at] {
                        b'"' => {
                            self.place = Place::String;
                            self.word_len = 0;
                        }
                        b':' => self.key(),
                        b'{' => {
                            if self.capture.is_none() && self.at_usage() {
                                self.capture = Some((Vec::new(), self.depth));
                                capture_from = at;
                            }
                            self.open();
                        }
                        b'[' => {
                            self.base += usize::from(self.depth == 0);
                            self.open();
                        }
                        b'}' | b']' => {
                            self.number_end();
                            self.close(&bytes[capture_from..=at]);
                        }
                        b',' => self.number_end(),
                        digit @ b'0'..=b'9' if self.keys[0] == Key::Meta && self.below() == 2 => {
                            let before = self.number.unwrap_or(0);
                            self.number = Some(before.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
                        }
                        _ => {}
                    }
                    at += 1;
                }
            }
        }
        self.copy(&bytes[capture_from..]);
    }

    pub fn usage(&self) -> Counts {
        self.counts
    }

    pub fn started(&self) -> bool {
        self.depth > 0 || self.ended
    }

    /// The outermost object or array is closed.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Bytes copied and not yet read.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.capture.as_ref().map_or(0, |(object, _)| object.len())
    }

    /// Goes through a string to its end, or the next escape, or the end of `bytes`.
    fn string(&mut self, bytes: &[u8], at: usize) -> usize {
        let rest = &bytes[at..];
        let len = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        let word_end = self.word_len.saturating_add(len);
        if let Some(room) = self.word.get_mut(self.word_len..word_end) {
            room.copy_from_slice(&rest[..len]);
        }
        self.word_len = word_end;
        match rest.get(len) {
            Some(b'"') => self.place = Place::Outside,
            Some(_) => {
                self.place = Place::Escape;
                self.word_len = usize::MAX;
            }
            None => return bytes.len(),
        }
        at + len + 1
    }

    /// The last string was a key.
    fn key(&mut self) {
        if let Some(key) = self.below().checked_sub(1).and_then(|n| self.keys.get_mut(n)) {
            *key = match self.word.get(..self.word_len) {
                Some(b"usage") => Key::Usage,
                Some(b"response" | b"message") => Key::Wrapper,
                Some(b"meta_info") => Key::Meta,
                Some(b"prompt_tokens") => Key::Prompt,
                Some(b"completion_tokens") => Key::Completion,
                Some(b"cached_tokens") => Key::Cached,
                _ => Key::Other,
            };
        }
    }

    /// The depth, less that of the outermost array.
    fn below(&self) -> usize {
        self.depth.saturating_sub(self.base)
    }

    fn number_end(&mut self) {
        let Some(number) = self.number.take() else { return };
        match self.keys[1] {
            Key::Prompt => self.meta.prompt = Some(number),
            Key::Completion => self.meta.completion = Some(number),
            Key::Cached => self.meta.cached = Some(number),
            _ => {}
        }
    }

    /// An object that starts here is a `usage` that counts.
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

    /// `copied`: what a capture under way has not copied yet, this brace included.
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

// === impl Counts ===

impl Counts {
    /// Takes in one `usage` object. What is no such object is passed over.
    fn update(&mut self, object: &[u8]) {
        if let Ok(wire) = serde_json::from_slice::<Wire>(object) {
            self.merge(wire.counts());
        }
    }

    /// Later counts replace earlier ones. The prompt does not shrink: some events leave parts of it out.
    pub fn merge(&mut self, later: Self) {
        self.prompt = self.prompt.max(later.prompt);
        self.completion = later.completion.or(self.completion);
        self.cached = later.cached.or(self.cached);
    }

    /// One of several answers in one. What one of them does not tell is not known of all.
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

    /// What the scheduler is told.
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
        // In the messages API `input_tokens` leaves out what the cache read and wrote.
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
