//! `${ENV}`, `${ENV:-default}` and `${file:PATH}` in scalars; `$${` is a plain `${`.
//!
//! Done after the YAML was parsed, so that a value can never be read as YAML itself.

use super::mistake::Mistake;
use super::node::{Node, Value};
use std::io::Read;
use std::path::Path;

/// The largest file that `${file:…}` takes; a secret is far smaller.
const MAX_FILE: u64 = 64 << 10;

/// Where values come from.
pub struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Where a relative path starts.
    pub dir: &'a Path,
}

impl Surroundings<'_> {
    /// Expands every scalar of the document; what cannot be is added to `mistakes` and passed over from then on.
    pub fn expand(&self, root: &mut Node, mistakes: &mut Vec<Mistake>) {
        let mut wrong = Vec::new();
        self.walk(root, &mut Vec::new(), &mut wrong);
        for (trail, message) in wrong {
            if let Some(node) = root.at(&trail) {
                mistakes.push(Mistake::at(node.mark, root.path(&trail), message));
            }
        }
    }

    fn walk(&self, node: &mut Node, trail: &mut Vec<usize>, wrong: &mut Vec<(Vec<usize>, String)>) {
        let mut below = |index: usize, node: &mut Node| {
            trail.push(index);
            self.walk(node, trail, wrong);
            trail.pop();
        };
        match &mut node.value {
            Value::Null => {}
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    below(index, item);
                }
            }
            Value::Map(entries) => {
                for (index, entry) in entries.iter_mut().enumerate() {
                    below(index, &mut entry.node);
                }
            }
            Value::Scalar(scalar) => match self.text(&scalar.text) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    scalar.source = Some(std::mem::replace(&mut scalar.text, text));
                    scalar.plain = true;
                }
                Err(message) => {
                    node.dead = true;
                    wrong.push((trail.clone(), message));
                }
            },
        }
    }

    /// `None`: nothing to expand.
    fn text(&self, text: &str) -> Result<Option<String>, String> {
        if !text.contains("${") {
            return Ok(None);
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let (before, from) = rest.split_at(start);
            if let Some(before) = before.strip_suffix('$') {
                out.push_str(before);
                out.push_str("${");
                rest = &from[2..];
                continue;
            }
            out.push_str(before);
            let end = from.find('}').ok_or("`${` without `}` (write `$${` for a plain `${`)")?;
            out.push_str(&self.value(&from[2..end])?);
            rest = &from[end + 1..];
        }
        out.push_str(rest);
        Ok(Some(out))
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
        let end = text.trim_end_matches(['\r', '\n']).len();
        text.truncate(end);
        Ok(text)
    }
}
