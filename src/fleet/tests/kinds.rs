//! Kinds of engine other than vLLM.

use super::*;

const SGLANG: &str = include_str!("../../../tests/samples/sglang-metrics.txt");
const INFO: &str = include_str!("../../../tests/samples/sglang-server-info.json");
const SKYRL: &str = include_str!("../../../tests/samples/skyrl-metrics.json");

fn of(engine: EngineKind, at: &Engine) -> Pool {
    Pool { engine, ..pool("", vec![backend(&at.url())]) }
}

fn last_capacity(run: &Running) -> Option<Tokens> {
    run.heard.reports().last().and_then(|report| report.capacity)
}

#[tokio::test]
async fn an_sglang_servers_capacity_is_asked_for_once_in_its_life() {
    let engine = Engine::start().await;
    engine.set(|behaviour| {
        behaviour.metrics = SGLANG.to_owned();
        // An older server does not have the newer path.
        behaviour.pages = vec![("/get_server_info", INFO.to_owned())];
    });
    let run = run(&[of(EngineKind::Sglang, &engine)]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.heard.until(|_| run.heard.reports().len() > 3).await;
    assert_eq!(run.heard.reports()[0].capacity, Some(Tokens(199_000)), "before it was up");
    assert_eq!((engine.asked("/server_info"), engine.asked("/get_server_info")), (1, 1));
    let status = &run.fleet.statuses()[0];
    assert_eq!(status.capacity, Some(199_000));
    assert_eq!(status.gauges.as_ref().unwrap().running, 4.0);

    // The engine's counters fall: it has restarted, with half of its cache.
    engine.set(|behaviour| {
        behaviour.metrics = "sglang:num_running_reqs 0\n".to_owned();
        behaviour.pages = vec![("/server_info", r#"{"max_total_num_tokens":90000}"#.to_owned())];
    });
    run.heard.until(|_| last_capacity(&run) == Some(Tokens(90_000))).await;
    assert!(run.heard.reports().iter().any(|report| report.restarted));
}

#[tokio::test]
async fn an_sglang_server_without_metrics_has_a_capacity_and_no_load() {
    let engine = Engine::start().await;
    engine.set(|behaviour| {
        behaviour.lacks = vec!["/metrics"];
        behaviour.pages = vec![("/server_info", INFO.to_owned())];
    });
    let run = run(&[of(EngineKind::Sglang, &engine)]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    let status = &run.fleet.statuses()[0];
    assert_eq!((status.capacity, status.gauges.is_none()), (Some(199_000), true));
    let report = run.heard.reports()[0];
    assert_eq!((report.capacity, report.kv_usage, report.life), (Some(Tokens(199_000)), None, None));
}

#[tokio::test]
async fn skyrls_engines_count_200_000_tokens_each_unless_told_otherwise() {
    let engine = Engine::start().await;
    engine.set(|behaviour| behaviour.metrics = SKYRL.to_owned());
    let mut given = of(EngineKind::Skyrl, &engine);
    let first = run(&[given.clone()]);
    first.heard.until_event(Event::BackendUp(FIRST)).await;
    assert_eq!(last_capacity(&first), Some(Tokens(600_000)));
    given.backends[0].capacity_tokens = Some(90_000);
    let run = run(&[given]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    let added = |event: &Event| matches!(event, Event::BackendAdded { capacity: Some(Tokens(90_000)), .. });
    assert!(added(&run.heard.events.borrow()[0].1));
    assert_eq!(run.fleet.statuses()[0].capacity, Some(90_000));
}

#[tokio::test]
async fn of_an_openai_server_nothing_is_asked_but_whether_it_answers() {
    let engine = Engine::start().await;
    engine.set(|behaviour| behaviour.lacks = vec!["/v1/models"]);
    let mut pool = of(EngineKind::Openai, &engine);
    pool.health.path = None;
    pool.backends[0].api_key = Some(Secret("k".into()));
    let run = run(&[pool]);
    // A server need not list its models.
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    until("it is checked again", || engine.asked("/v1/models") > 2).await;
    assert_eq!((engine.asked("/metrics"), run.heard.reports().len()), (0, 0));
    assert!(engine.get(|behaviour| behaviour.keys.iter().all(|key| key == "Bearer k")));
    engine.set(|behaviour| {
        behaviour.lacks.clear();
        behaviour.hangs = vec!["/v1/models"];
    });
    let status = &run.fleet.statuses()[0];
    assert_eq!((status.capacity, status.gauges.is_none()), (None, true));
}
