//! `${ENV}`, `${ENV:-default}` and `${file:PATH}` in scalars; `$${` is a plain `${`.
//!
//! Scalars are expanded after the YAML was parsed, so that a value can never be read as YAML itself.

use std::io::Read;
use std::path::Path;

/// The largest file that `${file:…}` takes; a secret is far smaller.
const MAX_FILE: u64 = 64 << 10;
/// What YAML takes for punctuation within `[…]` and `{…}`, even in the middle of a word.
const PUNCTUATION: [char; 5] = ['{', '}', '[', ']', ','];
/// Where punctuation is put while YAML reads: a private-use area of Unicode.
const SHELTER: u32 = 0xE000;

/// Where values come from.
pub struct Env<'a> {
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Directory at which a relative path starts.
    pub dir: &'a Path,
}

impl Env<'_> {
    /// The text with its `${…}` replaced; `None` where there is none.
    ///
    /// # Errors
    /// Why one of them cannot be replaced.
    pub fn expand(&self, text: &str) -> Result<Option<String>, String> {
        if !text.contains("${") {
            return Ok(None);
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, from)) = rest.split_once("${") {
            out.push_str(before);
            if before.ends_with('$') {
                out.push('{');
                rest = from;
                continue;
            }
            let (inner, after) = from.split_once('}').ok_or("`${` without `}` (write `$${` for a plain `${`)")?;
            out.push_str(&self.value(inner)?);
            rest = after;
        }
        Ok(Some(out + rest))
    }

    /// What stands for `${inner}`.
    fn value(&self, inner: &str) -> Result<String, String> {
        if let Some(path) = inner.strip_prefix("file:") {
            return self.file(path).map_err(|error| format!("`${{{inner}}}`: {error}"));
        }
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(valid) {
            return Err(format!("`${{{inner}}}`: not the name of a variable"));
        }
        match ((self.env)(name), default) {
            (Some(value), None) => Ok(value),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok(default.to_owned()),
            (None, None) => Err(format!("the environment variable `{name}` is not set")),
        }
    }

    /// The file's text without the line end that editors add.
    fn file(&self, path: &str) -> std::io::Result<String> {
        let file = std::fs::File::open(self.dir.join(path))?;
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(std::io::Error::other(format!("larger than {MAX_FILE} bytes")));
        }
        text.truncate(text.trim_end_matches(['\r', '\n']).len());
        Ok(text)
    }
}

/// Lets `{token: ${TOKEN}}` be written without quotes: hides the punctuation of each `${…}` from YAML, one character
/// for one, so that places stay true.
pub(super) fn shelter(text: &str) -> String {
    let hide = |c: char| match PUNCTUATION.contains(&c) {
        true => char::from_u32(SHELTER + c as u32).unwrap_or(c),
        false => c,
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        let line = from.find('\n').unwrap_or(from.len());
        // Without an end, `expand` tells what is wrong.
        let end = from[..line].find('}').map_or(2, |end| end + 1);
        out.push_str(before);
        out.extend(from[..end].chars().map(hide));
        rest = &from[end..];
    }
    out + rest
}

/// Undoes `shelter` in a scalar.
pub(super) fn unshelter(text: &str) -> String {
    let show = |c: char| {
        let hidden = |p: &&char| SHELTER + **p as u32 == c as u32;
        PUNCTUATION.iter().find(hidden).copied().unwrap_or(c)
    };
    text.chars().map(show).collect()
}
