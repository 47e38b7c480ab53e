//! The content of each API's request body, in tokens.

use super::chain::TokenId;
use super::error::ApiError;
use super::token::{pieces, special, token_of};
use serde_json::Value;

/// A prompt as the model sees it.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    pub tokens: Vec<TokenId>,
    /// Number of the assistant's messages in the prompt, which tells the step of the conversation.
    pub replies: usize,
}

// === impl Prompt ===

impl Prompt {
    /// Reads a body of `/v1/chat/completions`, or of `/tokenize` with messages.
    pub(super) fn chat(body: &Value) -> Result<Self, ApiError> {
        let mut prompt = Self::default();
        prompt.tools(body);
        for message in list(body, "messages")? {
            prompt.message(message);
        }
        Ok(prompt.ready())
    }

    /// Reads a body of `/v1/messages`.
    pub(super) fn anthropic(body: &Value) -> Result<Self, ApiError> {
        let mut prompt = Self::default();
        prompt.tools(body);
        if !body["system"].is_null() {
            prompt.role("system");
            prompt.content(&body["system"]);
        }
        for message in list(body, "messages")? {
            prompt.message(message);
        }
        Ok(prompt.ready())
    }

    /// Reads a body of `/v1/responses`.
    pub(super) fn responses(body: &Value) -> Result<Self, ApiError> {
        let mut prompt = Self::default();
        prompt.tools(body);
        if let Some(text) = body["instructions"].as_str() {
            prompt.role("system");
            prompt.text(text);
        }
        match &body["input"] {
            Value::String(text) => {
                prompt.role("user");
                prompt.text(text);
            }
            Value::Array(items) => prompt.items(items),
            _ => return Err(ApiError::missing("input", body)),
        }
        Ok(prompt.ready())
    }

    /// Reads a body of `/v1/completions`, or of `/tokenize` with a prompt. The field `field` is a text, its tokens, or
    /// a list of one of these.
    pub(super) fn raw(body: &Value, field: &str) -> Result<Self, ApiError> {
        let mut prompt = Self::default();
        let mut value = &body[field];
        if let Value::Array(items) = value
            && matches!(items.first(), Some(Value::String(_) | Value::Array(_)))
        {
            if items.len() > 1 {
                let message = "This server takes one prompt per request.".to_owned();
                return Err(ApiError::bad_parameter(message, field));
            }
            value = &items[0];
        }
        match value {
            Value::String(text) => prompt.text(text),
            Value::Array(ids) => prompt.tokens = ids.iter().filter_map(Value::as_u64).collect(),
            _ => return Err(ApiError::missing(field, body)),
        }
        Ok(prompt)
    }

    fn ready(mut self) -> Self {
        self.tokens.push(special("assistant"));
        self
    }

    fn role(&mut self, role: &str) {
        self.replies += usize::from(role == "assistant");
        self.tokens.push(special(role));
    }

    fn text(&mut self, text: &str) {
        self.tokens.extend(pieces(text).map(token_of));
    }

    fn json(&mut self, value: &Value) {
        self.text(&value.to_string());
    }

    fn tools(&mut self, body: &Value) {
        if let Value::Array(tools) = &body["tools"]
            && !tools.is_empty()
        {
            self.tokens.push(special("tools"));
            tools.iter().for_each(|tool| self.json(tool));
        }
    }

    fn message(&mut self, message: &Value) {
        self.role(message["role"].as_str().unwrap_or("user"));
        self.content(&message["content"]);
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            self.call(&call["function"]["name"], &call["function"]["arguments"]);
        }
    }

    /// Adds a text, or a list of parts. Of the parts, texts, tool calls and tool results are known.
    fn content(&mut self, content: &Value) {
        match content {
            Value::Null => {}
            Value::String(text) => self.text(text),
            Value::Array(parts) => parts.iter().for_each(|part| self.part(part)),
            other => self.json(other),
        }
    }

    fn part(&mut self, part: &Value) {
        match (part["type"].as_str(), &part["text"]) {
            (Some("tool_use"), _) => self.call(&part["name"], &part["input"]),
            (Some("tool_result"), _) => {
                self.tokens.push(special("tool"));
                self.content(&part["content"]);
            }
            (_, Value::String(text)) => self.text(text),
            _ => self.json(part),
        }
    }

    /// Adds items of the Responses API. Several items in a row of the assistant are one reply.
    fn items(&mut self, items: &[Value]) {
        let mut replying = false;
        for item in items {
            let kind = item["type"].as_str();
            let role = item["role"].as_str();
            let own = kind == Some("function_call") || role == Some("assistant");
            match (kind, role) {
                _ if own && replying => {}
                (Some("function_call"), _) => self.role("assistant"),
                (Some("function_call_output"), _) => self.role("tool"),
                _ => self.role(role.unwrap_or("user")),
            }
            replying = own;
            match kind {
                Some("function_call") => self.call(&item["name"], &item["arguments"]),
                Some("function_call_output") => self.content(&item["output"]),
                _ => self.content(&item["content"]),
            }
        }
    }

    fn call(&mut self, name: &Value, arguments: &Value) {
        self.tokens.push(call_token(name.as_str().unwrap_or("")));
        self.text(&canonical(arguments));
    }
}

/// The token that opens a call of a tool.
pub(super) fn call_token(name: &str) -> TokenId {
    special(&format!("call {name}"))
}

/// The arguments of a call in one spelling, whether they came as an object or as the text of an object.
pub(super) fn canonical(arguments: &Value) -> String {
    match arguments {
        Value::Null => String::new(),
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(value) => value.to_string(),
            Err(_) => text.clone(),
        },
        other => other.to_string(),
    }
}

fn list<'a>(body: &'a Value, field: &str) -> Result<&'a Vec<Value>, ApiError> {
    body[field].as_array().ok_or_else(|| ApiError::missing(field, body))
}
