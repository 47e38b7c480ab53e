//! What the simulated model says: words drawn from the seed and the prompt, or the lines of a script.

use super::chain::{TokenId, mix};
use super::model::Finish;
use super::prompt::{Prompt, call_token, canonical};
use super::token::{pieces, token_of};
use serde_json::Value;
use std::path::Path;

/// Each is three letters: a word and a space make one token.
const WORDS: [&str; 32] = [
    "ash", "bay", "cat", "dew", "elm", "fig", "gem", "hay", "ice", "jay", "kit", "log", "map", "net", "oak", "pen",
    "quo", "rye", "sea", "tin", "urn", "vow", "web", "yak", "zip", "sun", "fog", "owl", "bee", "dot", "key", "row",
];

/// Without `ignore_eos` an answer is this long, in tokens.
const LENGTHS: std::ops::RangeInclusive<u64> = 20..=200;

/// How much may be said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub ignore_eos: bool,
}

/// One answer, token by token.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub parts: Vec<Part>,
    pub tokens: Vec<Token>,
    /// It had more to say.
    pub cut: bool,
}

/// A stretch of an answer.
#[derive(Debug)]
pub(super) enum Part {
    Text(String),
    Call { id: String, name: String, arguments: String },
}

#[derive(Debug)]
pub(super) struct Token {
    pub id: TokenId,
    /// Index of the part it belongs to.
    pub part: usize,
    /// What it adds to the part's text or arguments; empty for the token that opens a call.
    pub text: String,
}

/// Writes the answers.
#[derive(Debug, Default)]
pub(super) struct Author {
    pub seed: u64,
    script: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    text: String,
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    id: Option<String>,
    name: String,
    arguments: String,
}

// === impl Author ===

impl Author {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, script: Vec::new() }
    }

    /// Reads a script: each line a JSON string (the reply's text) or a JSON object (the reply's `message`, with
    /// `content` and `tool_calls`). The error tells the line.
    pub(super) fn scripted(seed: u64, file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let script = lines
            .map(|(at, line)| Line::parse(line).map_err(|e| format!("line {}: {e}", at + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        if script.is_empty() {
            return Err("no lines".to_owned());
        }
        Ok(Self { seed, script })
    }

    /// The answer to `prompt`; `digest` is the hash of its tokens.
    pub(super) fn answer(&self, prompt: &Prompt, digest: u64, bounds: Bounds) -> Answer {
        match self.script.get(prompt.replies).or(self.script.last()) {
            Some(line) => line.answer(mix(self.seed ^ digest), bounds.max_tokens),
            None => babble(mix(self.seed ^ digest), bounds),
        }
    }
}

fn babble(seed: u64, bounds: Bounds) -> Answer {
    let drawn = LENGTHS.start() + seed % (LENGTHS.end() - LENGTHS.start() + 1);
    let wanted = if bounds.ignore_eos { bounds.max_tokens } else { bounds.min_tokens.max(drawn as usize) };
    let length = wanted.min(bounds.max_tokens);
    let mut answer = Answer::default();
    let mut state = seed;
    for at in 0..length {
        state = mix(state);
        let word = WORDS[(state % WORDS.len() as u64) as usize];
        // No white space at the end, so that a client that trims the reply sends the same tokens back.
        let end = if at + 1 == length { '.' } else { ' ' };
        answer.say(&format!("{word}{end}"), usize::MAX);
    }
    answer.cut = bounds.ignore_eos || wanted > length;
    answer
}

// === impl Line ===

impl Line {
    fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Object(message) => match message.get("content") {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(_) => return Err("`content` must be a string or null".to_owned()),
            },
            _ => return Err("neither a string nor an object".to_owned()),
        };
        let calls = value.get("tool_calls").and_then(Value::as_array);
        let calls: Vec<Call> = calls.into_iter().flatten().map(Call::parse).collect::<Result<_, _>>()?;
        if text.is_empty() && calls.is_empty() {
            return Err("neither `content` nor `tool_calls`".to_owned());
        }
        Ok(Self { text, calls })
    }

    fn answer(&self, seed: u64, limit: usize) -> Answer {
        let mut answer = Answer::default();
        answer.say(&self.text, limit);
        for (at, call) in self.calls.iter().enumerate() {
            let id = call.id.clone();
            let id = id.unwrap_or_else(|| format!("call_{:016x}", mix(seed ^ at as u64)));
            answer.call(id, call, limit);
        }
        answer
    }
}

impl Call {
    fn parse(call: &Value) -> Result<Self, String> {
        let function = &call["function"];
        let name = function["name"].as_str();
        Ok(Self {
            id: call["id"].as_str().map(str::to_owned),
            name: name.ok_or("a tool call without `function.name`")?.to_owned(),
            arguments: canonical(&function["arguments"]),
        })
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn finish(&self) -> Finish {
        if self.cut { Finish::Length } else { Finish::Stop }
    }

    /// OpenAI's `finish_reason`.
    pub(super) fn finish_reason(&self) -> &'static str {
        let calls = self.parts.iter().any(|p| matches!(p, Part::Call { .. }));
        match (self.cut, calls) {
            (true, _) => "length",
            (false, true) => "tool_calls",
            (false, false) => "stop",
        }
    }

    /// All text outside tool calls.
    pub(super) fn text(&self) -> String {
        let texts = self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Call { .. } => None,
        });
        texts.collect()
    }

    fn say(&mut self, text: &str, limit: usize) {
        if !matches!(self.parts.last(), Some(Part::Text(_))) && !text.is_empty() {
            self.parts.push(Part::Text(String::new()));
        }
        self.pieces(text, limit);
    }

    fn call(&mut self, id: String, call: &Call, limit: usize) {
        if self.tokens.len() >= limit {
            self.cut = true;
            return;
        }
        self.tokens.push(Token { id: call_token(&call.name), part: self.parts.len(), text: String::new() });
        self.parts.push(Part::Call { id, name: call.name.clone(), arguments: String::new() });
        self.pieces(&call.arguments, limit);
    }

    /// Adds to the last part, up to `limit` tokens in all.
    fn pieces(&mut self, text: &str, limit: usize) {
        for piece in pieces(text) {
            if self.tokens.len() >= limit {
                self.cut = true;
                return;
            }
            self.tokens.push(Token { id: token_of(piece), part: self.parts.len() - 1, text: piece.to_owned() });
            match self.parts.last_mut() {
                Some(Part::Text(text) | Part::Call { arguments: text, .. }) => text.push_str(piece),
                None => {}
            }
        }
    }
}
