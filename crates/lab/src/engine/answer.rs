//! Answers of the simulated model: words drawn from the seed and the prompt, or the lines of a script.

use super::chain::{TokenId, mix};
use super::model::Finish;
use super::prompt::{Prompt, call_token, canonical};
use super::token::{pieces, token_of};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Words of the answers, each with three letters: a word and a space make one token.
const WORDS: [&str; 32] = [
    "ash", "bay", "cat", "dew", "elm", "fig", "gem", "hay", "ice", "jay", "kit", "log", "map", "net", "oak", "pen",
    "quo", "rye", "sea", "tin", "urn", "vow", "web", "yak", "zip", "sun", "fog", "owl", "bee", "dot", "key", "row",
];

/// Length of an answer in tokens, unless `ignore_eos` is set.
const LENGTHS: std::ops::RangeInclusive<u64> = 20..=200;

/// Limits on the length of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub ignore_eos: bool,
}

/// One answer: its parts, and its tokens one by one.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub parts: Vec<Part>,
    pub tokens: Vec<Token>,
    /// Whether the limit cut the answer short.
    pub cut: bool,
}

/// A part of an answer: text, or one tool call.
#[derive(Debug)]
pub(super) enum Part {
    Text(String),
    Call { id: String, name: String, arguments: String },
}

#[derive(Debug)]
pub(super) struct Token {
    pub id: TokenId,
    /// Index of the part that the token belongs to.
    pub part: usize,
    /// Text that the token adds to its part; empty for the token that opens a call.
    pub text: String,
}

/// Writer of the answers.
#[derive(Debug, Default)]
pub(super) struct Author {
    pub seed: u64,
    script: Vec<ScriptLine>,
}

/// One reply of a script: its text and its tool calls, as in OpenAI's `message`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ScriptLine {
    content: Option<String>,
    tool_calls: Vec<Call>,
}

#[derive(Debug, Deserialize)]
struct Call {
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Value,
}

// === impl Author ===

impl Author {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, script: Vec::new() }
    }

    /// Reads a script. Each line is a JSON string (the reply's text) or a JSON object (the reply's `message`, with
    /// `content` and `tool_calls`). The error names the line.
    pub(super) fn scripted(seed: u64, file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let script = lines
            .map(|(at, line)| ScriptLine::parse(line).map_err(|e| format!("line {}: {e}", at + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        if script.is_empty() {
            return Err("no lines".to_owned());
        }
        Ok(Self { seed, script })
    }

    /// The answer to `prompt`. `digest` is the hash of the prompt's tokens.
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
        // The answer ends without white space, so that a client that trims the reply sends the same tokens back.
        let end = if at + 1 == length { '.' } else { ' ' };
        answer.say(&format!("{word}{end}"), usize::MAX);
    }
    answer.cut = bounds.ignore_eos || wanted > length;
    answer
}

// === impl ScriptLine ===

impl ScriptLine {
    fn parse(line: &str) -> Result<Self, String> {
        let told = |error: serde_json::Error| error.to_string();
        let reply = match serde_json::from_str(line).map_err(told)? {
            Value::String(text) => Self { content: Some(text), ..Self::default() },
            message @ Value::Object(_) => serde_json::from_value(message).map_err(told)?,
            _ => return Err("neither a string nor an object".to_owned()),
        };
        if reply.text().is_empty() && reply.tool_calls.is_empty() {
            return Err("neither `content` nor `tool_calls`".to_owned());
        }
        Ok(reply)
    }

    fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    fn answer(&self, seed: u64, limit: usize) -> Answer {
        let mut answer = Answer::default();
        answer.say(self.text(), limit);
        for (at, call) in self.tool_calls.iter().enumerate() {
            let id = call.id.clone().unwrap_or_else(|| format!("call_{:016x}", mix(seed ^ at as u64)));
            answer.call(id, &call.function, limit);
        }
        answer
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn finish(&self) -> Finish {
        if self.cut { Finish::Length } else { Finish::Stop }
    }

    /// Value of OpenAI's `finish_reason`.
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

    fn call(&mut self, id: String, function: &Function, limit: usize) {
        if self.tokens.len() >= limit {
            self.cut = true;
            return;
        }
        self.tokens.push(Token { id: call_token(&function.name), part: self.parts.len(), text: String::new() });
        self.parts.push(Part::Call { id, name: function.name.clone(), arguments: String::new() });
        self.pieces(&canonical(&function.arguments), limit);
    }

    /// Adds the pieces of `text` to the last part, up to `limit` tokens in all.
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
