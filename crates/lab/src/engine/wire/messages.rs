//! `/v1/messages`: Anthropic's API.

use super::{Reply, Wire, event};
use crate::engine::answer::Part;
use crate::engine::model::Usage;
use serde_json::{Value, json};

pub(in crate::engine) struct Messages;

impl Wire for Messages {
    fn whole(&self, reply: &Reply, usage: &Usage) -> Value {
        let content: Vec<Value> = reply.answer.parts.iter().map(block).collect();
        json!({
            "id": format!("chatcmpl-{}", reply.id), "type": "message", "role": "assistant", "content": content,
            "model": reply.model, "stop_reason": stop_reason(reply), "usage": full_usage(usage),
        })
    }

    fn start(&mut self, reply: &Reply) -> String {
        event(&json!({
            "type": "message_start",
            "message": {
                "id": format!("chatcmpl-{}", reply.id), "type": "message", "role": "assistant", "content": [],
                "model": reply.model, "stop_reason": null, "stop_sequence": null,
                "usage": {"input_tokens": reply.prompt_tokens, "output_tokens": 0},
            },
        }))
    }

    fn token(&mut self, reply: &Reply, at: usize) -> String {
        let token = &reply.answer.tokens[at];
        let part = &reply.answer.parts[token.part];
        let mut out = String::new();
        if reply.opens_part(at) {
            if token.part > 0 {
                out += &stop(token.part - 1);
            }
            let empty = match part {
                Part::Text(_) => json!({"type": "text", "text": ""}),
                Part::Call { id, name, .. } => {
                    json!({"type": "tool_use", "id": id, "name": name, "input": {}})
                }
            };
            out += &event(&json!({"type": "content_block_start", "content_block": empty, "index": token.part}));
        }
        let delta = match part {
            Part::Text(_) => json!({"type": "text_delta", "text": token.text}),
            Part::Call { .. } if token.text.is_empty() => return out,
            Part::Call { .. } => json!({"type": "input_json_delta", "partial_json": token.text}),
        };
        out + &event(&json!({"type": "content_block_delta", "delta": delta, "index": token.part}))
    }

    fn end(&mut self, reply: &Reply, usage: &Usage) -> String {
        let mut out = String::new();
        if let Some(last) = reply.answer.parts.len().checked_sub(1) {
            out += &stop(last);
        }
        out += &event(&json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason(reply), "stop_sequence": null},
            "usage": full_usage(usage),
        }));
        out + &event(&json!({"type": "message_stop"}))
    }
}

fn stop(index: usize) -> String {
    event(&json!({"type": "content_block_stop", "index": index}))
}

fn block(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Call { id, name, arguments } => {
            let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}

fn stop_reason(reply: &Reply) -> &'static str {
    match reply.answer.finish_reason() {
        "length" => "max_tokens",
        "tool_calls" => "tool_use",
        _ => "end_turn",
    }
}

/// Anthropic's usage: `input_tokens` does not include the tokens that were read from the cache.
fn full_usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached, "output_tokens": usage.output,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": usage.cached,
    })
}
