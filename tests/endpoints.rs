//! Every endpoint that generates: an answer of a real vLLM comes back byte for byte, its usage is counted, and its
//! program is known, with an id or without.
//!
//! The answers in `vllm-0.32-endpoints.json` were recorded by `tests/real/record_answers.py`.

mod support;

use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::backend::{Backend, Exchange};
use support::client::Client;
use support::proxy::{Proxy, config};
use support::within;
use thundergate::config::Anonymous;

const RECORDED: &str = include_str!("samples/vllm-0.32-endpoints.json");
const ASKED: &str = ",\"stream_options\":{\"include_usage\":true}}";
const CHAT: &str = "/v1/chat/completions";

struct Case {
    name: String,
    path: String,
    request: Value,
    status: u16,
    kind: String,
    answer: String,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Value> = serde_json::from_str(RECORDED).expect("JSON");
    let text = |case: &Value, key: &str| case[key].as_str().expect("a text").to_owned();
    let case = |case: Value| Case {
        name: text(&case, "name"),
        path: text(&case, "path"),
        status: case["status"].as_u64().expect("a status") as u16,
        kind: text(&case, "type"),
        answer: text(&case, "answer"),
        request: case["request"].clone(),
    };
    cases.into_iter().map(case).collect()
}

/// `id` and `created` of an answer, as they are written.
fn marks(answer: &str) -> [&str; 2] {
    ["\"id\":\"", "\"created\":"].map(|key| {
        let value = &answer[answer.find(key).expect(key) + key.len()..];
        &value[..value.find(['"', ',']).expect("more")]
    })
}

/// Prompt, cached and output tokens of an answer, wherever the answer has them.
fn counts(answer: &str) -> [u64; 3] {
    let last = |key: &str| {
        let values = answer.match_indices(key).map(|(at, _)| &answer[at + key.len()..]);
        let numbers = values.filter_map(|value| value.split([',', '}']).next()?.parse::<u64>().ok());
        numbers.last().unwrap_or(0)
    };
    let cached = last("\"cached_tokens\":").max(last("\"cache_read_input_tokens\":"));
    let outside = last("\"cache_read_input_tokens\":");
    let prompt = last("\"prompt_tokens\":").max(last("\"input_tokens\":") + outside);
    [prompt, cached, last("\"completion_tokens\":").max(last("\"output_tokens\":"))]
}

/// Waits until the metric has this value. The proxy counts a little after the client has its answer.
async fn metric_is(proxy: &Proxy, name: &str, expected: u64) {
    let mut client = proxy.client().await;
    within(&format!("{expected} {name}"), async {
        loop {
            client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\n\r\n").await;
            let response = client.response().await;
            // The metric has one line for each model.
            let lines = response.text().lines().filter(|line| line.starts_with(name));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            let value: u64 = values.sum();
            if value == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_vllm_answers_on_every_endpoint_comes_back_byte_for_byte_and_is_counted() {
    let all = cases();
    assert_eq!(all.len(), 18);
    for case in &all {
        let mut backend = Backend::start().await;
        let proxy = Proxy::start(&[&backend]).await;
        let mut client = proxy.client().await;
        let request = case.request.to_string();
        client.post(&case.path, "", format!("{{\"program_id\":\"p\",{}", &request[1..]).as_bytes()).await;
        let exchange = backend.next().await;
        let streamed = case.request["stream"] == true;
        let quiet = streamed && case.request["stream_options"].is_null();
        let added = quiet && case.path.contains("completions");
        let sent = if added { format!("{}{ASKED}", &request[..request.len() - 1]) } else { request };
        assert_eq!(exchange.request.text(), sent, "{}", case.name);
        // If the proxy asks for usage, vLLM gives the same answer as to a client that asks.
        let asked = all.iter().find(|other| added && other.name == format!("{} with usage", case.name));
        let answer = asked.map_or(&case.answer, |asked| &asked.answer);
        let expected = match asked {
            None => case.answer.clone(),
            Some(_) => marks(&case.answer)
                .iter()
                .zip(marks(answer))
                .fold(case.answer.clone(), |text, (old, new)| text.replace(old, new)),
        };
        if case.kind.starts_with("text/event-stream") {
            let mut stream = exchange.chunks(case.status, &case.kind).await;
            for piece in answer.as_bytes().chunks(61) {
                stream.send(piece).await;
            }
            stream.finish().await;
        } else {
            exchange.whole(case.status, &case.kind, answer.as_bytes()).await;
        }
        let response = client.response().await;
        assert!(response.complete);
        assert_eq!((response.status(), response.text()), (case.status, &*expected), "{}", case.name);
        assert_eq!(response.header("content-type").as_deref(), Some(&*case.kind));
        proxy.settled().await;
        let [prompt, cached, output] = counts(answer);
        assert_eq!(case.status == 200, prompt > 0 && cached > 0 && output > 0, "{}", case.name);
        let programs = proxy.app.gate.programs();
        let contexts: Vec<u64> = programs.iter().map(|(_, program)| program.context.0).collect();
        let expected = if case.status == 200 { vec![prompt + output] } else { vec![] };
        assert_eq!(contexts, expected, "{}", case.name);
        for (name, expected) in [("prompt", prompt), ("cached", cached), ("completion", output)] {
            metric_is(&proxy, &format!("thundergate_{name}_tokens_total"), expected).await;
        }
    }
}

#[tokio::test]
async fn every_endpoint_finds_the_name_that_its_clients_write() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let session = "user_1_account_2_session_claude";
    let cases = [
        (CHAT, "", json!({"messages": [], "extra_body": {"program_id": "chat"}}), "chat"),
        ("/v1/completions", "x-session-id: text\r\n", json!({"prompt": "a"}), "text"),
        ("/v1/responses", "", json!({"input": "a", "prompt_cache_key": "codex"}), "codex"),
        ("/v1/messages", "", json!({"messages": [], "metadata": {"user_id": session}}), "claude"),
        ("/generate", "", json!({"text": "a", "program_id": 5}), "5"),
    ];
    for (path, headers, body, id) in cases {
        let mut client = proxy.client().await;
        client.post(path, headers, body.to_string().as_bytes()).await;
        backend.next().await.json(200, "{}").await;
        assert_eq!(client.response().await.status(), 200);
        let programs = proxy.app.gate.programs();
        assert!(programs.iter().any(|(_, program)| &*program.key.id == id), "{path}");
    }
}

/// An agent that sends no program id.
struct Agent {
    client: Client,
    messages: Vec<Value>,
}

impl Agent {
    async fn new(proxy: &Proxy, task: &str) -> Self {
        let system = json!({"role": "system", "content": "You are an agent."});
        Self { client: proxy.client().await, messages: vec![system, json!({"role": "user", "content": task})] }
    }

    async fn ask(&mut self) {
        let body = json!({"model": "tiny", "stream": true, "max_tokens": 10, "messages": self.messages});
        self.client.post(CHAT, "", body.to_string().as_bytes()).await;
    }

    /// Reads the answer. Gives the backend that it came from.
    async fn hear(&mut self, said: &str) -> String {
        let response = self.client.response().await;
        assert_eq!(response.status(), 200, "{}", response.text());
        self.messages.push(json!({"role": "assistant", "content": said}));
        self.messages.push(json!({"role": "user", "content": "output"}));
        response.header("x-thundergate-backend").expect("a backend")
    }
}

async fn say(exchange: Exchange, said: &str) {
    let mut answer = exchange.events().await;
    let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]}).to_string();
    answer.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    answer.event(&delta(json!({"content": said}))).await;
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 5}});
    answer.event(&usage.to_string()).await;
    answer.event("[DONE]").await;
    answer.finish().await;
}

#[tokio::test]
async fn agents_without_an_id_stay_on_their_backends() {
    let (mut a, mut b) = (Backend::start().await, Backend::start().await);
    let mut config = config(&[&a, &b]);
    config.programs.anonymous = Anonymous::Fingerprint;
    let proxy = Proxy::with(config).await;
    let mut agents = Vec::new();
    // Three of the agents have the same task.
    for task in ["task", "task", "task", "another"] {
        agents.push(Agent::new(&proxy, task).await);
    }
    let mut homes = vec![String::new(); agents.len()];
    for round in 0..4 {
        // All agents ask at once, in another order each time.
        let mut exchanges = Vec::new();
        for turn in 0..agents.len() {
            let at = (turn * 3 + round) % agents.len();
            agents[at].ask().await;
            let exchange = tokio::select! {
                exchange = a.next() => exchange,
                exchange = b.next() => exchange,
            };
            exchanges.push((at, exchange));
        }
        for (at, exchange) in exchanges {
            let said = format!("{round} {at}");
            say(exchange, &said).await;
            let home = agents[at].hear(&said).await;
            assert!(round == 0 || home == homes[at], "agent {at} in round {round}");
            homes[at] = home;
        }
    }
    proxy.settled().await;
    let programs = proxy.app.gate.programs();
    assert_eq!(programs.len(), agents.len());
    for (_, program) in &programs {
        assert!(program.key.id.starts_with("fp-") && program.steps == 4, "{program:?}");
    }
    assert!(homes.iter().any(|home| *home != homes[0]), "two backends were used");
    metric_is(&proxy, "thundergate_identity_source_total{source=\"fingerprint\"}", 16).await;
}

#[tokio::test]
async fn an_agent_without_an_id_is_held_while_it_does_not_fit() {
    let mut backend = Backend::start().await;
    // There is room for one such step.
    backend.state.blocks.store(100, Ordering::Relaxed);
    let mut config = config(&[&backend]);
    config.programs.anonymous = Anonymous::Fingerprint;
    let proxy = Proxy::with(config).await;
    let mut first = Agent::new(&proxy, &"x".repeat(4_000)).await;
    let mut second = Agent::new(&proxy, &"y".repeat(4_000)).await;
    first.ask().await;
    let running = backend.next().await;
    second.ask().await;
    proxy.wait_for("the second to be held", || proxy.app.gate.held_steps() == 1).await;
    assert!(backend.is_quiet());
    let programs = proxy.app.gate.programs();
    say(running, "done").await;
    first.hear("done").await;
    let ended = programs.iter().find(|(_, program)| program.in_flight > 0).expect("the first");
    let release = json!({"program_id": &*ended.1.key.id}).to_string();
    first.client.post("/programs/release", "", release.as_bytes()).await;
    assert_eq!(first.client.response().await.json()["released"], true);
    say(backend.next().await, "done").await;
    second.hear("done").await;
    proxy.settled().await;
}

#[tokio::test]
async fn a_response_that_goes_on_by_name_belongs_to_the_program_of_the_one_before() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.programs.anonymous = Anonymous::Fingerprint;
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    let all = cases();
    let mut before = Value::Null;
    for name in ["responses, streamed", "responses"] {
        let case = all.iter().find(|case| case.name == name).expect(name);
        let body = json!({"model": "tiny", "input": "go on", "previous_response_id": before}).to_string();
        client.post("/v1/responses", "", body.as_bytes()).await;
        backend.next().await.whole(200, &case.kind, case.answer.as_bytes()).await;
        assert_eq!(client.response().await.status(), 200);
        before = json!(marks(&case.answer.replace("\"created_at\"", "\"created\""))[0]);
    }
    proxy.settled().await;
    let programs = proxy.app.gate.programs();
    assert_eq!(programs.len(), 1);
    assert_eq!(programs[0].1.steps, 2);
}
