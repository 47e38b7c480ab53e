//! ThunderAgent's endpoints, against the key lists of its JSON.

use super::*;
use crate::config::Engine;
use crate::fleet::{BackendStatus, Gauges};
use crate::telemetry::StepTimes;
use std::time::Instant;

#[tokio::test]
async fn programs_are_listed_with_their_status_and_state() {
    let app = app();
    assert_eq!(get(&app, "/programs").await, (200, json!({})));
    let _running = running(&app, key("", "run")).await;
    idle(&app, key("", "tool")).await;
    app.gate.freeze(true);
    let _held = enter(&app, key("", "wait"));

    let (status, programs) = get(&app, "/programs").await;
    assert_eq!(status, 200);
    assert_eq!(keys(&programs), ["run", "tool", "wait"]);
    let golden = sorted("backend context_len total_tokens step_count status state");
    let states: Vec<_> = programs
        .as_object()
        .unwrap()
        .values()
        .map(|program| {
            assert_eq!(keys(program), golden);
            (program["status"].as_str().unwrap(), program["state"].as_str().unwrap())
        })
        .collect();
    assert_eq!(states, [("reasoning", "active"), ("acting", "active"), ("reasoning", "paused")]);
    assert_eq!(programs["tool"]["context_len"], 120);
    assert_eq!(programs["tool"]["total_tokens"], 120);
    assert_eq!(programs["tool"]["step_count"], 1);
    assert!([GPU1, GPU2].contains(&programs["run"]["backend"].as_str().unwrap()));
    assert!(programs["run"]["total_tokens"].as_u64().unwrap() > 0, "the estimate of a step on its way");
    assert_eq!(programs["wait"]["backend"], Value::Null);
}

#[tokio::test]
async fn health_has_its_keys_and_counts() {
    let app = app();
    let _running = running(&app, key("", "run")).await;
    idle(&app, key("", "tool")).await;
    app.gate.freeze(true);
    let _held = enter(&app, key("", "wait"));
    let (status, health) = get(&app, "/health").await;
    assert_eq!(status, 200);
    let golden = "status router_mode scheduling_enabled backends programs_count reasoning_count acting_count \
        paused_count per_backend profile_enabled";
    assert_eq!(keys(&health), sorted(golden));
    assert_eq!(health["status"], "ok");
    assert_eq!(health["router_mode"], "tr");
    assert_eq!(health["scheduling_enabled"], true);
    assert_eq!(health["backends"], json!([GPU1, GPU2]));
    assert_eq!(health["profile_enabled"], false);
    let counts = ["programs_count", "reasoning_count", "acting_count", "paused_count"].map(|name| &health[name]);
    assert_eq!(counts, [3, 2, 1, 1]);
    assert_eq!(keys(&health["per_backend"]), [GPU1, GPU2]);
    let mut total = 0;
    for url in [GPU1, GPU2] {
        let backend = &health["per_backend"][url];
        assert_eq!(keys(backend), sorted("total reasoning acting paused marked_for_pause future_paused_tokens"));
        total += backend["total"].as_u64().unwrap();
    }
    assert_eq!(total, 2);
}

#[tokio::test]
async fn without_scheduling_the_mode_is_default_and_nobody_is_paused() {
    let mut config = config();
    config.models[0].routing = Routing::LeastLoad;
    let app = app_of(config);
    idle(&app, key("", "tool")).await;
    let (_, health) = get(&app, "/health").await;
    assert_eq!(health["router_mode"], "default");
    assert_eq!(health["scheduling_enabled"], false);
    assert_eq!(health["paused_count"], 0);
}

#[tokio::test]
async fn a_release_answers_as_thunderagent_does() {
    let app = app();
    for id in ["a", "7", "true", "1e3", "last", "q\"\n"] {
        idle(&app, key("", id)).await;
    }
    let missing = json!({"detail": "Missing program_id"});
    let invalid = json!({"detail": "Invalid JSON"});
    let done = |id: &str, released: bool| json!({"program_id": id, "released": released});
    let cases = [
        (r#"{"program_id": "a"}"#, 200, done("a", true)),
        (r#"{"program_id": "a"}"#, 200, done("a", false)),
        (r#"{"program_id": "unknown"}"#, 200, done("unknown", false)),
        (r#"{"program_id": 7}"#, 200, done("7", true)),
        (r#"{"program_id": true}"#, 200, done("true", true)),
        (r#" {"program_id" : 1e3 } "#, 200, done("1e3", true)),
        (r#"{"program_id": "first", "program_id": "last"}"#, 200, done("last", true)),
        (r#"{"program_id": "q\"\n"}"#, 200, done("q\"\n", true)),
        (r#"{"program_id": null}"#, 400, missing.clone()),
        (r#"{"program_id": ""}"#, 400, missing.clone()),
        (r#"{"program_id": 0}"#, 400, missing.clone()),
        (r#"{"program_id": -0.0}"#, 400, missing.clone()),
        (r#"{"program_id": false}"#, 400, missing.clone()),
        ("{}", 400, missing.clone()),
        ("[]", 400, missing.clone()),
        ("\"a\"", 400, missing.clone()),
        ("null", 400, missing.clone()),
        ("", 400, invalid.clone()),
        ("{", 400, invalid.clone()),
        (r#"{"program_id": "a"} x"#, 400, invalid.clone()),
        (r#"{"program_id": "\ud800"}"#, 400, invalid.clone()),
    ];
    for path in ["/programs/release", "/v1/programs/release"] {
        for (body, status, answer) in &cases {
            let answered = ask(&app, with_body("POST", path, body)).await;
            if path == "/programs/release" {
                assert_eq!(answered, (*status, answer.clone()), "{body}");
            } else {
                assert_eq!(answered.0, *status, "{body}");
            }
        }
    }
    let (status, answer) = ask(&app, with_body("POST", "/programs/release", r#"{"program_id": {"a": 1}}"#)).await;
    assert_eq!(status, 400);
    assert_eq!(keys(&answer), ["detail"]);
    assert_eq!(get(&app, "/programs").await.1, json!({}));
}

#[tokio::test]
async fn bytes_that_are_not_utf8_are_invalid_json() {
    let app = app();
    let body = Bytes::from_static(b"{\"program_id\": \"\xff\"}");
    let request = ControlRequest { body, ..request("POST", "/programs/release") };
    assert_eq!(ask(&app, request).await, (400, json!({"detail": "Invalid JSON"})));
}

#[tokio::test]
async fn a_long_id_is_released_under_the_key_that_its_steps_have() {
    let app = app();
    let long = "x".repeat(300);
    let sources = crate::identity::Sources::default();
    idle(&app, sources.key(&"".into(), &long)).await;
    assert_eq!(get(&app, &format!("/programs/{long}")).await.0, 200);
    let (_, answer) = ask(&app, with_body("POST", "/programs/release", &json!({"program_id": long}).to_string())).await;
    assert_eq!(answer, json!({"program_id": long, "released": true}));
}

#[tokio::test]
async fn a_release_ends_a_held_step() {
    let app = app();
    app.gate.freeze(true);
    let mut held = enter(&app, key("", "a"));
    let (_, answer) = ask(&app, with_body("POST", "/programs/release", r#"{"program_id": "a"}"#)).await;
    assert_eq!(answer["released"], true);
    assert_eq!(held.admitted().await, Err(Refusal::ProgramReleased));
}

#[tokio::test]
async fn other_methods_are_refused() {
    let app = app();
    for (method, path, allow) in [
        ("GET", "/programs/release", "POST"),
        ("GET", "/v1/programs/release", "POST"),
        ("DELETE", "/programs/release", "POST"),
        ("POST", "/programs", "GET, HEAD"),
        ("PUT", "/programs/a", "GET, HEAD, DELETE"),
    ] {
        let response = handle(&app, request(method, path)).await;
        assert_eq!(response.status, 405, "{method} {path}");
        assert_eq!(header(&response, "allow"), Some(allow));
        assert_eq!(&full(&response)[..], br#"{"detail":"Method Not Allowed"}"#);
    }
}

#[tokio::test]
async fn profiles_show_averages_when_profiling_is_on() {
    let off = app();
    let (status, answer) = get(&off, "/profiles").await;
    assert_eq!((status, keys(&answer)), (400, vec!["error"]));
    assert_eq!(get(&off, "/profiles/a").await.0, 400);

    let dir = tempfile::tempdir().unwrap();
    let app = app_of(Config { profile: Some(Profile { dir: dir.path().to_owned() }), ..config() });
    idle(&app, key("", "a/b")).await;
    let now = Instant::now();
    let times = StepTimes {
        arrived: now,
        pause: Duration::from_millis(1500),
        prefill: Duration::from_secs(1),
        decode: Duration::from_secs(2),
        ended: now + Duration::from_secs(5),
        usage: None,
    };
    app.telemetry.profiles().unwrap().step_finished(&key("", "a/b"), &times);
    let summary = json!({
        "step_count": 1, "avg_prefill_s": 1.0, "avg_decode_s": 2.0, "avg_pause_s": 1.5, "avg_tool_call_s": 0.0,
        "avg_kv_hit_rate": null,
    });
    assert_eq!(get(&app, "/profiles").await, (200, json!({"a/b": summary})));
    assert_eq!(get(&app, "/profiles/a%2Fb").await, (200, summary.clone()));
    assert_eq!(get(&app, "/programs").await.1["a/b"]["profile"], summary);
    assert_eq!(get(&app, "/health").await.1["profile_enabled"], true);
    let unknown = json!({"detail": "Profile not found for program: x"});
    assert_eq!(get(&app, "/profiles/x").await, (404, unknown));

    ask(&app, request("DELETE", "/programs/a%2Fb")).await;
    assert_eq!(get(&app, "/profiles").await, (200, json!({})), "it went with its program");
}

#[tokio::test]
async fn metrics_are_json_unless_prometheus_asks() {
    let app = app();
    let (status, metrics) = get(&app, "/metrics").await;
    assert_eq!(status, 200);
    assert_eq!(keys(&metrics), sorted("metrics_enabled metrics_interval backends"));
    assert_eq!(keys(&metrics["backends"]), [GPU1, GPU2]);

    let types = [
        (Side::Main, "text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
        (
            Side::Main,
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (Side::Main, "text/html,*/*", "application/json"),
        (Side::Admin, "*/*", "text/plain; version=0.0.4; charset=utf-8"),
    ];
    for (listener, accept, content_type) in types {
        let request = ControlRequest { listener, ..with_header(request("GET", "/metrics"), "accept", accept) };
        let response = handle(&app, request).await;
        assert_eq!(header(&response, "content-type"), Some(content_type), "{accept}");
    }
    let text = handle(&app, on_admin(request("GET", "/metrics"))).await;
    let text = String::from_utf8(full(&text).to_vec()).unwrap();
    assert!(text.contains("\nthundergate_programs{state=\"held\"} 0\n"), "{text}");
    assert!(text.contains(&format!("\nthundergate_backend_capacity_tokens{{backend=\"{GPU1}\",model=\"\"}} 10000\n")));
}

#[tokio::test]
async fn the_metrics_of_a_backend_have_thunderagents_keys() {
    let app = app();
    let _running = running(&app, key("", "run")).await;
    let mut overview = Overview::of(&app);
    let gauges = Gauges {
        block_size: 16,
        num_gpu_blocks: 27_283,
        capacity_tokens: 436_512,
        running: 3.0,
        kv_usage: 0.123_456,
        prefix_queries: 1000.0,
        prefix_hits: 820.0,
        ..Gauges::default()
    };
    overview.statuses = overview
        .statuses
        .iter()
        .cloned()
        .enumerate()
        .map(|(at, status)| BackendStatus {
            gauges: (at == 0).then(|| gauges.clone()),
            scrape_age: Some(Duration::from_secs(2)),
            ..status
        })
        .collect();
    let metrics = serde_json::to_value(overview.metrics(&app.settings())).unwrap();
    let golden = "url active_program_tokens reasoning_program_tokens acting_program_tokens active_program_count \
        reasoning_program_count acting_program_count active_program_tokens_ratio total_program_tokens \
        paused_program_count future_paused_tokens shared_tokens buffer_per_program capacity_overflow healthy \
        monitoring cache_config metrics";
    let backend = &metrics["backends"][GPU1];
    assert_eq!(keys(backend), sorted(golden));
    assert_eq!(keys(&backend["cache_config"]), sorted("block_size num_gpu_blocks total_tokens_capacity"));
    let golden = "num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_hit_rate \
        prefix_cache_queries prefix_cache_hits prompt_tokens_total generation_tokens_total num_preemptions \
        requests_completed last_updated history_size";
    assert_eq!(keys(&backend["metrics"]), sorted(golden));
    assert_eq!(backend["metrics"]["prefix_cache_hit_rate"], 0.82);
    assert_eq!(backend["metrics"]["kv_cache_usage_perc"], 0.1235);
    assert_eq!(backend["cache_config"]["block_size"], 16);
    let unread = &metrics["backends"][GPU2];
    assert_eq!(unread.get("metrics"), None, "not read yet");

    let load = overview.loads.values().find(|load| load.leased_running == 1).unwrap();
    let url = overview.url(load.backend).unwrap();
    let backend = &metrics["backends"][url];
    assert_eq!(backend["reasoning_program_tokens"], load.charged_running.0);
    assert_eq!(backend["active_program_count"], 1);
    assert_eq!(backend["total_program_tokens"], backend["active_program_tokens"]);
    let ratio = load.charged_running.as_f64() / 10_000.0;
    assert_eq!(backend["active_program_tokens_ratio"], crate::telemetry::round4(ratio));
}

#[tokio::test]
async fn each_engine_has_thunderagents_keys_for_it() {
    let of = async |engine: Engine, gauges: Gauges| {
        let mut config = config();
        config.models[0].engine = engine;
        let app = app_of(config);
        let mut overview = Overview::of(&app);
        for status in &mut overview.statuses {
            (status.capacity, status.gauges) = (Some(600_000), Some(gauges.clone()));
        }
        let metrics = serde_json::to_value(overview.metrics(&app.settings())).unwrap();
        metrics["backends"][GPU1].clone()
    };
    let common = "num_requests_running num_requests_waiting last_updated history_size";
    let gauges = Gauges { kv_usage: 0.059, cache_hit_rate: 0.91, used_tokens: 12.0, engines: 3, ..Gauges::default() };

    let sglang = of(Engine::Sglang, gauges.clone()).await;
    assert_eq!(keys(&sglang["cache_config"]), ["total_tokens_capacity"]);
    let own = "token_usage cache_hit_rate num_used_tokens prompt_tokens_total generation_tokens_total";
    assert_eq!(keys(&sglang["metrics"]), sorted(&format!("{common} {own}")));
    assert_eq!(sglang["metrics"]["token_usage"], 0.059);
    assert_eq!((&sglang["metrics"]["num_used_tokens"], sglang.get("backend_type")), (&json!(12), None));

    let skyrl = of(Engine::Skyrl, gauges).await;
    assert_eq!(skyrl["backend_type"], "skyrl");
    assert_eq!(skyrl["cache_config"], json!({"total_tokens_capacity": 600_000, "num_engines": 3}));
    let own = "kv_cache_usage_perc num_preemptions num_engines";
    assert_eq!(keys(&skyrl["metrics"]), sorted(&format!("{common} {own}")));
    assert_eq!(skyrl["metrics"]["kv_cache_usage_perc"], 5.9, "0 to 100, as SkyRL has it");
}
