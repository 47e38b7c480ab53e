//! Reads a document into serde types: the type of the field decides what a scalar's text means.

use super::document::{Entry, Node, Scalar, Value};
use super::mistake::Mistake;
use serde::de::value::MapDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use std::cell::RefCell;
use std::fmt;

/// Reads the whole document. Mistakes are every unknown key up to the first value of a wrong type, and that value.
///
/// # Errors
/// Every mistake that was found.
pub fn read<T: DeserializeOwned>(root: &Node) -> Result<T, Vec<Mistake>> {
    let unknown = RefCell::default();
    let reader = Reader { node: root, path: String::new(), unknown: &unknown };
    let read = T::deserialize(reader.clone()).map_err(|fault| fault.at(&reader));
    let mut mistakes = unknown.take();
    match read {
        Ok(value) if mistakes.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(fault) => mistakes.extend(fault.told.map(|told| *told)),
    }
    Err(mistakes)
}

// === impl Fault ===

/// A mistake on its way out of serde.
#[derive(Debug)]
pub struct Fault {
    /// "expected …", with nothing about what was found.
    expected: String,
    /// What comes after that.
    remedy: String,
    /// Set once the fault comes out of the value that is wrong.
    told: Option<Box<Mistake>>,
}

impl Fault {
    fn new(expected: String) -> Self {
        Self { expected, remedy: String::new(), told: None }
    }

    fn expected(what: impl fmt::Display) -> Self {
        Self::new(format!("expected {what}"))
    }

    fn at(mut self, reader: &Reader<'_>) -> Self {
        if self.told.is_none() {
            let found = match is_secret(reader) {
                true => "a text".to_owned(),
                false => reader.node.describe(),
            };
            let message = match self.expected.starts_with("expected") {
                true => format!("{}, found {found}{}", self.expected, self.remedy),
                false => self.expected.clone(),
            };
            self.told = Some(Box::new(Mistake::at(reader.node.mark, &reader.path, message)));
        }
        self
    }
}

/// Whether a scalar may be a secret that was put in another's place. A reload logs mistakes.
fn is_secret(Reader { node, path, .. }: &Reader<'_>) -> bool {
    let place = path.starts_with("auth") || path.starts_with("admin") || path.ends_with("api_key");
    matches!(&node.value, Value::Scalar(Scalar { text, .. }) if place || text.contains('@'))
}

fn list(known: &[&str]) -> String {
    let names: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// The known name that a typist may have meant: at most a third of its letters differ.
fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    let text = text.to_lowercase().replace('-', "_");
    let distance = |name: &&str| strsim::osa_distance(&text, &name.replace('-', "_"));
    let near = known.iter().copied().min_by_key(distance)?;
    let part_of = text.len() > 3 && (near.starts_with(&text) || text.starts_with(near));
    (part_of || distance(&near) <= (near.len() / 3).max(1)).then_some(near)
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expected)
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::expected(expected)
    }
    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::expected(expected)
    }
    fn unknown_variant(text: &str, known: &'static [&'static str]) -> Self {
        let remedy = nearest(text, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        Self { remedy, ..Self::expected(list(known)) }
    }
    fn missing_field(key: &'static str) -> Self {
        Self::new(format!("the key `{key}` is missing"))
    }
}

// === impl Reader ===

/// A node that is being read.
#[derive(Clone)]
struct Reader<'t> {
    node: &'t Node,
    /// Such as `models[0].backends[1].url`.
    path: String,
    /// Where unknown keys are told.
    unknown: &'t RefCell<Vec<Mistake>>,
}

impl<'t> Reader<'t> {
    fn below(&self, node: &'t Node, part: impl fmt::Display) -> Self {
        let path = format!("{}{part}", self.path);
        Self { node, path: path.trim_start_matches('.').to_owned(), unknown: self.unknown }
    }

    /// A scalar that may be more than a string.
    fn plain(&self, expected: &str) -> Result<&'t str, Fault> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.plain => Ok(&scalar.text),
            _ => Err(Fault::expected(expected)),
        }
    }

    fn keys<'de, V: Visitor<'de>>(self, visitor: V, known: &'static [&'static str]) -> Result<V::Value, Fault> {
        let entries: &[Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            // A key with all its children commented out stands for the defaults.
            Value::Null => &[],
            _ => return Err(Fault::expected("a mapping")),
        };
        visitor.visit_map(Keys { entries: entries.iter(), value: None, known, reader: self })
    }

    /// The key that is meant by an unknown `key`; what is read below it may have mistakes too.
    fn meant(&self, Entry { key, key_mark, node }: &'t Entry, known: &'static [&'static str]) -> Option<&'t str> {
        let near = nearest(key, known);
        let message = match near {
            Some(near) => format!("unknown key; did you mean `{near}`?"),
            None => format!("unknown key; known here: {}", list(known)),
        };
        let path = self.below(node, format_args!(".{key}")).path;
        self.unknown.borrow_mut().push(Mistake::at(*key_mark, path, message));
        near.filter(|near| !self.node.has(near))
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    /// No field of the configuration takes just anything.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        const EXPECTED: &str = "true or false";
        let flag = self.plain(EXPECTED)?.parse().map_err(|_| Fault::expected(EXPECTED))?;
        visitor.visit_bool(flag)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        const EXPECTED: &str = "a whole number";
        let number = self.plain(EXPECTED)?.parse().map_err(|_| Fault::expected(EXPECTED))?;
        visitor.visit_u64(number).map_err(|_: Fault| Fault::expected("a smaller number"))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        const EXPECTED: &str = "a number";
        let number = self.plain(EXPECTED)?.parse().ok().filter(|number: &f64| number.is_finite());
        visitor.visit_f64(number.ok_or_else(|| Fault::expected(EXPECTED))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Scalar(scalar) => visitor.visit_str(&scalar.text),
            _ => Err(Fault::expected("a text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), reader: self }),
            _ => Err(Fault::expected("a list")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match (&self.node.value, name) {
            // The URL alone will do.
            (Value::Scalar(_), "Backend") => visitor.visit_map(MapDeserializer::new([("url", self)].into_iter())),
            _ => self.keys(visitor, known),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Scalar(scalar) => visitor.visit_enum(scalar.text.as_str().into_deserializer()),
            _ => Err(Fault::expected(list(known))),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct map
        identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Fault> for Reader<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

struct Items<'t> {
    items: std::iter::Enumerate<std::slice::Iter<'t, Node>>,
    reader: Reader<'t>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let reader = self.reader.below(node, format_args!("[{index}]"));
        seed.deserialize(reader.clone()).map(Some).map_err(|fault| fault.at(&reader))
    }
}

struct Keys<'t> {
    entries: std::slice::Iter<'t, Entry>,
    /// The key as it is known, and what stands there.
    value: Option<(&'t str, &'t Node)>,
    known: &'static [&'static str],
    reader: Reader<'t>,
}

impl<'de> MapAccess<'de> for Keys<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let (reader, known) = (&self.reader, self.known);
        self.value = self.entries.find_map(|entry| match known.contains(&entry.key.as_str()) {
            true => Some((entry.key.as_str(), &entry.node)),
            false => Some((reader.meant(entry, known)?, &entry.node)),
        });
        self.value.map(|(key, _)| seed.deserialize(key.into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((key, node)) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        let reader = self.reader.below(node, format_args!(".{key}"));
        seed.deserialize(reader.clone()).map_err(|fault| fault.at(&reader))
    }
}
