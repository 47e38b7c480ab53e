//! Reads a tree of nodes into serde types: the type of the field decides what a scalar's text means.
//!
//! serde stops at the first mistake. `read_all` notes it, puts the node aside and reads again, until
//! nothing more is found; so one run tells every mistake, each with its place.

use super::mistake::Mistake;
use super::node::{Entry, Node, Scalar, Value};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use std::fmt;

/// More than anyone will mend in one go.
const MAX_MISTAKES: usize = 100;

/// Reads `root` and adds every mistake to `mistakes`. What had a mistake is left out of the result;
/// `None`: the whole could not be read.
pub fn read_all<T: DeserializeOwned>(root: &mut Node, mistakes: &mut Vec<Mistake>) -> Option<T> {
    for _ in 0..MAX_MISTAKES {
        let fault = match T::deserialize(Reader::root(root)) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        let trail = fault.trail.clone().unwrap_or_default();
        let at_root = trail.is_empty();
        mistakes.extend(fault.settle(root, &trail));
        if at_root {
            break;
        }
    }
    None
}

// === impl Fault ===

/// A mistake on its way out of serde.
#[derive(Debug)]
struct Fault {
    /// Child indices from the root, set by the innermost list or mapping it comes out of.
    trail: Option<Vec<usize>>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    UnknownKey(&'static [&'static str]),
    MissingKey(&'static str),
    UnknownValue(&'static [&'static str]),
    /// "expected …".
    Wrong(String),
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self { trail: None, kind }
    }

    fn at(mut self, trail: Trail<'_>) -> Self {
        self.trail.get_or_insert_with(|| trail.indices());
        self
    }

    /// Changes the tree so that this mistake is not found again, and says what is to be reported.
    fn settle(self, root: &mut Node, trail: &[usize]) -> Option<Mistake> {
        let path = root.path(trail);
        let node = root.at(trail)?;
        let mistake = match self.kind {
            Kind::UnknownKey(known) => return unknown_key(root, trail, path, known),
            // Told already: it was given, and put aside.
            Kind::MissingKey(key) if node.has(key) => None,
            Kind::MissingKey(key) => Some(Mistake::at(node.mark, path, format!("the key `{key}` is missing"))),
            Kind::UnknownValue(known) => {
                let mut message = format!("expected {}, found {}", list(known), found(&path, node));
                if let Value::Scalar(Scalar { text, .. }) = &node.value {
                    message.push_str(&suggestion(text, known));
                }
                Some(Mistake::at(node.mark, path, message))
            }
            Kind::Wrong(message) => {
                let message = format!("{message}, found {}", found(&path, node));
                Some(Mistake::at(node.mark, path, message))
            }
        };
        root.at_mut(trail)?.dead = true;
        mistake
    }
}

/// What stands at `path`, in words; but not where a secret was put in another's place, for a reload logs this.
fn found(path: &str, node: &Node) -> String {
    let secret = path.starts_with("auth") || path.starts_with("admin") || path.ends_with("api_key");
    match &node.value {
        Value::Scalar(Scalar { text, .. }) if secret || text.contains('@') => "a text".to_owned(),
        _ => node.describe(),
    }
}

/// An unknown key near to a known one is read as that, so that mistakes below it are found too and
/// none is reported for want of it; any other is put aside.
fn unknown_key(root: &mut Node, trail: &[usize], path: String, known: &'static [&'static str]) -> Option<Mistake> {
    let (last, parent) = trail.split_last()?;
    let Value::Map(entries) = &mut root.at_mut(parent)?.value else {
        return None;
    };
    let given = |key: &str| entries.iter().any(|entry| entry.key == key);
    let key = &entries.get(*last)?.key;
    let (message, near) = match nearest(key, known) {
        Some(near) => (format!("unknown key; did you mean `{near}`?"), Some(near).filter(|near| !given(near))),
        None => (format!("unknown key; known here: {}", list(known)), None),
    };
    let entry = entries.get_mut(*last)?;
    match near {
        Some(near) => entry.key = near.to_owned(),
        None => entry.node.dead = true,
    }
    Some(Mistake::at(entry.key_mark, path, message))
}

fn list(known: &[&str]) -> String {
    let names: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn suggestion(text: &str, known: &[&str]) -> String {
    nearest(text, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"))
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
        write!(f, "{:?}", self.kind)
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Wrong(message.to_string()))
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Kind::Wrong(format!("expected {expected}")))
    }
    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Kind::Wrong(format!("expected {expected}")))
    }
    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownValue(expected))
    }
    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey(expected))
    }
    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::MissingKey(field))
    }
}

// === impl Trail ===

/// The way from the root, as a list on the stack.
#[derive(Clone, Copy)]
enum Trail<'t> {
    Root,
    Child(&'t Trail<'t>, usize),
}

impl Trail<'_> {
    fn indices(self) -> Vec<usize> {
        match self {
            Self::Root => Vec::new(),
            Self::Child(parent, index) => {
                let mut indices = parent.indices();
                indices.push(index);
                indices
            }
        }
    }
}

// === impl Reader ===

#[derive(Clone, Copy)]
struct Reader<'t> {
    node: &'t Node,
    trail: Trail<'t>,
}

impl<'t> Reader<'t> {
    fn root(node: &'t Node) -> Self {
        let trail = Trail::Root;
        Self { node, trail }
    }

    fn wrong(self, expected: &str) -> Fault {
        Fault::new(Kind::Wrong(format!("expected {expected}")))
    }

    /// A scalar that may be more than a string.
    fn plain(self, expected: &str) -> Result<&'t str, Fault> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.plain => Ok(&scalar.text),
            _ => Err(self.wrong(expected)),
        }
    }

    fn integer<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        const EXPECTED: &str = "a whole number";
        let text = self.plain(EXPECTED)?;
        let number = text.parse::<u64>().map_err(|_| self.wrong(EXPECTED))?;
        visitor.visit_u64(number).map_err(|_: Fault| self.wrong("a smaller number"))
    }

    fn items<'de, V: Visitor<'de>>(self, visitor: V, items: &[Node]) -> Result<V::Value, Fault> {
        let items = items.iter().enumerate();
        let trail = &self.trail;
        visitor.visit_seq(Items { items, trail })
    }

    fn keys<'de, V: Visitor<'de>>(self, visitor: V, entries: &[Entry]) -> Result<V::Value, Fault> {
        let keys = Keys { entries: entries.iter().enumerate(), trail: &self.trail, value: None };
        visitor.visit_map(keys)
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    /// For types that take more than one form: YAML's own reading.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::List(items) => self.items(visitor, items),
            Value::Map(entries) => self.keys(visitor, entries),
            Value::Scalar(Scalar { text, plain, .. }) => match text.as_str() {
                "true" if *plain => visitor.visit_bool(true),
                "false" if *plain => visitor.visit_bool(false),
                text if !plain => visitor.visit_str(text),
                text => match (text.parse::<u64>(), text.parse::<f64>()) {
                    (Ok(number), _) => visitor.visit_u64(number),
                    (_, Ok(number)) => visitor.visit_f64(number),
                    _ => visitor.visit_str(text),
                },
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.plain("true or false")? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.integer(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.integer(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let text = self.plain("a number")?;
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => visitor.visit_f64(number),
            _ => Err(self.wrong("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Scalar(scalar) => visitor.visit_str(&scalar.text),
            _ => Err(self.wrong("a text")),
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
            Value::List(items) => self.items(visitor, items),
            _ => Err(self.wrong("a list")),
        }
    }

    /// A key with all its children commented out stands for the defaults.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Map(entries) => self.keys(visitor, entries),
            Value::Null => self.keys(visitor, &[]),
            _ => Err(self.wrong("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let unknown = || Fault::new(Kind::UnknownValue(variants));
        match &self.node.value {
            Value::Scalar(scalar) => {
                visitor.visit_enum(scalar.text.as_str().into_deserializer()).map_err(|_: Fault| unknown())
            }
            _ => Err(unknown()),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

struct Items<'t> {
    items: std::iter::Enumerate<std::slice::Iter<'t, Node>>,
    trail: &'t Trail<'t>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.items.find(|(_, node)| !node.dead) else {
            return Ok(None);
        };
        let trail = Trail::Child(self.trail, index);
        seed.deserialize(Reader { node, trail }).map(Some).map_err(|fault| fault.at(trail))
    }
}

struct Keys<'t> {
    entries: std::iter::Enumerate<std::slice::Iter<'t, Entry>>,
    trail: &'t Trail<'t>,
    value: Option<(usize, &'t Node)>,
}

impl<'de> MapAccess<'de> for Keys<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((index, entry)) = self.entries.find(|(_, entry)| !entry.node.dead) else {
            return Ok(None);
        };
        self.value = Some((index, &entry.node));
        seed.deserialize(entry.key.as_str().into_deserializer())
            .map(Some)
            .map_err(|fault: Fault| fault.at(Trail::Child(self.trail, index)))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((index, node)) = self.value.take() else {
            return Err(de::Error::custom("a value without a key"));
        };
        let trail = Trail::Child(self.trail, index);
        seed.deserialize(Reader { node, trail }).map_err(|fault| fault.at(trail))
    }
}
