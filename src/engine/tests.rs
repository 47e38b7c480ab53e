use super::cost::Costs;
use super::*;
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

fn fast() -> EngineConfig {
    EngineConfig::default()
}

/// An engine that would take hours for a long answer.
fn slow() -> EngineConfig {
    let mut config = fast();
    config.shape.costs = Costs::simple(1e6, 1000.0);
    config
}

async fn start(config: EngineConfig) -> Server {
    Server::start(config).await.expect("started")
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn post(server: &Server, path: &str, body: &Value) -> Value {
    let answer = client().post(server.url() + path).json(body).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// The whole of a streamed answer.
async fn stream(server: &Server, path: &str, body: &Value) -> String {
    let mut body = body.clone();
    body["stream"] = true.into();
    let answer = client().post(server.url() + path).json(&body).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(kind, "text/event-stream; charset=utf-8");
    answer.text().await.unwrap()
}

/// The JSON of each `data:` line but `[DONE]`.
fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let data = data.filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, waiting)
        .await
        .expect("the condition came true");
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn ask(text: &str, max_tokens: u64) -> Value {
    json!({"model": "sim", "messages": [user(text)], "max_tokens": max_tokens, "ignore_eos": true})
}

/// Keys in their order, with the kind of each value in its place.
fn skeleton(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), skeleton(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(skeleton).collect::<Vec<_>>().into(),
        Value::String(_) => "string".into(),
        Value::Number(_) => "number".into(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn a_chat_answer_has_the_shape_of_vllms() {
    let sample = include_str!("../../tests/samples/vllm-0.32-chat.json");
    let sample: Value = serde_json::from_str(sample).unwrap();
    let server = start(fast()).await;
    let answer = post(&server, CHAT, &ask("hello", 12)).await;
    assert_eq!(skeleton(&answer).to_string(), skeleton(&sample).to_string());
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_streamed_chat_answer_has_the_shape_of_vllms_event_by_event() {
    let sample = include_str!("../../tests/samples/vllm-0.32-chat-stream.txt");
    let server = start(fast()).await;
    let mut body = ask("hello", 12);
    body["stream_options"] = json!({"include_usage": true});
    let text = stream(&server, CHAT, &body).await;
    assert!(text.ends_with("data: [DONE]\n\n"));
    let shapes = |text| -> Vec<String> {
        events(text)
            .iter()
            .map(|event| skeleton(event).to_string())
            .collect()
    };
    assert_eq!(shapes(&text), shapes(sample));
}

#[tokio::test]
async fn usage_is_streamed_only_when_asked_for() {
    let server = start(fast()).await;
    let events = events(&stream(&server, CHAT, &ask("hello", 5)).await);
    assert_eq!(events.len(), 1 + 5);
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    assert!(events[5]["system_fingerprint"].is_string());
}

#[tokio::test]
async fn errors_are_vllms_to_the_byte() {
    let samples = include_str!("../../tests/samples/vllm-0.32-errors.json");
    let samples: Value = serde_json::from_str(samples).unwrap();
    let mut config = fast();
    config.model = "tiny".to_owned();
    config.max_model_len = Some(16384);
    let server = start(config).await;
    let chat = |more: Value| {
        let mut body = json!({"model": "tiny", "messages": [user("hello")]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let long = user(&"word".repeat(16384));
    let cases = [
        ("bad_json", r#"{"model": "tiny", "messages": ["#.to_owned()),
        ("empty_body", String::new()),
        ("not_object", "[1,2]".to_owned()),
        ("unknown_model", chat(json!({"model": "nope"}))),
        (
            "unknown_model_stream",
            chat(json!({"model": "nope", "stream": true})),
        ),
        ("missing_messages", r#"{"model":"tiny"}"#.to_owned()),
        ("too_long", chat(json!({"messages": [long]}))),
        (
            "too_long_stream",
            chat(json!({"messages": [long], "stream": true})),
        ),
        ("max_tokens_too_big", chat(json!({"max_tokens": 20000}))),
        ("max_tokens_0", chat(json!({"max_tokens": 0}))),
        ("temperature_bad", chat(json!({"temperature": -1}))),
        (
            "stream_options_no_stream",
            chat(json!({"stream_options": {"include_usage": true}})),
        ),
    ];
    let send = |method: &str, path: &str, kind: &str, body: String| {
        let method = method.parse().unwrap();
        let request = client().request(method, server.url() + path);
        request.header("content-type", kind).body(body).send()
    };
    let expect = async |name: &str, answer: reqwest::Response| {
        let sample = &samples[name];
        assert_eq!(answer.status().as_u16(), sample["status"], "{name}");
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(
            answer.text().await.unwrap(),
            sample["body"].as_str().unwrap(),
            "{name}"
        );
    };
    for (name, body) in cases {
        expect(
            name,
            send("POST", CHAT, "application/json", body).await.unwrap(),
        )
        .await;
    }
    expect(
        "bad_ct",
        send("POST", CHAT, "text/plain", chat(json!({})))
            .await
            .unwrap(),
    )
    .await;
    expect(
        "404",
        send("GET", "/nowhere", "application/json", String::new())
            .await
            .unwrap(),
    )
    .await;
    expect(
        "405",
        send("GET", CHAT, "application/json", String::new())
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(
        server.counters().prefix_queries,
        0,
        "none of them reached the model"
    );
}

#[tokio::test]
async fn a_conversation_finds_its_earlier_turns_and_replies_in_the_cache() {
    let server = start(fast()).await;
    let mut messages = vec![json!({"role": "system", "content": "You are a tester. ".repeat(40)})];
    let mut known = 0;
    for turn in 0..6 {
        messages.push(user(&format!(
            "Turn {turn}: {}",
            "caf\u{e9} \u{1f600} ".repeat(10)
        )));
        let body = json!({"messages": messages, "max_tokens": 60});
        let answer = post(&server, CHAT, &body).await;
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap();
        assert_eq!(cached, known / 16 * 16, "turn {turn}");
        messages.push(answer["choices"][0]["message"].clone());
        // The last token of a reply has no KV yet.
        known = usage["total_tokens"].as_u64().unwrap() - 1;
    }
    let counters = server.counters();
    assert!(counters.prefix_hits > counters.prefix_queries / 2);
}

#[tokio::test]
async fn the_same_seed_and_prompt_give_the_same_words_and_another_seed_others() {
    let other = EngineConfig { seed: 1, ..fast() };
    let (a, b, c) = (start(fast()).await, start(fast()).await, start(other).await);
    let body = json!({"messages": [user("hello")]});
    let (a, b) = (stream(&a, CHAT, &body).await, stream(&b, CHAT, &body).await);
    let c = stream(&c, CHAT, &body).await;
    let without_time = |text: &str| -> Vec<String> {
        let mut events = events(text);
        events
            .iter_mut()
            .for_each(|event| event["created"] = 0.into());
        events.iter().map(Value::to_string).collect()
    };
    assert_eq!(without_time(&a), without_time(&b));
    assert_ne!(without_time(&a), without_time(&c));
}

#[tokio::test]
async fn an_answer_has_the_length_asked_for_or_one_of_its_own() {
    let server = start(fast()).await;
    let usage = async |body: Value| {
        let answer = post(&server, CHAT, &body).await;
        let reason = answer["choices"][0]["finish_reason"]
            .as_str()
            .unwrap()
            .to_owned();
        (
            answer["usage"]["completion_tokens"].as_u64().unwrap(),
            reason,
        )
    };
    let length = "length".to_owned();
    assert_eq!(usage(ask("a", 333)).await, (333, length.clone()));
    assert_eq!(
        usage(json!({"messages": [user("a")], "max_completion_tokens": 3})).await,
        (3, length)
    );
    let (own, reason) = usage(json!({"messages": [user("a")]})).await;
    assert!((20..=200).contains(&own));
    assert_eq!(reason, "stop");
    let least = json!({"messages": [user("a")], "min_tokens": 500});
    assert_eq!(usage(least).await, (500, "stop".to_owned()));
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_aborts_its_request() {
    let server = start(slow()).await;
    let mut body = ask("hello", 1000);
    body["stream"] = true.into();
    let answer = client()
        .post(server.url() + CHAT)
        .json(&body)
        .send()
        .await
        .unwrap();
    until(|| server.gauges().running == 1).await;
    drop(answer);
    until(|| server.gauges().running == 0).await;
    assert_eq!(server.gauges().kv_usage, 0.0);
    assert_eq!(server.counters().aborted, 1);
    assert_eq!(server.received(), 1);
}

#[tokio::test]
async fn clients_that_leave_before_any_answer_abort_running_and_waiting_requests() {
    let mut config = slow();
    config.shape.max_num_seqs = 1;
    let server = start(config).await;
    let wait = async |body: Value| client().post(server.url() + CHAT).json(&body).send().await;
    {
        let first = wait(ask("one", 1000));
        let second = wait(ask("two", 1000));
        let leave = until(|| server.gauges().running == 1 && server.gauges().waiting == 1);
        tokio::select! {
            _ = first => panic!("answered"),
            _ = second => panic!("answered"),
            () = leave => {}
        }
    }
    until(|| server.gauges() == Default::default()).await;
    assert_eq!(server.counters().aborted, 2);
}

#[tokio::test]
async fn a_killed_server_breaks_its_streams_and_starts_again_empty_on_the_same_port() {
    let server = start(slow()).await;
    let mut body = ask("hello", 1000);
    body["stream"] = true.into();
    let answer = client()
        .post(server.url() + CHAT)
        .json(&body)
        .send()
        .await
        .unwrap();
    until(|| server.gauges().running == 1).await;
    let addr = server.addr;
    let server = server.restart().await.unwrap();
    assert!(answer.bytes().await.is_err(), "the stream broke off");
    assert_eq!(server.addr, addr);
    assert_eq!(server.received(), 0);
    assert_eq!(
        client()
            .get(server.url() + "/health")
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    server.kill().await;
    assert!(
        client()
            .get(format!("http://{addr}/health"))
            .send()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_stopped_server_finishes_its_streams_first() {
    let mut config = fast();
    config.shape.costs = Costs::simple(1e6, 20.0);
    let server = start(config).await;
    let mut body = ask("hello", 20);
    body["stream"] = true.into();
    let answer = client()
        .post(server.url() + CHAT)
        .json(&body)
        .send()
        .await
        .unwrap();
    let (text, ()) = tokio::join!(answer.text(), server.stop());
    assert!(text.unwrap().ends_with("data: [DONE]\n\n"));
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
    assert_eq!(
        events[4]["usage"]["prompt_tokens_details"]["cached_tokens"],
        144
    );
    let default = json!({"prompt": ["a text"], "ignore_eos": true});
    let default = post(&server, "/v1/completions", &default).await;
    assert_eq!(default["usage"]["completion_tokens"], 16);
}

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
async fn a_script_answers_each_step_and_its_tool_calls_are_found_again() {
    let file = script(&[
        json!("THOUGHT: look.\n\n```bash\nls -la\n```"),
        json!({"role": "assistant", "content": null, "tool_calls": [call("bash", "{\"command\": \"ls \u{e9}\"}")]}),
        json!("```bash\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n```"),
    ]);
    let server = start(EngineConfig {
        script: Some(file.path().into()),
        ..fast()
    })
    .await;
    let mut messages = vec![user("fix it")];
    let first = post(&server, CHAT, &json!({"messages": messages})).await;
    assert_eq!(
        first["choices"][0]["message"]["content"],
        "THOUGHT: look.\n\n```bash\nls -la\n```"
    );
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
    let deltas = streamed
        .iter()
        .map(|event| &event["choices"][0]["delta"]["tool_calls"][0]);
    let deltas: Vec<_> = deltas.filter(|delta| !delta.is_null()).collect();
    assert_eq!(
        deltas[0]["function"],
        json!({"name": "bash", "arguments": ""})
    );
    assert_eq!(deltas[0]["id"], message["tool_calls"][0]["id"]);
    let parts = deltas
        .iter()
        .map(|delta| delta["function"]["arguments"].as_str().unwrap());
    assert_eq!(
        parts.collect::<String>(),
        function["arguments"].as_str().unwrap()
    );

    let before = second["usage"]["total_tokens"].as_u64().unwrap() - 1;
    messages.push(message.clone());
    messages.push(json!({"role": "tool", "tool_call_id": "x", "content": "done ".repeat(40)}));
    let third = post(&server, CHAT, &json!({"messages": messages})).await;
    assert_eq!(
        third["usage"]["prompt_tokens_details"]["cached_tokens"],
        before / 16 * 16
    );
    let text = third["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("COMPLETE_TASK"));
}

#[tokio::test]
async fn a_broken_script_is_refused_with_its_line() {
    let file = script(&[json!("fine"), json!(7)]);
    let config = EngineConfig {
        script: Some(file.path().into()),
        ..fast()
    };
    let error = Server::start(config)
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.ends_with("line 2: neither a string nor an object"),
        "{error}"
    );
}

#[tokio::test]
async fn anthropics_messages_stream_blocks_that_make_up_the_whole_answer() {
    let file =
        script(&[json!({"content": "Let me look.", "tool_calls": [call("bash", "{\"a\":1}")]})]);
    let server = start(EngineConfig {
        script: Some(file.path().into()),
        ..fast()
    })
    .await;
    let body = json!({
        "model": "sim", "max_tokens": 100, "system": [{"type": "text", "text": "Be brief. ".repeat(20)}],
        "messages": [user("hello")],
    });
    let whole = post(&server, "/v1/messages", &body).await;
    assert_eq!(whole["stop_reason"], "tool_use");
    assert_eq!(
        whole["content"][0],
        json!({"type": "text", "text": "Let me look."})
    );
    assert_eq!(whole["content"][1]["input"], json!({"a": 1}));
    let text = stream(&server, "/v1/messages", &body).await;
    let events = events(&text);
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(
        kinds[kinds.len() - 3..],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(names, kinds);
    let texts = events
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str());
    assert_eq!(texts.collect::<String>(), "Let me look.");
    let inputs = events
        .iter()
        .filter_map(|event| event["delta"]["partial_json"].as_str());
    assert_eq!(inputs.collect::<String>(), "{\"a\":1}");
    let usage = &events[events.len() - 2]["usage"];
    let cached = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert!(cached > 0);
    let input = usage["input_tokens"].as_u64().unwrap();
    let counted = post(&server, "/v1/messages/count_tokens", &body).await;
    assert_eq!(counted["input_tokens"], input + cached);
    let refused = client()
        .post(server.url() + "/v1/messages")
        .json(&json!({"messages": []}));
    let refused = refused.send().await.unwrap();
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json::<Value>().await.unwrap()["type"], "error");
}

#[tokio::test]
async fn responses_stream_items_that_make_up_the_whole_answer() {
    let file =
        script(&[json!({"content": "Let me look.", "tool_calls": [call("bash", "{\"a\":1}")]})]);
    let server = start(EngineConfig {
        script: Some(file.path().into()),
        ..fast()
    })
    .await;
    let body = json!({"model": "sim", "instructions": "Be brief. ".repeat(20), "input": "hello"});
    let whole = post(&server, "/v1/responses", &body).await;
    assert_eq!(whole["status"], "completed");
    assert_eq!(whole["output"][0]["content"][0]["text"], "Let me look.");
    assert_eq!(whole["output"][1]["arguments"], "{\"a\":1}");
    let events = events(&stream(&server, "/v1/responses", &body).await);
    let numbers = events
        .iter()
        .map(|event| event["sequence_number"].as_u64().unwrap());
    assert_eq!(
        numbers.collect::<Vec<_>>(),
        (0..events.len() as u64).collect::<Vec<_>>()
    );
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(
        last["response"]["usage"]["total_tokens"],
        whole["usage"]["total_tokens"]
    );
    assert!(last["response"]["usage"]["input_tokens_details"]["cached_tokens"].as_u64() > Some(0));
    let text = |kind: &str| -> String {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind
            .map(|event| event["delta"].as_str().unwrap())
            .collect()
    };
    assert_eq!(text("response.output_text.delta"), "Let me look.");
    assert_eq!(text("response.function_call_arguments.delta"), "{\"a\":1}");
    let mut items = vec![user("hello")];
    items.extend(whole["output"].as_array().unwrap().clone());
    items.push(
        json!({"type": "function_call_output", "call_id": "x", "output": "fine ".repeat(30)}),
    );
    let next = json!({"instructions": body["instructions"], "input": items});
    let next = post(&server, "/v1/responses", &next).await;
    let known = whole["usage"]["total_tokens"].as_u64().unwrap() - 1;
    assert_eq!(
        next["usage"]["input_tokens_details"]["cached_tokens"],
        known / 16 * 16
    );
}

#[tokio::test]
async fn generate_streams_the_whole_text_so_far() {
    let server = start(fast()).await;
    let body = json!({"text": "Once upon a time", "sampling_params": {"max_new_tokens": 6, "ignore_eos": true}});
    let whole = post(&server, "/generate", &body).await;
    assert_eq!(
        whole["meta_info"]["finish_reason"],
        json!({"type": "length", "length": 6})
    );
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

#[tokio::test]
async fn metrics_have_the_names_and_values_a_scraper_reads() {
    let server = start(fast()).await;
    let prompt = "word".repeat(100);
    post(&server, CHAT, &ask(&prompt, 10)).await;
    post(&server, CHAT, &ask(&prompt, 10)).await;
    let page = client()
        .get(server.url() + "/metrics")
        .send()
        .await
        .unwrap();
    assert!(
        page.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    let page = page.text().await.unwrap();
    for line in [
        "vllm:num_requests_running{engine=\"0\",model_name=\"sim\"} 0.0",
        "vllm:num_requests_waiting{engine=\"0\",model_name=\"sim\"} 0.0",
        "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim\"} 0.0",
        "vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"sim\"} 204.0",
        "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"sim\"} 96.0",
        "vllm:num_preemptions_total{engine=\"0\",model_name=\"sim\"} 0.0",
        "vllm:prompt_tokens_total{engine=\"0\",model_name=\"sim\"} 204.0",
        "vllm:prompt_tokens_by_source_total{engine=\"0\",model_name=\"sim\",source=\"local_compute\"} 108.0",
        "vllm:prompt_tokens_by_source_total{engine=\"0\",model_name=\"sim\",source=\"local_cache_hit\"} 96.0",
        "vllm:generation_tokens_total{engine=\"0\",model_name=\"sim\"} 20.0",
        "vllm:request_success_total{engine=\"0\",finished_reason=\"length\",model_name=\"sim\"} 2.0",
        "vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"+Inf\",model_name=\"sim\"} 2.0",
        "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"sim\"} 2.0",
    ] {
        assert!(page.lines().any(|other| other == line), "{line}\n{page}");
    }
    assert!(page.contains("block_size=\"16\"") && page.contains("num_gpu_blocks=\"4096\""));
    assert!(page.contains("kv_cache_size_tokens=\"65536\""));
    assert!(page.contains("\nprocess_start_time_seconds "));
}

#[tokio::test]
async fn models_and_version_are_told() {
    let server = start(EngineConfig {
        max_model_len: Some(1000),
        ..fast()
    })
    .await;
    let get = async |path: &str| {
        let answer = client().get(server.url() + path).send().await.unwrap();
        answer.json::<Value>().await.unwrap()
    };
    let models = get("/v1/models").await;
    assert_eq!(models["data"][0]["id"], "sim");
    assert_eq!(models["data"][0]["max_model_len"], 1000);
    assert!(get("/version").await["version"].is_string());
}

#[test]
fn flags_are_checked() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    let parse = |line: &str| {
        let cli: Cli = clap::Parser::try_parse_from(line.split(' ')).unwrap();
        EngineConfig::try_from(cli.args)
    };
    let config = parse("engine --prefill-tps 5000 --decode-ms 10 --speed 2 --kv-blocks 9").unwrap();
    assert_eq!(config.shape.costs, Costs::simple(10_000.0, 5.0));
    assert_eq!(config.shape.kv_blocks, 9);
    for wrong in [
        "--speed 0",
        "--prefill-tps -1",
        "--decode-ms NaN",
        "--kv-blocks 1",
    ] {
        let flag = &wrong[..wrong.find(' ').unwrap()];
        let line = format!("engine {}", wrong.replacen(' ', "=", 1));
        let error = parse(&line).expect_err(wrong).to_string();
        assert!(error.starts_with(flag), "{error}");
    }
}
