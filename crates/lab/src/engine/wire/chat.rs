//! `/v1/chat/completions`.

use super::{FINGERPRINT, Reply, Wire, data, openai_end, openai_event, openai_usage};
use crate::engine::answer::Part;
use crate::engine::model::Usage;
use serde_json::{Value, json};

pub(in crate::engine) struct Chat;

impl Wire for Chat {
    fn whole(&self, reply: &Reply, usage: &Usage) -> Value {
        let details = json!({"cached_tokens": usage.cached, "created_cache_tokens": 0, "multimodal_tokens": null});
        let mut usage = openai_usage(usage, details);
        usage["completion_tokens_details"] = Value::Null;
        json!({
            "id": id(reply), "object": "chat.completion", "created": reply.created, "model": reply.model,
            "choices": [{
                "index": 0, "message": message(reply), "logprobs": null, "finish_reason": reply.answer.finish_reason(),
                "stop_reason": null, "token_ids": null, "routed_experts": null,
            }],
            "service_tier": null, "system_fingerprint": FINGERPRINT, "usage": usage,
            "prompt_logprobs": null, "prompt_token_ids": null, "prompt_text": null,
            "kv_transfer_params": null, "ec_transfer_params": null, "metrics": null,
        })
    }

    fn start(&mut self, reply: &Reply) -> String {
        let delta = json!({"role": "assistant", "content": ""});
        let mut chunk = chunk(reply, json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]));
        chunk["prompt_token_ids"] = Value::Null;
        chunk["prompt_text"] = Value::Null;
        data(chunk)
    }

    fn token(&mut self, reply: &Reply, at: usize) -> String {
        let finish = reply.finish_after(at);
        let mut choice = json!({"index": 0, "delta": delta(reply, at), "logprobs": null, "finish_reason": finish});
        if finish.is_some() {
            choice["stop_reason"] = Value::Null;
        }
        choice["token_ids"] = Value::Null;
        openai_event(reply, chunk(reply, json!([choice])), finish.is_some())
    }

    fn end(&mut self, reply: &Reply, usage: &Usage) -> String {
        let details = json!({"cached_tokens": usage.cached, "created_cache_tokens": 0});
        openai_end(reply, chunk(reply, json!([])), openai_usage(usage, details))
    }
}

fn id(reply: &Reply) -> String {
    format!("chatcmpl-{}", reply.id)
}

fn chunk(reply: &Reply, choices: Value) -> Value {
    json!({
        "id": id(reply), "object": "chat.completion.chunk", "created": reply.created, "model": reply.model,
        "choices": choices,
    })
}

fn message(reply: &Reply) -> Value {
    let mut message = json!({
        "role": "assistant", "content": reply.answer.text(),
        "refusal": null, "annotations": null, "audio": null, "function_call": null,
    });
    let call = |part: &Part| match part {
        Part::Text(_) => None,
        Part::Call { id, name, arguments } => {
            Some(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
        }
    };
    let calls: Vec<Value> = reply.answer.parts.iter().filter_map(call).collect();
    if !calls.is_empty() {
        if message["content"] == "" {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = calls.into();
    }
    message["reasoning"] = Value::Null;
    message
}

fn delta(reply: &Reply, at: usize) -> Value {
    let token = &reply.answer.tokens[at];
    let parts = &reply.answer.parts;
    let Part::Call { id, name, .. } = &parts[token.part] else {
        return json!({"content": token.text});
    };
    let before = parts[..token.part].iter();
    let index = before.filter(|p| matches!(p, Part::Call { .. })).count();
    if reply.opens_part(at) {
        let function = json!({"name": name, "arguments": ""});
        json!({"tool_calls": [{"id": id, "type": "function", "index": index, "function": function}]})
    } else {
        json!({"tool_calls": [{"index": index, "function": {"arguments": token.text}}]})
    }
}
