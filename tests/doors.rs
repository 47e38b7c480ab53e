//! Requests that are refused for want of room, and the other ways in: the admin listener, TLS, HTTP/1.0, WebSockets.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::backend::{Backend, Ending, Exchange};
use support::client::Client;
use support::proxy::{Proxy, config};
use support::wire::Message;
use support::{noise, within};
use thundergate::config::{Admin, OnTimeout, Secret, Tls, TlsVersion};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const CHAT: &str = "/v1/chat/completions";

fn error_code(response: &Message) -> String {
    response.json()["error"]["code"].as_str().expect("a code").to_owned()
}

/// A step of `program` with a prompt of some 1,000 tokens, at the bytes per token that the proxy assumes before it has
/// measured any.
fn step(program: &str) -> Vec<u8> {
    let messages = serde_json::json!([{"role": "user", "content": "x".repeat(4_000)}]);
    let body = serde_json::json!({"model": "tiny", "program_id": program, "max_tokens": 10, "messages": messages});
    body.to_string().into_bytes()
}

#[tokio::test]
async fn a_step_too_many_in_the_queue_is_told_when_to_come_back() {
    let mut backend = Backend::start().await;
    // There is room for one such step.
    backend.state.blocks.store(100, Ordering::Relaxed);
    let mut config = config(&[&backend]);
    config.scheduler.hold.queue = 1;
    let proxy = Proxy::with(config).await;
    let (mut first, mut second, mut third) = (proxy.client().await, proxy.client().await, proxy.client().await);
    first.post(CHAT, "", &step("a")).await;
    let running = backend.next().await;
    second.post(CHAT, "", &step("b")).await;
    proxy.wait_for("the second to be held", || proxy.app.gate.held_steps() == 1).await;
    third.post(CHAT, "", &step("c")).await;
    let response = third.response().await;
    assert_eq!((response.status(), error_code(&response)), (429, "held_too_long".to_owned()));
    assert!(response.header("retry-after").is_some());
    running.json(400, "{}").await;
    backend.next().await.json(400, "{}").await;
    assert_eq!((first.response().await.status(), second.response().await.status()), (400, 400));
    proxy.settled().await;
    assert!(proxy.app.gate.programs().is_empty(), "not one of them was answered");
}

#[tokio::test]
async fn a_step_held_for_too_long_is_refused_and_never_reaches_a_backend() {
    let mut backend = Backend::start().await;
    backend.state.blocks.store(100, Ordering::Relaxed);
    let mut config = config(&[&backend]);
    config.scheduler.hold.max = Duration::from_millis(100);
    config.scheduler.hold.on_timeout = OnTimeout::Reject;
    config.scheduler.tick = Duration::from_millis(20);
    let proxy = Proxy::with(config).await;
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    first.post(CHAT, "", &step("a")).await;
    let running = backend.next().await;
    second.post(CHAT, "", &step("b")).await;
    let response = second.response().await;
    assert_eq!((response.status(), error_code(&response)), (429, "held_too_long".to_owned()));
    assert!(response.header("retry-after").is_some());
    assert!(backend.is_quiet());
    running.json(400, "{}").await;
    assert_eq!(first.response().await.status(), 400);
    proxy.settled().await;
}

#[tokio::test]
async fn the_admin_listener_asks_for_its_token_and_the_main_one_knows_nothing_of_it() {
    let backend = Backend::start().await;
    let mut config = config(&[&backend]);
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.admin = Some(Admin { listen, token: Some(Secret("t0ken".into())), ..Admin::default() });
    let proxy = Proxy::with(config).await;
    let mut main = proxy.client().await;
    for (path, status) in [("/programs", 404), ("/backends", 404), ("/health", 200), ("/livez", 200), ("/readyz", 200)]
    {
        main.get(path).await;
        assert_eq!(main.response().await.status(), status, "{path} on the main listener");
    }
    let mut admin = Client::connect(proxy.addresses[1]).await;
    admin.get("/programs").await;
    let response = admin.response().await;
    assert_eq!((response.status(), error_code(&response)), (401, "invalid_admin_token".to_owned()));
    for (path, status) in [("/programs", 200), ("/backends", 200), ("/v1/embeddings", 404), ("/metrics", 200)] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t0ken\r\n\r\n");
        admin.send(head.as_bytes()).await;
        let response = admin.response().await;
        assert_eq!(response.status(), status, "{path} on the admin listener");
        if path == "/metrics" {
            assert!(response.text().contains("thundergate_backend_healthy"), "Prometheus, whatever is asked for");
        }
    }
}

#[tokio::test]
async fn a_tls_listener_serves_both_protocols() {
    let mut backend = Backend::start().await;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let dir = tempfile::tempdir().expect("a directory");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("writable");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("writable");
    let mut config = config(&[&backend]);
    config.listeners[0].tls = Some(Tls { cert, key, client_ca: None, min_version: TlsVersion::V1_2 });
    let proxy = Proxy::with(config).await;
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).expect("a certificate");
    let base = || reqwest::Client::builder().add_root_certificate(root.clone()).no_proxy();
    let url = format!("https://localhost:{}{CHAT}", proxy.address.port());
    for (client, version) in [(base().http1_only(), http::Version::HTTP_11), (base(), http::Version::HTTP_2)] {
        let client = client.build().expect("a client");
        let answered = tokio::spawn(client.post(&url).body(step("a")).send());
        backend.next().await.json(200, "{\"ok\": true}").await;
        let response = answered.await.expect("no panic").expect("an answer");
        assert_eq!(response.version(), version);
        assert_eq!(response.text().await.expect("a body"), "{\"ok\": true}");
    }
    proxy.settled().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_server_takes_all_the_descriptors_that_it_may_have() {
    let start =
        format!("ulimit -Sn 256; exec {} --port 0 --host 127.0.0.1 --backends ''", env!("CARGO_BIN_EXE_thundergate"));
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &start]).stderr(Stdio::piped()).kill_on_drop(true);
    let mut server = shell.spawn().expect("a shell");
    let mut log = BufReader::new(server.stderr.take().expect("a pipe")).lines();
    while let Some(line) = log.next_line().await.expect("text") {
        if line.contains("listening on") {
            break;
        }
    }
    let limits = format!("/proc/{}/limits", server.id().expect("it runs"));
    let limits = std::fs::read_to_string(limits).expect("readable");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let [soft, hard, _] = files.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{files}") };
    assert_eq!(soft, hard);
    assert_ne!(soft, "256");
}

// === older and other protocols ===

#[tokio::test]
async fn for_a_client_of_http_1_0_the_end_of_the_connection_ends_an_answer_without_a_length() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let body = step("a");
    let head = format!("POST {CHAT} HTTP/1.0\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(&[head.as_bytes(), &body].concat()).await;
    let mut answer = backend.next().await.events().await;
    answer.event("one").await;
    answer.event("[DONE]").await;
    answer.finish().await;
    let response = client.response().await;
    assert_eq!((response.status(), response.header("transfer-encoding")), (200, None));
    assert_eq!(response.text(), "data: one\n\ndata: [DONE]\n\n");
    assert!(client.closed().await);
    proxy.balanced().await;
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks_where_an_answer_loses_its_length_and_no_100_continue() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let body = br#"{"model":"tiny","program_id":"p","stream":true}"#;
    let head = format!("POST {CHAT} HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(&[head.as_bytes(), body].concat()).await;
    let usage = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}"#;
    let events = format!("data: {{\"choices\":[]}}\n\ndata: {usage}\n\ndata: [DONE]\n\n");
    backend.next().await.whole(200, "text/event-stream", events.as_bytes()).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.header("transfer-encoding")), (200, None));
    assert!(response.text().ends_with("data: [DONE]\n\n") && !response.text().contains("usage"), "{}", response.text());
    assert!(client.closed().await);
    proxy.balanced().await;
}

#[tokio::test]
async fn an_upgrade_that_is_not_passed_on_is_not_believed_of_a_backend() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.send(b"GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n").await;
    let mut exchange = backend.next().await;
    assert_eq!(exchange.request.header("upgrade"), None);
    exchange.raw(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 502);
    proxy.settled().await;
}

#[tokio::test]
async fn a_websocket_is_passed_through_both_ways_until_one_side_closes() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let ask = "GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    for backend_closes in [true, false] {
        let mut client = proxy.client().await;
        client.send(ask.as_bytes()).await;
        let mut exchange = backend.next().await;
        let asked = |name| exchange.request.header(name);
        assert_eq!((asked("upgrade").as_deref(), asked("connection").as_deref()), (Some("websocket"), Some("Upgrade")));
        let accepted = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";
        exchange.raw(accepted).await;
        let mut head = client.head().await;
        assert_eq!(head.status(), 101);
        assert_eq!(head.header("upgrade").as_deref(), Some("websocket"));
        assert_eq!(client.piece(&mut head, 0).await.as_deref(), Some(&b"hello"[..]));
        client.send(b"and back").await;
        assert_eq!(exchange.said(8).await, b"and back");
        match backend_closes {
            true => {
                exchange.die();
                assert!(client.closed().await);
            }
            false => {
                drop(client);
                exchange.abandoned().await;
            }
        }
        proxy.balanced().await;
    }
}

/// Opens a tunnel through the proxy. Returns both ends of the tunnel.
async fn tunnel(proxy: &Proxy, backend: &mut Backend) -> (Client, Exchange) {
    let mut client = proxy.client().await;
    let ask = "GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.send(ask.as_bytes()).await;
    let mut exchange = backend.next().await;
    exchange.raw(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 101);
    (client, exchange)
}

async fn write(mut to: OwnedWriteHalf, bytes: usize) -> OwnedWriteHalf {
    let piece = noise(65_536);
    for _ in 0..bytes / piece.len() {
        to.write_all(&piece).await.expect("the tunnel stands");
    }
    to
}

async fn read(mut from: OwnedReadHalf, bytes: usize) -> OwnedReadHalf {
    let piece = noise(65_536);
    let mut came = vec![0; piece.len()];
    for _ in 0..bytes / piece.len() {
        from.read_exact(&mut came).await.expect("the tunnel stands");
        assert!(came == piece, "another byte came than was sent");
    }
    from
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_both_ways_at_once_however_much_more_one_side_says() {
    const MIB: usize = 1 << 20;
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for (up, down) in [(8 * MIB, 64 * MIB), (64 * MIB, 8 * MIB), (32 * MIB, 32 * MIB)] {
        let (client, exchange) = tunnel(&proxy, &mut backend).await;
        let ((from_proxy, to_proxy), (from_client, to_client)) = (client.split(), exchange.into_halves());
        let all = async {
            tokio::join!(
                write(to_proxy, up),
                read(from_proxy.into_inner(), down),
                write(to_client, down),
                read(from_client, up)
            )
        };
        drop(within("both directions", all).await);
    }
    // The backend sends everything before it reads. The client does both at the same time.
    let (client, exchange) = tunnel(&proxy, &mut backend).await;
    let ((from_proxy, to_proxy), (from_client, to_client)) = (client.split(), exchange.into_halves());
    let speaks_first = async {
        let to_client = write(to_client, 32 * MIB).await;
        (to_client, read(from_client, 32 * MIB).await)
    };
    let all = async { tokio::join!(write(to_proxy, 32 * MIB), read(from_proxy.into_inner(), 32 * MIB), speaks_first) };
    drop(within("a backend that speaks first", all).await);
    proxy.balanced().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_gives_the_client_all_that_its_backend_said_before_it_closed() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for ending in [Ending::Close, Ending::HalfClose] {
        let (mut client, mut exchange) = tunnel(&proxy, &mut backend).await;
        let said = noise(3 << 20);
        let saying = async {
            exchange.raw(&said).await;
            exchange.end(ending).await.await.expect("no panic");
        };
        let ((), came) = tokio::join!(saying, client.rest());
        assert!(came == said, "{} of {} bytes came before {ending:?}", came.len(), said.len());
    }
    proxy.balanced().await;
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_ends() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.timeouts.stream_idle = Duration::from_millis(300);
    let proxy = Proxy::with(config).await;
    // First a tunnel that is silent; then one whose client reads nothing that the backend sends.
    for loud in [false, true] {
        let (mut client, mut exchange) = tunnel(&proxy, &mut backend).await;
        if loud {
            // Large pieces and small ones: what waits may wait in any of the buffers on the way.
            let said = noise(65_536);
            for size in [65_536; 30].into_iter().chain([500; 9_000]) {
                if exchange.push(&said[..size], Duration::from_millis(100)).await < size {
                    break;
                }
            }
            exchange.abandoned().await;
        } else {
            assert!(client.closed().await);
            exchange.abandoned().await;
        }
        proxy.settled().await;
    }
}

#[tokio::test]
async fn a_connection_header_that_takes_away_what_is_not_its_own_is_refused() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for named in ["host", "close, X-Forwarded-For", "a b", ":authority", "a,b,c,d,e,f,g,h,i,j,k"] {
        let mut client = proxy.client().await;
        client.post(CHAT, &format!("connection: {named}\r\n"), &step("a")).await;
        let response = client.response().await;
        assert_eq!((response.status(), error_code(&response)), (400, "invalid_request".to_owned()), "{named}");
        assert!(backend.is_quiet());
    }
    proxy.unharmed(&mut backend).await;
}
