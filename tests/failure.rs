//! Failures: backends that refuse, die and stall, clients that leave, programs that end, and the end of the server
//! itself.

mod support;

use bytes::Bytes;
use serde_json::json;
use std::time::Duration;
use support::backend::Backend;
use support::client::{Client, H2, H2Request};
use support::proxy::{Proxy, config, config_of};
use support::wire::Message;
use thundergate::server::Shutdown;

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = include_str!("samples/vllm-0.32-chat.json");
const STEP: &[u8] = br#"{"model":"tiny","messages":[],"program_id":"p1"}"#;
const STREAMED: &[u8] = br#"{"model":"tiny","messages":[],"program_id":"p1","stream":true}"#;

fn error_code(response: &Message) -> String {
    let code = response.json()["error"]["code"].as_str().expect("a code").to_owned();
    assert_eq!(response.header("x-thundergate-error").as_deref(), Some(code.as_str()));
    code
}

fn token(n: usize) -> String {
    json!({"choices": [{"index": 0, "delta": {"content": n.to_string()}}]}).to_string()
}

/// Whether no program has a step in flight or held, so that each may go on.
fn idle(proxy: &Proxy) -> bool {
    let programs = proxy.app.gate.programs();
    programs.iter().all(|(_, program)| program.in_flight == 0 && program.held == 0)
}

/// A URL that refuses connections.
fn refusing() -> String {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", gone.local_addr().expect("bound"))
}

/// The next request, at whichever of the two backends it arrives.
async fn either(one: &mut Backend, other: &mut Backend) -> support::backend::Exchange {
    tokio::select! {
        exchange = one.next() => exchange,
        exchange = other.next() => exchange,
    }
}

#[tokio::test]
async fn a_backend_that_refuses_is_passed_over_and_the_client_sees_nothing() {
    let (mut first, mut second) = (Backend::start().await, Backend::start().await);
    let mut config = config(&[&first, &second]);
    // Checks are so rare here that only a refused connection tells that a backend is gone.
    config.models[0].health.interval = Duration::from_secs(3600);
    let proxy = Proxy::with(config).await;
    // A program's first step finds a backend; then this backend goes away.
    let mut client = proxy.client().await;
    client.post(CHAT, "connection: close\r\n", STEP).await;
    let mut exchange = either(&mut first, &mut second).await;
    let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{WHOLE}", WHOLE.len());
    exchange.raw(head.as_bytes()).await;
    exchange.die();
    let url = client.response().await.header("x-thundergate-backend").expect("a backend");
    let (gone, left) = if url == first.url() { (first, &mut second) } else { (second, &mut first) };
    drop(gone);
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let exchange = left.next().await;
    exchange.json(200, WHOLE).await;
    let response = client.response().await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.header("x-thundergate-backend"), Some(left.url()));
    proxy.settled().await;
}

#[tokio::test]
async fn without_a_usable_backend_a_step_is_held_and_then_refused() {
    let mut config = config_of([refusing()]);
    config.scheduler.no_backend_wait = Duration::from_millis(200);
    let proxy = Proxy::unready(config);
    for (path, body) in [(CHAT, STEP), ("/v1/embeddings", b"{}")] {
        let mut client = proxy.client().await;
        client.post(path, "", body).await;
        let response = client.response().await;
        assert_eq!((response.status(), error_code(&response)), (503, "no_backend".to_owned()));
        assert!(response.header("retry-after").is_some());
        assert_eq!(response.header("connection").as_deref(), Some("keep-alive"));
    }
    proxy.settled().await;
}

#[tokio::test]
async fn a_fleet_that_is_gone_all_at_once_is_waited_for() {
    let (mut one, mut other) = (Backend::start().await, Backend::start().await);
    let mut config = config(&[&one, &other]);
    // Only the failed connections ask for checks here.
    config.models[0].health.interval = Duration::from_secs(3600);
    config.retry.connect_attempts = 1;
    let proxy = Proxy::with(config).await;
    for backend in [&mut one, &mut other] {
        backend.state.healthy.store(false, std::sync::atomic::Ordering::Relaxed);
        backend.stop_listening().await;
    }
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let down = || proxy.app.fleet.statuses().iter().all(|status| !status.healthy);
    proxy.wait_for("both to be found out", || down() && proxy.app.gate.held_steps() == 1).await;
    for backend in [&mut one, &mut other] {
        backend.state.healthy.store(true, std::sync::atomic::Ordering::Relaxed);
        backend.listen_again().await;
    }
    either(&mut one, &mut other).await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
    proxy.settled().await;
}

#[tokio::test]
async fn a_backend_that_takes_no_connection_although_its_checks_are_good_is_not_tried_for_ever() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.scheduler.no_backend_wait = Duration::from_millis(500);
    let proxy = Proxy::with(config).await;
    // From now on the backend refuses connections, those of the checks too.
    backend.stop_listening().await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let response = client.response().await;
    assert_eq!((response.status(), error_code(&response)), (503, "no_backend".to_owned()));
    proxy.settled().await;
}

#[tokio::test]
async fn a_backend_that_comes_back_takes_the_steps_that_wait_for_it() {
    let mut backend = Backend::start().await;
    backend.state.healthy.store(false, std::sync::atomic::Ordering::Relaxed);
    let proxy = Proxy::unready(config(&[&backend]));
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    proxy.wait_for("a held step", || proxy.app.gate.held_steps() == 1).await;
    backend.state.healthy.store(true, std::sync::atomic::Ordering::Relaxed);
    backend.next().await.json(200, WHOLE).await;
    let response = client.response().await;
    assert_eq!(response.status(), 200);
    let held: u64 = response.header("x-thundergate-held-ms").expect("a time").parse().expect("a number");
    assert!(held > 0);
}

#[tokio::test]
async fn a_backend_that_dies_before_it_answers_costs_a_502_and_no_second_try() {
    let (mut one, mut other) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start(&[&one, &other]).await;
    // The first round uses a fresh connection to the backend, the second one that has served before.
    for warm in [false, true] {
        let mut client = proxy.client().await;
        if warm {
            client.post(CHAT, "", STEP).await;
            either(&mut one, &mut other).await.json(200, WHOLE).await;
            assert_eq!(client.response().await.status(), 200);
        }
        client.post(CHAT, "", STEP).await;
        either(&mut one, &mut other).await.die();
        let response = client.response().await;
        assert_eq!((response.status(), error_code(&response)), (502, "upstream_failed".to_owned()));
        assert!(one.is_quiet() && other.is_quiet());
        // The client's own connection still works.
        client.post(CHAT, "", STEP).await;
        either(&mut one, &mut other).await.json(200, WHOLE).await;
        assert_eq!(client.response().await.status(), 200);
        proxy.settled().await;
    }
}

/// A step that has streamed two tokens to `client`.
async fn streaming(backend: &mut Backend, client: &mut Client) -> (support::backend::Answer, Message, String) {
    client.post(CHAT, "", STREAMED).await;
    let mut answer = backend.next().await.events().await;
    let mut message = client.head().await;
    let mut seen = String::new();
    for n in 0..2 {
        answer.event(&token(n)).await;
        let piece = client.piece(&mut message, 0).await.expect("an event");
        seen.push_str(std::str::from_utf8(&piece).expect("text"));
    }
    (answer, message, seen)
}

#[tokio::test]
async fn a_backend_that_dies_mid_stream_ends_it_with_an_error_event_and_without_done() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for (way, half) in [("close", ""), ("reset", ""), ("close", "data: {\"choices\":[{\"de")] {
        let mut client = proxy.client().await;
        let (mut answer, mut message, mut seen) = streaming(&mut backend, &mut client).await;
        if !half.is_empty() {
            answer.send(half.as_bytes()).await;
            let piece = client.piece(&mut message, 0).await.expect("half an event");
            seen.push_str(std::str::from_utf8(&piece).expect("text"));
        }
        match way {
            "close" => answer.die(),
            _ => answer.reset(),
        }
        while let Some(piece) = client.piece(&mut message, 0).await {
            seen.push_str(std::str::from_utf8(&piece).expect("text"));
        }
        assert!(!message.complete, "no last chunk: {way}");
        let events: Vec<_> = seen.split_terminator("\n\n").collect();
        let last = events.last().and_then(|event| event.strip_prefix("data: ")).expect("an event");
        let error: serde_json::Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(error["error"]["code"], "upstream_failed");
        assert_eq!(events.len(), if half.is_empty() { 3 } else { 4 }, "{seen}");
        assert!(!seen.contains("[DONE]"));
        proxy.settled().await;
        assert!(idle(&proxy));
    }
}

#[tokio::test]
async fn what_was_held_back_of_a_stream_goes_before_the_error_that_ends_it() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STREAMED).await;
    let mut answer = backend.next().await.events().await;
    // The end of the choice waits for the usage event, which never comes.
    let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    answer.event(&token(1)).await;
    answer.event(end).await;
    answer.die();
    let response = client.response().await;
    let events: Vec<_> = response.text().split_terminator("\n\n").map(str::to_owned).collect();
    assert_eq!(events[..2], [format!("data: {}", token(1)), format!("data: {end}")]);
    assert!(events[2].starts_with("data: {\"error\""), "{events:?}");
    assert_eq!(events.len(), 3);
    assert!(!response.complete);
    proxy.settled().await;
}

#[tokio::test]
async fn over_http2_too_a_broken_stream_ends_with_its_error_event() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut h2 = H2::connect(proxy.address).await;
    let mut request = h2.post(CHAT, None).await;
    request.send(Bytes::from_static(STREAMED), true).await;
    let mut answer = backend.next().await.events().await;
    answer.event(&token(0)).await;
    let (response, _body) = request.head().await;
    let mut body = response.into_body();
    let mut seen = support::within("an event", body.data()).await.expect("data").expect("data").to_vec();
    answer.die();
    while let Some(data) = support::within("the rest", body.data()).await {
        seen.extend_from_slice(&data.expect("no reset before the event"));
    }
    let seen = String::from_utf8(seen).expect("text");
    let last = seen.split_terminator("\n\n").last().and_then(|event| event.strip_prefix("data: "));
    let error: serde_json::Value = serde_json::from_str(last.expect("an event")).expect("JSON");
    assert_eq!(error["error"]["code"], "upstream_failed");
    assert!(!seen.contains("[DONE]"));
    proxy.settled().await;
    // The connection stays usable.
    let mut request = h2.post(CHAT, None).await;
    request.send(Bytes::from_static(STEP), true).await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(request.response().await.status(), 200);
}

#[tokio::test]
async fn an_answer_in_one_piece_that_breaks_off_is_seen_to_be_cut() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let mut exchange = backend.next().await;
    let mut part = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10000\r\n\r\n".to_vec();
    part.extend_from_slice(&[b' '; 5000]);
    exchange.raw(&part).await;
    let mut message = client.head().await;
    exchange.die();
    let mut read = 0;
    while let Some(piece) = client.piece(&mut message, read).await {
        read += piece.len();
    }
    assert!(read <= 5000);
    assert!(!message.complete);
    proxy.settled().await;
    assert!(idle(&proxy));
}

async fn h2_step(h2: &mut H2, body: &'static [u8]) -> H2Request {
    let mut request = h2.post(CHAT, None).await;
    request.send(Bytes::from_static(body), true).await;
    request
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte_takes_its_request_with_it() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for body in [STEP, STREAMED] {
        let mut client = proxy.client().await;
        client.post(CHAT, "", body).await;
        let exchange = backend.next().await;
        drop(client);
        exchange.abandoned().await;
        proxy.settled().await;

        let mut h2 = H2::connect(proxy.address).await;
        let request = h2_step(&mut h2, body).await;
        let left = backend.next().await;
        let sibling = h2_step(&mut h2, body).await;
        let stays = backend.next().await;
        drop(request);
        left.abandoned().await;
        stays.json(200, WHOLE).await;
        assert_eq!(sibling.response().await.status(), 200);
        proxy.settled().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_takes_its_request_with_it() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let (answer, ..) = streaming(&mut backend, &mut client).await;
    drop(client);
    // The backend is silent, so the proxy writes nothing that could fail.
    answer.abandoned().await;
    proxy.settled().await;
    assert!(idle(&proxy));

    let mut h2 = H2::connect(proxy.address).await;
    let request = h2_step(&mut h2, STREAMED).await;
    let mut answer = backend.next().await.events().await;
    answer.event(&token(0)).await;
    let left = request.head().await;
    drop(left);
    answer.abandoned().await;
    proxy.settled().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_held_frees_its_place() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    proxy.app.gate.freeze(true);
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let mut h2 = H2::connect(proxy.address).await;
    let request = h2_step(&mut h2, STREAMED).await;
    let sibling = h2_step(&mut h2, STEP).await;
    proxy.wait_for("held steps", || proxy.app.gate.held_steps() == 3).await;
    drop(client);
    drop(request);
    proxy.wait_for("two free places", || proxy.app.gate.held_steps() == 1).await;
    proxy.app.gate.freeze(false);
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(sibling.response().await.status(), 200);
    assert!(backend.is_quiet());
    proxy.settled().await;
}

#[tokio::test]
async fn a_program_released_while_its_step_is_held_never_reaches_a_backend() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    proxy.app.gate.freeze(true);
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    proxy.wait_for("a held step", || proxy.app.gate.held_steps() == 1).await;
    let mut other = proxy.client().await;
    other.post("/programs/release", "", br#"{"program_id":"p1"}"#).await;
    assert_eq!(other.response().await.json(), json!({"program_id": "p1", "released": true}));
    let response = client.response().await;
    assert_eq!((response.status(), error_code(&response)), (409, "program_released".to_owned()));
    proxy.app.gate.freeze(false);
    assert!(backend.is_quiet());
    proxy.settled().await;
}

const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_backend_that_says_nothing_in_time_costs_a_502() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    (config.timeouts.first_byte, config.timeouts.stream_idle) = (SOON, NEVER);
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let exchange = backend.next().await;
    let response = client.response().await;
    assert_eq!((response.status(), error_code(&response)), (502, "upstream_failed".to_owned()));
    exchange.abandoned().await;
    proxy.settled().await;

    // Time in the queue does not count as time on the backend.
    proxy.app.gate.freeze(true);
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    proxy.wait_for("a held step", || proxy.app.gate.held_steps() == 1).await;
    tokio::time::sleep(2 * SOON).await;
    proxy.app.gate.freeze(false);
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn a_stream_that_stalls_ends_with_an_error_event() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    (config.timeouts.first_byte, config.timeouts.stream_idle) = (NEVER, SOON);
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    let (answer, mut message, _) = streaming(&mut backend, &mut client).await;
    let event = client.piece(&mut message, 0).await.expect("an event");
    assert!(event.starts_with(b"data: {\"error\":"));
    assert_eq!(client.piece(&mut message, 0).await, None);
    assert!(!message.complete);
    answer.abandoned().await;
    proxy.settled().await;
    assert!(idle(&proxy));
}

#[tokio::test]
async fn over_http2_too_a_backend_that_says_nothing_in_time_costs_a_502() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    (config.timeouts.first_byte, config.timeouts.stream_idle) = (SOON, NEVER);
    let proxy = Proxy::with(config).await;
    let mut h2 = H2::connect(proxy.address).await;
    let request = h2_step(&mut h2, STEP).await;
    let exchange = backend.next().await;
    let response = request.response().await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["x-thundergate-error"], "upstream_failed");
    exchange.abandoned().await;
    proxy.settled().await;
}

#[tokio::test]
async fn a_head_that_trickles_in_is_refused() {
    let backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.timeouts.request_header = SOON;
    let proxy = Proxy::with(config).await;
    for (requests, head) in [(0, &b"GE"[..]), (0, b"POST /v1/chat/completions HTTP/1.1\r\nx: "), (1, b"GE")] {
        let mut client = proxy.client().await;
        for _ in 0..requests {
            client.get("/livez").await;
            assert_eq!(client.response().await.status(), 200);
            // The time limit for a head begins with the first byte of the head.
            tokio::time::sleep(2 * SOON).await;
        }
        client.send(head).await;
        let (mut reader, mut writer) = client.split();
        let trickle = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let mut pace = tokio::time::interval(SOON / 10);
            while writer.write_all(b"x").await.is_ok() {
                pace.tick().await;
            }
        });
        let mut response = support::within("a refusal", reader.head()).await.expect("no reset").expect("a head");
        reader.body(&mut response).await.expect("no reset");
        assert_eq!((response.status(), error_code(&response)), (408, "request_timeout".to_owned()));
        trickle.abort();
    }
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_is_closed_without_a_word() {
    let backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.timeouts.request_header = SOON;
    let proxy = Proxy::with(config).await;
    assert!(proxy.client().await.closed().await);
}

#[tokio::test]
async fn a_request_shorter_than_the_http2_preface_is_answered() {
    let backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send(b"GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 404);
    let mut client = proxy.client().await;
    client.send(b"P").await;
    client.send(b"OST / HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 404);
}

#[tokio::test]
async fn a_drain_refuses_what_waits_and_lets_what_runs_finish() {
    let mut backend = Backend::start().await;
    let mut proxy = Proxy::start(&[&backend]).await;
    let mut running = proxy.client().await;
    let (mut answer, mut message, _) = streaming(&mut backend, &mut running).await;
    proxy.app.gate.freeze(true);
    let mut held = proxy.client().await;
    held.post(CHAT, "", STEP).await;
    proxy.wait_for("a held step", || proxy.app.gate.held_steps() == 1).await;
    let mut idle = proxy.client().await;
    idle.get("/livez").await;
    assert_eq!(idle.response().await.status(), 200);

    proxy.stop(Shutdown::Drain).await;
    let response = held.response().await;
    assert_eq!((response.status(), error_code(&response)), (503, "draining".to_owned()));
    assert!(response.header("retry-after").is_some());
    idle.get("/readyz").await;
    let response = idle.response().await;
    assert_eq!((response.status(), response.json()), (503, json!({"status": "draining"})));
    let mut late = proxy.client().await;
    late.post(CHAT, "", STEP).await;
    let response = late.response().await;
    assert_eq!((response.status(), error_code(&response)), (503, "draining".to_owned()));
    assert_eq!(response.header("connection").as_deref(), Some("close"));

    answer.event(&token(2)).await;
    assert!(client_sees(&mut running, &mut message, &token(2)).await);
    answer.event("[DONE]").await;
    answer.finish().await;
    assert!(client_sees(&mut running, &mut message, "[DONE]").await);
    while running.piece(&mut message, 0).await.is_some() {}
    assert!(message.complete);
    proxy.ended().await;
}

async fn client_sees(client: &mut Client, message: &mut Message, data: &str) -> bool {
    let piece = client.piece(message, 0).await.expect("an event");
    piece == format!("data: {data}\n\n")
}

#[tokio::test]
async fn a_drain_ends_after_its_grace_and_a_second_word_ends_it_at_once() {
    for second_word in [false, true] {
        let mut backend = Backend::start().await;
        let mut config = config(&[&backend]);
        config.timeouts.grace = if second_word { Duration::from_secs(3600) } else { Duration::from_millis(50) };
        let mut proxy = Proxy::with(config).await;
        let mut client = proxy.client().await;
        let _streaming = streaming(&mut backend, &mut client).await;
        proxy.stop(Shutdown::Drain).await;
        if second_word {
            proxy.stop(Shutdown::Now).await;
        }
        proxy.ended().await;
    }
}
