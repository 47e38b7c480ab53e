//! Makes the body that goes upstream from the body that came, by cuts, replacements and insertions.

use super::outline::Field;
use super::scan::Span;
use super::{Envelope, text};
use bytes::Bytes;
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// Changes to a body, besides the removal of the members that were written for Thundergate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edits<'a> {
    /// Model name that replaces the client's.
    pub model: Option<&'a str>,
    /// Whether, and how, to ask for usage on the client's behalf.
    pub usage: AskUsage,
}

/// Whether, and how, usage is asked for when the client of a streamed step did not ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AskUsage {
    /// No: the endpoint has no `stream_options`, or nobody wants to know the usage.
    #[default]
    Never,
    /// In vLLM's way: a `stream_options` object without `include_usage` asks for usage, and `continuous_usage_stats`
    /// counts only with usage.
    Vllm,
    /// In SGLang's and OpenAI's way: without `include_usage` there is no usage.
    Openai,
}

/// A body on its way upstream.
#[derive(Clone, Debug)]
pub struct Forwarded {
    pub body: Bytes,
    /// Whether this body asks for a usage event that the client did not ask for. The answer then goes to the client
    /// without that event.
    pub usage_added: bool,
}

/// Number of patches up to which they are made in place. Each patch in place moves all bytes behind it. An ordinary
/// body has three patches at most; a body with an id in every other member would keep a core busy for hours.
const IN_PLACE: usize = 8;

/// A span and the bytes to write in its place. For an insertion the span is empty.
type Patch = (Span, Cow<'static, str>);

pub(super) fn forward(envelope: Envelope, edits: &Edits<'_>) -> Forwarded {
    let mut patches: Vec<Patch> = Vec::new();
    if let (Some(name), Some(span)) = (edits.model, envelope.outline.span(Field::Model)) {
        let quoted = serde_json::Value::from(name).to_string();
        patches.push((span, Cow::Owned(quoted)));
    }
    let asked = patches.len();
    if edits.usage != AskUsage::Never && envelope.stream() && !several_choices(&envelope) {
        ask_usage(&envelope, edits.usage, &mut patches);
    }
    let usage_added = patches.len() > asked;
    let cuts = envelope.outline.cuts.iter();
    patches.extend(cuts.map(|cut| (*cut, Cow::Borrowed(""))));
    patches.sort_by_key(|(span, _)| span.start);
    Forwarded { body: apply(envelope.body, &patches), usage_added }
}

/// Makes the engine report usage if the client did not ask for it. Options that the engine will refuse stay as they
/// are, so that the client gets the engine's own error.
fn ask_usage(envelope: &Envelope, engine: AskUsage, patches: &mut Vec<Patch>) {
    let Some(options) = envelope.outline.span(Field::StreamOptions) else {
        let close = envelope.outline.close;
        let addition = ",\"stream_options\":{\"include_usage\":true}";
        patches.push((insertion(close), Cow::Borrowed(addition)));
        return;
    };
    let raw = envelope.raw(Field::StreamOptions).unwrap_or_default();
    if raw == "null" {
        patches.push((options, Cow::Borrowed("{\"include_usage\":true}")));
        return;
    }
    if !raw.starts_with('{') {
        return;
    }
    match envelope.outline.span(Field::IncludeUsage) {
        None if engine == AskUsage::Openai => {
            let empty = raw[1..].trim_start().starts_with('}');
            let addition = if empty { "\"include_usage\":true" } else { "\"include_usage\":true," };
            patches.push((insertion(options.start + 1), Cow::Borrowed(addition)));
        }
        Some(answer) if declined(envelope) => {
            patches.push((answer, Cow::Borrowed("true")));
            mute_continuous(envelope, engine, patches);
        }
        _ => {}
    }
}

/// Whether the answer will have more than one choice. When usage is asked for, vLLM moves `system_fingerprint` from the
/// end of every choice to the usage event. Only the last choice could then get the fingerprint back in time.
fn several_choices(envelope: &Envelope) -> bool {
    let one = matches!(envelope.raw(Field::Choices), None | Some("null" | "1"));
    let prompt = envelope.raw(Field::Prompt).unwrap_or_default();
    let prompts = prompt.strip_prefix('[').is_some_and(|list| list.trim_start().starts_with(['"', '[']));
    !one || (prompts && serde_json::from_str::<Vec<IgnoredAny>>(prompt).is_ok_and(|prompts| prompts.len() > 1))
}

/// Turns off `continuous_usage_stats`: once the proxy asks for usage, vLLM would put usage into every event.
fn mute_continuous(envelope: &Envelope, engine: AskUsage, patches: &mut Vec<Patch>) {
    let wanted = envelope.raw(Field::ContinuousUsage).and_then(text::truth);
    if let (AskUsage::Vllm, Some(true), Some(span)) = (engine, wanted, envelope.outline.span(Field::ContinuousUsage)) {
        patches.push((span, Cow::Borrowed("false")));
    }
}

/// Whether the client has declined usage explicitly.
fn declined(envelope: &Envelope) -> bool {
    let raw = envelope.raw(Field::IncludeUsage).unwrap_or_default();
    raw == "null" || text::truth(raw) == Some(false)
}

fn insertion(at: usize) -> Span {
    Span { start: at, end: at }
}

/// The body with all patches applied; they are in order and do not overlap. A few patches are made in place, if nobody
/// else holds the body.
fn apply(body: Bytes, patches: &[Patch]) -> Bytes {
    match patches.len() {
        0 => body,
        1..=IN_PLACE => in_place(body, patches),
        _ => copied(&body, patches),
    }
}

fn in_place(body: Bytes, patches: &[Patch]) -> Bytes {
    let mut bytes = Vec::from(body);
    for (span, text) in patches.iter().rev() {
        bytes.splice(span.start..span.end, text.bytes());
    }
    Bytes::from(bytes)
}

fn copied(body: &[u8], patches: &[Patch]) -> Bytes {
    let added: usize = patches.iter().map(|(_, text)| text.len()).sum();
    let mut out = Vec::with_capacity(body.len() + added);
    let mut from = 0;
    for (span, text) in patches {
        out.extend_from_slice(&body[from..span.start]);
        out.extend_from_slice(text.as_bytes());
        from = span.end;
    }
    out.extend_from_slice(&body[from..]);
    Bytes::from(out)
}
