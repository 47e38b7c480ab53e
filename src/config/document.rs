//! A YAML document as a tree that knows where each part was written.
//!
//! serde-saphyr reads the document, within bounds that hold against hostile input. A scalar stays text until a field
//! says what the scalar means (`typed.rs`), and `${…}` is expanded before that (`expand.rs`).

use super::expand::{Env, shelter, unshelter};
use super::mistake::{Mark, Mistake};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, MergeKeyPolicy, NonFiniteFloatPolicy, Spanned};
use std::collections::HashMap;
use std::fmt;

/// A configuration is text that people write; anything larger is a mistake.
pub const MAX_DOCUMENT: usize = 1 << 20;
/// The deepest key of the schema is at 6.
const MAX_DEPTH: usize = 32;
/// Bounds what aliases may make of a small document.
const MAX_NODES: usize = 100_000;
/// The same, for the text of all scalars.
const MAX_TEXT: usize = 16 << 20;

/// No `Debug`: an expanded scalar may be a secret.
pub struct Node {
    pub mark: Mark,
    pub value: Value,
}

pub enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

pub struct Scalar {
    pub text: String,
    /// Whether the text was written without quotes, or expanded: it may be more than a string then.
    pub plain: bool,
    /// The text as written, where `${…}` was expanded.
    pub source: Option<String>,
}

pub struct Entry {
    pub key: String,
    pub key_mark: Mark,
    pub node: Node,
}

/// Reads one document and expands its scalars. What cannot be expanded and keys that were given twice are added to
/// `mistakes`. An empty document is `Null`.
///
/// # Errors
/// The first mistake of syntax, or what makes the document unsafe to read.
pub fn parse(text: &str, sources: &Env<'_>, mistakes: &mut Vec<Mistake>) -> Result<Node, Mistake> {
    if text.len() > MAX_DOCUMENT {
        return Err(Mistake::new("", format!("larger than {MAX_DOCUMENT} bytes")));
    }
    let text = shelter(text);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_total_scalar_bytes: MAX_TEXT,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let raw = serde_saphyr::from_str_with_options(&text, options).map_err(|error| syntax(&error))?;
    Ok(Builder { text: &text, sources, mistakes, path: String::new() }.node(raw))
}

fn syntax(error: &Error) -> Mistake {
    let mut cause = error;
    while let Error::AliasError { error, .. } = cause {
        cause = error;
    }
    let message = match cause {
        Error::MultipleDocuments { .. } => "more than one document in the file".to_owned(),
        Error::UnsupportedTag { .. } => "tags (`!…`) are not supported".to_owned(),
        Error::RecursiveReferencesRequireWeakTypes { .. } => "an alias within its own anchor".to_owned(),
        Error::NullIntoString { .. } | Error::Unexpected { .. } => "a key must be text".to_owned(),
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => format!("nested deeper than {MAX_DEPTH} levels"),
        Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. } | Error::AliasExpansionLimitExceeded { .. } => {
            "too large once its aliases are expanded".to_owned()
        }
        _ => cause.to_string(),
    };
    let message = message.split(" at line ").next().unwrap_or_default();
    match error.location() {
        Some(at) => Mistake::at(mark(at), "", message),
        None => Mistake::new("", message),
    }
}

fn mark(at: Location) -> Mark {
    Mark { line: at.line().max(1) as usize, column: at.column().max(1) as usize }
}

// === impl Node ===

impl Node {
    /// What stands here, for "expected …, found …". Shows `${…}` as written.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
            Value::Scalar(scalar) => {
                let text = scalar.source.as_ref().unwrap_or(&scalar.text);
                let kind = if scalar.plain { "" } else { "the text " };
                match text.char_indices().nth(60) {
                    None => format!("{kind}`{text}`"),
                    Some((end, _)) => format!("{kind}`{}…`", &text[..end]),
                }
            }
        }
    }

    pub fn has(&self, key: &str) -> bool {
        matches!(&self.value, Value::Map(entries) if entries.iter().any(|entry| entry.key == key))
    }

    /// The mark of what `path` leads to, or of the last part of it that was written.
    pub fn find(&self, path: &str) -> Mark {
        let mut node = self;
        for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
            let next = match &node.value {
                Value::Map(entries) => entries.iter().find(|entry| entry.key == part).map(|entry| &entry.node),
                Value::List(items) => part.trim_end_matches(']').parse().ok().and_then(|index: usize| items.get(index)),
                _ => None,
            };
            let Some(next) = next else { break };
            node = next;
        }
        node.mark
    }
}

// === impl Raw ===

/// What serde-saphyr hands over.
enum Raw {
    Null,
    Text(String),
    /// A number or a flag, which is taken as written: `4.60` may be a name.
    Written,
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Any;

        macro_rules! written {
            ($($visit:ident($number:ty))*) => {
                $(fn $visit<E>(self, _: $number) -> Result<Raw, E> {
                    Ok(Raw::Written)
                })*
            };
        }

        impl<'de> Visitor<'de> for Any {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("YAML")
            }
            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            written! { visit_bool(bool) visit_i64(i64) visit_u64(u64) visit_i128(i128) visit_u128(u128) visit_f64(f64) }
            fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Raw::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(Raw::Map(map))
            }
        }

        source.deserialize_any(Any)
    }
}

// === impl Builder ===

/// Makes nodes of what serde-saphyr handed over.
struct Builder<'b> {
    /// The document, sheltered.
    text: &'b str,
    sources: &'b Env<'b>,
    mistakes: &'b mut Vec<Mistake>,
    /// Where the builder is.
    path: String,
}

impl Builder<'_> {
    fn node(&mut self, raw: Spanned<Raw>) -> Node {
        let mark = mark(raw.defined);
        let written = self.written(raw.defined);
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Text(text) => self.scalar(text, !written.starts_with(['"', '\'', '|', '>']), mark),
            // Quotes are left of what a tag made a number.
            Raw::Written => self.scalar(written.trim_matches(['"', '\'']).to_owned(), true, mark),
            Raw::List(items) => {
                let items = items.into_iter().enumerate();
                Value::List(items.map(|(index, item)| self.below(&format!("[{index}]"), |it| it.node(item))).collect())
            }
            Raw::Map(entries) => self.map(entries),
        };
        Node { mark, value }
    }

    /// The text at `at`. Empty where the parser knows no place.
    fn written(&self, at: Location) -> &str {
        let span = at.span();
        let bytes = span.byte_offset().zip(span.byte_len());
        let text = bytes.and_then(|(start, len)| self.text.get(start as usize..(start + len) as usize));
        text.unwrap_or_default()
    }

    fn scalar(&mut self, text: String, plain: bool, mark: Mark) -> Value {
        let text = unshelter(&text);
        match self.sources.expand(&text) {
            Ok(None) => Value::Scalar(Scalar { text, plain, source: None }),
            Ok(Some(expanded)) => Value::Scalar(Scalar { text: expanded, plain: true, source: Some(text) }),
            Err(message) => {
                self.mistakes.push(Mistake::at(mark, self.path.trim_start_matches('.'), message));
                Value::Null
            }
        }
    }

    fn map(&mut self, entries: Vec<(Spanned<String>, Spanned<Raw>)>) -> Value {
        let mut lines = HashMap::new();
        let mut map = Vec::with_capacity(entries.len());
        for (key, raw) in entries {
            let (key, key_mark) = (unshelter(&key.value), mark(key.defined));
            let first = lines.get(&key).copied();
            lines.entry(key.clone()).or_insert(key_mark.line);
            let node = self.below(&format!(".{key}"), |it| {
                if let Some(first) = first {
                    let message = format!("the key was given already, in line {first}");
                    it.mistakes.push(Mistake::at(key_mark, it.path.trim_start_matches('.'), message));
                }
                it.node(raw)
            });
            // Nothing has no place of its own.
            let mark = if matches!(node.value, Value::Null) { key_mark } else { node.mark };
            map.push(Entry { key, key_mark, node: Node { mark, ..node } });
        }
        Value::Map(map)
    }

    fn below<T>(&mut self, part: &str, make: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        self.path.push_str(part);
        let made = make(self);
        self.path.truncate(len);
        made
    }
}
