//! The envelope of a step: the fields of its JSON body that matter here, and the body that goes upstream.
//!
//! One pass over the bytes checks the whole grammar and notes where the known fields are; no tree is built. The same
//! bytes go upstream, with a few spans cut or replaced. So the spelling of numbers, the order of keys, duplicate keys,
//! escapes and white space survive.

mod fault;
mod outline;
mod scan;
mod splice;
mod text;

#[cfg(test)]
mod tests;

pub use outline::Field;
pub use splice::{AskUsage, Edits, Forwarded};

use crate::error::Refusal;
use crate::units::{BYTES_PER_TOKEN, Tokens};
use bytes::Bytes;
use fault::{Complaint, JsonFault};
use memchr::memmem;
use outline::Outline;

use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A request body that was found to be a JSON object, and the places of its fields.
///
/// The envelope holds the body until [`Envelope::forward`] gives the bytes to send.
#[derive(Debug)]
pub struct Envelope {
    body: Bytes,
    outline: Outline,
}

/// Error for a field that is an object or array where a single value is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotScalar;

/// Start of a text that Claude Code puts into the system prompt and writes anew for each request. Engines leave this
/// text out of the prompt.
const BILLING_HEADER: &[u8] = b"\"x-anthropic-billing-header";

/// Fields that become the prompt.
const PROMPT: [Field; 8] = [
    Field::Messages,
    Field::Prompt,
    Field::Input,
    Field::Tools,
    Field::System,
    Field::Instructions,
    Field::Text,
    Field::InputIds,
];

/// Names under which the endpoints take a limit on the output.
const OUTPUT_LIMITS: [Field; 4] =
    [Field::MaxTokens, Field::MaxCompletionTokens, Field::MaxOutputTokens, Field::MaxNewTokens];

impl Envelope {
    /// Reads a body that nests at most `json_depth` objects and arrays.
    ///
    /// # Errors
    /// `InvalidJson` when the body is not UTF-8, not JSON as Python reads it, not an object, or nested deeper.
    pub fn scan(body: Bytes, json_depth: usize) -> Result<Self, Refusal> {
        match outline_of(&body, json_depth) {
            Ok(outline) => Ok(Self { body, outline }),
            Err(fault) => Err(Refusal::InvalidJson(fault.to_string())),
        }
    }

    /// The bytes to send upstream: without the members that were written for Thundergate, and with `edits`. The bytes
    /// are changed in place if nobody else holds the body.
    #[must_use]
    pub fn forward(self, edits: &Edits<'_>) -> Forwarded {
        splice::forward(self, edits)
    }

    /// The model asked for, if the field is a string.
    #[must_use]
    pub fn model(&self) -> Option<Cow<'_, str>> {
        self.string(Field::Model)
    }

    /// Whether the answer is to be streamed.
    #[must_use]
    pub fn stream(&self) -> bool {
        self.raw(Field::Stream).and_then(text::truth) == Some(true)
    }

    /// The smallest limit on the output that the body sets.
    #[must_use]
    pub fn max_output(&self) -> Option<Tokens> {
        OUTPUT_LIMITS
            .iter()
            .filter_map(|field| self.scalar(*field).ok()??.parse::<f64>().ok())
            .filter(|limit| *limit >= 0.0)
            .map(|limit| Tokens(limit as u64))
            .min()
    }

    /// Size of the prompt in bytes of JSON. A token id counts as [`BYTES_PER_TOKEN`] bytes, as if it were text.
    #[must_use]
    pub fn prompt_bytes(&self) -> u64 {
        PROMPT.iter().map(|field| text_bytes(self.bytes(*field))).sum()
    }

    /// Hash of the model and the first system message: two bodies with the same hash have prompts that begin in the
    /// same way. The hash is the same on every machine and in every release.
    #[must_use]
    pub fn class(&self) -> u64 {
        let role = self.string(Field::Role).unwrap_or_default();
        let opening = match &*role {
            "system" | "developer" => self.bytes(Field::Opening),
            _ => &[],
        };
        let parts = [
            self.bytes(Field::Model),
            without_billing_header(self.bytes(Field::System)),
            self.bytes(Field::Instructions),
            opening,
        ];
        parts.iter().fold(0, |seed, part| xxh3_64_with_seed(part, seed))
    }

    /// A field as text: a string without quotes and escapes, a number or boolean as it is written. `null` and the empty
    /// string count as absent.
    ///
    /// # Errors
    /// `NotScalar` when the field is an object or array.
    pub fn scalar(&self, field: Field) -> Result<Option<Cow<'_, str>>, NotScalar> {
        let Some(raw) = self.raw(field) else {
            return Ok(None);
        };
        match raw.as_bytes()[0] {
            b'"' => Ok(self.string(field).filter(|text| !text.is_empty())),
            b'{' | b'[' => Err(NotScalar),
            b'n' => Ok(None),
            _ => Ok(Some(Cow::Borrowed(raw))),
        }
    }

    /// A field's text, if the field is a string.
    fn string(&self, field: Field) -> Option<Cow<'_, str>> {
        let raw = self.raw(field)?;
        let inside = raw.strip_prefix('"')?.strip_suffix('"')?;
        Some(text::decode(inside))
    }

    /// A field's value as it is written.
    fn raw(&self, field: Field) -> Option<&str> {
        let bytes = self.bytes(field);
        std::str::from_utf8(bytes).ok().filter(|raw| !raw.is_empty())
    }

    /// The bytes of a field; empty when the field is absent.
    pub(crate) fn bytes(&self, field: Field) -> &[u8] {
        let span = self.outline.span(field).unwrap_or_default();
        &self.body[span.start..span.end]
    }
}

fn text_bytes(value: &[u8]) -> u64 {
    let inside = value.iter().find(|byte| !b"[ \t\r\n".contains(byte));
    if value.first() == Some(&b'[') && inside.is_some_and(u8::is_ascii_digit) {
        let ids = memchr::memchr_iter(b',', value).count() as u64 + 1;
        return ids * BYTES_PER_TOKEN;
    }
    value.len() as u64
}

fn outline_of(body: &[u8], json_depth: usize) -> Result<Outline, JsonFault> {
    let fault = |what, at| JsonFault { what, at };
    let text = simdutf8::compat::from_utf8(body).map_err(|error| fault(Complaint::NotUtf8, error.valid_up_to()))?;
    if text.starts_with('\u{feff}') {
        return Err(fault(Complaint::ByteOrderMark, 0));
    }
    Outline::read(text, json_depth)
}

/// The part of a system prompt (as JSON) behind Claude Code's billing header, which differs from request to request.
fn without_billing_header(system: &[u8]) -> &[u8] {
    let Some(header) = memmem::find(system, BILLING_HEADER) else {
        return system;
    };
    let behind = &system[header + BILLING_HEADER.len()..];
    let end = memchr::memchr(b'"', behind).unwrap_or(behind.len());
    &behind[end..]
}
