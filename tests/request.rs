//! One request through the whole proxy: the request that reaches the backend, and the answer that reaches the client.

mod support;

use bytes::Bytes;
use serde_json::json;
use support::backend::Backend;
use support::client::{Client, H2};
use support::proxy::{Proxy, config, config_of};
use support::wire::Message;
use thundergate::config::{Access, AccessFormat, ApiKey, Backend as BackendConfig, PerKey, Pool, Secret};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = include_str!("samples/vllm-0.32-chat-stream.txt");
const WHOLE: &str = include_str!("samples/vllm-0.32-chat.json");
const STEP: &[u8] = br#"{"model":"tiny","messages":[{"role":"user","content":"hi"}],"program_id":"p1"}"#;

fn error_code(response: &Message) -> String {
    let code = response.json()["error"]["code"].as_str().expect("a code").to_owned();
    assert_eq!(response.header("x-thundergate-error").as_deref(), Some(code.as_str()));
    assert_eq!(response.header("server"), None);
    code
}

async fn refused(client: &mut Client, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    client.post(path, headers, body).await;
    let response = client.response().await;
    (response.status(), error_code(&response))
}

#[tokio::test]
async fn a_streamed_answer_comes_back_byte_for_byte_without_the_usage_that_only_we_asked_for() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let body = br#"{"model":"tiny", "stream":true, "temperature":1e0, "program_id":"p1"}"#;
    client.post(CHAT, "", body).await;
    let exchange = backend.next().await;
    let sent = r#"{"model":"tiny", "stream":true, "temperature":1e0,"stream_options":{"include_usage":true}}"#;
    assert_eq!(exchange.request.text(), sent);
    let mut answer = exchange.events().await;
    // The events may be cut into pieces anywhere.
    for piece in STREAM.as_bytes().chunks(61) {
        answer.send(piece).await;
    }
    answer.finish().await;
    let response = client.response().await;
    let events = STREAM.split_inclusive("\n\n");
    let expected: String = events.filter(|event| !event.contains(r#""choices":[],"usage""#)).collect();
    assert!(expected.len() < STREAM.len());
    // Without usage, vLLM puts its fingerprint on the last event with choices instead of the usage event.
    let fingerprint = r#","system_fingerprint":"vllm-0.32.0-f3ed83a6"}"#;
    assert!(STREAM.contains(fingerprint));
    let (before, done) = expected.split_at(expected.len() - "}\n\ndata: [DONE]\n\n".len());
    let expected = format!("{before}{fingerprint}{}", &done[1..]);
    assert_eq!(response.text(), expected);
    assert!(response.complete);
    assert_eq!(response.header("content-type").as_deref(), Some("text/event-stream; charset=utf-8"));
    proxy.settled().await;
    let program = &proxy.app.gate.programs()[0].1;
    assert_eq!(program.context.0, 1241, "the usage was seen");
}

#[tokio::test]
async fn a_client_that_asks_for_usage_gets_every_byte() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let body = br#"{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}"#;
    client.post(CHAT, "", body).await;
    let exchange = backend.next().await;
    assert_eq!(exchange.request.body, &body[..]);
    let mut answer = exchange.events().await;
    answer.send(STREAM.as_bytes()).await;
    answer.finish().await;
    assert_eq!(client.response().await.text(), STREAM);
}

#[tokio::test]
async fn an_answer_in_one_piece_comes_back_byte_for_byte_over_both_protocols() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "x-request-id: mine-1\r\n", STEP).await;
    backend.next().await.json(200, WHOLE).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text()), (200, WHOLE));
    assert_eq!(response.header("content-length"), Some(WHOLE.len().to_string()));
    assert_eq!(response.header("x-request-id").as_deref(), Some("mine-1"));
    assert_eq!(response.header("x-thundergate-backend"), Some(backend.url()));
    assert_eq!(response.header("x-thundergate-held-ms").as_deref(), Some("0"));

    let mut h2 = H2::connect(proxy.address).await;
    let mut request = h2.post(CHAT, None).await;
    request.send(Bytes::from_static(STEP), true).await;
    let exchange = backend.next().await;
    assert_eq!(exchange.request.header("content-length"), Some(exchange.request.body.len().to_string()));
    exchange.json(200, WHOLE).await;
    let response = request.response().await;
    assert_eq!(response.body(), WHOLE);
    assert_eq!(response.headers()["x-request-id"].len(), 32);
    proxy.settled().await;
    assert_eq!(proxy.app.gate.programs()[0].1.steps, 2);
}

#[tokio::test]
async fn an_event_is_passed_on_before_the_next_one_exists() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", br#"{"stream":true}"#).await;
    let mut answer = backend.next().await.events().await;
    let mut message = client.head().await;
    let mut read = 0;
    for n in 0..5 {
        let data = json!({"choices": [{"index": 0, "delta": {"content": n.to_string()}}]}).to_string();
        answer.event(&data).await;
        let piece = client.piece(&mut message, read).await.expect("an event");
        assert_eq!(piece, format!("data: {data}\n\n"));
        read += piece.len();
    }
    answer.finish().await;
    assert_eq!(client.piece(&mut message, read).await, None);
    assert!(message.complete);
}

#[tokio::test]
async fn an_error_of_the_backend_passes_untouched() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let errors: serde_json::Value = serde_json::from_str(include_str!("samples/vllm-0.32-errors.json")).expect("JSON");
    let errors = errors.as_object().expect("an object");
    assert!(errors.len() > 3);
    for (name, error) in errors {
        let status = u16::try_from(error["status"].as_u64().expect("a status")).expect("a status");
        let body = error["body"].as_str().expect("a body");
        client.post(CHAT, "", STEP).await;
        backend.next().await.json(status, body).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.text()), (status, body), "{name}");
        assert_eq!(response.header("x-thundergate-error"), None);
    }
    proxy.settled().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_and_its_connection_goes_on() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.limits.json_depth = 8;
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(9), "]".repeat(9));
    for body in [&b"{"[..], b"", b"[]", b"null", b"{\"a\":\"\xff\"}", deep.as_bytes()] {
        assert_eq!(refused(&mut client, CHAT, "", body).await, (400, "invalid_json".to_owned()));
    }
    for id in ["{}", "[1]"] {
        let body = format!(r#"{{"program_id":{id}}}"#);
        let refused = refused(&mut client, CHAT, "", body.as_bytes()).await;
        assert_eq!(refused, (400, "invalid_program_id".to_owned()));
    }
    assert_eq!(refused(&mut client, "/nope", "", b"{}").await, (404, "not_found".to_owned()));
    client.get(CHAT).await;
    let response = client.response().await;
    assert_eq!((response.status(), error_code(&response)), (405, "method_not_allowed".to_owned()));
    assert_eq!(response.header("allow").as_deref(), Some("POST"));
    assert!(backend.is_quiet());
    client.post(CHAT, "", STEP).await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn a_client_that_is_still_sending_sees_that_its_body_is_too_large() {
    let backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.limits.body = 100_000;
    let proxy = Proxy::with(config).await;
    for length in ["content-length: 20000000\r\n", "transfer-encoding: chunked\r\n"] {
        let (mut reader, mut writer) = proxy.client().await.split();
        let sending = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let head = format!("POST {CHAT} HTTP/1.1\r\nhost: proxy\r\n{length}\r\n");
            let mut chunk = format!("{:x}\r\n", 100_000).into_bytes();
            chunk.extend_from_slice(&[b' '; 100_000]);
            chunk.extend_from_slice(b"\r\n");
            let _ = writer.write_all(head.as_bytes()).await;
            for _ in 0..50 {
                let _ = writer.write_all(&chunk).await;
            }
            writer
        });
        let mut response = support::within("a refusal", reader.head()).await.expect("no reset").expect("a head");
        reader.body(&mut response).await.expect("no reset");
        assert_eq!((response.status(), error_code(&response)), (413, "body_too_large".to_owned()));
        sending.await.expect("no panic");
    }
}

#[tokio::test]
async fn headers_pass_unchanged_but_those_that_are_between_us_and_the_backend() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let headers = "authorization: Bearer theirs\r\ntraceparent: 00-ab-cd-01\r\nx-program-id: p9\r\n\
                   accept-encoding: gzip, br\r\nx-request-id: r-7\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\n";
    client.post(&format!("{CHAT}?a=%20b"), headers, b"{}").await;
    let exchange = backend.next().await;
    let request = &exchange.request;
    assert_eq!(request.path(), format!("{CHAT}?a=%20b"));
    let seen = |name| request.header(name).unwrap_or_default();
    assert_eq!(seen("host"), backend.address.to_string());
    assert_eq!(seen("authorization"), "Bearer theirs");
    assert_eq!(seen("traceparent"), "00-ab-cd-01");
    assert_eq!(seen("x-program-id"), "p9");
    assert_eq!(seen("accept-encoding"), "gzip, br");
    assert_eq!(seen("x-request-id"), "r-7");
    assert_eq!(seen("content-length"), "2");
    assert_eq!((seen("x-hop"), seen("connection")), (String::new(), String::new()));
    exchange.json(200, WHOLE).await;
    assert_eq!(client.response().await.header("x-request-id").as_deref(), Some("r-7"));
}

#[tokio::test]
async fn another_spelling_of_a_path_is_the_same_path() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post("//v1/./x/..//ch%61t/completions?q=//..", "", STEP).await;
    let exchange = backend.next().await;
    assert_eq!(exchange.request.path(), "/v1/chat/completions?q=//..");
    assert!(!exchange.request.text().contains("program_id"));
    exchange.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
    client.get("/v1/%2e%2e/livez").await;
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn keys_are_asked_for_and_kept_from_the_backend() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    let key = |name: &str| ApiKey { name: name.into(), key: Secret(format!("sk-{name}")), tenant: name.into() };
    config.auth.keys = vec![key("a"), key("b")];
    config.limits.per_key = PerKey { requests_per_minute: Some(2), ..PerKey::default() };
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    for headers in ["", "authorization: Bearer sk-c\r\n", "x-api-key: sk-\r\n"] {
        assert_eq!(refused(&mut client, CHAT, headers, STEP).await, (401, "invalid_api_key".to_owned()));
    }
    for headers in ["authorization: Bearer sk-a\r\n", "x-api-key: sk-b\r\n"] {
        client.post(CHAT, headers, STEP).await;
        let exchange = backend.next().await;
        assert_eq!(exchange.request.header("authorization"), None);
        assert_eq!(exchange.request.header("x-api-key"), None);
        exchange.json(200, WHOLE).await;
        assert_eq!(client.response().await.status(), 200);
    }
    proxy.settled().await;
    let programs = proxy.app.gate.programs();
    let mut tenants: Vec<_> = programs.iter().map(|(_, program)| program.key.tenant.to_string()).collect();
    tenants.sort();
    assert_eq!(tenants, ["a", "b"], "the same id is two programs");

    client.post(CHAT, "x-api-key: sk-a\r\n", STEP).await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
    client.post(CHAT, "x-api-key: sk-a\r\n", STEP).await;
    let response = client.response().await;
    assert_eq!((response.status(), error_code(&response)), (429, "rate_limited".to_owned()));
    let wait: u64 = response.header("retry-after").expect("a wait").parse().expect("seconds");
    assert!((1..=60).contains(&wait));
}

#[tokio::test]
async fn the_backends_own_key_takes_the_place_of_the_clients() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.models[0].backends[0].api_key = Some(Secret("upstream".into()));
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "authorization: Bearer theirs\r\nx-api-key: theirs\r\n", STEP).await;
    let exchange = backend.next().await;
    assert_eq!(exchange.request.header("authorization").as_deref(), Some("Bearer upstream"));
    assert_eq!(exchange.request.header("x-api-key"), None);
    exchange.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn a_model_goes_to_its_pool_and_an_alias_under_its_own_name() {
    let (mut glm, mut qwen) = (Backend::start().await, Backend::start().await);
    let mut config = config(&[]);
    let pool = |name: &str, alias: &str, backend: &Backend| Pool {
        name: name.into(),
        aliases: vec![alias.into()],
        ..Pool::unnamed(vec![BackendConfig::at(&backend.url()).expect("a URL")])
    };
    config.models = vec![pool("glm", "big", &glm), pool("qwen", "small", &qwen)];
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    let cases = [(CHAT, "glm", true, "glm"), (CHAT, "small", false, "qwen"), ("/v1/embeddings", "qwen", false, "qwen")];
    for (path, model, first, sent) in cases {
        let body = json!({"model": model}).to_string();
        client.post(path, "", body.as_bytes()).await;
        let exchange = if first { glm.next().await } else { qwen.next().await };
        assert_eq!(exchange.request.json(), json!({"model": sent}), "{path} {model}");
        exchange.json(200, WHOLE).await;
        assert_eq!(client.response().await.status(), 200);
    }
    let unknown = refused(&mut client, CHAT, "", br#"{"model":"nope"}"#).await;
    assert_eq!(unknown, (404, "model_not_found".to_owned()));
    assert_eq!(refused(&mut client, CHAT, "", b"{}").await, (404, "model_not_found".to_owned()));
}

#[tokio::test]
async fn other_endpoints_pass_through_untouched() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    let odd = b"{ \"program_id\": 1, not json \xff";
    for path in ["/v1/embeddings", "/tokenize", "/score", "/v1/audio/transcriptions"] {
        client.post(path, "", odd).await;
        let exchange = backend.next().await;
        assert_eq!((exchange.request.path(), &exchange.request.body[..]), (path, &odd[..]));
        exchange.json(200, "{\"ok\": 1}").await;
        assert_eq!(client.response().await.text(), "{\"ok\": 1}");
    }
    client.get("/version").await;
    let exchange = backend.next().await;
    assert_eq!(exchange.request.first_line, "GET /version HTTP/1.1");
    exchange.json(200, "{}").await;
    assert_eq!(client.response().await.status(), 200);

    let large = support::noise(300_000);
    let mut h2 = H2::connect(proxy.address).await;
    let mut request = h2.post("/v1/embeddings", None).await;
    request.send(Bytes::from(large.clone()), true).await;
    let exchange = backend.next().await;
    assert_eq!(exchange.request.body, large);
    assert_eq!(exchange.request.header("content-length").as_deref(), Some("300000"));
    exchange.json(200, "{}").await;
    assert_eq!(request.response().await.status(), 200);

    client.get("/v1/models").await;
    let models = client.response().await.json();
    assert_eq!(models["data"][0]["id"], "tiny");
    proxy.settled().await;
}

#[tokio::test]
async fn a_backend_below_a_path_is_asked_below_it() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::unready(config_of([format!("{}/gpu/0", backend.url())]));
    // The backend's health checks are below the path too.
    while backend.next().await.request.path() != "/gpu/0/health" {}
    drop(proxy);
}

#[tokio::test]
async fn connections_to_a_backend_are_used_again() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut numbers = Vec::new();
    // All requests come on one connection, and so to one worker. Each request keeps its own values.
    let mut client = proxy.client().await;
    for _ in 0..3 {
        client.post(CHAT, "", STEP).await;
        let exchange = backend.next().await;
        numbers.push(exchange.connection);
        exchange.json(200, WHOLE).await;
        client.response().await;
    }
    numbers.dedup();
    assert_eq!(numbers.len(), 1, "{numbers:?}");
}

#[tokio::test]
async fn more_connections_than_the_limit_are_closed() {
    let backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.limits.connections = 2;
    let proxy = Proxy::with(config).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = proxy.client().await;
        client.get("/livez").await;
        assert_eq!(client.response().await.status(), 200);
        kept.push(client);
    }
    assert!(proxy.client().await.closed().await);
    drop(kept.pop());
    proxy.wait_for("a free place", || proxy.app.open.count() == 0).await;
    kept[0].get("/livez").await;
    assert_eq!(kept[0].response().await.status(), 200);
}

#[tokio::test]
async fn a_request_for_nothing_that_is_here_is_logged_and_counted_too() {
    let backend = Backend::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    let mut config = config(&[&backend]);
    config.logging.access = Some(Access { format: AccessFormat::Json, path: path.clone() });
    let proxy = Proxy::with(config).await;
    for (asked, status) in [("/v2/chat?key=secret", 404), ("/v1/x%2F..%2Fy", 400), ("/v1/%zz", 400)] {
        let mut client = proxy.client().await;
        client.post(asked, "", b"{}").await;
        assert_eq!(client.response().await.status(), status, "{asked}");
    }
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    proxy.wait_for("three lines", || lines().lines().count() == 3).await;
    let logged: Vec<serde_json::Value> =
        lines().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let mut logged: Vec<_> = logged.iter().map(|line| (line["path"].as_str(), line["status"].as_u64())).collect();
    // Each request has a connection of its own, so the lines have no order.
    logged.sort_unstable();
    let expected = [("/v1/%zz", 400), ("/v1/x%2F..%2Fy", 400), ("/v2/chat", 404)];
    assert_eq!(logged, expected.map(|(path, status)| (Some(path), Some(status))));
    let mut client = proxy.client().await;
    client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\n\r\n").await;
    let page = client.response().await;
    assert!(page.text().contains("code=\"404\"} 1\n") && page.text().contains("code=\"400\"} 2\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_counts_the_bytes_of_every_body_whatever_its_size_and_framing() {
    let mut backend = Backend::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    let mut config = config(&[&backend]);
    config.logging.access = Some(Access { format: AccessFormat::Json, path: path.clone() });
    let proxy = Proxy::with(config).await;
    let mut sent = Vec::new();
    for size in [100, 16_384, 16_385, 30_100, 65_537, 300_000] {
        let body = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(size - 13)).into_bytes();
        let mut client = proxy.client().await;
        client.post("/v1/completions", "", &body).await;
        backend.next().await.json(200, WHOLE).await;
        assert_eq!(client.response().await.status(), 200);
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        client.send(&[format!("{head}{:x}\r\n", size).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
        backend.next().await.json(200, WHOLE).await;
        assert_eq!(client.response().await.status(), 200);
        let mut h2 = H2::connect(proxy.address).await.post("/v1/completions", Some(size)).await;
        h2.send(Bytes::from(body), true).await;
        backend.next().await.json(200, WHOLE).await;
        assert_eq!(h2.response().await.status(), 200);
        sent.extend([size as u64; 3]);
    }
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    proxy.wait_for("a line for each", || lines().lines().count() == sent.len()).await;
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
    let mut logged: Vec<u64> = lines().lines().map(|text| line(text)["bytes_in"].as_u64().expect("a count")).collect();
    // Workers write their lines in no fixed order.
    logged.sort_unstable();
    assert_eq!(logged, sent);
}

#[tokio::test]
async fn what_a_backend_keeps_for_its_own_connection_does_not_reach_the_client() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let mut exchange = backend.next().await;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: X-Hop, close\r\nConnection: x-other\r\n\
                x-hop: 1\r\nX-Other: 2\r\nx-other: 3\r\nkeep-alive: timeout=5\r\nx-stays: 4\r\ncontent-length: 2\r\n\r\n{}";
    exchange.raw(head.as_bytes()).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text()), (200, "{}"));
    for hop in ["x-hop", "x-other", "keep-alive"] {
        assert_eq!(response.header(hop), None, "{hop}");
    }
    assert_eq!(response.header("x-stays").as_deref(), Some("4"));
    assert_eq!(response.header("connection").as_deref(), Some("keep-alive"), "the client's own");
}

#[tokio::test]
async fn a_request_leaves_one_line_in_the_access_log_and_nothing_of_its_prompt() {
    let mut backend = Backend::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    let mut config = config(&[&backend]);
    config.logging.access = Some(Access { format: AccessFormat::Json, path: path.clone() });
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    let body = br#"{"model":"tiny","program_id":"p\u000a1","messages":[{"role":"user","content":"a secret"}]}"#;
    client.post(CHAT, "x-request-id: r1\r\n", body).await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);
    proxy.settled().await;
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    proxy.wait_for("a line", || lines().ends_with('\n')).await;
    let text = lines();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.contains("secret"));
    let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((line["request_id"].as_str(), line["program"].as_str()), (Some("r1"), Some("p\n1")));
    assert_eq!((line["model"].as_str(), line["status"].as_u64()), (Some("default"), Some(200)));
    assert_eq!(line["prompt_tokens"], 1229);
    assert_eq!(line["backend"], backend.url());
}
