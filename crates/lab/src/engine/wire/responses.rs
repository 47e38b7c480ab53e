//! `/v1/responses`.

use super::{Reply, Wire, event};
use crate::engine::answer::Part;
use crate::engine::model::Usage;
use serde_json::{Value, json};

#[derive(Default)]
pub(in crate::engine) struct Responses {
    sequence: u64,
}

impl Wire for Responses {
    fn whole(&self, reply: &Reply, usage: &Usage) -> Value {
        let parts = 0..reply.answer.parts.len();
        let output: Vec<Value> = parts.map(|at| item(reply, at, true)).collect();
        let cut = reply.answer.cut;
        let mut body = body(reply, if cut { "incomplete" } else { "completed" });
        if cut {
            body["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        body["output"] = output.into();
        body["usage"] = json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {
                "cached_tokens": usage.cached, "cache_write_tokens": 0,
                "input_tokens_per_turn": [], "cached_tokens_per_turn": [],
            },
            "output_tokens": usage.output,
            "output_tokens_details": {
                "reasoning_tokens": 0, "tool_output_tokens": 0,
                "output_tokens_per_turn": [], "tool_output_tokens_per_turn": [],
            },
            "total_tokens": usage.prompt + usage.output,
        });
        body
    }

    fn start(&mut self, reply: &Reply) -> String {
        let response = body(reply, "in_progress");
        let created = json!({"response": response});
        self.emit("response.created", created.clone()) + &self.emit("response.in_progress", created)
    }

    fn token(&mut self, reply: &Reply, at: usize) -> String {
        let token = &reply.answer.tokens[at];
        let mut out = String::new();
        if reply.opens_part(at) {
            if token.part > 0 {
                out += &self.close(reply, token.part - 1);
            }
            out += &self.open(reply, token.part);
        }
        let (kind, mut body) = match &reply.answer.parts[token.part] {
            Part::Text(_) => ("response.output_text.delta", json!({"content_index": 0, "delta": token.text})),
            Part::Call { .. } if token.text.is_empty() => return out,
            Part::Call { .. } => ("response.function_call_arguments.delta", json!({"delta": token.text})),
        };
        body["item_id"] = item_id(reply, token.part).into();
        if kind == "response.output_text.delta" {
            body["logprobs"] = json!([]);
        }
        body["output_index"] = token.part.into();
        out + &self.emit(kind, body)
    }

    fn end(&mut self, reply: &Reply, usage: &Usage) -> String {
        let mut out = String::new();
        if let Some(last) = reply.answer.parts.len().checked_sub(1) {
            out += &self.close(reply, last);
        }
        let response = self.whole(reply, usage);
        out + &self.emit("response.completed", json!({"response": response}))
    }
}

// === impl Responses ===

impl Responses {
    fn emit(&mut self, kind: &str, mut body: Value) -> String {
        body["sequence_number"] = self.sequence.into();
        body["type"] = kind.into();
        self.sequence += 1;
        event(&body)
    }

    fn open(&mut self, reply: &Reply, part: usize) -> String {
        let added = json!({"item": item(reply, part, false), "output_index": part});
        let mut out = self.emit("response.output_item.added", added);
        if let Part::Text(_) = reply.answer.parts[part] {
            let (id, empty) = (item_id(reply, part), text_part(""));
            let added = json!({"content_index": 0, "item_id": id, "output_index": part, "part": empty});
            out += &self.emit("response.content_part.added", added);
        }
        out
    }

    fn close(&mut self, reply: &Reply, part: usize) -> String {
        let id = item_id(reply, part);
        let mut out = match &reply.answer.parts[part] {
            Part::Text(text) => {
                let text_done =
                    json!({"content_index": 0, "item_id": id, "logprobs": [], "output_index": part, "text": text});
                let part_done =
                    json!({"content_index": 0, "item_id": id, "output_index": part, "part": text_part(text)});
                self.emit("response.output_text.done", text_done) + &self.emit("response.content_part.done", part_done)
            }
            Part::Call { name, arguments, .. } => self.emit(
                "response.function_call_arguments.done",
                json!({"arguments": arguments, "item_id": id, "name": name, "output_index": part}),
            ),
        };
        let done = json!({"item": item(reply, part, true), "output_index": part});
        out += &self.emit("response.output_item.done", done);
        out
    }
}

fn item_id(reply: &Reply, part: usize) -> String {
    let kind = match reply.answer.parts[part] {
        Part::Text(_) => "msg",
        Part::Call { .. } => "fc",
    };
    format!("{kind}_{}", reply.part_id(part))
}

fn text_part(text: &str) -> Value {
    json!({"annotations": [], "text": text, "type": "output_text", "logprobs": []})
}

/// An output item: empty when it opens, whole when it closes.
fn item(reply: &Reply, part: usize, whole: bool) -> Value {
    let status = if whole { "completed" } else { "in_progress" };
    match &reply.answer.parts[part] {
        Part::Text(text) => json!({
            "id": item_id(reply, part), "content": if whole { json!([text_part(text)]) } else { json!([]) },
            "role": "assistant", "status": status, "type": "message", "phase": null,
        }),
        Part::Call { id, name, arguments } => json!({
            "arguments": if whole { arguments.as_str() } else { "" }, "call_id": id, "name": name,
            "type": "function_call", "id": item_id(reply, part), "status": status,
        }),
    }
}

fn body(reply: &Reply, status: &str) -> Value {
    json!({
        "id": format!("resp_{}", reply.id), "created_at": reply.created, "incomplete_details": null,
        "instructions": null, "metadata": null, "model": reply.model, "object": "response", "output": [],
        "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "background": false, "max_output_tokens": reply.max_tokens, "max_tool_calls": null,
        "previous_response_id": null, "prompt": null, "reasoning": null, "service_tier": "auto", "status": status,
        "text": null, "top_logprobs": null, "truncation": "disabled", "usage": null, "user": null,
        "presence_penalty": null, "frequency_penalty": null, "kv_transfer_params": null,
        "ec_transfer_params": null, "input_messages": null, "output_messages": null,
    })
}
