//! The endpoints that ThunderAgent does not have.

use super::*;
use axum::Router;
use axum::routing::get as on_get;
use futures_util::StreamExt;

#[tokio::test]
async fn a_held_program_says_why() {
    let app = app();
    idle(&app, key("", "a")).await;
    let (status, shown) = get(&app, "/programs/a").await;
    assert_eq!(status, 200);
    let golden = "program_id tenant model backend context_len total_tokens step_count status state leased \
        footprint_tokens steps_in_flight steps_held held_because held_seconds last_pause idle_seconds";
    assert_eq!(keys(&shown), sorted(golden));
    assert_eq!(shown["leased"], true);
    assert_eq!(shown["held_because"], Value::Null);
    assert!(shown["idle_seconds"].as_f64().unwrap() >= 0.0);

    app.gate.freeze(true);
    let _held = enter(&app, key("", "a"));
    let (_, shown) = get(&app, "/programs/a").await;
    assert_eq!(shown["held_because"], "frozen");
    assert!(shown["held_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(shown["steps_held"], 1);
    assert_eq!(shown["idle_seconds"], Value::Null);

    assert_eq!(get(&app, "/programs/b").await, (404, json!({"detail": "Program not found: b"})));
}

#[tokio::test]
async fn a_program_known_in_two_pools_is_shown_in_both() {
    let mut config = config();
    let pool = |name: &str, backend| Pool { name: name.into(), ..Pool::unnamed(vec![backend]) };
    let backends = std::mem::take(&mut config.models[0].backends).into_iter();
    config.models = backends.zip(["small", "large"]).map(|(backend, name)| pool(name, backend)).collect();
    let app = app_of(config);
    idle(&app, key("", "a")).await;
    let info = Arrival { program: Some(key("", "a")), prompt_bytes: 400, ..Arrival::default() };
    let mut other = app.gate.enter(PoolId(1), info);
    other.admitted().await.unwrap();

    let (_, shown) = get(&app, "/programs/a").await;
    assert_eq!((&shown["model"], &shown["status"]), (&json!("large"), &json!("reasoning")));
    assert_eq!(shown["others"][0]["model"], "small");
    assert_eq!(get(&app, "/programs").await.1["a"]["status"], "reasoning");
}

#[tokio::test]
async fn deleting_a_program_releases_it() {
    let app = app();
    idle(&app, key("", "a")).await;
    let deleted = json!({"program_id": "a", "released": true});
    assert_eq!(ask(&app, request("DELETE", "/programs/a")).await, (200, deleted));
    assert_eq!(ask(&app, request("DELETE", "/programs/a")).await.0, 404);
}

#[tokio::test]
async fn backends_are_listed_added_and_removed() {
    let app = app();
    let (_, listed) = get(&app, "/backends").await;
    let golden = "id url model healthy draining down_because down_cause returns_in_seconds weight steps_in_flight programs_running programs_idle \
        charged_running_tokens charged_idle_tokens capacity_tokens effective_capacity_tokens kv_usage_ratio \
        prefix_hit_ratio requests_running requests_waiting scrape_age_seconds";
    assert_eq!(keys(&listed["backends"][0]), sorted(golden));
    assert_eq!(listed["backends"][0]["capacity_tokens"], 10_000);

    let body = r#"{"url": "http://gpu3:8000/", "weight": 2, "api_key": "k", "capacity_tokens": 5000}"#;
    let (status, added) = ask(&app, with_body("POST", "/backends", body)).await;
    assert_eq!(status, 201);
    let id = BackendId(added["id"].as_u64().unwrap().try_into().unwrap());
    let backend = app.fleet.get(id).unwrap();
    let settings = backend.settings();
    assert_eq!((backend.url.as_str(), settings.weight, settings.capacity_tokens), ("http://gpu3:8000", 2, Some(5000)));
    assert_eq!(settings.api_key, Some(Secret("k".into())));
    assert!(!get(&app, "/backends").await.1.to_string().contains("api_key"));

    let draining = |url| app.fleet.statuses().iter().any(|status| status.backend.url == url && status.draining);
    let (status, removed) = ask(&app, request("DELETE", &format!("/backends/{}", id.0))).await;
    assert_eq!(status, 202);
    assert_eq!(removed, json!({"draining": [{"id": id.0, "url": "http://gpu3:8000"}]}));
    assert!(draining("http://gpu3:8000"));
    assert_eq!(ask(&app, request("DELETE", "/backends/http%3A%2F%2Fgpu2%3A8000%2F")).await.0, 202);
    assert!(draining(GPU2) && !draining(GPU1));
    assert_eq!(ask(&app, request("DELETE", "/backends/99")).await.0, 404);
}

#[tokio::test]
async fn a_backend_that_cannot_be_used_is_refused_with_the_reason() {
    let app = app();
    for body in [
        "",
        "[]",
        "{}",
        r#"{"url": 5}"#,
        r#"{"url": "gpu3"}"#,
        r#"{"url": "ftp://gpu3"}"#,
        r#"{"url": "http://gpu3", "wieght": 2}"#,
        r#"{"url": "http://gpu3", "weight": 0}"#,
        r#"{"url": "http://gpu3", "weight": 1001}"#,
        r#"{"url": "http://gpu3", "capacity_tokens": 0}"#,
        r#"{"url": "http://gpu1:8000"}"#,
    ] {
        let (status, answer) = ask(&app, with_body("POST", "/backends", body)).await;
        assert_eq!((status, keys(&answer)), (400, vec!["detail"]), "{body}");
    }
    assert_eq!(app.fleet.statuses().len(), 2);
}

#[tokio::test]
async fn a_new_backend_goes_to_the_pool_of_its_model() {
    let mut config = config();
    config.models[0].name = "small".into();
    config.models.push(Pool { name: "large".into(), ..Pool::unnamed(Vec::new()) });
    let app = app_of(config);
    let add = |body: &str| with_body("POST", "/backends", body);
    assert_eq!(ask(&app, add(r#"{"url": "http://gpu3", "model": "large"}"#)).await.0, 201);
    assert_eq!(app.fleet.statuses().last().unwrap().backend.pool, PoolId(1));
    assert_eq!(ask(&app, add(r#"{"url": "http://gpu4", "model": "none"}"#)).await.0, 400);
    assert_eq!(ask(&app, add(r#"{"url": "http://gpu4"}"#)).await.0, 400);
}

#[tokio::test]
async fn slimes_names_for_backends_work() {
    let app = app();
    let gpu3 = "http://gpu3:8000";
    let workers = json!({"status": "success", "worker_urls": {GPU1: 0, GPU2: 0, gpu3: 0}});
    for _ in 0..2 {
        let added = ask(&app, request("POST", "/add_worker?url=http%3A%2F%2Fgpu3%3A8000")).await;
        assert_eq!(added, (200, workers.clone()), "adding again is no error");
    }
    assert_eq!(get(&app, "/list_workers").await, (200, json!({"urls": [GPU1, GPU2, gpu3]})));
    assert_eq!(ask(&app, request("POST", "/remove_worker?url=http://gpu1:8000")).await.0, 200);
    assert_eq!(get(&app, "/list_workers").await, (200, json!({"urls": [GPU2, gpu3]})));
    assert_eq!(ask(&app, request("POST", "/remove_worker?url=http://gpu9:8000")).await.0, 404);
    assert_eq!(ask(&app, request("POST", "/add_worker")).await.0, 400);
    assert_eq!(ask(&app, request("POST", "/remove_worker?url=")).await.0, 400);
    let named = with_body("POST", "/remove_worker", r#"{"worker_url": "http://gpu3:8000"}"#);
    assert_eq!(ask(&app, named).await.0, 200);
    assert_eq!(get(&app, "/list_workers").await, (200, json!({"urls": [GPU2]})));
}

#[tokio::test]
async fn the_newer_names_for_backends_work() {
    let app = app();
    let gpu3 = r#"{"url": "http://gpu3:8000", "worker_type": "regular", "bootstrap_port": null, "priority": 50}"#;
    for _ in 0..2 {
        let (status, added) = ask(&app, with_body("POST", "/workers", gpu3)).await;
        assert_eq!(status, 202);
        assert_eq!((&added["url"], &added["worker_id"]), (&json!("http://gpu3:8000"), &json!("2")));
    }
    let (status, listed) = get(&app, "/workers").await;
    assert_eq!((status, &listed["total"]), (200, &json!(3)));
    assert_eq!(keys(&listed["workers"][2]), sorted("id url model_id worker_type is_healthy load"));
    // Removed by the id of the list, and by the URL as older clients do.
    let id = listed["workers"][0]["id"].as_str().unwrap();
    assert_eq!(ask(&app, request("DELETE", &format!("/workers/{id}"))).await.0, 202);
    assert_eq!(ask(&app, request("DELETE", "/workers/http%3A%2F%2Fgpu3%3A8000")).await.0, 202);
    assert_eq!(get(&app, "/list_workers").await, (200, json!({"urls": [GPU2]})));
    assert_eq!(ask(&app, request("DELETE", "/workers/7")).await.0, 404);
    let prefill = r#"{"url": "http://gpu4:8000", "worker_type": "prefill"}"#;
    assert_eq!(ask(&app, with_body("POST", "/workers", prefill)).await.0, 400);
    let far = ControlRequest { local: false, ..with_body("POST", "/workers", gpu3) };
    assert_eq!(ask(&app, far).await.0, 403, "from elsewhere only with the admin token");
}

#[tokio::test]
async fn weight_sync_holds_all_steps_until_it_ends() {
    let app = app();
    let began = json!({"status": "ok", "weight_sync_active": true});
    assert_eq!(ask(&app, request("POST", "/weight_sync/begin")).await, (200, began));
    assert!(app.weight_sync.active());
    let mut step = enter(&app, key("", "a"));
    assert_eq!(app.gate.held_steps(), 1);
    let ended = json!({"status": "ok", "weight_sync_active": false});
    assert_eq!(ask(&app, request("POST", "/weight_sync/end")).await, (200, ended));
    step.admitted().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn weight_sync_ends_by_itself() {
    let app = app();
    ask(&app, request("POST", "/weight_sync/begin")).await;
    let mut step = enter(&app, key("", "a"));
    tokio::time::sleep(Duration::from_secs(299)).await;
    assert_eq!(app.gate.held_steps(), 1);
    step.admitted().await.unwrap();
    assert!(!app.weight_sync.active());
}

#[tokio::test(start_paused = true)]
async fn a_second_begin_starts_the_time_anew() {
    let app = app();
    ask(&app, request("POST", "/weight_sync/begin?timeout=10")).await;
    ask(&app, with_body("POST", "/weight_sync/begin", r#"{"timeout": 60}"#)).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(app.weight_sync.active());
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(!app.weight_sync.active());
}

#[tokio::test]
async fn a_timeout_that_makes_no_sense_is_refused() {
    let app = app();
    for target in ["0", "-1", "NaN", "inf", "x", "90000"] {
        let target = format!("/weight_sync/begin?timeout={target}");
        assert_eq!(ask(&app, request("POST", &target)).await.0, 400, "{target}");
    }
    assert_eq!(ask(&app, with_body("POST", "/weight_sync/begin", "[")).await.0, 400);
    assert!(!app.weight_sync.active());
}

#[tokio::test]
async fn events_stream_decisions_as_they_are_made() {
    let app = app();
    let response = handle(&app, request("GET", "/events")).await;
    assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
    let ControlBody::Stream(mut events) = response.body else { panic!("not a stream") };
    assert_eq!(&events.next().await.unwrap()[..], b": connected\n\n");
    app.gate.freeze(true);
    let _held = enter(&app, key("", "a"));
    let event = events.next().await.unwrap();
    let json = std::str::from_utf8(&event).unwrap().strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    let event: Value = serde_json::from_str(json).unwrap();
    assert_eq!((&event["event"], &event["reason"]), (&json!("hold"), &json!("frozen")));
}

#[tokio::test]
async fn readiness_follows_backends_and_draining() {
    let app = app();
    assert_eq!(get(&app, "/livez").await, (200, json!({"status": "ok"})));
    assert_eq!(get(&app, "/readyz").await, (503, json!({"status": "no_backend"})));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let models = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;
    let server = Router::new()
        .route("/health", on_get(|| async {}))
        .route("/metrics", on_get(|| async { "" }))
        .route("/v1/models", on_get(move || async move { models }));
    tokio::spawn(async move { axum::serve(listener, server).await.unwrap() });
    let backend = Backend::at(&url).unwrap();
    let app = app_of(Config { models: vec![Pool::unnamed(vec![backend])], ..Config::default() });
    let fleet = app.fleet.clone();
    tokio::spawn(async move { fleet.run().await });
    while get(&app, "/readyz").await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(get(&app, "/v1/models").await.1["data"][0]["id"], "m");

    app.drain();
    assert_eq!(get(&app, "/readyz").await, (503, json!({"status": "draining"})));
    assert_eq!(get(&app, "/health").await.1["status"], "draining");
    assert_eq!(get(&app, "/livez").await.0, 200);
}

#[tokio::test]
async fn the_console_is_one_page_that_loads_nothing_from_elsewhere() {
    let response = handle(&app(), request("GET", "/console")).await;
    assert_eq!(header(&response, "content-type"), Some("text/html; charset=utf-8"));
    assert!(header(&response, "content-security-policy").unwrap().contains("default-src 'none'"));
    let page = std::str::from_utf8(full(&response)).unwrap();
    for outside in ["http://", "https://", "src=", "href=", "@import", "innerHTML"] {
        assert!(!page.contains(outside), "{outside}");
    }
}
