//! The same `Proxy` under Pingora's own executor. The decisions of the proxy do not depend on its usual executor.
//!
//! When a hook has read a body, Pingora's executor sends the body only out of its retry buffer, which holds 64 KiB. So
//! bodies are small here, and HTTP/1.1 is enough.

mod support;

use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use support::backend::{Backend, Ending};
use support::proxy::{Proxy as Served, config};
use thundergate::app::App;
use thundergate::config::Config;
use thundergate::control::Side;
use thundergate::proxy::Proxy;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = include_str!("samples/vllm-0.32-chat-stream.txt");
const WHOLE: &str = include_str!("samples/vllm-0.32-chat.json");

/// Serves `config` by `pingora_proxy::http_proxy`.
async fn stock(config: Config) -> Served {
    let app = Arc::new(App::new(Arc::new(config)).expect("a usable configuration"));
    let executor = Arc::new(http_proxy(&Arc::new(ServerConf::default()), Proxy::new(Arc::clone(&app), Side::Main)));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (fleet, gate) = (app.fleet.clone(), app.gate.clone());
    let task = tokio::spawn(async move {
        let accept = async {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(connection(Arc::clone(&executor), stream));
            }
        };
        tokio::join!(fleet.run(), gate.run_ticks(), accept);
    });
    Served::served_by(app, address, task).await
}

/// Serves all requests of one connection.
async fn connection(executor: Arc<HttpProxy<Proxy>>, stream: TcpStream) {
    let shutdown = watch::channel(false).1;
    let mut next = Some(ReusedHttpStream::new(Box::new(Stream::from(stream)), None));
    while let Some(reused) = next {
        let (stream, settings) = reused.consume();
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive(Some(60));
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
        session.enable_retry_buffering();
        next = executor.process_new_http(session, &shutdown).await;
    }
}

fn step(program: &str, tokens: usize, stream: bool) -> Vec<u8> {
    let messages = json!([{"role": "user", "content": "x".repeat(tokens * 4)}]);
    let body =
        json!({"model": "tiny", "program_id": program, "stream": stream, "max_tokens": 10, "messages": messages});
    body.to_string().into_bytes()
}

#[tokio::test]
async fn a_stream_comes_back_byte_for_byte_and_its_usage_is_seen() {
    let mut backend = Backend::start().await;
    let proxy = stock(config(&[&backend])).await;
    let mut client = proxy.client().await;
    for asked in ["", r#","stream_options":{"include_usage":true}"#] {
        let body = format!(r#"{{"model":"tiny","stream":true,"program_id":"p1"{asked}}}"#);
        client.post(CHAT, "", body.as_bytes()).await;
        let exchange = backend.next().await;
        let sent = exchange.request.json();
        assert_eq!((&sent["program_id"], &sent["stream_options"]["include_usage"]), (&json!(null), &json!(true)));
        assert_eq!(exchange.request.header("content-length"), Some(exchange.request.body.len().to_string()));
        let mut answer = exchange.events().await;
        for piece in STREAM.as_bytes().chunks(61) {
            answer.send(piece).await;
        }
        answer.finish().await;
        let response = client.response().await;
        assert!(response.complete);
        assert_eq!(response.text().contains(r#""choices":[],"usage""#), !asked.is_empty(), "usage is hidden");
        if !asked.is_empty() {
            assert_eq!(response.text(), STREAM);
        }
        proxy.settled().await;
        assert_eq!(proxy.app.gate.programs()[0].1.context.0, 1241, "the usage was seen");
    }
    proxy.balanced().await;
}

#[tokio::test]
async fn a_body_of_up_to_64_kib_reaches_the_backend_on_one_connection_after_the_other() {
    let mut backend = Backend::start().await;
    let proxy = stock(config(&[&backend])).await;
    let mut client = proxy.client().await;
    for tokens in [1, 1_000, 15_000] {
        client.post(CHAT, "", &step("p", tokens, false)).await;
        let exchange = backend.next().await;
        let content = &exchange.request.json()["messages"][0]["content"];
        assert_eq!(content.as_str().map(str::len), Some(tokens * 4));
        exchange.json(200, WHOLE).await;
        assert_eq!(client.response().await.text(), WHOLE);
    }
    proxy.balanced().await;
}

#[tokio::test]
async fn a_program_stays_on_its_backend_and_a_step_that_does_not_fit_is_held_until_there_is_room() {
    let mut backend = Backend::start().await;
    // The cache has 1,600 tokens.
    backend.state.blocks.store(100, std::sync::atomic::Ordering::Relaxed);
    let proxy = stock(config(&[&backend])).await;
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    first.post(CHAT, "", &step("a", 1_200, false)).await;
    let running = backend.next().await;
    second.post(CHAT, "", &step("b", 1_200, false)).await;
    proxy.wait_for("the second step to be held", || proxy.app.gate.held_steps() == 1).await;
    assert!(backend.is_quiet());
    running.json(200, "{}").await;
    assert_eq!(first.response().await.header("x-thundergate-backend"), Some(backend.url()));
    first.post("/programs/release", "", br#"{"program_id":"a"}"#).await;
    assert_eq!(first.response().await.status(), 200);
    backend.next().await.json(200, "{}").await;
    let response = second.response().await;
    assert_eq!(response.status(), 200);
    assert_ne!(response.header("x-thundergate-held-ms").as_deref(), Some("0"));
    proxy.balanced().await;
}

#[tokio::test]
async fn a_client_that_leaves_gives_back_its_place_held_or_at_the_backend() {
    let mut backend = Backend::start().await;
    backend.state.blocks.store(100, std::sync::atomic::Ordering::Relaxed);
    let proxy = stock(config(&[&backend])).await;
    let (mut running, mut held) = (proxy.client().await, proxy.client().await);
    running.post(CHAT, "", &step("a", 1_200, true)).await;
    let mut answer = backend.next().await.events().await;
    answer.event(r#"{"choices":[{"delta":{"content":"x"}}]}"#).await;
    held.post(CHAT, "", &step("b", 1_200, false)).await;
    proxy.wait_for("the second step to be held", || proxy.app.gate.held_steps() == 1).await;
    drop(held);
    proxy.wait_for("its place to be given back", || proxy.app.gate.held_steps() == 0).await;
    drop(running);
    answer.abandoned().await;
    proxy.balanced().await;
}

#[tokio::test]
async fn errors_are_in_the_words_of_the_proxy() {
    let mut backend = Backend::start().await;
    let proxy = stock(config(&[&backend])).await;
    for (path, body, status, code) in [
        (CHAT, &b"{"[..], 400, "invalid_json"),
        (CHAT, br#"{"program_id":[]}"#, 400, "invalid_program_id"),
        ("/v9/nothing", b"{}", 404, "not_found"),
    ] {
        let mut client = proxy.client().await;
        client.post(path, "", body).await;
        let response = client.response().await;
        let said = response.header("x-thundergate-error");
        assert_eq!((response.status(), said.as_deref()), (status, Some(code)), "{path}: {}", response.text());
        assert_eq!(response.header("server"), None);
    }
    let mut client = proxy.client().await;
    client.post(CHAT, "", &step("a", 10, false)).await;
    backend.next().await.die();
    assert_eq!(client.response().await.status(), 502);
    proxy.balanced().await;
}

#[tokio::test]
async fn a_stream_that_its_backend_breaks_off_ends_with_an_event_that_says_so() {
    let mut backend = Backend::start().await;
    let proxy = stock(config(&[&backend])).await;
    for ending in [Ending::Close, Ending::Reset] {
        let mut client = proxy.client().await;
        client.post(CHAT, "", &step("a", 10, true)).await;
        let mut exchange = backend.next().await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        exchange.raw(format!("{head}9\r\ndata: 1\n\n\r\n").as_bytes()).await;
        let mut answer = client.head().await;
        assert_eq!(client.piece(&mut answer, 0).await.as_deref(), Some(&b"data: 1\n\n"[..]));
        exchange.end(ending).await;
        let said = client.piece(&mut answer, 9).await.expect("a last event");
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.starts_with("data: {\"error\"") && said.contains("upstream_failed"), "{ending:?}: {said}");
        assert_eq!(client.piece(&mut answer, 9).await, None);
        assert!(!answer.complete);
    }
    proxy.balanced().await;
}

#[tokio::test]
async fn a_step_goes_to_another_backend_when_its_own_cannot_be_reached() {
    let (mut dead, mut alive) = (Backend::start().await, Backend::start().await);
    let mut config = config(&[&dead, &alive]);
    config.models[0].health.interval = Duration::from_secs(3600);
    let proxy = stock(config).await;
    dead.stop_listening().await;
    for program in 0..8 {
        let mut client = proxy.client().await;
        client.post(CHAT, "", &step(&format!("p{program}"), 10, false)).await;
        alive.next().await.json(200, "{}").await;
        assert_eq!(client.response().await.status(), 200);
    }
    assert!(dead.is_quiet());
    proxy.balanced().await;
}
