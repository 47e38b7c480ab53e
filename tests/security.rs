//! Strangers and tenants: they cannot take what belongs to others, reach what is not theirs, or write into logs.

mod support;

use bytes::Bytes;
use http::HeaderValue;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::backend::{Backend, Ending};
use support::client::{Client, H2, post_head};
use support::proxy::{Proxy, config, config_of};
use support::wire::Message;
use support::within;
use thundergate::config::{Access, AccessFormat, Admin, ApiKey, Config, PerKey, Secret};
use tokio::io::AsyncWriteExt;

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = r#"{"id":"1","choices":[{"index":0,"message":{"content":"hi"}}],
    "usage":{"prompt_tokens":60,"completion_tokens":40,"total_tokens":100}}"#;
const STEP: &[u8] = br#"{"model":"tiny","messages":[{"role":"user","content":"hi"}],"program_id":"p1"}"#;

fn code(response: &Message) -> String {
    response.header("x-thundergate-error").unwrap_or_default()
}

fn with_key(backend: &Backend, per_key: PerKey) -> Config {
    let mut config = config(&[backend]);
    config.auth.keys = vec![ApiKey { name: "one".into(), key: Secret("sk-one".into()), tenant: String::new() }];
    config.limits.per_key = per_key;
    config
}

fn with_admin(mut config: Config, admin: Admin) -> Config {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.admin = Some(Admin { listen, ..admin });
    config
}

fn token() -> Admin {
    Admin { token: Some(Secret("t0ken".into())), ..Admin::default() }
}

/// Status and `detail` of a POST without a body.
async fn told(client: &mut Client, target: &str, headers: &str) -> (u16, String) {
    client.post(target, headers, b"").await;
    let response = client.response().await;
    (response.status(), response.json()["detail"].as_str().unwrap_or_default().to_owned())
}

/// Whether a new connection gets an answer instead of being closed.
async fn is_served(proxy: &Proxy) -> bool {
    let (mut reader, mut writer) = proxy.client().await.split();
    let sent = writer.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sent.is_ok() && matches!(within("an answer or the end", reader.head()).await, Ok(Some(_)))
}

// === paths ===

#[tokio::test]
async fn no_spelling_of_a_path_reaches_the_operators_endpoints_through_the_main_listener() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::with(with_admin(config(&[&backend]), token())).await;
    let targets = [
        "/backends",
        "//backends",
        "/./backends",
        "/%62ackends",
        "/backends/",
        "/backends/0",
        "/backends%2F0",
        "/v1/../backends",
        "/v1/%2e%2e/backends",
        "/v1/..%2fbackends",
        "/v1/%2e%2e%2fbackends",
        "/v1/..%5cbackends",
        "/v1/..\\backends",
        "/v1/..;/backends",
        "/v1/%252e%252e/backends",
        "/v1/x/../../backends",
        "/v1/models/../../backends",
        "http://proxy/backends",
        "http://proxy//v1/../backends",
        "/health/../backends",
        "/livez/..;/backends",
        "/backends?x=/livez",
        "/livez%00/../backends",
    ];
    for target in targets {
        for method in ["GET", "POST", "DELETE"] {
            let mut client = proxy.client().await;
            let head = format!("{method} {target} HTTP/1.1\r\nhost: proxy\r\ncontent-length: 0\r\n\r\n");
            client.send(head.as_bytes()).await;
            let status = client.response().await.status();
            assert!(matches!(status, 400 | 404), "{method} {target}: {status}");
        }
    }
    let mut h2 = H2::connect(proxy.address).await;
    for target in ["/v1/../backends", "//backends", "/v1/%2e%2e/backends", "/v1/..%2fbackends"] {
        let mut request = h2.post(target, Some(2)).await;
        request.send(Bytes::from_static(b"{}"), true).await;
        let status = request.response().await.status().as_u16();
        assert!(matches!(status, 400 | 404), "{target}: {status}");
    }
    assert!(backend.is_quiet());
    assert_eq!(proxy.app.fleet.statuses().len(), 1);

    let mut admin = Client::connect(proxy.addresses[1]).await;
    for target in ["/backends", "//x/../%62ackends", "http://proxy/backends"] {
        let head = format!("GET {target} HTTP/1.1\r\nhost: proxy\r\nauthorization: Bearer t0ken\r\n\r\n");
        admin.send(head.as_bytes()).await;
        assert_eq!(admin.response().await.status(), 200, "{target}, where it belongs");
    }
}

#[tokio::test]
async fn what_is_forwarded_is_what_was_checked() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::with(with_admin(config(&[&backend]), token())).await;
    for (target, forwarded) in [
        ("//v1//chat/completions", CHAT),
        ("/v1/./chat/completions", CHAT),
        ("/v1/%63hat/completions", CHAT),
        ("/x/../v1/chat/completions", CHAT),
        ("http://proxy/v1/chat/completions", CHAT),
        ("http://proxy//v1/x/../models/a%2Fb?x=%2e%2e", "/v1/models/a%2Fb?x=%2e%2e"),
    ] {
        let mut client = proxy.client().await;
        client.post(target, "", STEP).await;
        let exchange = backend.next().await;
        assert_eq!(exchange.request.path(), forwarded, "{target}");
        assert_eq!(exchange.request.header("host").as_deref(), Some(backend.address.to_string().as_str()));
        exchange.json(200, WHOLE).await;
        assert_eq!(client.response().await.status(), 200);
    }
    // The host has two names: a proxy in front of this one may have used the other.
    let mut client = proxy.client().await;
    client.get("http://elsewhere/v1/models").await;
    assert_eq!(client.response().await.status(), 400);
    let mut client = proxy.client().await;
    client.get("/v1/models/..%2f..%2fmetrics").await;
    let response = client.response().await;
    assert_eq!((response.status(), code(&response)), (400, "invalid_path".to_owned()));
}

// === ids ===

#[tokio::test]
async fn a_request_id_that_is_none_is_replaced_before_anybody_sees_it() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut h2 = H2::connect(proxy.address).await;
    let long = "x".repeat(129);
    for (id, kept) in [
        (&b"run-7/step:3.a"[..], true),
        (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
        (b"a b", false),
        (b"a\"b", false),
        (b"a\tb", false),
        (b"caf\xc3\xa9", false),
        (b"\xff", false),
        (b"<script>", false),
        (b"", false),
        (long.as_bytes(), false),
    ] {
        let mut request = http::Request::post(format!("http://proxy{CHAT}"));
        request = request.header("x-request-id", HeaderValue::from_bytes(id).expect("HTTP allows it"));
        let request = request.body(()).expect("a request");
        let mut sender = h2.ready().await;
        let (response, mut body) = sender.send_request(request, false).expect("a request");
        body.send_data(Bytes::from_static(STEP), true).expect("an open stream");
        let exchange = backend.next().await;
        let seen = exchange.request.header("x-request-id").expect("an id");
        exchange.json(200, WHOLE).await;
        let response = within("an answer", response).await.expect("an answer");
        assert_eq!(response.headers()["x-request-id"], seen);
        assert_eq!(seen.as_bytes() == id, kept, "{seen}");
        assert!(kept || seen.len() == 32, "{seen}");
    }
}

#[tokio::test]
async fn no_id_breaks_out_of_its_place_in_a_log_or_header() {
    let dir = tempfile::tempdir().expect("a directory");
    for format in [AccessFormat::Json, AccessFormat::Text] {
        let mut backend = Backend::start().await;
        let path = dir.path().join(format!("{format:?}"));
        let mut config = config(&[&backend]);
        config.logging.access = Some(Access { format, path: path.clone() });
        let mut proxy = Proxy::with(config).await;
        let mut client = proxy.client().await;
        let hostile = "a\r\nx-evil: 1\r\n\r\n{\"status\":200}\u{1b}[2J\u{85}\u{2028}\u{202e}\u{0}";
        let body = json!({"model": "tiny", "program_id": hostile, "messages": []}).to_string();
        client.post(CHAT, "", body.as_bytes()).await;
        let exchange = backend.next().await;
        assert_eq!(exchange.request.header("x-evil"), None);
        exchange.json(200, WHOLE).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.header("x-evil")), (200, None));
        // A name in a refusal is written as a JSON string and cut short.
        let unknown = json!({"program_id": [hostile]}).to_string();
        client.post(CHAT, "", unknown.as_bytes()).await;
        let response = client.response().await;
        assert_eq!((response.status(), code(&response)), (400, "invalid_program_id".to_owned()));
        proxy.balanced().await;
        proxy.stop(thundergate::server::Shutdown::Now).await;
        proxy.ended().await;
        let log = std::fs::read_to_string(&path).expect("a log");
        assert_eq!(log.lines().count(), 2, "{log:?}");
        assert!(log.chars().all(|c| c == '\n' || c.is_ascii() && !c.is_control()), "{log:?}");
    }
}

// === limits ===

#[tokio::test]
async fn a_place_of_a_key_is_given_back_however_its_step_ends() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::with(with_key(&backend, PerKey { concurrent: Some(1), ..PerKey::default() })).await;
    let key = "x-api-key: sk-one\r\n";
    let mut other = proxy.client().await;
    for end in ["answered", "refused", "broken", "dropped", "left early", "left", "too large", "unreadable"] {
        let mut client = proxy.client().await;
        let body: &[u8] = if end == "unreadable" { b"{" } else { STEP };
        match end {
            "too large" => client.send(post_head(CHAT, key, 1 << 40).as_bytes()).await,
            "left early" => client.send(&[post_head(CHAT, key, 100).as_bytes(), b"{"].concat()).await,
            _ => client.post(CHAT, key, body).await,
        }
        if !matches!(end, "too large" | "left early" | "unreadable") {
            let exchange = backend.next().await;
            other.post(CHAT, key, STEP).await;
            let response = other.response().await;
            assert_eq!((response.status(), code(&response)), (429, "rate_limited".to_owned()), "{end}");
            assert_eq!(response.header("retry-after").as_deref(), Some("1"));
            match end {
                "answered" => exchange.json(200, WHOLE).await,
                "refused" => exchange.json(400, "{}").await,
                "broken" => {
                    let mut answer = exchange.events().await;
                    answer.event("{}").await;
                    answer.die();
                }
                "dropped" => exchange.die(),
                _ => {
                    drop(client);
                    exchange.abandoned().await;
                }
            }
        } else {
            drop(client);
        }
        // The place is free as soon as the request is over: a refusal takes none.
        within(end, async {
            loop {
                other.post(CHAT, key, b"[]").await;
                if other.response().await.status() == 400 {
                    break;
                }
            }
        })
        .await;
    }
    proxy.settled().await;
}

#[tokio::test]
async fn a_request_that_no_backend_took_whole_costs_its_key_nothing() {
    const LIMIT: u64 = 100_000_000;
    let mut backend = Backend::start().await;
    let mut config = with_key(&backend, PerKey { tokens_per_minute: Some(LIMIT), ..PerKey::default() });
    config.retry.connect_attempts = 0;
    config.scheduler.no_backend_wait = Duration::from_millis(100);
    let proxy = Proxy::with(config).await;
    let key = "x-api-key: sk-one\r\n";
    let large = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(20_000_000));
    backend.state.early.store(true, Ordering::Relaxed);
    let mut client = proxy.client().await;
    let sending = [post_head(CHAT, key, large.len()).as_bytes(), large.as_bytes()].concat();
    client.send(&sending).await;
    let mut refused = Box::pin(client.response());
    // Each time that it is sent, the backend breaks off before it has the whole.
    let refused = loop {
        tokio::select! {
            refused = &mut refused => break refused,
            exchange = backend.next() => drop(exchange.end(Ending::Reset).await),
        }
    };
    assert_eq!((refused.status(), code(&refused)), (502, "upstream_failed".to_owned()));
    backend.state.early.store(false, Ordering::Relaxed);
    let mut client = proxy.client().await;
    proxy.wait_for("the backend to be up", || proxy.app.fleet.statuses().iter().all(|status| status.healthy)).await;
    client.post(CHAT, key, STEP).await;
    backend.next().await.json(200, "{}").await;
    let left = client.response().await.header("x-ratelimit-remaining-tokens");
    assert_eq!(left, Some(LIMIT.to_string()));
    proxy.balanced().await;
}

#[tokio::test]
async fn every_answer_tells_a_key_what_it_has_left() {
    let mut backend = Backend::start().await;
    let per_key = PerKey { requests_per_minute: Some(4), tokens_per_minute: Some(150), concurrent: None };
    let proxy = Proxy::with(with_key(&backend, per_key)).await;
    let mut client = proxy.client().await;
    let key = "authorization: Bearer sk-one\r\n";
    let left = |response: &Message| {
        ["requests", "tokens"].map(|what| {
            let told = |part: &str| response.header(&format!("x-ratelimit-{part}-{what}")).expect("a quota");
            assert!(told("reset").ends_with('s'));
            (told("limit").parse::<u64>().expect("a number"), told("remaining").parse::<u64>().expect("a number"))
        })
    };
    for expected in [[(4, 3), (150, 150)], [(4, 2), (150, 50)]] {
        client.post(CHAT, key, STEP).await;
        backend.next().await.json(200, WHOLE).await;
        let response = client.response().await;
        assert_eq!((response.status(), left(&response)), (200, expected));
        proxy.settled().await;
    }
    // The number of tokens is known at the end of a request, just after its answer.
    let spent = within("the tokens to be counted", async {
        loop {
            client.post(CHAT, key, b"[]").await;
            let response = client.response().await;
            if response.status() == 429 {
                break response;
            }
        }
    })
    .await;
    assert_eq!(code(&spent), "rate_limited");
    assert_eq!(left(&spent)[1], (150, 0));
    let wait: u64 = spent.header("retry-after").expect("a wait").parse().expect("seconds");
    assert!((1..=120).contains(&wait));
    client.post(CHAT, "authorization: Bearer sk-two\r\n", STEP).await;
    let stranger = client.response().await;
    assert_eq!((stranger.status(), stranger.header("x-ratelimit-limit-tokens")), (401, None));
    assert!(backend.is_quiet());
}

#[tokio::test]
async fn who_leaves_before_the_usage_is_told_has_used_tokens_all_the_same() {
    let mut backend = Backend::start().await;
    let per_key = PerKey { tokens_per_minute: Some(1), ..PerKey::default() };
    let proxy = Proxy::with(with_key(&backend, per_key)).await;
    let key = "x-api-key: sk-one\r\n";
    let mut client = proxy.client().await;
    client.post(CHAT, key, br#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}"#).await;
    let mut answer = backend.next().await.events().await;
    answer.event(r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#).await;
    client.head().await;
    drop(client);
    answer.abandoned().await;
    let mut client = proxy.client().await;
    within("the tokens to be counted", async {
        loop {
            client.post(CHAT, key, b"[]").await;
            if client.response().await.status() == 429 {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn all_bodies_together_have_a_bound_and_give_their_room_back() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    (config.limits.body, config.limits.body_total) = (STEP.len() * 3 / 2, STEP.len() * 3 / 2);
    let proxy = Proxy::with(config).await;
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    first.post(CHAT, "", STEP).await;
    let exchange = backend.next().await;
    assert_eq!(proxy.app.bodies.used(), STEP.len());
    for path in [CHAT, "/v1/embeddings"] {
        second.post(path, "", STEP).await;
        let response = second.response().await;
        assert_eq!((response.status(), code(&response)), (503, "overloaded".to_owned()), "{path}");
        assert!(response.header("retry-after").is_some());
    }
    // A body without a length takes the room that is left, and no more.
    let mut chunked = proxy.client().await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: proxy\r\ntransfer-encoding: chunked\r\n\r\n");
    chunked.send(head.as_bytes()).await;
    chunked.send(b"8\r\n{\"model\"\r\n").await;
    proxy.wait_for("its first piece", || proxy.app.bodies.used() == STEP.len() + 8).await;
    chunked.send(format!("{:x}\r\n{}\r\n", STEP.len(), " ".repeat(STEP.len())).as_bytes()).await;
    let response = chunked.response().await;
    assert_eq!((response.status(), code(&response)), (503, "overloaded".to_owned()));
    // A body that is announced and does not come takes nothing from the others.
    exchange.json(200, WHOLE).await;
    assert_eq!(first.response().await.status(), 200);
    proxy.wait_for("the room", || proxy.app.bodies.used() == 0).await;
    let mut silent = proxy.client().await;
    silent.send(post_head(CHAT, "", STEP.len()).as_bytes()).await;
    second.post(CHAT, "", STEP).await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(second.response().await.status(), 200);
    drop(silent);
    proxy.settled().await;
    proxy.wait_for("the room", || proxy.app.bodies.used() == 0).await;
}

#[tokio::test]
async fn connections_are_capped_and_those_of_operators_apart() {
    let backend = Backend::start().await;
    let mut config = with_admin(config(&[&backend]), token());
    config.limits.connections = 1;
    let proxy = Proxy::with(config).await;
    let mut first = proxy.client().await;
    first.get("/livez").await;
    assert_eq!(first.response().await.status(), 200);
    assert!(!is_served(&proxy).await, "one too many");
    let mut admin = Client::connect(proxy.addresses[1]).await;
    admin.send(b"GET /livez HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t0ken\r\n\r\n").await;
    assert_eq!(admin.response().await.status(), 200);
    drop(first);
    within("the place", async { while !is_served(&proxy).await {} }).await;
}

#[tokio::test]
async fn a_body_that_trickles_in_never_reaches_a_backend_whatever_the_endpoint() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.timeouts.request_header = Duration::from_millis(200);
    let proxy = Proxy::with(config).await;
    for path in [CHAT, "/v1/embeddings", "/tokenize"] {
        let mut client = proxy.client().await;
        client.send(&[post_head(path, "", 1000).as_bytes(), b"{\"model\""].concat()).await;
        let response = client.response().await;
        assert_eq!((response.status(), code(&response)), (408, "request_timeout".to_owned()), "{path}");
    }
    let mut h2 = H2::connect(proxy.address).await;
    let mut request = h2.post("/v1/embeddings", Some(1000)).await;
    request.send(Bytes::from_static(b"{\"model\""), false).await;
    let (response, _body) = request.head().await;
    assert_eq!(response.status().as_u16(), 408);
    assert!(backend.is_quiet());
    proxy.settled().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.timeouts.client_idle = Duration::from_secs(1);
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    client.get("/livez").await;
    assert_eq!(client.response().await.status(), 200);
    assert!(client.closed().await);
}

// === backends ===

#[tokio::test]
async fn without_a_token_backends_are_added_from_this_machine_alone() {
    let (backend, more) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let target = format!("/add_worker?url={}", more.url());
    for header in ["x-forwarded-for: 10.0.0.1", "forwarded: for=10.0.0.1", "via: 1.1 x", "origin: http://evil"] {
        let (status, detail) = told(&mut client, &target, &format!("{header}\r\n")).await;
        assert_eq!(status, 403, "{header}");
        assert!(detail.contains("admin.token"), "it says what to do: {detail}");
    }
    let body = json!({"url": more.url()}).to_string();
    client.post("/backends", "sec-fetch-site: cross-site\r\n", body.as_bytes()).await;
    assert_eq!(client.response().await.status(), 403);
    assert_eq!(proxy.app.fleet.statuses().len(), 1);
    assert_eq!(told(&mut client, &target, "").await.0, 200);
    assert_eq!(proxy.app.fleet.statuses().len(), 2);
}

#[tokio::test]
async fn with_the_admin_token_backends_are_added_from_anywhere_but_within_the_list_alone() {
    let (backend, more) = (Backend::start().await, Backend::start().await);
    let allow_backends = Some(vec!["127.0.0.1".parse().expect("an address"), "gpu1".parse().expect("a name")]);
    let proxy = Proxy::with(with_admin(config(&[&backend]), Admin { allow_backends, ..token() })).await;
    let mut admin = Client::connect(proxy.addresses[1]).await;
    let headers = "authorization: Bearer t0ken\r\nx-forwarded-for: 10.0.0.1\r\n";
    for url in ["http://10.0.0.1:8000", "http://[::1]:8000", "http://169.254.169.254", "http://[::ffff:10.0.0.1]"] {
        let (status, detail) = told(&mut admin, &format!("/add_worker?url={url}"), headers).await;
        assert_eq!(status, 400, "{url}");
        assert!(detail.contains("admin.allow_backends"), "{detail}");
    }
    let target = format!("/add_worker?url={}", more.url());
    assert_eq!(told(&mut admin, &target, "").await.0, 401);
    assert_eq!(told(&mut admin, &target, headers).await.0, 200);
    proxy.wait_for("the new backend", || proxy.app.fleet.statuses().iter().all(|status| status.healthy)).await;
    assert_eq!(proxy.app.fleet.statuses().len(), 2);
}

#[tokio::test]
async fn where_a_name_leads_is_looked_at_before_it_is_connected_to() {
    let (backend, victim) = (Backend::start().await, Backend::start().await);
    let allow_backends = Some(vec!["10.0.0.0/8".parse().expect("a network")]);
    let proxy = Proxy::with(with_admin(config(&[&backend]), Admin { allow_backends, ..token() })).await;
    let mut admin = Client::connect(proxy.addresses[1]).await;
    // The name could lead into the network. Here it leads to this machine.
    let target = format!("/add_worker?url=http://localhost:{}", victim.address.port());
    assert_eq!(told(&mut admin, &target, "authorization: Bearer t0ken\r\n").await.0, 200);
    let reason = || proxy.app.fleet.statuses().last().and_then(|status| status.down_reason.clone());
    proxy.wait_for("its check", || reason().is_some()).await;
    assert!(reason().expect("a reason").contains("admin.allow_backends"), "{:?}", reason());
    assert_eq!(victim.connections(), 0);
}

#[tokio::test]
async fn link_local_addresses_are_no_backends_unless_listed_but_configured_ones_are_the_operators_choice() {
    let proxy = Proxy::unready(config_of(["http://169.254.169.254:1".to_owned()]));
    assert_eq!(proxy.app.fleet.statuses().len(), 1);
    let mut client = proxy.client().await;
    for url in ["http://169.254.169.254/latest", "http://[fe80::1]:80", "http://0.0.0.0:1", "http://2852039166"] {
        let (status, detail) = told(&mut client, &format!("/add_worker?url={url}"), "").await;
        assert_eq!(status, 400, "{url}: {detail}");
    }
    assert_eq!(proxy.app.fleet.statuses().len(), 1);
}
