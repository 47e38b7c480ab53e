//! The APIs other than chat, and scripts.

use super::*;

fn script(lines: &[Value]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(file.path(), text.join("\n")).unwrap();
    file
}

fn call(name: &str, arguments: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "arguments": arguments}})
}

#[tokio::test]
async fn completions_continue_their_prompt_and_find_it_again() {
    let server = start(fast()).await;
    let prompt = "twelve bytes".repeat(40);
    let body = json!({"prompt": prompt, "max_tokens": 40, "ignore_eos": true});
    let whole = post(&server, "/v1/completions", &body).await;
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    let mut again = json!({"prompt": prompt + &text, "max_tokens": 4});
    again["stream_options"] = json!({"include_usage": true});
    let events = events(&stream(&server, "/v1/completions", &again).await);
    assert_eq!(events.len(), 4 + 1);
    assert_eq!(events[0]["object"], "text_completion");
    assert_eq!(events[3]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[4]["choices"], json!([]));
    assert_eq!(events[4]["usage"]["prompt_tokens"], 160);
    assert_eq!(events[4]["usage"]["prompt_tokens_details"]["cached_tokens"], 144);
    let default = json!({"prompt": ["a text"], "ignore_eos": true});
    let default = post(&server, "/v1/completions", &default).await;
    assert_eq!(default["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn a_script_answers_each_step_and_its_tool_calls_are_found_again() {
    let file = script(&[
        json!("THOUGHT: look.\n\n```bash\nls -la\n```"),
        json!({"role": "assistant", "content": null, "tool_calls": [call("bash", "{\"command\": \"ls \u{e9}\"}")]}),
        json!("```bash\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n```"),
    ]);
    let server = start(EngineConfig { script: Some(file.path().into()), ..fast() }).await;
    let mut messages = vec![user("fix it")];
    let first = post(&server, CHAT, &json!({"messages": messages})).await;
    assert_eq!(first["choices"][0]["message"]["content"], "THOUGHT: look.\n\n```bash\nls -la\n```");
    assert_eq!(first["choices"][0]["finish_reason"], "stop");
    messages.push(first["choices"][0]["message"].clone());
    messages.push(user("output"));

    let second = post(&server, CHAT, &json!({"messages": messages})).await;
    let message = &second["choices"][0]["message"];
    assert_eq!(second["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(message["content"], Value::Null);
    let function = &message["tool_calls"][0]["function"];
    assert_eq!(function["name"], "bash");
    let streamed = events(&stream(&server, CHAT, &json!({"messages": messages})).await);
    let deltas = streamed.iter().map(|event| &event["choices"][0]["delta"]["tool_calls"][0]);
    let deltas: Vec<_> = deltas.filter(|delta| !delta.is_null()).collect();
    assert_eq!(deltas[0]["function"], json!({"name": "bash", "arguments": ""}));
    assert_eq!(deltas[0]["id"], message["tool_calls"][0]["id"]);
    let parts = deltas.iter().map(|delta| delta["function"]["arguments"].as_str().unwrap());
    assert_eq!(parts.collect::<String>(), function["arguments"].as_str().unwrap());

    let before = second["usage"]["total_tokens"].as_u64().unwrap() - 1;
    messages.push(message.clone());
    messages.push(json!({"role": "tool", "tool_call_id": "x", "content": "done ".repeat(40)}));
    let third = post(&server, CHAT, &json!({"messages": messages})).await;
    assert_eq!(third["usage"]["prompt_tokens_details"]["cached_tokens"], before / 16 * 16);
    let text = third["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("COMPLETE_TASK"));
}

#[tokio::test]
async fn a_broken_script_is_refused_with_its_line() {
    let file = script(&[json!("fine"), json!(7)]);
    let config = EngineConfig { script: Some(file.path().into()), ..fast() };
    let error = Server::start(config).await.err().expect("refused").to_string();
    assert!(error.ends_with("line 2: neither a string nor an object"), "{error}");
}

#[tokio::test]
async fn anthropics_messages_stream_blocks_that_make_up_the_whole_answer() {
    let file = script(&[json!({"content": "Let me look.", "tool_calls": [call("bash", "{\"a\":1}")]})]);
    let server = start(EngineConfig { script: Some(file.path().into()), ..fast() }).await;
    let body = json!({
        "model": "sim", "max_tokens": 100, "system": [{"type": "text", "text": "Be brief. ".repeat(20)}],
        "messages": [user("hello")],
    });
    let whole = post(&server, "/v1/messages", &body).await;
    assert_eq!(whole["stop_reason"], "tool_use");
    assert_eq!(whole["content"][0], json!({"type": "text", "text": "Let me look."}));
    assert_eq!(whole["content"][1]["input"], json!({"a": 1}));
    let text = stream(&server, "/v1/messages", &body).await;
    let events = events(&text);
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, kinds);
    let texts = events.iter().filter_map(|event| event["delta"]["text"].as_str());
    assert_eq!(texts.collect::<String>(), "Let me look.");
    let inputs = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str());
    assert_eq!(inputs.collect::<String>(), "{\"a\":1}");
    let usage = &events[events.len() - 2]["usage"];
    let cached = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert!(cached > 0);
    let input = usage["input_tokens"].as_u64().unwrap();
    let counted = post(&server, "/v1/messages/count_tokens", &body).await;
    assert_eq!(counted["input_tokens"], input + cached);
    let refused = client().post(server.url() + "/v1/messages").json(&json!({"messages": []}));
    let refused = refused.send().await.unwrap();
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json::<Value>().await.unwrap()["type"], "error");
}

#[tokio::test]
async fn responses_stream_items_that_make_up_the_whole_answer() {
    let file = script(&[json!({"content": "Let me look.", "tool_calls": [call("bash", "{\"a\":1}")]})]);
    let server = start(EngineConfig { script: Some(file.path().into()), ..fast() }).await;
    let body = json!({"model": "sim", "instructions": "Be brief. ".repeat(20), "input": "hello"});
    let whole = post(&server, "/v1/responses", &body).await;
    assert_eq!(whole["status"], "completed");
    assert_eq!(whole["output"][0]["content"][0]["text"], "Let me look.");
    assert_eq!(whole["output"][1]["arguments"], "{\"a\":1}");
    let events = events(&stream(&server, "/v1/responses", &body).await);
    let numbers = events.iter().map(|event| event["sequence_number"].as_u64().unwrap());
    assert_eq!(numbers.collect::<Vec<_>>(), (0..events.len() as u64).collect::<Vec<_>>());
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    assert!(last["response"]["usage"]["input_tokens_details"]["cached_tokens"].as_u64() > Some(0));
    let text = |kind: &str| -> String {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.map(|event| event["delta"].as_str().unwrap()).collect()
    };
    assert_eq!(text("response.output_text.delta"), "Let me look.");
    assert_eq!(text("response.function_call_arguments.delta"), "{\"a\":1}");
    let mut items = vec![user("hello")];
    items.extend(whole["output"].as_array().unwrap().clone());
    items.push(json!({"type": "function_call_output", "call_id": "x", "output": "fine ".repeat(30)}));
    let next = json!({"instructions": body["instructions"], "input": items});
    let next = post(&server, "/v1/responses", &next).await;
    let known = whole["usage"]["total_tokens"].as_u64().unwrap() - 1;
    assert_eq!(next["usage"]["input_tokens_details"]["cached_tokens"], known / 16 * 16);
}

#[tokio::test]
async fn generate_streams_the_whole_text_so_far() {
    let server = start(fast()).await;
    let body = json!({"text": "Once upon a time", "sampling_params": {"max_new_tokens": 6, "ignore_eos": true}});
    let whole = post(&server, "/generate", &body).await;
    assert_eq!(whole["meta_info"]["finish_reason"], json!({"type": "length", "length": 6}));
    assert_eq!(whole["meta_info"]["prompt_tokens"], 4);
    let events = events(&stream(&server, "/generate", &body).await);
    assert_eq!(events.len(), 6);
    assert_eq!(events[5]["text"], whole["text"]);
    assert_eq!(events[5]["output_ids"].as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn tokens_go_there_and_back() {
    let server = start(fast()).await;
    let text = "na\u{ef}ve \u{1f980} text";
    let tokens = post(&server, "/tokenize", &json!({"prompt": text})).await;
    let count = tokens["tokens"].as_array().unwrap().len();
    assert_eq!(tokens["count"], count);
    let back = post(&server, "/detokenize", &json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(back["prompt"], text);
}
