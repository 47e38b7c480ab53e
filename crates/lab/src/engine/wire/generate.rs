//! SGLang's native `/generate`: each event carries the whole text so far.

use super::{Reply, Wire, data};
use crate::engine::model::Usage;
use serde_json::{Value, json};

#[derive(Default)]
pub(in crate::engine) struct Generate {
    text: String,
}

impl Wire for Generate {
    fn whole(&self, reply: &Reply, usage: &Usage) -> Value {
        let count = reply.answer.tokens.len();
        body(reply, &reply.answer.text(), count, Some(usage))
    }

    /// The event of the last token is not written here: it needs the usage, so `end` writes it.
    fn token(&mut self, reply: &Reply, at: usize) -> String {
        self.text.push_str(&reply.answer.tokens[at].text);
        if reply.finish_after(at).is_some() {
            return String::new();
        }
        data(body(reply, &self.text, at + 1, None))
    }

    fn end(&mut self, reply: &Reply, usage: &Usage) -> String {
        data(self.whole(reply, usage)) + &data("[DONE]")
    }
}

fn body(reply: &Reply, text: &str, count: usize, done: Option<&Usage>) -> Value {
    let tokens = reply.answer.tokens[..count].iter();
    let ids: Vec<u64> = tokens.map(|token| token.id).collect();
    let finish = done.map(|_| match reply.answer.finish_reason() {
        "length" => json!({"type": "length", "length": count}),
        _ => json!({"type": "stop"}),
    });
    json!({
        "text": text,
        "output_ids": ids,
        "meta_info": {
            "id": reply.id, "finish_reason": finish, "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": count, "cached_tokens": done.map_or(0, |usage| usage.cached),
        },
    })
}
