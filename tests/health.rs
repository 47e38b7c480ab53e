//! Backends whose requests show that they are not well: how the proxy takes them out and brings them back.

mod support;

use serde_json::Value;
use std::time::Duration;
use support::backend::{Backend, Exchange};
use support::proxy::{Proxy, config, config_of};
use support::wire::Message;
use thundergate::config::Config;
use thundergate::fleet::BackendStatus;
use thundergate::gate::PoolId;

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = include_str!("samples/vllm-0.32-chat.json");
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(20);

fn step(program: &str) -> Vec<u8> {
    format!(r#"{{"model":"tiny","messages":[],"program_id":"{program}"}}"#).into_bytes()
}

/// Configuration with health checks too rare to tell anything, and metrics that are read often.
fn quiet(backends: &[&Backend]) -> Config {
    let mut config = config(backends);
    config.models[0].health.interval = NEVER;
    config.metrics.interval = SOON;
    config
}

fn status(proxy: &Proxy, backend: &Backend) -> BackendStatus {
    let statuses = proxy.app.fleet.statuses().into_iter();
    statuses.into_iter().find(|status| status.backend.url == backend.url()).expect("it is known")
}

fn cause(proxy: &Proxy, backend: &Backend) -> Option<&'static str> {
    status(proxy, backend).down_cause.map(|cause| cause.label())
}

async fn get(proxy: &Proxy, path: &str) -> Message {
    let mut client = proxy.client().await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: proxy\r\naccept: text/plain\r\n\r\n").as_bytes()).await;
    client.response().await
}

/// Sends one step of a program; `answer` gives the backend's answer.
async fn ask(proxy: &Proxy, program: &str, backend: &mut Backend, answer: impl AsyncFnOnce(Exchange)) -> Message {
    let mut client = proxy.client().await;
    client.post(CHAT, "", &step(program)).await;
    answer(backend.next().await).await;
    client.response().await
}

/// Runs a first step of the program. Returns the two backends, the one that ran the step first.
async fn settle(proxy: &Proxy, program: &str, mut one: Backend, mut other: Backend) -> (Backend, Backend) {
    let mut client = proxy.client().await;
    client.post(CHAT, "", &step(program)).await;
    let (exchange, first) = tokio::select! {
        exchange = one.next() => (exchange, true),
        exchange = other.next() => (exchange, false),
    };
    exchange.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
    proxy.settled().await;
    if first { (one, other) } else { (other, one) }
}

#[tokio::test]
async fn the_programs_of_an_engine_that_fails_lose_their_place_there_at_once() {
    let (one, other) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::with(quiet(&[&one, &other])).await;
    let (mut sick, mut well) = settle(&proxy, "p", one, other).await;
    // These steps have no program, so the lease stays with `p` all the time.
    for number in 1..=5 {
        assert!(proxy.app.gate.programs().iter().all(|(_, program)| program.leased), "{number}");
        let ask = async || {
            let mut client = proxy.client().await;
            client.post(CHAT, "", br#"{"model":"tiny","messages":[]}"#).await;
            client
        };
        // Two steps at the same time go to two backends.
        let mut clients = [ask().await, ask().await];
        let (bad, good) = (sick.next().await, well.next().await);
        bad.json(503, "{}").await;
        good.json(200, WHOLE).await;
        for client in &mut clients {
            client.response().await;
        }
        proxy.settled().await;
    }
    proxy.wait_for("its ejection", || cause(&proxy, &sick) == Some("error")).await;
    assert!(proxy.app.gate.programs().iter().all(|(_, program)| !program.leased));
    let response = ask(&proxy, "p", &mut well, async |exchange| exchange.json(200, WHOLE).await).await;
    assert_eq!(response.header("x-thundergate-backend"), Some(well.url()));
    assert!(sick.is_quiet());
    proxy.settled().await;
}

#[tokio::test]
async fn five_answers_of_its_own_with_a_5xx_take_it_out_and_the_client_saw_each() {
    let (mut sick, mut well) = (Backend::start().await, Backend::start().await);
    let mut config = quiet(&[&sick, &well]);
    // Round robin sends every second step to the sick backend.
    config.models[0].routing = thundergate::config::Routing::RoundRobin;
    let proxy = Proxy::with(config).await;
    let bodies = [500, 502, 503, 504, 500];
    for (number, code) in bodies.into_iter().enumerate() {
        assert!(status(&proxy, &sick).healthy, "{number}");
        let mut seen = Vec::new();
        for _ in 0..2 {
            let mut client = proxy.client().await;
            client.post(CHAT, "", &step("p")).await;
            tokio::select! {
                exchange = sick.next() => exchange.json(code, r#"{"error":"mine"}"#).await,
                exchange = well.next() => exchange.json(200, WHOLE).await,
            }
            let response = client.response().await;
            seen.push(response.status());
            assert!(response.header("x-thundergate-error").is_none());
        }
        seen.sort_unstable();
        assert_eq!(seen, [200, code]);
    }
    assert_eq!((cause(&proxy, &sick), cause(&proxy, &well)), (Some("error"), None));

    let listed = get(&proxy, "/backends").await.json();
    let entry = listed["backends"].as_array().expect("a list").iter().find(|entry| entry["url"] == sick.url().as_str());
    let entry = entry.expect("it is listed");
    assert_eq!((&entry["healthy"], &entry["down_cause"]), (&Value::from(false), &Value::from("error")));
    assert!(entry["down_because"].as_str().expect("a reason").starts_with("5 answers with a 5xx in a row"));
    assert!(entry["returns_in_seconds"].as_f64().expect("a time") > 5.0);
    let series =
        format!("thundergate_backend_ejections_total{{backend=\"{}\",model=\"\",cause=\"error\"}} 1", sick.url());
    let metrics = get(&proxy, "/metrics").await;
    assert!(metrics.text().contains(&series), "{}", metrics.text());
    proxy.settled().await;
}

#[tokio::test]
async fn answers_below_500_never_count() {
    let (mut one, mut other) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::with(quiet(&[&one, &other])).await;
    for code in [400, 401, 404, 408, 413, 422, 429, 499, 501].into_iter().cycle().take(40) {
        let mut client = proxy.client().await;
        client.post(CHAT, "", &step("p")).await;
        tokio::select! {
            exchange = one.next() => exchange.json(code, "{}").await,
            exchange = other.next() => exchange.json(code, "{}").await,
        }
        assert_eq!(client.response().await.status(), code);
    }
    assert!(proxy.app.fleet.statuses().iter().all(|status| status.healthy));
    proxy.settled().await;
}

#[tokio::test]
async fn connections_that_break_in_a_row_take_it_out_and_one_whole_answer_forgives() {
    let (one, other) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::with(quiet(&[&one, &other])).await;
    let (mut one, mut other) = (one, other);
    let mut broken = 0;
    // Either backend may get the step. Of at most five steps, three in a row go to one of them.
    let mut run = async |whole: bool| {
        let mut client = proxy.client().await;
        client.post(CHAT, "", &step("p")).await;
        let exchange = tokio::select! {
            exchange = one.next() => exchange,
            exchange = other.next() => exchange,
        };
        if whole {
            exchange.json(200, WHOLE).await;
        } else {
            exchange.die();
            broken += 1;
        }
        let response = client.response().await;
        assert_eq!(response.status(), if whole { 200 } else { 502 });
        proxy.settled().await;
    };
    let out = || proxy.app.fleet.statuses().iter().filter(|status| !status.healthy).count();
    for _ in 0..4 {
        run(false).await;
        run(true).await;
    }
    assert_eq!(out(), 0);
    for _ in 0..5 {
        run(false).await;
    }
    assert_eq!(out(), 1);
    for _ in 0..10 {
        run(false).await;
    }
    assert_eq!(out(), 1, "the last one stays");
    assert_eq!(broken, 19);
    let causes = proxy.app.fleet.statuses().into_iter().filter_map(|status| status.down_cause);
    assert_eq!(causes.map(|cause| cause.label()).collect::<Vec<_>>(), ["reset"]);
}

#[tokio::test]
async fn an_engine_that_hangs_with_good_checks_loses_what_waits_for_it_to_one_that_works() {
    let (one, other) = (Backend::start().await, Backend::start().await);
    let mut config = quiet(&[&one, &other]);
    config.models[0].health.eject.no_progress = Duration::from_millis(400);
    let proxy = Proxy::with(config).await;
    let (mut hung, mut well) = settle(&proxy, "p", one, other).await;
    // This step never gets an answer.
    let mut stuck = proxy.client().await;
    stuck.post(CHAT, "", &step("p")).await;
    let exchange = hung.next().await;
    // Meanwhile a stream on the other backend goes on.
    let mut busy = proxy.client().await;
    busy.post(CHAT, "", br#"{"model":"tiny","messages":[],"program_id":"q","stream":true}"#).await;
    let mut answer = support::within("a step for the other", async {
        tokio::select! {
            exchange = well.next() => exchange,
            _ = hung.next() => panic!("the emptier one was to be taken"),
        }
    })
    .await
    .events()
    .await;
    support::within("the hung one to be taken out", async {
        while status(&proxy, &hung).healthy {
            answer.event(r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!((cause(&proxy, &hung), cause(&proxy, &well)), (Some("no_progress"), None));
    // The program's next step does not wait for the stuck one.
    let response = ask(&proxy, "p", &mut well, async |exchange| exchange.json(200, WHOLE).await).await;
    assert_eq!(response.header("x-thundergate-backend"), Some(well.url()));
    // If the stuck backend wakes up, its client still gets the answer.
    exchange.json(200, WHOLE).await;
    assert_eq!(stuck.response().await.status(), 200);
    answer.finish().await;
    drop(busy);
    proxy.settled().await;
}

#[tokio::test]
async fn a_long_silence_alone_is_no_fault_while_nothing_is_asked() {
    let (one, other) = (Backend::start().await, Backend::start().await);
    let mut config = quiet(&[&one, &other]);
    (config.models[0].health.eject.no_progress, config.models[0].health.eject.base) = (SOON, SOON);
    let proxy = Proxy::with(config).await;
    let (_one, _other) = settle(&proxy, "p", one, other).await;
    // On a busy machine, the step itself may have taken long enough to eject the backend.
    proxy.wait_for("both", || proxy.app.fleet.statuses().iter().all(|status| status.healthy)).await;
    let downs = || proxy.app.fleet.statuses().iter().map(|status| status.downs).collect::<Vec<_>>();
    let before = downs();
    let since = std::time::Instant::now();
    proxy.wait_for("many times the limit", || since.elapsed() > 20 * SOON).await;
    let judged = |status: &BackendStatus| status.scrape_age.is_some_and(|age| age < since.elapsed() / 2);
    proxy.wait_for("metrics of late", || proxy.app.fleet.statuses().iter().all(judged)).await;
    assert_eq!(downs(), before);
}

#[tokio::test]
async fn a_connection_that_fails_in_a_pool_of_one_is_checked_and_the_step_is_held_until_it_is_back() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::with(quiet(&[&backend])).await;
    let response = ask(&proxy, "p", &mut backend, async |mut exchange| {
        let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{WHOLE}", WHOLE.len());
        exchange.raw(head.as_bytes()).await;
    })
    .await;
    assert_eq!(response.status(), 200);
    backend.stop_listening().await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", &step("p")).await;
    proxy.wait_for("a held step", || proxy.app.gate.held_steps() == 1).await;
    proxy.wait_for("a check that fails", || !status(&proxy, &backend).healthy).await;
    assert_eq!(cause(&proxy, &backend), Some("check"));
    assert!(status(&proxy, &backend).returns_in.is_none(), "as soon as its checks are good");
    backend.listen_again().await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
    proxy.settled().await;
}

#[tokio::test]
async fn beyond_the_budget_nothing_is_tried_again() {
    let mut backend = Backend::start().await;
    let mut config = config_of([backend.url()]);
    config.models[0].health.interval = NEVER;
    config.retry.budget = 0.0;
    let proxy = Proxy::with(config).await;
    while proxy.app.retries.take(PoolId(0), 0.2) {}
    let response = ask(&proxy, "p", &mut backend, async |mut exchange| {
        let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{WHOLE}", WHOLE.len());
        exchange.raw(head.as_bytes()).await;
    })
    .await;
    assert_eq!(response.status(), 200, "a first try needs no budget");
    backend.stop_listening().await;
    while proxy.app.retries.take(PoolId(0), 0.2) {}
    let mut client = proxy.client().await;
    client.post(CHAT, "", &step("p")).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.header("x-thundergate-error").as_deref()), (503, Some("no_backend")));
    assert!(response.text().contains("retry.budget"));
    assert!(response.header("retry-after").is_some());
    let metrics = get(&proxy, "/metrics").await;
    assert!(metrics.text().contains("\nthundergate_retries_refused_total{model=\"default\"} 1\n"));
    assert!(metrics.text().contains("\nthundergate_retries_total{model=\"default\"} 0\n"));
    proxy.settled().await;
}

#[tokio::test]
async fn a_request_that_fails_ever_again_does_not_take_out_a_backend_that_answers_others() {
    let (one, other) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::with(quiet(&[&one, &other])).await;
    let (mut busy, _other) = settle(&proxy, "p", one, other).await;
    let mut long = proxy.client().await;
    long.post(CHAT, "", br#"{"model":"tiny","messages":[],"program_id":"p","stream":true}"#).await;
    let mut answer = busy.next().await.events().await;
    let mut message = long.head().await;
    for _ in 0..20 {
        // The program's other step runs on the same backend as the first.
        let response = ask(&proxy, "p", &mut busy, async |exchange| exchange.json(500, "{}").await).await;
        assert_eq!(response.status(), 500);
        answer.event(r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#).await;
        long.piece(&mut message, 0).await.expect("an event");
    }
    assert!(status(&proxy, &busy).healthy);
    answer.finish().await;
    proxy.settled().await;
}

#[tokio::test]
async fn a_backend_that_returns_does_not_get_all_that_comes_next() {
    let (mut one, mut other) = (Backend::start().await, Backend::start().await);
    let mut config = config(&[&one, &other]);
    config.models[0].health.unhealthy_after = 1;
    let proxy = Proxy::with(config).await;
    let healthy = |backend: &Backend, is: bool| backend.state.healthy.store(is, std::sync::atomic::Ordering::Relaxed);
    healthy(&one, false);
    proxy.wait_for("a check that fails", || !status(&proxy, &one).healthy).await;
    let mut waiting = Vec::new();
    let mut ask = async |backend: &mut Backend| {
        let mut client = proxy.client().await;
        client.post(CHAT, "", br#"{"model":"tiny","messages":[]}"#).await;
        waiting.push((client, backend.next().await));
    };
    for _ in 0..6 {
        ask(&mut other).await;
    }
    healthy(&one, true);
    proxy.wait_for("its return", || status(&proxy, &one).healthy).await;
    ask(&mut other).await;
    ask(&mut other).await;
    assert!(one.is_quiet());
    for (mut client, exchange) in waiting {
        exchange.json(200, WHOLE).await;
        assert_eq!(client.response().await.status(), 200);
    }
    proxy.settled().await;
}
