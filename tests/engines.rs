//! Each kind of engine behind the whole proxy, on real sockets: programs stay on their backend and are held where they
//! do not fit, and the proxy knows the engine's load and the usage of its answers.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::client::Client;
use support::proxy::{Proxy, config, config_of};
use support::wire::Message;
use thundergate::config::{Config, Engine as Kind};
use thundergate::scheduler::ProgramKey;
use thundergate::server::Shutdown;
use thundergate_lab::engine::{EngineConfig, Flavor, Server, cost::Costs};

const CHAT: &str = "/v1/chat/completions";
const GENERATE: &str = "/generate";
const KINDS: [(Kind, Flavor); 4] = [
    (Kind::Vllm, Flavor::Vllm),
    (Kind::Sglang, Flavor::Sglang),
    (Kind::Skyrl, Flavor::Skyrl),
    (Kind::Openai, Flavor::Openai),
];

/// An engine with `blocks` blocks of 16 tokens, one of which is the null block.
async fn engine(flavor: Flavor, blocks: u32, decode_ms: f64) -> Server {
    let mut config = EngineConfig { flavor, ..EngineConfig::default() };
    config.shape.kv_blocks = blocks;
    config.shape.costs = Costs::simple(1e6, decode_ms);
    Server::start(config).await.unwrap()
}

fn before(kind: Kind, engines: &[&Server]) -> Config {
    let mut config = config_of(engines.iter().map(|engine| engine.url()));
    config.models[0].engine = kind;
    config.metrics.enabled = true;
    config.metrics.interval = Duration::from_millis(50);
    config
}

/// A step of the chat API with this many tokens of prompt and output.
fn chat(program: &str, prompt: usize, output: usize) -> Value {
    let content = "ash ".repeat(prompt);
    json!({"model": "sim", "program_id": program, "messages": [{"role": "user", "content": content}],
        "max_tokens": output, "ignore_eos": true})
}

async fn send(client: &mut Client, path: &str, body: &Value) {
    client.post(path, "", body.to_string().as_bytes()).await;
}

async fn ask(proxy: &Proxy, path: &str, body: &Value) -> Message {
    let mut client = proxy.client().await;
    send(&mut client, path, body).await;
    let answer = client.response().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer
}

async fn get(proxy: &Proxy, path: &str) -> Value {
    let mut client = proxy.client().await;
    client.get(path).await;
    client.response().await.json()
}

fn key(id: &str) -> ProgramKey {
    ProgramKey { tenant: "".into(), id: id.into() }
}

/// Checks that program `b` waits while `a` runs, and goes when `a` is over.
async fn b_waits_for_a(proxy: &Proxy, engine: &Server, path: &str, step: impl Fn(&str, usize) -> Value) {
    let mut a = proxy.client().await;
    send(&mut a, path, &step("a", 300)).await;
    proxy.wait_for("the first program to run", || engine.received() == 1).await;
    let mut b = proxy.client().await;
    send(&mut b, path, &step("b", 2)).await;
    proxy.wait_for("the second one to be held", || proxy.app.gate.held_steps() == 1).await;
    assert_eq!(engine.received(), 1);
    assert!(proxy.app.gate.release(&key("a")));
    drop(a);
    assert_eq!(b.response().await.status(), 200);
    proxy.balanced().await;
}

#[tokio::test]
async fn programs_of_every_engine_are_held_while_they_do_not_fit() {
    for (kind, flavor) in KINDS {
        let engine = engine(flavor, 65, 50.0).await;
        let mut config = before(kind, &[&engine]);
        if matches!(kind, Kind::Skyrl | Kind::Openai) {
            config.models[0].backends[0].capacity_tokens = Some(1024);
        }
        let proxy = Proxy::with(config).await;
        b_waits_for_a(&proxy, &engine, CHAT, |program, output| chat(program, 600, output)).await;
    }
}

#[tokio::test]
async fn programs_that_generate_natively_are_held_too_by_text_and_by_token_ids() {
    let ids = |program: &str, output: usize| {
        json!({"program_id": program, "input_ids": (128_000..128_600).collect::<Vec<_>>(),
            "sampling_params": {"max_new_tokens": output, "ignore_eos": true}})
    };
    let text = |program: &str, output: usize| {
        json!({"program_id": program, "text": "ash ".repeat(600),
            "sampling_params": {"max_new_tokens": output, "ignore_eos": true}})
    };
    let engine_of = || engine(Flavor::Sglang, 65, 50.0);
    let engine = engine_of().await;
    let proxy = Proxy::with(before(Kind::Sglang, &[&engine])).await;
    b_waits_for_a(&proxy, &engine, GENERATE, ids).await;
    let engine = engine_of().await;
    let proxy = Proxy::with(before(Kind::Sglang, &[&engine])).await;
    b_waits_for_a(&proxy, &engine, GENERATE, text).await;
}

#[tokio::test]
async fn without_a_capacity_an_openai_server_gets_every_step_at_once() {
    let engine = engine(Flavor::Openai, 65, 50.0).await;
    let proxy = Proxy::with(before(Kind::Openai, &[&engine])).await;
    let mut clients = Vec::new();
    for program in ["a", "b", "c"] {
        let mut client = proxy.client().await;
        send(&mut client, CHAT, &chat(program, 600, 100)).await;
        clients.push(client);
    }
    proxy.wait_for("all of them to be there", || engine.received() == 3).await;
    assert_eq!(proxy.app.gate.held_steps(), 0);
}

#[tokio::test]
async fn a_program_stays_on_its_backend_and_its_usage_is_known() {
    for (kind, flavor) in KINDS {
        let (one, two) = (engine(flavor, 4096, 1.0).await, engine(flavor, 4096, 1.0).await);
        let proxy = Proxy::with(before(kind, &[&one, &two])).await;
        for program in ["a", "b", "c", "d"] {
            let mut places = Vec::new();
            for step in 1..=3 {
                let mut body = chat(program, 200 * step, 5);
                body["stream"] = (step == 2).into();
                let answer = ask(&proxy, CHAT, &body).await;
                assert!(!answer.text().contains("\"usage\":{") || step != 2, "asked for by us alone");
                places.push(answer.header("x-thundergate-backend").unwrap());
            }
            assert!(places.iter().all(|place| *place == places[0]), "{kind:?}: {places:?}");
        }
        proxy.settled().await;
        let programs = get(&proxy, "/programs").await;
        // One token of role stands before the 600 tokens of text, and one behind them.
        assert_eq!(programs["c"]["context_len"], 600 + 2 + 5, "{kind:?}");
        assert!(
            proxy.metric("thundergate_cached_tokens_total{model=\"default\"}").await >= 4.0 * (192.0 + 400.0),
            "{kind:?}"
        );
        let spread = [&one, &two].map(|engine| engine.received());
        assert_eq!(spread[0] + spread[1], 12);
        assert!(spread.iter().all(|count| *count > 0), "{kind:?}: {spread:?}");
    }
}

#[tokio::test]
async fn a_generation_streamed_or_not_tells_its_usage_and_loses_its_program_id() {
    let mut backend = support::backend::Backend::start().await;
    let mut settings = config(&[&backend]);
    settings.models[0].engine = Kind::Sglang;
    let proxy = Proxy::with(settings).await;
    let forwarded = br#"{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":4}}"#;
    let body = br#"{"program_id":"p","input_ids":[1,2,3],"sampling_params":{"max_new_tokens":4}}"#;
    let streamed = br#"{"input_ids":[1,2,3],"stream":true,"extra_body":{"program_id":"p"}}"#;

    let mut client = proxy.client().await;
    client.post(GENERATE, "", body).await;
    let step = backend.next().await;
    assert_eq!(step.request.body, forwarded[..]);
    let meta = r#""meta_info":{"prompt_tokens":100,"output_token_logprobs":[[-0.1,7,null]],"completion_tokens":4}"#;
    step.json(200, &format!("{{\"text\":\"x\",{meta}}}")).await;
    assert_eq!(client.response().await.status(), 200);
    proxy.settled().await;
    assert_eq!(get(&proxy, "/programs").await["p"]["context_len"], 104);

    client.post(GENERATE, "", streamed).await;
    let step = backend.next().await;
    assert_eq!(step.request.body, br#"{"input_ids":[1,2,3],"stream":true}"#[..], "nothing is asked for besides");
    let sample = include_str!("samples/sglang-generate-stream.txt");
    let mut answer = step.events().await;
    answer.send(sample.as_bytes()).await;
    answer.finish().await;
    assert_eq!(client.response().await.text(), sample);
    proxy.settled().await;
    assert_eq!(get(&proxy, "/programs").await["p"]["context_len"], 1229 + 4);
    assert_eq!(proxy.metric("thundergate_cached_tokens_total{model=\"default\"}").await, 1216.0);
}

#[tokio::test]
async fn each_engines_metrics_are_shown_under_thunderagents_names() {
    let of = async |kind, flavor| {
        let engine = engine(flavor, 65, 1.0).await;
        let proxy = Proxy::with(before(kind, &[&engine])).await;
        ask(&proxy, CHAT, &chat("a", 100, 3)).await;
        let mut shown = Value::Null;
        let counted = |shown: &Value| shown["metrics"].get("prompt_tokens_total").is_none_or(|count| *count == 102);
        while shown.is_null() || !counted(&shown) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            shown = get(&proxy, "/metrics").await["backends"][engine.url()].clone();
        }
        shown
    };
    let vllm = of(Kind::Vllm, Flavor::Vllm).await;
    assert_eq!(vllm["cache_config"], json!({"block_size": 16, "num_gpu_blocks": 65, "total_tokens_capacity": 1024}));
    assert_eq!(vllm["metrics"]["requests_completed"], 1);
    let sglang = of(Kind::Sglang, Flavor::Sglang).await;
    assert_eq!(sglang["cache_config"], json!({"total_tokens_capacity": 1024}));
    for known in ["token_usage", "cache_hit_rate", "num_used_tokens"] {
        assert!(sglang["metrics"][known].is_number(), "{sglang}");
    }
    let skyrl = of(Kind::Skyrl, Flavor::Skyrl).await;
    assert_eq!(skyrl["backend_type"], "skyrl");
    assert_eq!(skyrl["cache_config"], json!({"total_tokens_capacity": 200_000, "num_engines": 1}));
    assert_eq!(skyrl["metrics"]["num_engines"], 1);
    let openai = of(Kind::Openai, Flavor::Openai).await;
    assert_eq!(
        (openai["healthy"].clone(), openai.get("metrics"), openai.get("cache_config")),
        (json!(true), None, None)
    );
}

#[tokio::test]
async fn a_trainers_engine_may_come_after_its_first_step() {
    let mut config = config_of([]);
    config.models[0].engine = Kind::Sglang;
    let proxy = Proxy::unready(config);
    let mut client = proxy.client().await;
    let body = json!({"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2}});
    client.post(GENERATE, "x-smg-routing-key: sample-1\r\n", body.to_string().as_bytes()).await;
    proxy.wait_for("the step to be held", || proxy.app.gate.held_steps() == 1).await;

    let engine = engine(Flavor::Sglang, 65, 1.0).await;
    let mut trainer = proxy.client().await;
    let worker = json!({"url": engine.url(), "worker_type": "regular"});
    send(&mut trainer, "/workers", &worker).await;
    assert_eq!(trainer.response().await.status(), 202);
    let answer = client.response().await;
    assert_eq!((answer.status(), &answer.json()["meta_info"]["prompt_tokens"]), (200, &json!(3)));
    assert_eq!(get(&proxy, "/workers").await["workers"][0]["url"], engine.url());
    assert_eq!(get(&proxy, "/programs").await["sample-1"]["step_count"], 1);
}

// --- Data-parallel ranks ---

const RANK: &str = "x-data-parallel-rank";

async fn ranked(ranks: usize, port: u16) -> Server {
    let mut config = EngineConfig { ranks, port, ..EngineConfig::default() };
    config.shape.kv_blocks = 65;
    config.shape.costs = Costs::simple(1e6, 50.0);
    Server::start(config).await.unwrap()
}

/// Waits until the backends are these ranks of the server, all healthy.
async fn until_ranks(proxy: &Proxy, engine: &Server, ranks: u32) {
    let wanted: Vec<String> = (0..ranks).map(|rank| format!("{}#rank={rank}", engine.url())).collect();
    let there = || {
        let mut statuses = proxy.app.fleet.statuses();
        statuses.sort_by_key(|status| status.backend.rank);
        statuses.iter().all(|status| status.healthy && !status.draining)
            && statuses.iter().map(|status| &status.backend.url).eq(&wanted)
    };
    proxy.wait_for("the ranks", there).await;
}

#[tokio::test]
async fn each_rank_of_a_server_is_a_backend_and_programs_stay_on_theirs() {
    let engine = ranked(2, 0).await;
    let proxy = Proxy::unready(before(Kind::Vllm, &[&engine]));
    until_ranks(&proxy, &engine, 2).await;
    let backends = get(&proxy, "/backends").await;
    assert_eq!([&backends["backends"][0], &backends["backends"][1]].map(|rank| &rank["capacity_tokens"]), [1024, 1024]);

    // Each of two programs gets a rank of its own, and the third gets none.
    let mut clients = Vec::new();
    for (there, program) in [(1, "a"), (2, "b"), (2, "c")] {
        let mut client = proxy.client().await;
        send(&mut client, CHAT, &chat(program, 600, 5)).await;
        clients.push(client);
        proxy.wait_for("the first two to be there", || engine.received() == there).await;
    }
    proxy.wait_for("the third to be held", || proxy.app.gate.held_steps() == 1).await;
    drop(clients.pop());
    let mut places = Vec::new();
    for client in &mut clients {
        places.push(client.response().await.header("x-thundergate-backend").unwrap());
    }
    places.sort();
    assert_eq!(places, [0, 1].map(|rank| format!("{}#rank={rank}", engine.url())));

    // The header names another rank at times. The proxy chooses all the same: it knows which rank has the prefix.
    for program in ["b", "a", "b", "a"] {
        let mut client = proxy.client().await;
        client.post(CHAT, &format!("{RANK}: 0\r\n"), chat(program, 620, 2).to_string().as_bytes()).await;
        assert_eq!(client.response().await.status(), 200);
    }
    for rank in [0, 1] {
        let counters = engine.counters_of(rank);
        // The first step found nothing in the cache, the second the 37 blocks of the first, the third all blocks of the
        // second.
        assert_eq!((counters.prefix_queries, counters.prefix_hits), (602 + 622 + 622, 592 + 608), "{counters:?}");
    }
    proxy.balanced().await;
}

#[tokio::test]
async fn ranks_come_and_go_with_their_server() {
    let engine = ranked(2, 0).await;
    let port = engine.addr.port();
    let proxy = Proxy::unready(before(Kind::Vllm, &[&engine]));
    until_ranks(&proxy, &engine, 2).await;
    engine.kill().await;
    let engine = ranked(3, port).await;
    until_ranks(&proxy, &engine, 3).await;
    assert_eq!(get(&proxy, "/list_workers").await, json!({"urls": [engine.url()]}), "one server all the same");
    engine.kill().await;
    let engine = ranked(1, port).await;
    until_ranks(&proxy, &engine, 1).await;
    ask(&proxy, CHAT, &chat("a", 10, 1)).await;

    let mut client = proxy.client().await;
    send(&mut client, &format!("/remove_worker?url={}", engine.url()), &json!({})).await;
    assert_eq!(client.response().await.status(), 200);
    proxy.wait_for("the server to be gone with its ranks", || proxy.app.fleet.statuses().is_empty()).await;
}

#[tokio::test]
async fn a_server_that_is_to_choose_its_ranks_itself_is_one_backend() {
    let engine = ranked(2, 0).await;
    let mut config = before(Kind::Vllm, &[&engine]);
    config.models[0].ranks = thundergate::config::Ranks::Off;
    let proxy = Proxy::with(config).await;
    proxy.wait_for("its capacity", || proxy.app.fleet.statuses()[0].capacity == Some(2048)).await;
    assert_eq!(proxy.app.fleet.statuses()[0].backend.url, engine.url());
    // Here the rank that the client names counts.
    for _ in 0..2 {
        let mut client = proxy.client().await;
        client.post(CHAT, &format!("{RANK}: 1\r\n"), chat("a", 100, 1).to_string().as_bytes()).await;
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!([0, 1].map(|rank| engine.counters_of(rank).finished_length), [0, 2]);
    let mut client = proxy.client().await;
    client.post(CHAT, &format!("{RANK}: 2\r\n"), chat("a", 100, 1).to_string().as_bytes()).await;
    assert_eq!(client.response().await.status(), 400, "vLLM's own error");
}

#[tokio::test]
async fn programs_are_at_home_on_their_rank_after_a_restart_of_ours() {
    let engine = ranked(2, 0).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = before(Kind::Vllm, &[&engine]);
    config.state.snapshot = Some(dir.path().join("state"));
    let mut proxy = Proxy::unready(config.clone());
    until_ranks(&proxy, &engine, 2).await;
    for program in ["a", "b"] {
        ask(&proxy, CHAT, &chat(program, 600, 1)).await;
    }
    proxy.settled().await;
    let places = async |proxy: &Proxy| {
        let programs = get(proxy, "/programs").await;
        ["a", "b"].map(|program| programs[program]["backend"].clone())
    };
    let before = places(&proxy).await;
    assert_ne!(before[0], before[1]);
    proxy.stop(Shutdown::Drain).await;
    proxy.ended().await;
    let proxy = Proxy::unready(config);
    until_ranks(&proxy, &engine, 2).await;
    assert_eq!(places(&proxy).await, before);
}
