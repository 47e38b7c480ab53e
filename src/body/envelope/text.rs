//! The meaning of single JSON values: strings with their escapes resolved, and the booleans that engines accept.

use std::borrow::Cow;

/// The text of a valid JSON string, given without its quotes. A lone surrogate becomes U+FFFD.
pub(super) fn decode(raw: &str) -> Cow<'_, str> {
    let Some(first) = memchr::memchr(b'\\', raw.as_bytes()) else {
        return Cow::Borrowed(raw);
    };
    let mut text = String::with_capacity(raw.len());
    let (mut rest, mut next) = (raw, Some(first));
    while let Some(at) = next {
        text.push_str(&rest[..at]);
        let (symbol, len) = escape(&rest[at..]);
        text.push(symbol);
        rest = &rest[at + len..];
        next = memchr::memchr(b'\\', rest.as_bytes());
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// The character that the escape at the start of `raw` stands for, and the escape's length in bytes.
fn escape(raw: &str) -> (char, usize) {
    match raw.as_bytes().get(1) {
        Some(b'u') => unicode_escape(raw),
        Some(b'b') => ('\u{8}', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'n') => ('\n', 2),
        Some(b'r') => ('\r', 2),
        Some(b't') => ('\t', 2),
        Some(&byte) => (char::from(byte), 2),
        None => (char::REPLACEMENT_CHARACTER, raw.len()),
    }
}

fn unicode_escape(raw: &str) -> (char, usize) {
    let unit = |at: usize| -> Option<u16> {
        let digits = raw.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let pair = [unit(0).unwrap_or_default(), unit(6).unwrap_or_default()];
    match char::decode_utf16(pair).next() {
        Some(Ok(symbol)) => (symbol, if symbol.len_utf16() == 2 { 12 } else { 6 }),
        _ => (char::REPLACEMENT_CHARACTER, 6),
    }
}

/// A value as a `bool`, as pydantic reads it; the engines check bodies with pydantic. `None` when pydantic would refuse
/// the value, or when the value is `null`.
pub(super) fn truth(value: &str) -> Option<bool> {
    let word = match value.strip_prefix('"') {
        Some(quoted) => decode(quoted.strip_suffix('"').unwrap_or(quoted)).to_ascii_lowercase(),
        None if value == "1.0" || value == "0.0" => value[..1].to_owned(),
        None if ["true", "false", "1", "0"].contains(&value) => value.to_owned(),
        None => return None,
    };
    match word.as_str() {
        "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
        "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
        _ => None,
    }
}
