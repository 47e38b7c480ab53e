//! The fleet against small HTTP servers on loopback.

use super::backend::Backend;
use super::member::FleetMember;
use super::*;
use crate::config::{Engine as EngineKind, Health, Metrics, Pool, Routing, Secret};
use crate::scheduler::{BackendReport, Event};
use crate::units::Tokens;
use engine::Engine;
use http::StatusCode;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

mod change;
mod eject;
mod engine;
mod kinds;

const POOL: PoolId = PoolId(0);
const FIRST: BackendId = BackendId(0);
const PATIENCE: Duration = Duration::from_secs(20);
/// Interval of an event that must not happen by itself within a test.
const NEVER: Duration = Duration::from_secs(3600);

#[derive(Clone)]
struct Recorder {
    events: watch::Sender<Vec<(PoolId, Event)>>,
    in_flight: Arc<AtomicUsize>,
}

impl Sink for Recorder {
    fn tell(&self, pool: PoolId, event: Event) {
        self.events.send_modify(|events| events.push((pool, event)));
    }
    fn in_flight(&self, _: PoolId, _: BackendId) -> usize {
        self.in_flight.load(SeqCst)
    }
}

impl Recorder {
    fn new() -> Self {
        Self { events: watch::Sender::new(Vec::new()), in_flight: Arc::default() }
    }

    async fn until(&self, happened: impl Fn(&[(PoolId, Event)]) -> bool) {
        let mut events = self.events.subscribe();
        let reached = timeout(PATIENCE, events.wait_for(|events| happened(events))).await.is_ok();
        assert!(reached, "got only {:?}", self.events.borrow());
    }

    async fn until_event(&self, event: Event) {
        self.until(|events| events.iter().any(|(_, happened)| *happened == event)).await;
    }

    /// Waits until the event has been heard for the `times`th time.
    async fn until_times(&self, event: Event, times: usize) {
        self.until(|events| events.iter().filter(|(_, e)| *e == event).count() >= times).await;
    }

    fn count(&self, event: &Event) -> usize {
        self.events.borrow().iter().filter(|(_, happened)| happened == event).count()
    }

    fn reports(&self) -> Vec<BackendReport> {
        let report = |(_, event): &(PoolId, Event)| match event {
            Event::Report { report, .. } => Some(*report),
            _ => None,
        };
        self.events.borrow().iter().filter_map(report).collect()
    }
}

fn health() -> Health {
    Health {
        path: Some("/health".to_owned()),
        interval: Duration::from_millis(20),
        timeout: Some(Duration::from_secs(5)),
        unhealthy_after: 3,
        healthy_after: 2,
        ..Health::default()
    }
}

fn backend(url: &str) -> config::Backend {
    config::Backend { url: url.parse().unwrap(), api_key: None, weight: 1, capacity_tokens: None }
}

fn pool(name: &str, backends: Vec<config::Backend>) -> Pool {
    Pool {
        name: name.to_owned(),
        aliases: Vec::new(),
        engine: EngineKind::Vllm,
        routing: Routing::Program,
        ranks: config::Ranks::Auto,
        backends,
        discovery: None,
        health: health(),
    }
}

fn timing() -> Timing {
    let short = Duration::from_millis(20);
    Timing { retry: short, drain_poll: short, models_age: Duration::ZERO, ..Timing::default() }
}

/// A fleet whose tasks run until it is dropped.
struct Running {
    fleet: Fleet,
    heard: Recorder,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn run(pools: &[Pool]) -> Running {
    run_with(pools, timing())
}

fn run_with(pools: &[Pool], timing: Timing) -> Running {
    run_resolving(pools, timing, SystemResolver)
}

fn run_resolving(pools: &[Pool], timing: Timing, resolver: impl Resolve) -> Running {
    let metrics = Metrics { enabled: true, interval: Duration::from_millis(20) };
    let heard = Recorder::new();
    let fleet = Fleet::with_parts(pools, &metrics, heard.clone(), timing, resolver);
    let runner = fleet.clone();
    let task = tokio::spawn(async move { runner.run().await });
    Running { fleet, heard, task }
}

fn down_reason(fleet: &Fleet) -> String {
    fleet.statuses()[0].down_reason.clone().unwrap_or_default()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

// --- Up, down, back ---

#[tokio::test]
async fn a_backend_comes_up_when_it_answers_and_its_capacity_is_known_by_then() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    assert_eq!(run.fleet.preferred(POOL, b"x"), None);
    assert!(!run.fleet.ready());
    run.heard.until_event(Event::BackendUp(FIRST)).await;

    let events = run.heard.events.borrow().clone();
    assert!(matches!(events[0], (POOL, Event::BackendAdded { backend: FIRST, weight: 1, capacity: None })));
    let (_, Event::Report { backend: FIRST, report }) = &events[1] else {
        panic!("{events:?}");
    };
    assert_eq!(report.capacity, Some(Tokens(24_000 - 32)));
    assert!(!report.restarted);
    assert_eq!(events[2], (POOL, Event::BackendUp(FIRST)));

    assert_eq!(run.fleet.address(FIRST), Some(engine.address));
    assert_eq!(run.fleet.get(FIRST).unwrap().url, engine.url());
    until("the ring knows it", || run.fleet.preferred(POOL, b"x") == Some(FIRST)).await;
    assert!(run.fleet.ready());
    assert_eq!(run.fleet.statuses()[0].gauges.as_ref().unwrap().num_gpu_blocks, 750);
}

#[tokio::test]
async fn a_failing_health_check_takes_it_down_and_successes_bring_it_back() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;

    engine.set(|e| e.health = StatusCode::SERVICE_UNAVAILABLE);
    run.heard.until_event(Event::BackendDown(FIRST)).await;
    until("the ring is empty", || run.fleet.preferred(POOL, b"x").is_none()).await;
    assert!(!run.fleet.ready());
    assert!(down_reason(&run.fleet).contains("503"), "{}", down_reason(&run.fleet));

    engine.set(|e| e.health = StatusCode::OK);
    run.heard.until_times(Event::BackendUp(FIRST), 2).await;
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 1);
    assert!(run.fleet.ready());
}

#[tokio::test]
async fn one_failure_among_successes_changes_nothing() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    for _ in 0..3 {
        engine.set(|e| e.failures = 2);
        until("both were asked for", || engine.get(|e| e.failures) == 0).await;
        let asked = engine.asked("/health");
        until("and a success after", || engine.asked("/health") > asked + 1).await;
    }
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 0);
}

#[tokio::test]
async fn a_backend_that_accepts_and_never_answers_goes_down() {
    let engine = Engine::start().await;
    let mut pool = pool("", vec![backend(&engine.url())]);
    pool.health.timeout = Some(Duration::from_millis(50));
    let run = run(&[pool]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    engine.set(|e| e.hangs = vec!["/health"]);
    run.heard.until_event(Event::BackendDown(FIRST)).await;
    assert!(down_reason(&run.fleet).contains("no answer within"), "{}", down_reason(&run.fleet));
}

#[tokio::test]
async fn a_backend_whose_process_dies_goes_down_and_returns_when_it_listens_again() {
    let mut engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    engine.stop().await;
    run.heard.until_event(Event::BackendDown(FIRST)).await;
    assert!(down_reason(&run.fleet).contains("refused"), "{}", down_reason(&run.fleet));
    engine.listen().await;
    run.heard.until_times(Event::BackendUp(FIRST), 2).await;
}

#[tokio::test]
async fn a_server_without_the_health_path_is_down_and_told_the_remedy() {
    let engine = Engine::start().await;
    engine.set(|e| e.health = StatusCode::NOT_FOUND);
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    until("the reason is known", || down_reason(&run.fleet).contains("`health.path`")).await;
    assert_eq!(run.heard.count(&Event::BackendUp(FIRST)), 0);
}

#[tokio::test]
async fn a_hanging_backend_does_not_delay_another() {
    let (stuck, good) = (Engine::start().await, Engine::start().await);
    stuck.set(|e| e.hangs = vec!["/health", "/metrics", "/v1/models"]);
    let mut pool = pool("", vec![backend(&stuck.url()), backend(&good.url())]);
    pool.health.timeout = Some(NEVER);
    let run = run(&[pool]);
    run.heard.until_event(Event::BackendUp(BackendId(1))).await;
    run.heard
        .until(|events| {
            let reports = events.iter().filter(|(_, e)| matches!(e, Event::Report { .. }));
            reports.count() >= 5
        })
        .await;
    assert_eq!(run.heard.count(&Event::BackendUp(FIRST)), 0);
    assert_eq!(stuck.asked("/health"), 1, "it still hangs in its first check");
}

#[tokio::test]
async fn a_name_is_resolved_and_the_address_that_answers_is_used() {
    // `localhost` may lead first to ::1, where nobody listens.
    let engine = Engine::start().await;
    let url = format!("http://localhost:{}", engine.address.port());
    let run = run(&[pool("", vec![backend(&url)])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    assert_eq!(run.fleet.address(FIRST), Some(engine.address));
}

#[tokio::test]
async fn the_next_address_of_a_name_is_tried_when_one_refuses() {
    let engine = Engine::start().await;
    let port = engine.address.port();
    let metrics = Metrics { enabled: true, interval: NEVER };
    let pools = [pool("", vec![backend(&format!("http://two.addresses:{port}"))])];
    let fleet = Fleet::new(&pools, &metrics, Recorder::new());
    let member = fleet.core.registry.with(FIRST, Arc::clone).unwrap();
    let monitor = Monitor::new(Arc::clone(&fleet.core), member).unwrap();
    // The engine listens on 127.0.0.1 only.
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], port));

    assert!(monitor.check_each(&[elsewhere]).await.is_err());
    assert_eq!(fleet.address(FIRST), None, "an address that never answered is not used");
    assert!(monitor.check_each(&[elsewhere, engine.address]).await.is_ok());
    assert_eq!(fleet.address(FIRST), Some(engine.address));
}

#[tokio::test]
async fn every_request_carries_the_key_and_the_prefix() {
    let engine = Engine::start().await;
    let mut backend = backend(&format!("{}/deep/in/", engine.url()));
    backend.api_key = Some(Secret("s3cret".to_owned()));
    let run = run(&[pool("", vec![backend])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.fleet.models().await;
    for path in ["/deep/in/health", "/deep/in/metrics", "/deep/in/v1/models"] {
        assert!(engine.asked(path) > 0, "{path}");
    }
    assert!(engine.get(|e| e.keys.iter().all(|key| key == "Bearer s3cret")));
}

// --- Metrics ---

#[tokio::test]
async fn unreadable_metrics_leave_a_backend_up_without_gauges() {
    let engine = Engine::start().await;
    engine.set(|e| e.metrics = "<html>\u{0}vllm:{{{ nothing of use".to_owned());
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    assert!(run.heard.reports().is_empty());
    assert!(run.fleet.statuses()[0].gauges.is_none());
    assert_eq!(run.fleet.statuses()[0].scrape_age, None);

    engine.set(|e| e.metrics = engine::METRICS.to_owned());
    until("gauges", || run.fleet.statuses()[0].gauges.is_some()).await;
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 0);
}

#[tokio::test]
async fn metrics_that_hang_do_not_keep_a_backend_down() {
    let engine = Engine::start().await;
    engine.set(|e| e.hangs = vec!["/metrics"]);
    let short = Timing { page_limit: Duration::from_millis(50), ..timing() };
    let run = run_with(&[pool("", vec![backend(&engine.url())])], short);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    assert!(run.heard.reports().is_empty());
}

#[tokio::test]
async fn a_page_of_metrics_beyond_reason_is_not_read() {
    let engine = Engine::start().await;
    engine.set(|e| e.metrics += &"# padding\n".repeat(1 << 20));
    let patient = Timing { page_limit: PATIENCE, ..timing() };
    let run = run_with(&[pool("", vec![backend(&engine.url())])], patient);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    assert!(run.heard.reports().is_empty());
}

#[tokio::test]
async fn data_goes_stale_while_scrapes_fail_and_keeps_its_last_value() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    engine.set(|e| e.metrics.clear());
    let asked = engine.asked("/metrics");
    // A scrape that was under way may still have seen the old page. The scrapes after it cannot.
    until("two scrapes", || engine.asked("/metrics") >= asked + 2).await;
    let reports = run.heard.reports().len();
    until("three more", || engine.asked("/metrics") >= asked + 5).await;
    assert_eq!(run.heard.reports().len(), reports);
    let status = &run.fleet.statuses()[0];
    assert!(status.healthy);
    assert_eq!(status.gauges.as_ref().unwrap().num_gpu_blocks, 750);
    assert!(status.scrape_age.unwrap() >= Duration::from_millis(40), "{:?}", status.scrape_age);
}

#[tokio::test]
async fn a_restart_with_half_the_cache_is_reported_with_the_new_capacity() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    engine.set(|e| {
        e.metrics = engine::METRICS
            .replace("process_start_time_seconds 1.79536767895e+09", "process_start_time_seconds 1.8e+09")
            .replace("kv_cache_size_tokens=\"24000\"", "kv_cache_size_tokens=\"12000\"");
    });
    until("a restart", || run.heard.reports().iter().any(|report| report.restarted)).await;
    let reports = run.heard.reports();
    let restarts: Vec<_> = reports.iter().filter(|report| report.restarted).collect();
    assert_eq!(restarts.len(), 1);
    assert_eq!(restarts[0].capacity, Some(Tokens(12_000 - 32)));
    assert_eq!(run.fleet.statuses()[0].gauges.as_ref().unwrap().capacity_tokens, 11_968);
}

#[tokio::test]
async fn a_capacity_given_by_the_user_wins() {
    let engine = Engine::start().await;
    let mut backend = backend(&engine.url());
    backend.capacity_tokens = Some(9_000);
    let run = run(&[pool("", vec![backend])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    let given = Event::BackendAdded { backend: FIRST, weight: 1, capacity: Some(Tokens(9_000)) };
    assert_eq!(run.heard.count(&given), 1);
    assert!(!run.heard.reports().is_empty());
}

#[tokio::test]
async fn an_engine_of_an_unknown_kind_is_checked_but_not_scraped() {
    let engine = Engine::start().await;
    let mut pool = pool("", vec![backend(&engine.url())]);
    pool.engine = EngineKind::Openai;
    let run = run(&[pool]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    until("more checks", || engine.asked("/health") > 3).await;
    assert_eq!(engine.asked("/metrics"), 0);
}

// --- Membership ---

#[tokio::test]
async fn a_removed_backend_drains_until_nothing_is_in_flight_and_is_forgotten() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.heard.in_flight.store(1, SeqCst);

    assert!(run.fleet.remove(FIRST));
    assert!(run.fleet.remove(FIRST), "asking twice does no harm");
    assert_eq!(run.heard.count(&Event::BackendDraining(FIRST)), 1);
    assert_eq!(run.fleet.preferred(POOL, b"x"), None);
    assert!(!run.fleet.ready());
    let checks = engine.asked("/health");
    until("it is still looked after", || engine.asked("/health") > checks + 3).await;
    assert!(run.fleet.statuses()[0].draining);
    assert!(run.fleet.get(FIRST).is_some());

    run.heard.in_flight.store(0, SeqCst);
    run.heard.until_event(Event::BackendRemoved(FIRST)).await;
    until("it is forgotten", || run.fleet.get(FIRST).is_none()).await;
    assert!(!run.fleet.remove(FIRST));
    run.fleet.failed(FIRST, BackendFault::Connect);
    let events = run.heard.events.borrow().clone();
    assert_eq!(events.last(), Some(&(POOL, Event::BackendRemoved(FIRST))), "the last word");
}

#[test]
fn nothing_is_told_of_a_removed_backend() {
    let heard = Recorder::new();
    let member = FleetMember::new(
        Backend::new(FIRST, POOL, &backend("http://127.0.0.1:1"), None, Origin::File).unwrap(),
        Arc::default(),
    );
    member.close(&heard, false);
    member.remove(&heard);
    member.close(&heard, false);
    assert!(!member.check_failed(&heard, true, &Health::default(), String::new()));
    member.report(&heard, Gauges::default(), false, BackendReport::default());
    member.start_draining(&heard);
    member.remove(&heard);
    let events = [Event::BackendUp(FIRST), Event::BackendRemoved(FIRST)].map(|event| (POOL, event));
    assert_eq!(*heard.events.borrow(), events);
}

#[tokio::test]
async fn a_draining_backend_that_returns_from_an_outage_is_not_opened_again() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.heard.in_flight.store(1, SeqCst);
    run.fleet.remove(FIRST);
    engine.set(|e| e.health = StatusCode::SERVICE_UNAVAILABLE);
    until("it is down", || !run.fleet.statuses()[0].healthy).await;
    engine.set(|e| e.health = StatusCode::OK);
    until("it is healthy again", || run.fleet.statuses()[0].healthy).await;
    assert_eq!(run.heard.count(&Event::BackendUp(FIRST)), 1);
    assert_eq!(run.fleet.preferred(POOL, b"x"), None);
}

#[tokio::test]
async fn a_backend_that_never_falls_idle_is_removed_in_the_end() {
    let engine = Engine::start().await;
    let limited = Timing { drain_limit: Duration::from_millis(100), ..timing() };
    let run = run_with(&[pool("", vec![backend(&engine.url())])], limited);
    run.heard.in_flight.store(5, SeqCst);
    run.fleet.remove(FIRST);
    run.heard.until_event(Event::BackendRemoved(FIRST)).await;
}

#[tokio::test]
async fn a_backend_added_at_run_time_gets_an_id_of_its_own_and_comes_up() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    assert!(run.fleet.add(POOL, &backend(&engine.url()), Origin::Api).is_err(), "it is there already");
    assert!(run.fleet.add(POOL, &backend("ftp://x"), Origin::Api).is_err());
    assert!(run.fleet.add(PoolId(3), &backend("http://127.0.0.1:1"), Origin::Api).is_err());

    run.fleet.remove(FIRST);
    until("the first is gone", || run.fleet.get(FIRST).is_none()).await;
    let again = run.fleet.add(POOL, &backend(&engine.url()), Origin::Api).unwrap();
    assert_ne!(again, FIRST);
    run.heard.until_event(Event::BackendUp(again)).await;
    until("it is preferred", || run.fleet.preferred(POOL, b"x") == Some(again)).await;
}

// --- Models ---

#[test]
fn a_model_finds_its_pool_by_name_or_alias() {
    let metrics = Metrics { enabled: false, interval: Duration::from_secs(5) };
    let fleet = |pools: &[Pool]| Fleet::new(pools, &metrics, Recorder::new());
    let mut glm = pool("glm", vec![]);
    glm.aliases = vec!["gpt-4".to_owned()];

    let one = fleet(std::slice::from_ref(&glm));
    assert_eq!(one.pool_for(None), Some(PoolId(0)), "the only pool");
    assert_eq!(one.pool_for(Some("gpt-4")), Some(PoolId(0)));
    assert_eq!(one.pool_for(Some("other")), None);
    assert_eq!(one.canonical(PoolId(0), "gpt-4"), Some("glm"));
    assert_eq!(one.canonical(PoolId(0), "glm"), None);

    let two = fleet(&[glm.clone(), pool("qwen", vec![])]);
    assert_eq!(two.pool_for(None), None);
    assert_eq!(two.pool_for(Some("qwen")), Some(PoolId(1)));

    let open = fleet(&[glm, pool("", vec![])]);
    assert_eq!(open.pool_for(None), Some(PoolId(1)));
    assert_eq!(open.pool_for(Some("anything")), Some(PoolId(1)));
    assert_eq!(open.pool_for(Some("glm")), Some(PoolId(0)));
    assert_eq!(open.canonical(PoolId(1), "anything"), None);
}

#[tokio::test]
async fn models_are_the_union_over_healthy_backends_and_configured_names() {
    let (a, b, down) = (Engine::start().await, Engine::start().await, Engine::start().await);
    // The odd spelling shows whether members are passed on byte for byte.
    let odd = r#"{"id": "glm","created":1.50e3, "x":[ ]}"#;
    a.set(|e| e.models = format!(r#"{{"object":"list","data":[{odd},{{"id":"lora"}},{{"no":"id"}}]}}"#));
    b.set(|e| e.models = r#"{"data":[{"id":"lora","other":1},{"id":"qwen"}]}"#.to_owned());
    down.set(|e| e.health = StatusCode::INTERNAL_SERVER_ERROR);
    let mut glm = pool("glm", vec![backend(&a.url())]);
    glm.aliases = vec!["gpt-4".to_owned()];
    let run = run(&[glm, pool("", vec![backend(&b.url())]), pool("far", vec![backend(&down.url())])]);
    run.heard.until_event(Event::BackendUp(BackendId(0))).await;
    run.heard.until_event(Event::BackendUp(BackendId(1))).await;

    let body = run.fleet.models().await;
    let text = std::str::from_utf8(&body).unwrap();
    assert!(text.starts_with(r#"{"object":"list","data":["#), "{text}");
    assert!(text.contains(odd), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let ids: Vec<_> = json["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["glm", "lora", "qwen", "gpt-4"]);
    assert_eq!(json["data"][3]["parent"], "glm");

    b.set(|e| e.models = "not json".to_owned());
    a.set(|e| e.hangs = vec!["/v1/models"]);
    let json: serde_json::Value = serde_json::from_slice(&run.fleet.models().await).unwrap();
    assert_eq!(json["data"][0]["id"], "glm", "the pool is up, so its name is served");
    assert_eq!(json["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn many_clients_asking_for_models_at_once_ask_the_backends_once() {
    let engine = Engine::start().await;
    let cached = Timing { models_age: NEVER, ..timing() };
    let run = run_with(&[pool("", vec![backend(&engine.url())])], cached);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    let answers = futures_util::future::join_all((0..50).map(|_| run.fleet.models())).await;
    assert!(answers.iter().all(|answer| answer == &answers[0]));
    assert_eq!(engine.asked("/v1/models"), 1);
}
