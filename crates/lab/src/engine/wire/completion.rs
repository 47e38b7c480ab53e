//! `/v1/completions`.

use super::{FINGERPRINT, Reply, Wire, openai_end, openai_event, openai_usage};
use crate::engine::model::Usage;
use serde_json::{Value, json};

pub(in crate::engine) struct Completion;

impl Wire for Completion {
    fn whole(&self, reply: &Reply, usage: &Usage) -> Value {
        let details = json!({"cached_tokens": usage.cached, "created_cache_tokens": null, "multimodal_tokens": null});
        let mut usage = openai_usage(usage, details);
        usage["completion_tokens_details"] = Value::Null;
        let choice = json!({
            "index": 0, "text": reply.answer.text(), "logprobs": null, "finish_reason": reply.answer.finish_reason(),
            "stop_reason": null, "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null,
            "routed_experts": null,
        });
        let mut body = body(reply, json!([choice]));
        body["service_tier"] = Value::Null;
        body["system_fingerprint"] = FINGERPRINT.into();
        body["usage"] = usage;
        for name in ["kv_transfer_params", "ec_transfer_params", "metrics"] {
            body[name] = Value::Null;
        }
        body
    }

    fn token(&mut self, reply: &Reply, at: usize) -> String {
        let finish = reply.finish_after(at);
        let choice = json!({
            "index": 0, "text": reply.answer.tokens[at].text, "logprobs": null, "finish_reason": finish,
            "stop_reason": null, "prompt_token_ids": null, "token_ids": null,
        });
        openai_event(reply, body(reply, json!([choice])), finish.is_some())
    }

    fn end(&mut self, reply: &Reply, usage: &Usage) -> String {
        let usage = openai_usage(usage, json!({"cached_tokens": usage.cached}));
        openai_end(reply, body(reply, json!([])), usage)
    }
}

fn body(reply: &Reply, choices: Value) -> Value {
    json!({
        "id": format!("cmpl-{}", reply.id), "object": "text_completion", "created": reply.created,
        "model": reply.model, "choices": choices,
    })
}
