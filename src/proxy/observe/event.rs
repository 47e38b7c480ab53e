//! Tells what one server-sent event says. A few searches are enough for a common event, which carries one token; only
//! events with a `usage` object are read as JSON.

use super::usage::{Counts, UsageScan};
use memchr::{memchr2, memmem};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Sum of the events seen so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub usage: Counts,
    /// Number of events that carried output.
    pub outputs: u64,
    /// Whether `[DONE]` or another last event was seen.
    pub ended: bool,
}

/// A usage event, read as JSON: a word that a search finds may stand inside of something else.
#[derive(Deserialize)]
struct Report<'a> {
    #[serde(rename = "choices")]
    _choices: [IgnoredAny; 0],
    #[serde(rename = "usage", borrow)]
    _usage: HashMap<Cow<'a, str>, IgnoredAny>,
}

/// Fields of an event that matter here.
struct Fields<'a> {
    name: Option<&'a [u8]>,
    data: Option<Cow<'a, [u8]>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choices {
    Absent,
    Empty,
    /// At least one choice.
    Some,
}

static CHOICES: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"choices\""));
static USAGE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"usage\""));
static FINISH_REASON: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"finish_reason\""));
static FINGERPRINT: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(b"\"system_fingerprint\""));
/// Key of the part of an event of SGLang's `/generate` that matters here.
static META: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"meta_info\""));
static TYPE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"type\""));

// === impl Seen ===

impl Seen {
    /// Takes in one event, given with its line ends. Tells whether the event is there only to report usage.
    pub fn event(&mut self, event: &[u8]) -> bool {
        let fields = Fields::of(event);
        let Some(data) = fields.data else {
            return false;
        };
        let choices = self.progress(fields.name, &data);
        let generated = choices == Choices::Absent && ends_generation(&data);
        let reports = generated || values(&data, &USAGE).any(|value| value.starts_with(b"{"));
        if !reports {
            return false;
        }
        let mut scan = UsageScan::default();
        scan.feed(&data);
        if generated {
            self.usage.add(scan.usage());
            return false;
        }
        self.usage.merge(scan.usage());
        choices == Choices::Empty && scan.usage().any() && serde_json::from_slice::<Report<'_>>(&data).is_ok()
    }

    /// Takes in the start of an event that is too large to be kept. Gives the scan that looks for the event's usage as
    /// the rest of the event comes.
    pub fn large_event(&mut self, start: &[u8]) -> UsageScan {
        let mut scan = UsageScan::default();
        let fields = Fields::of(start);
        if let Some(data) = fields.data {
            self.progress(fields.name, &data);
            scan.feed(&data);
        }
        scan
    }

    fn progress(&mut self, name: Option<&[u8]>, data: &[u8]) -> Choices {
        if data == b"[DONE]" {
            self.ended = true;
            return Choices::Absent;
        }
        let choices = choices_in(data);
        if choices == Choices::Absent {
            match name.or_else(|| type_of(data)).unwrap_or_default() {
                b"response.completed" | b"response.incomplete" | b"response.failed" | b"message_stop" | b"error" => {
                    self.ended = true
                }
                b"content_block_delta" => self.outputs += 1,
                name if name.ends_with(b".delta") => self.outputs += 1,
                b"" if META.find(data).is_some() => self.outputs += 1,
                _ => {}
            }
        } else if choices == Choices::Some {
            self.outputs += 1;
        }
        choices
    }
}

/// Whether an event of which only the start is known may be there only to report usage.
pub(super) fn may_only_report_usage(start: &[u8]) -> bool {
    let Some(data) = Fields::of(start).data else {
        return true;
    };
    let object = data.trim_ascii_start().first().is_none_or(|&byte| byte == b'{');
    object && choices_in(&data) != Choices::Some
}

/// Whether an event, given whole or by its start, ends a choice and does not name the system that made it.
pub(super) fn ends_choice(event: &[u8]) -> bool {
    values(event, &FINISH_REASON).any(|value| value.starts_with(b"\"")) && FINGERPRINT.find(event).is_none()
}

/// The value of `system_fingerprint` in an event: a JSON string with its quotes.
pub(super) fn fingerprint(event: &[u8]) -> Option<&[u8]> {
    let value = values(event, &FINGERPRINT).next()?;
    let end = (1..value.len()).find(|&at| value[at] == b'"' && value[at - 1] != b'\\')?;
    value.starts_with(b"\"").then(|| &value[..=end])
}

/// Whether an event is the last of one answer of SGLang's `/generate`. Each event repeats the counts, and the events of
/// a batch's answers come mixed.
fn ends_generation(data: &[u8]) -> bool {
    let meta = values(data, &META).next();
    meta.is_some_and(|meta| values(meta, &FINISH_REASON).any(|value| !value.starts_with(b"null")))
}

fn choices_in(data: &[u8]) -> Choices {
    match values(data, &CHOICES).next() {
        Some([b'[', rest @ ..]) => match rest.trim_ascii_start().first() {
            Some(b']') | None => Choices::Empty,
            Some(_) => Choices::Some,
        },
        _ => Choices::Absent,
    }
}

/// The `type` of an event, which the responses and messages APIs also write into the data.
fn type_of(data: &[u8]) -> Option<&[u8]> {
    let value = values(data, &TYPE).next()?.strip_prefix(b"\"")?;
    value.split(|&byte| byte == b'"').next()
}

/// The values of all members with this key, each from its start. A quoted word in front of a colon is always a key:
/// inside of a string, its quotes would be escaped.
fn values<'a>(data: &'a [u8], key: &'a memmem::Finder<'static>) -> impl Iterator<Item = &'a [u8]> + 'a {
    key.find_iter(data).filter_map(|at| {
        let behind = data[at + key.needle().len()..].trim_ascii_start();
        Some(behind.strip_prefix(b":")?.trim_ascii_start())
    })
}

// === impl Fields ===

impl<'a> Fields<'a> {
    fn of(event: &'a [u8]) -> Self {
        let mut fields = Self { name: None, data: None };
        for line in lines(event) {
            if let Some(value) = field(line, b"data") {
                fields.data = Some(match fields.data.take() {
                    None => Cow::Borrowed(value),
                    Some(before) => Cow::Owned([&before, value].join(&b'\n')),
                });
            } else if let Some(value) = field(line, b"event") {
                fields.name = Some(value);
            }
        }
        fields
    }
}

/// The value of a line if the line has the field `name`.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// Number of bytes in front of the first line end. Each event ends with a blank line, which needs no search.
pub(super) fn line_len(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'\n' | b'\r' => Some(0),
        _ => memchr2(b'\n', b'\r', bytes),
    }
}

/// The lines of an event. A line ends in LF, CR or both.
fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = event;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let len = line_len(rest).unwrap_or(rest.len());
        let (line, behind) = rest.split_at(len);
        rest = match behind {
            [b'\r', b'\n', rest @ ..] | [_, rest @ ..] => rest,
            [] => &[],
        };
        Some(line)
    })
}
