//! The forms of an answer, one module for each API.

mod chat;
mod completion;
mod generate;
mod messages;
mod responses;

use super::answer::Answer;
use super::chain::mix;
use super::model::Usage;
use serde_json::{Value, json};
use std::fmt::Display;

pub(super) use chat::Chat;
pub(super) use completion::Completion;
pub(super) use generate::Generate;
pub(super) use messages::Messages;
pub(super) use responses::Responses;

pub(super) const FINGERPRINT: &str = "vllm-0.32.0-f0000000";

/// Data that the answer tells of its request.
#[derive(Debug)]
pub(super) struct Reply {
    /// Id of the answer: sixteen hexadecimal digits.
    pub id: String,
    /// Time of the answer in seconds since 1970.
    pub created: u64,
    pub model: String,
    pub answer: Answer,
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    pub include_usage: bool,
}

/// The form of an answer in one API.
pub(super) trait Wire: Send + 'static {
    /// The body of an answer in one piece.
    fn whole(&self, reply: &Reply, usage: &Usage) -> Value;
    /// Events before the first token.
    fn start(&mut self, _reply: &Reply) -> String {
        String::new()
    }
    /// Events of token number `at`.
    fn token(&mut self, reply: &Reply, at: usize) -> String;
    /// Events after the last token.
    fn end(&mut self, reply: &Reply, usage: &Usage) -> String;
}

// === impl Reply ===

impl Reply {
    /// The finish reason, if token number `at` is the last.
    fn finish_after(&self, at: usize) -> Option<&'static str> {
        (at + 1 == self.answer.tokens.len()).then(|| self.answer.finish_reason())
    }

    /// An id for a part of the answer.
    fn part_id(&self, part: usize) -> String {
        let seed = u64::from_str_radix(&self.id, 16).unwrap_or(0);
        format!("{:016x}", mix(seed ^ (part as u64 + 1)))
    }

    /// Whether token number `at` is the first of its part.
    fn opens_part(&self, at: usize) -> bool {
        let tokens = &self.answer.tokens;
        at == 0 || tokens[at - 1].part != tokens[at].part
    }
}

/// OpenAI's `usage`. The `prompt_tokens_details` differ between the endpoints.
fn openai_usage(usage: &Usage, details: Value) -> Value {
    json!({
        "prompt_tokens": usage.prompt, "total_tokens": usage.prompt + usage.output, "completion_tokens": usage.output,
        "prompt_tokens_details": details,
    })
}

/// One event in OpenAI's form. Without a usage event, the last chunk has the fingerprint.
fn openai_event(reply: &Reply, mut chunk: Value, last: bool) -> String {
    if last && !reply.include_usage {
        chunk["system_fingerprint"] = FINGERPRINT.into();
    }
    data(chunk)
}

/// The end of a stream in OpenAI's form: `chunk` with the usage, if the client asked for usage.
fn openai_end(reply: &Reply, mut chunk: Value, usage: Value) -> String {
    if !reply.include_usage {
        return data("[DONE]");
    }
    chunk["usage"] = usage;
    chunk["system_fingerprint"] = FINGERPRINT.into();
    data(chunk) + &data("[DONE]")
}

fn data(value: impl Display) -> String {
    format!("data: {value}\n\n")
}

/// An event whose name is its `type`.
fn event(value: &Value) -> String {
    let name = value["type"].as_str().unwrap_or("message");
    format!("event: {name}\ndata: {value}\n\n")
}
