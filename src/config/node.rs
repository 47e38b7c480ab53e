//! A YAML document as a tree that knows where each part was written.
//!
//! Nothing here is typed: a scalar stays text until a field says what it wants to be.

use super::mistake::{Mark, Mistake};
use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span};
use std::collections::HashMap;

/// A configuration is text that people write; anything larger is a mistake.
pub const MAX_DOCUMENT: usize = 1 << 20;
/// The deepest key of the schema is at 6.
const MAX_DEPTH: usize = 32;
/// Bounds what aliases may make of a small document: text bytes plus `NODE_COST` for each node.
const MAX_COST: usize = 32 << 20;
const NODE_COST: usize = 128;

/// No `Debug`: expanded scalars may be secrets.
#[derive(Clone)]
pub struct Node {
    pub mark: Mark,
    pub value: Value,
    /// A mistake about it was reported: readers pass over it, so that the next mistake is found.
    pub dead: bool,
}

#[derive(Clone)]
pub enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone)]
pub struct Scalar {
    pub text: String,
    /// Written without quotes, or expanded: may be more than a string.
    pub plain: bool,
    /// As written, where `${…}` was expanded.
    pub source: Option<String>,
}

#[derive(Clone)]
pub struct Entry {
    pub key: String,
    pub key_mark: Mark,
    pub node: Node,
}

/// Reads one document; duplicate keys are added to `mistakes`. An empty document is an empty mapping.
///
/// # Errors
/// The first mistake of syntax, or what makes the document unsafe to read.
pub fn parse(text: &str, mistakes: &mut Vec<Mistake>) -> Result<Node, Mistake> {
    if text.len() > MAX_DOCUMENT {
        let message = format!("larger than {MAX_DOCUMENT} bytes");
        return Err(Mistake::new("", message));
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(&shelter(text), options) {
        let (event, span) = event.map_err(|error| syntax(&error))?;
        builder.take(event, span)?;
    }
    mistakes.append(&mut builder.mistakes);
    Ok(builder.root.unwrap_or(Node { mark: Mark { line: 1, column: 1 }, value: Value::Null, dead: false }))
}

/// What YAML takes for punctuation within `[…]` and `{…}`, even in the middle of a word.
const PUNCTUATION: [char; 5] = ['{', '}', '[', ']', ','];
/// Where punctuation is put while YAML reads: a private-use area of Unicode.
const SHELTER: u32 = 0xE000;

/// Lets `{token: ${TOKEN}}` be written without quotes: hides the punctuation of each `${…}` from the parser, one
/// character for one, so that places stay true.
fn shelter(text: &str) -> String {
    let hide = |c: char| match PUNCTUATION.contains(&c) {
        true => char::from_u32(SHELTER + c as u32).unwrap_or(c),
        false => c,
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        let line = from.find('\n').unwrap_or(from.len());
        // Without an end, the message about it comes later.
        let end = from[..line].find('}').map_or(2, |end| end + 1);
        out.push_str(before);
        out.extend(from[..end].chars().map(hide));
        rest = &from[end..];
    }
    out + rest
}

/// Undoes `shelter` in a scalar.
fn unshelter(text: &str) -> String {
    let show = |c: char| {
        let hidden = |p: &&char| SHELTER + **p as u32 == c as u32;
        PUNCTUATION.iter().find(hidden).copied().unwrap_or(c)
    };
    text.chars().map(show).collect()
}

fn syntax(error: &ScanError) -> Mistake {
    Mistake::at(mark(error.marker()), "", error.info())
}

fn mark(marker: &granit_parser::Marker) -> Mark {
    Mark { line: marker.line().max(1), column: marker.col() + 1 }
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

    pub fn child(&self, index: usize) -> Option<&Node> {
        match &self.value {
            Value::List(items) => items.get(index),
            Value::Map(entries) => entries.get(index).map(|entry| &entry.node),
            _ => None,
        }
    }

    /// The node at the end of `trail`, child indices from here.
    pub fn at(&self, trail: &[usize]) -> Option<&Node> {
        trail.iter().try_fold(self, |node, index| node.child(*index))
    }

    pub fn at_mut(&mut self, trail: &[usize]) -> Option<&mut Node> {
        trail.iter().try_fold(self, |node, index| match &mut node.value {
            Value::List(items) => items.get_mut(*index),
            Value::Map(entries) => entries.get_mut(*index).map(|entry| &mut entry.node),
            _ => None,
        })
    }

    /// The trail as people write it: `models[0].backends[1].url`.
    pub fn path(&self, trail: &[usize]) -> String {
        let mut path = String::new();
        let mut node = self;
        for index in trail {
            match &node.value {
                Value::List(_) => path.push_str(&format!("[{index}]")),
                Value::Map(entries) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(entries.get(*index).map_or("", |entry| &entry.key));
                }
                _ => break,
            }
            let Some(next) = node.child(*index) else {
                break;
            };
            node = next;
        }
        path
    }

    /// The trail of `path`, as far as it was written; the flag tells whether that is all of it.
    /// List indices in `path` count living items only.
    pub fn find(&self, path: &str) -> (Vec<usize>, bool) {
        let mut trail = Vec::new();
        let mut node = self;
        for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
            let index = match &node.value {
                Value::Map(entries) => entries.iter().position(|entry| entry.key == part),
                Value::List(items) => part.trim_end_matches(']').parse().ok().and_then(|wanted| {
                    let mut living = (0..items.len()).filter(|index| !items[*index].dead);
                    living.nth(wanted)
                }),
                _ => None,
            };
            let Some((index, next)) = index.and_then(|i| Some((i, node.child(i)?))) else {
                return (trail, false);
            };
            trail.push(index);
            node = next;
        }
        (trail, true)
    }

    /// It, or anything in it, had a mistake.
    pub fn spoilt(&self) -> bool {
        self.dead
            || match &self.value {
                Value::List(items) => items.iter().any(Node::spoilt),
                Value::Map(entries) => entries.iter().any(|entry| entry.node.spoilt()),
                _ => false,
            }
    }

    /// Levels of lists and mappings.
    fn height(&self) -> usize {
        match &self.value {
            Value::Null | Value::Scalar(_) => 0,
            Value::List(items) => 1 + items.iter().map(Node::height).max().unwrap_or(0),
            Value::Map(entries) => {
                let heights = entries.iter().map(|entry| entry.node.height());
                1 + heights.max().unwrap_or(0)
            }
        }
    }

    fn cost(&self) -> usize {
        NODE_COST
            + match &self.value {
                Value::Null => 0,
                Value::Scalar(scalar) => scalar.text.len(),
                Value::List(items) => items.iter().map(Node::cost).sum(),
                Value::Map(entries) => entries.iter().map(|entry| entry.key.len() + entry.node.cost()).sum(),
            }
    }
}

// === impl Builder ===

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    documents: usize,
    cost: usize,
    root: Option<Node>,
    mistakes: Vec<Mistake>,
}

/// A list or mapping whose end has not come yet.
struct Open {
    mark: Mark,
    anchor: usize,
    value: Value,
    /// The key whose value comes next, and whether it was given before.
    key: Option<(String, Mark, bool)>,
    /// Where each key of a mapping was first given.
    seen: HashMap<String, Mark>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Mistake> {
        let mark = mark(&span.start);
        let tagged = event.tag().is_some();
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Mistake::at(mark, "", "more than one document in the file"));
                }
            }
            _ if tagged => return Err(Mistake::at(mark, "", "tags (`!…`) are not supported")),
            Event::Scalar(text, style, anchor, _) => {
                self.spend(NODE_COST + text.len(), mark)?;
                let plain = style == ScalarStyle::Plain;
                let value = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
                    text => Value::Scalar(Scalar { text: unshelter(text), plain, source: None }),
                };
                self.close(mark, anchor, value)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open(mark, anchor, Value::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, _) => self.open(mark, anchor, Value::Map(Vec::new()))?,
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.close(open.mark, open.anchor, open.value)?;
                }
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(Mistake::at(mark, "", "an alias within its own anchor"));
                };
                self.spend(node.cost(), mark)?;
                self.fits(node.height(), mark)?;
                self.place(node, mark)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, mark: Mark, anchor: usize, value: Value) -> Result<(), Mistake> {
        self.spend(NODE_COST, mark)?;
        self.fits(1, mark)?;
        self.open.push(Open { mark, anchor, value, key: None, seen: HashMap::new() });
        Ok(())
    }

    /// A node is complete.
    fn close(&mut self, mark: Mark, anchor: usize, value: Value) -> Result<(), Mistake> {
        let node = Node { mark, value, dead: false };
        if anchor != 0 {
            self.spend(node.cost(), mark)?;
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node, mark)
    }

    /// Puts a complete node where it belongs.
    fn place(&mut self, node: Node, mark: Mark) -> Result<(), Mistake> {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.value, open.key.take()) {
            (Value::Map(entries), Some((key, key_mark, again))) => {
                let dead = again || node.dead;
                // Nothing has no place of its own.
                let mark = match node.value {
                    Value::Null => key_mark,
                    _ => node.mark,
                };
                let node = Node { dead, mark, ..node };
                entries.push(Entry { key, key_mark, node });
            }
            (Value::Map(_), None) => {
                let Value::Scalar(Scalar { text: key, .. }) = node.value else {
                    return Err(Mistake::at(mark, "", "a key must be text"));
                };
                let first = open.seen.get(&key).copied();
                open.seen.entry(key.clone()).or_insert(mark);
                open.key = Some((key, mark, first.is_some()));
                if let Some(first) = first {
                    let message = format!("the key was given already, in line {}", first.line);
                    let mistake = Mistake::at(mark, self.path(), message);
                    self.mistakes.push(mistake);
                }
            }
            (Value::List(items), _) => items.push(node),
            _ => {}
        }
        Ok(())
    }

    /// Where the builder is.
    fn path(&self) -> String {
        let part = |open: &Open| match (&open.value, &open.key) {
            (Value::List(items), _) => format!("[{}]", items.len()),
            (_, Some((key, ..))) => format!(".{key}"),
            _ => String::new(),
        };
        let path: String = self.open.iter().map(part).collect();
        path.trim_start_matches('.').to_owned()
    }

    /// Room for a node with this many levels.
    fn fits(&self, levels: usize, mark: Mark) -> Result<(), Mistake> {
        if self.open.len() + levels > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(Mistake::at(mark, "", message));
        }
        Ok(())
    }

    fn spend(&mut self, cost: usize, mark: Mark) -> Result<(), Mistake> {
        self.cost += cost;
        if self.cost > MAX_COST {
            return Err(Mistake::at(mark, "", "too large once its aliases are expanded"));
        }
        Ok(())
    }
}
