//! `/v1/completions`.

use super::{FINGERPRINT, Reply, Wire, data};
use crate::engine::model::Usage;
use serde_json::{Value, json};

pub(in crate::engine) struct Completion;

impl Wire for Completion {
    fn whole(&self, reply: &Reply, usage: &Usage) -> Value {
        let mut body = body(
            reply,
            json!([{
                "index": 0,
                "text": reply.answer.text(),
                "logprobs": null,
                "finish_reason": reply.answer.finish_reason(),
                "stop_reason": null,
                "token_ids": null,
                "prompt_logprobs": null,
                "prompt_token_ids": null,
                "routed_experts": null,
            }]),
        );
        body["service_tier"] = Value::Null;
        body["system_fingerprint"] = FINGERPRINT.into();
        body["usage"] = json!({
            "prompt_tokens": usage.prompt,
            "total_tokens": usage.prompt + usage.output,
            "completion_tokens": usage.output,
            "prompt_tokens_details": {
                "cached_tokens": usage.cached,
                "created_cache_tokens": null,
                "multimodal_tokens": null,
            },
            "completion_tokens_details": null,
        });
        body["kv_transfer_params"] = Value::Null;
        body["ec_transfer_params"] = Value::Null;
        body["metrics"] = Value::Null;
        body
    }

    fn token(&mut self, reply: &Reply, at: usize) -> String {
        let finish = reply.finish_after(at);
        let mut chunk = body(
            reply,
            json!([{
                "index": 0,
                "text": reply.answer.tokens[at].text,
                "logprobs": null,
                "finish_reason": finish,
                "stop_reason": null,
                "prompt_token_ids": null,
                "token_ids": null,
            }]),
        );
        if finish.is_some() && !reply.include_usage {
            chunk["system_fingerprint"] = FINGERPRINT.into();
        }
        data(chunk)
    }

    fn end(&mut self, reply: &Reply, usage: &Usage) -> String {
        let mut out = String::new();
        if reply.include_usage {
            let mut chunk = body(reply, json!([]));
            chunk["usage"] = json!({
                "prompt_tokens": usage.prompt,
                "total_tokens": usage.prompt + usage.output,
                "completion_tokens": usage.output,
                "prompt_tokens_details": {"cached_tokens": usage.cached},
            });
            chunk["system_fingerprint"] = FINGERPRINT.into();
            out = data(chunk);
        }
        out + &data("[DONE]")
    }
}

fn body(reply: &Reply, choices: Value) -> Value {
    json!({
        "id": format!("cmpl-{}", reply.id),
        "object": "text_completion",
        "created": reply.created,
        "model": reply.model,
        "choices": choices,
    })
}
