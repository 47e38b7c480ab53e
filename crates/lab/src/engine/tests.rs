mod apis;
mod life;

use super::cost::Costs;
use super::*;
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

fn fast() -> EngineConfig {
    EngineConfig::default()
}

/// Settings of an engine that would take hours for a long answer.
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

/// The whole text of a streamed answer.
async fn stream(server: &Server, path: &str, body: &Value) -> String {
    let mut body = body.clone();
    body["stream"] = true.into();
    let answer = client().post(server.url() + path).json(&body).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert_eq!(kind, "text/event-stream; charset=utf-8");
    answer.text().await.unwrap()
}

/// The JSON of each `data:` line except `[DONE]`.
fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let data = data.filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, waiting).await.expect("the condition came true");
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn ask(text: &str, max_tokens: u64) -> Value {
    json!({"model": "sim", "messages": [user(text)], "max_tokens": max_tokens, "ignore_eos": true})
}

/// The keys in their order, each with the kind of its value.
fn skeleton(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), skeleton(value))).collect::<serde_json::Map<_, _>>().into()
        }
        Value::Array(items) => items.iter().map(skeleton).collect::<Vec<_>>().into(),
        Value::String(_) => "string".into(),
        Value::Number(_) => "number".into(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn a_chat_answer_has_the_shape_of_vllms() {
    let sample = include_str!("../../../../tests/samples/vllm-0.32-chat.json");
    let sample: Value = serde_json::from_str(sample).unwrap();
    let server = start(fast()).await;
    let answer = post(&server, CHAT, &ask("hello", 12)).await;
    assert_eq!(skeleton(&answer).to_string(), skeleton(&sample).to_string());
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_streamed_chat_answer_has_the_shape_of_vllms_event_by_event() {
    let sample = include_str!("../../../../tests/samples/vllm-0.32-chat-stream.txt");
    let server = start(fast()).await;
    let mut body = ask("hello", 12);
    body["stream_options"] = json!({"include_usage": true});
    let text = stream(&server, CHAT, &body).await;
    assert!(text.ends_with("data: [DONE]\n\n"));
    let shapes = |text| -> Vec<String> { events(text).iter().map(|event| skeleton(event).to_string()).collect() };
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
    let samples = include_str!("../../../../tests/samples/vllm-0.32-errors.json");
    let samples: Value = serde_json::from_str(samples).unwrap();
    let mut config = fast();
    config.model = "tiny".to_owned();
    config.max_model_len = Some(16384);
    let server = start(config).await;
    let chat = |more: Value| {
        let mut body = json!({"model": "tiny", "messages": [user("hello")]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let long = user(&"word".repeat(16384));
    let cases = [
        ("bad_json", r#"{"model": "tiny", "messages": ["#.to_owned()),
        ("empty_body", String::new()),
        ("not_object", "[1,2]".to_owned()),
        ("unknown_model", chat(json!({"model": "nope"}))),
        ("unknown_model_stream", chat(json!({"model": "nope", "stream": true}))),
        ("missing_messages", r#"{"model":"tiny"}"#.to_owned()),
        ("too_long", chat(json!({"messages": [long]}))),
        ("too_long_stream", chat(json!({"messages": [long], "stream": true}))),
        ("max_tokens_too_big", chat(json!({"max_tokens": 20000}))),
        ("max_tokens_0", chat(json!({"max_tokens": 0}))),
        ("temperature_bad", chat(json!({"temperature": -1}))),
        ("stream_options_no_stream", chat(json!({"stream_options": {"include_usage": true}}))),
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
        assert_eq!(answer.text().await.unwrap(), sample["body"].as_str().unwrap(), "{name}");
    };
    for (name, body) in cases {
        expect(name, send("POST", CHAT, "application/json", body).await.unwrap()).await;
    }
    expect("bad_ct", send("POST", CHAT, "text/plain", chat(json!({}))).await.unwrap()).await;
    expect("404", send("GET", "/nowhere", "application/json", String::new()).await.unwrap()).await;
    expect("405", send("GET", CHAT, "application/json", String::new()).await.unwrap()).await;
    assert_eq!(server.counters().prefix_queries, 0, "none of them reached the model");
}

#[tokio::test]
async fn a_conversation_finds_its_earlier_turns_and_replies_in_the_cache() {
    let server = start(fast()).await;
    let mut messages = vec![json!({"role": "system", "content": "You are a tester. ".repeat(40)})];
    let mut known = 0;
    for turn in 0..6 {
        messages.push(user(&format!("Turn {turn}: {}", "caf\u{e9} \u{1f600} ".repeat(10))));
        let body = json!({"messages": messages, "max_tokens": 60});
        let answer = post(&server, CHAT, &body).await;
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
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
        events.iter_mut().for_each(|event| event["created"] = 0.into());
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
        let reason = answer["choices"][0]["finish_reason"].as_str().unwrap().to_owned();
        (answer["usage"]["completion_tokens"].as_u64().unwrap(), reason)
    };
    let length = "length".to_owned();
    assert_eq!(usage(ask("a", 333)).await, (333, length.clone()));
    assert_eq!(usage(json!({"messages": [user("a")], "max_completion_tokens": 3})).await, (3, length));
    let (own, reason) = usage(json!({"messages": [user("a")]})).await;
    assert!((20..=200).contains(&own));
    assert_eq!(reason, "stop");
    let least = json!({"messages": [user("a")], "min_tokens": 500});
    assert_eq!(usage(least).await, (500, "stop".to_owned()));
}

#[tokio::test]
async fn metrics_have_the_names_and_values_a_scraper_reads() {
    let server = start(fast()).await;
    let prompt = "word".repeat(100);
    post(&server, CHAT, &ask(&prompt, 10)).await;
    post(&server, CHAT, &ask(&prompt, 10)).await;
    let page = client().get(server.url() + "/metrics").send().await.unwrap();
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
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
    let server = start(EngineConfig { max_model_len: Some(1000), ..fast() }).await;
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
    for wrong in ["--speed 0", "--prefill-tps -1", "--decode-ms NaN", "--kv-blocks 1"] {
        let flag = &wrong[..wrong.find(' ').unwrap()];
        let line = format!("engine {}", wrong.replacen(' ', "=", 1));
        let error = parse(&line).expect_err(wrong).to_string();
        assert!(error.starts_with(flag), "{error}");
    }
}
