//! How an answer is written: one module per API.

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

/// Everything that an answer says of its request.
#[derive(Debug)]
pub(super) struct Reply {
    /// Sixteen hexadecimal digits.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub answer: Answer,
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    pub include_usage: bool,
}

/// One API's way to write an answer.
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
    /// The finish reason, once token number `at` is out.
    fn finish_after(&self, at: usize) -> Option<&'static str> {
        (at + 1 == self.answer.tokens.len()).then(|| self.answer.finish_reason())
    }

    /// An id for a part of the answer.
    fn part_id(&self, part: usize) -> String {
        let seed = u64::from_str_radix(&self.id, 16).unwrap_or(0);
        format!("{:016x}", mix(seed ^ (part as u64 + 1)))
    }

    /// This part's first token is token number `at`.
    fn opens_part(&self, at: usize) -> bool {
        let tokens = &self.answer.tokens;
        at == 0 || tokens[at - 1].part != tokens[at].part
    }
}

/// OpenAI's `usage`; what its `prompt_tokens_details` hold differs between the endpoints.
fn openai_usage(usage: &Usage, details: Value) -> Value {
    json!({
        "prompt_tokens": usage.prompt, "total_tokens": usage.prompt + usage.output, "completion_tokens": usage.output,
        "prompt_tokens_details": details,
    })
}

/// One event of OpenAI's. Without a usage event, the last chunk has the fingerprint.
fn openai_event(reply: &Reply, mut chunk: Value, last: bool) -> String {
    if last && !reply.include_usage {
        chunk["system_fingerprint"] = FINGERPRINT.into();
    }
    data(chunk)
}

/// The end of OpenAI's streams: `chunk` with the usage, if the client asked for it.
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

/// An event with a name: its `type`.
fn event(value: &Value) -> String {
    let name = value["type"].as_str().unwrap_or("message");
    format!("event: {name}\ndata: {value}\n\n")
}
