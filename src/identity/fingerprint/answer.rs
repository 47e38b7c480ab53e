//! Digests of the model's answers, which tell programs apart that have sent the same so far.
//!
//! The client sends the answer back in its next step, written in its own way. So the digest covers the meaning only: the
//! text, without white space around it and without the thoughts before it, and the tool calls with their ids.

use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Most bytes that are kept until they can be read: one event, or an answer in one piece.
const PIECE: usize = 256 << 10;
/// Most bytes of an answer that are read: some 16,000 events of a token each. A longer answer has no digest.
const WHOLE: usize = 4 << 20;
/// Bytes of an answer's start in which its own name is looked for.
const HEAD: usize = 4096;
/// Characters or token ids at the start of an answer to a text prompt that are compared.
const START: usize = 48;
/// The end of a model's thoughts, which most clients do not send back.
const THOUGHT: &str = "</think>";

/// The form in which the next step repeats an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A message, or items.
    Turns,
    /// Text behind the prompt's text.
    Text,
    /// Token ids behind the prompt's ids.
    Ids,
}

/// The hash of an answer, to know it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyHash {
    #[default]
    Unknown,
    /// Hashes of the text and of the tool calls, 0 where there is none.
    Turns { text: u64, calls: u64 },
    /// Hash of the first `count` characters or token ids.
    Start { count: usize, hash: u64 },
}

/// Reads one answer as it passes.
#[derive(Debug)]
pub struct ReplyDigest {
    form: Form,
    /// Bytes that may still be read; `None` if the answer is not wanted, or is too long.
    left: Option<usize>,
    said: Said,
    /// Bytes that cannot be read yet: an answer in one piece, or the line of an event.
    rest: Vec<u8>,
    /// The start of the answer, up to `head_limit` bytes.
    head: Vec<u8>,
    head_limit: usize,
}

/// The content of an answer, or of the turns that repeat an answer.
#[derive(Debug, Default)]
struct Said {
    text: String,
    calls: Vec<Call>,
    ids: Vec<u64>,
}

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

// === impl ReplyHash ===

impl ReplyHash {
    /// The hash of the answer that turns of a request repeat. Each turn is given as JSON.
    pub fn of_turns<'a>(turns: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut said = Said::default();
        for turn in turns.filter_map(|turn| serde_json::from_slice(turn).ok()) {
            said.turn(&turn);
        }
        said.answer(Form::Turns)
    }

    /// Whether the answer calls tools.
    pub fn has_calls(self) -> bool {
        matches!(self, Self::Turns { calls, .. } if calls != 0)
    }

    /// Whether `after`, the part of a prompt behind the program's last prompt as it is written, begins with this answer.
    pub fn starts(self, after: &[u8], ids: bool) -> bool {
        let Self::Start { count, hash } = self else {
            return false;
        };
        let found = match ids {
            true => start_of_ids(&numbers(after, count), count),
            false => start_of_text(&decoded(after, count), count),
        };
        found == Self::Start { count, hash }
    }

    /// Whether `turns` repeat this answer. A client may leave out a text beside tool calls, but not all of an answer.
    pub fn is_repeated_by(self, turns: Self) -> bool {
        let (Self::Turns { text, calls }, Self::Turns { text: other_text, calls: other_calls }) = (self, turns) else {
            return false;
        };
        let text_left_out = (text == 0 || other_text == 0) && calls != 0;
        calls == other_calls && (text == other_text || text_left_out)
    }
}

// === impl ReplyDigest ===

impl ReplyDigest {
    /// `whole`: the answer's content is wanted. `named`: the answer's name is wanted.
    pub fn new(form: Form, whole: bool, named: bool) -> Self {
        let head_limit = if named { HEAD } else { 0 };
        let left = whole.then_some(WHOLE);
        Self { form, left, said: Said::default(), rest: Vec::new(), head: Vec::new(), head_limit }
    }

    pub fn feed(&mut self, mut piece: &[u8]) {
        let room = self.head_limit - self.head.len();
        self.head.extend_from_slice(&piece[..piece.len().min(room)]);
        if self.left.is_none() {
            return;
        }
        self.left = self.left.and_then(|left| left.checked_sub(piece.len()));
        if !self.in_one_piece(piece) {
            while let Some(end) = memchr::memchr(b'\n', piece) {
                self.keep(&piece[..end]);
                self.read_line();
                piece = &piece[end + 1..];
            }
        }
        self.keep(piece);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.left.is_none() || self.rest.len() + bytes.len() > PIECE {
            (self.left, self.rest, self.said) = (None, Vec::new(), Said::default());
        } else {
            self.rest.extend_from_slice(bytes);
        }
    }

    /// The hash of the answer, and the hash of its name in the responses API.
    pub fn read(mut self) -> (ReplyHash, Option<u64>) {
        let name = name(&self.head).map(xxh3_64);
        if self.left.is_none() {
            return (ReplyHash::Unknown, name);
        }
        if self.in_one_piece(&[]) {
            self.said.event(&serde_json::from_slice(&self.rest).unwrap_or_default());
        } else {
            self.read_line();
        }
        (self.said.answer(self.form), name)
    }

    /// Bytes.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.rest.capacity() + self.said.text.capacity()
    }

    /// Whether the answer is one JSON object, and not events, whose lines begin with a name.
    fn in_one_piece(&self, piece: &[u8]) -> bool {
        let mut bytes = self.rest.iter().chain(piece);
        bytes.find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
    }

    fn read_line(&mut self) {
        let data = self.rest.strip_prefix(b"data:").map(<[u8]>::trim_ascii);
        if let Some(Ok(event)) = data.map(serde_json::from_slice) {
            self.said.event(&event);
        }
        self.rest.clear();
    }
}

/// The name of an answer of the responses API: its first `id`.
fn name(bytes: &[u8]) -> Option<&[u8]> {
    memchr::memmem::find_iter(bytes, b"\"id\"").find_map(|at| {
        let value = bytes[at + 4..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
        value.starts_with(b"resp_").then(|| value.split(|byte| *byte == b'"').next())?
    })
}

// === impl Said ===

impl Said {
    /// Takes in an answer in one piece, or one event of a streamed answer, of any endpoint.
    fn event(&mut self, event: &Value) {
        for choice in list(&event["choices"]).iter().filter(|choice| choice["index"].as_u64().unwrap_or(0) == 0) {
            self.add_text(&choice["text"]);
            self.add_ids(&choice["token_ids"]);
            for message in [&choice["message"], &choice["delta"]] {
                self.add_text(&message["content"]);
                self.add_calls(&message["tool_calls"]);
            }
        }
        match event["type"].as_str() {
            Some("content_block_start") => self.part(&event["content_block"]),
            Some("content_block_delta") => {
                self.add_text(&event["delta"]["text"]);
                if let (Some(call), Some(more)) = (self.calls.last_mut(), event["delta"]["partial_json"].as_str()) {
                    call.arguments.push_str(more);
                }
            }
            Some("message") => self.add_text(&event["content"]),
            Some("response.completed" | "response.incomplete") => self.items(&event["response"]["output"]),
            _ => self.items(&event["output"]),
        }
        if let Some(text) = event["text"].as_str() {
            // SGLang sends all of the text with each event.
            text.clone_into(&mut self.text);
        }
        if !list(&event["output_ids"]).is_empty() {
            self.ids.clear();
            self.add_ids(&event["output_ids"]);
        }
    }

    fn items(&mut self, output: &Value) {
        list(output).iter().for_each(|item| self.turn(item));
    }

    /// Takes in a message or an item as clients send it back.
    fn turn(&mut self, turn: &Value) {
        self.add_text(&turn["content"]);
        self.add_calls(&turn["tool_calls"]);
        if turn["type"] == "function_call" {
            self.add_call(&turn["call_id"], &turn["name"], &turn["arguments"]);
        }
    }

    fn part(&mut self, part: &Value) {
        match part["type"].as_str() {
            Some("tool_use") => self.add_call(&part["id"], &part["name"], &part["input"]),
            Some("thinking") => {}
            _ => self.add_text(&part["text"]),
        }
    }

    /// A text, or a list of parts.
    fn add_text(&mut self, content: &Value) {
        match content {
            Value::String(text) => self.text.push_str(text),
            Value::Array(parts) => parts.iter().for_each(|part| self.part(part)),
            _ => {}
        }
    }

    fn add_ids(&mut self, ids: &Value) {
        self.ids.extend(list(ids).iter().filter_map(Value::as_u64).take(START));
    }

    /// Tool calls as the chat API writes them. The calls of an event continue those of the events before.
    fn add_calls(&mut self, calls: &Value) {
        for call in list(calls) {
            let function = &call["function"];
            if call["id"].is_string() || self.calls.is_empty() {
                self.add_call(&call["id"], &function["name"], &function["arguments"]);
            } else if let (Some(last), Some(more)) = (self.calls.last_mut(), function["arguments"].as_str()) {
                last.arguments.push_str(more);
            }
        }
    }

    fn add_call(&mut self, id: &Value, name: &Value, arguments: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let arguments = match arguments {
            Value::String(text) => text.clone(),
            // The messages API streams the arguments behind this in pieces.
            Value::Object(members) if members.is_empty() => String::new(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        self.calls.push(Call { id: text(id), name: text(name), arguments });
    }

    fn answer(&self, form: Form) -> ReplyHash {
        match form {
            Form::Text => start_of_text(&self.text, START),
            Form::Ids => start_of_ids(&self.ids, START),
            Form::Turns => {
                let text = self.text.rsplit(THOUGHT).next().unwrap_or_default().trim();
                let text = if text.is_empty() { 0 } else { xxh3_64(text.as_bytes()) };
                let calls = self.calls.iter().fold(0, |chain, call| call.hash(chain));
                if text == 0 && calls == 0 { ReplyHash::Unknown } else { ReplyHash::Turns { text, calls } }
            }
        }
    }
}

// === impl Call ===

impl Call {
    /// The hash of a call. The client may have written the arguments anew, so they are hashed as JSON.
    fn hash(&self, chain: u64) -> u64 {
        let arguments = match self.arguments.trim() {
            "" | "{}" => String::new(),
            text => serde_json::from_str(text).map_or_else(|_| text.to_owned(), |value: Value| value.to_string()),
        };
        let parts = [&self.id, &self.name, &arguments];
        parts.iter().fold(chain, |chain, part| xxh3_64_with_seed(part.as_bytes(), chain))
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn start_of_text(text: &str, count: usize) -> ReplyHash {
    let text = text.trim();
    let end = text.char_indices().nth(count).map_or(text.len(), |(at, _)| at);
    let start = text[..end].trim_end();
    match start.chars().count() {
        0 => ReplyHash::Unknown,
        count => ReplyHash::Start { count, hash: xxh3_64(start.as_bytes()) },
    }
}

fn start_of_ids(ids: &[u64], count: usize) -> ReplyHash {
    let start = &ids[..ids.len().min(count)];
    match start.len() {
        0 => ReplyHash::Unknown,
        count => ReplyHash::Start { count, hash: start.iter().fold(0, |chain, id| super::canon::link(chain, *id)) },
    }
}

/// The first of the numbers in a part of a JSON list.
fn numbers(raw: &[u8], count: usize) -> Vec<u64> {
    let texts = raw.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|text| !text.is_empty());
    let numbers = texts.map_while(|text| std::str::from_utf8(text).ok()?.parse().ok());
    numbers.take(count).collect()
}

/// The start of a part of a JSON string, decoded: at least `count` characters behind leading white space, or all there
/// are.
fn decoded(raw: &[u8], count: usize) -> String {
    // An escaped character takes up to twelve bytes.
    let most = raw.len().min(12 * count + 256);
    // The cut must not be within a character or an escape.
    let whole = (most.saturating_sub(12)..=most).rev().find_map(|end| {
        let text = std::str::from_utf8(&raw[..end]).ok()?;
        serde_json::from_str(&format!("\"{text}\"")).ok()
    });
    whole.unwrap_or_default()
}
