//! No key, token or prompt is ever logged. The program itself runs at the most talkative level, through everything that
//! it may log about.

mod support;

use sha2::{Digest, Sha256};
use std::process::Stdio;
use support::backend::Backend;
use support::client::{Client, H2, post_head};
use support::within;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str =
    r#"{"model":"tiny","stream":true,"program_id":"p1","messages":[{"role":"user","content":"PROMPT-s3cret"}]}"#;
const EVENT: &str = r#"{"choices":[{"index":0,"delta":{"content":"ANSWER-s3cret"}}]}"#;

/// Text that every secret contains.
const MARK: &str = "s3cret";

fn yaml(backend: &Backend) -> String {
    let hash = format!("{:x}", Sha256::digest("HASHED-s3cret"));
    format!(
        "listen: 127.0.0.1:0
admin: {{listen: 127.0.0.1:0, token: TOKEN-s3cret}}
backends: [{{url: {}, api_key: UPSTREAM-s3cret}}]
auth:
  keys:
    - {{name: plain, key: KEY-s3cret}}
    - {{name: hashed, key: sha256:{hash}}}
logging: {{level: trace, access: {{format: json, path: stdout}}}}
timeouts: {{request_header: 500ms}}
",
        backend.url()
    )
}

/// One request of each kind that the program may log about.
async fn traffic(main: std::net::SocketAddr, admin: std::net::SocketAddr, backend: &mut Backend) {
    let key = "authorization: Bearer KEY-s3cret\r\n";
    let mut client = Client::connect(main).await;
    client.post(&format!("{CHAT}?api_key=QUERY-s3cret"), key, STREAM.as_bytes()).await;
    let mut answer = backend.next().await.events().await;
    answer.event(EVENT).await;
    answer.finish().await;
    assert_eq!(client.response().await.status(), 200);
    client.post(CHAT, "x-api-key: HASHED-s3cret\r\n", STREAM.as_bytes()).await;
    backend.next().await.json(500, r#"{"error":"ANSWER-s3cret"}"#).await;
    assert_eq!(client.response().await.status(), 500);
    client.post(CHAT, "x-api-key: WRONG-s3cret\r\n", STREAM.as_bytes()).await;
    assert_eq!(client.response().await.status(), 401);
    // The requests: no JSON, an unknown path, a broken stream, a backend that goes, a client that goes.
    client.post(CHAT, key, b"{PROMPT-s3cret}").await;
    assert_eq!(client.response().await.status(), 400);
    client.post("/v1/embeddings?k=QUERY-s3cret", key, br#"{"input":"PROMPT-s3cret"}"#).await;
    backend.next().await.die();
    assert_eq!(client.response().await.status(), 502);
    let mut client = Client::connect(main).await;
    client.post(CHAT, key, STREAM.as_bytes()).await;
    let mut answer = backend.next().await.events().await;
    answer.event(EVENT).await;
    answer.die();
    client.response().await;
    let mut client = Client::connect(main).await;
    client.post(CHAT, key, STREAM.as_bytes()).await;
    let exchange = backend.next().await;
    drop(client);
    exchange.abandoned().await;
    // Heads and bodies that are malformed, or do not come whole.
    for head in [
        "GET / HTTP/1.1\r\nauthorization: Bearer KEY-s3cret\r\nbroken header s3cret\r\n\r\n",
        "s3cret\r\n\r\n",
        "GET http://u:s3cret@x/y HTTP/1.1\r\nhost: z\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: KEY-s3cret\r\ncontent-length: s3cret\r\n\r\n",
    ] {
        let mut client = Client::connect(main).await;
        client.send(head.as_bytes()).await;
        assert!((400..500).contains(&client.response().await.status()), "{head}");
    }
    let mut client = Client::connect(main).await;
    client.send(&[post_head(CHAT, key, 1000).as_bytes(), b"{\"PROMPT-s3cret\""].concat()).await;
    assert_eq!(client.response().await.status(), 408);
    let mut h2 = H2::connect(main).await;
    let request = http::Request::post(format!("http://proxy{CHAT}?q=QUERY-s3cret")).header("x-api-key", "KEY-s3cret");
    let mut sender = h2.ready().await;
    let (response, mut body) = sender.send_request(request.body(()).expect("a request"), false).expect("a request");
    body.send_data(STREAM.into(), true).expect("an open stream");
    backend.next().await.json(200, EVENT).await;
    assert_eq!(within("an answer", response).await.expect("an answer").status(), 200);
    // The requests of operators.
    let mut client = Client::connect(admin).await;
    for (token, status) in [("TOKEN-s3cret", 200), ("WRONG-s3cret", 401)] {
        let head = format!("GET /programs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
        client.send(head.as_bytes()).await;
        assert_eq!(client.response().await.status(), status);
    }
    let new = r#"{"url":"http://u:s3cret@127.0.0.1:1","api_key":"UPSTREAM-s3cret"}"#;
    client.post("/backends", "authorization: Bearer TOKEN-s3cret\r\n", new.as_bytes()).await;
    assert_eq!(client.response().await.status(), 400);
    let new = r#"{"url":"http://127.0.0.1:1","api_key":"UPSTREAM-s3cret"}"#;
    client.post("/backends", "authorization: Bearer TOKEN-s3cret\r\n", new.as_bytes()).await;
    assert_eq!(client.response().await.status(), 201);
}

#[tokio::test]
async fn no_key_token_or_prompt_is_logged_at_any_level() {
    let mut backend = Backend::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, yaml(&backend)).expect("writable");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_thundergate"));
    command.arg("--config").arg(&config).env("RUST_LOG", "trace");
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("it runs");
    let mut stdout = server.stdout.take().expect("a pipe");
    let access = tokio::spawn(async move {
        let mut all = String::new();
        stdout.read_to_string(&mut all).await.map(|_| all)
    });
    let mut stderr = BufReader::new(server.stderr.take().expect("a pipe"));
    let (mut log, mut addresses) = (String::new(), Vec::new());
    while addresses.len() < 2 || !log.contains("is up") {
        let start = log.len();
        assert!(within("a line", stderr.read_line(&mut log)).await.expect("text") > 0, "{log}");
        if let Some((_, address)) = log[start..].trim_end().split_once("listening on ") {
            addresses.push(address.parse().expect("an address"));
        }
    }
    let rest = tokio::spawn(async move {
        let mut all = String::new();
        stderr.read_to_string(&mut all).await.map(|_| all)
    });
    traffic(addresses[0], addresses[1], &mut backend).await;
    let pid = server.id().expect("it runs").to_string();
    let told = tokio::process::Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(told.expect("a shell's kill").success());
    assert!(within("the end", server.wait()).await.expect("an end").success());
    log += &rest.await.expect("no panic").expect("text");
    let access = access.await.expect("no panic").expect("text");
    let leaks: Vec<&str> = log.lines().chain(access.lines()).filter(|line| line.contains(MARK)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    // The logs do speak of all these requests.
    for word in ["is up", "closed the connection without an answer"] {
        assert!(log.contains(word), "{word} is not in {log}");
    }
    for word in ["\"status\":401", "\"status\":499", "\"status\":502", "\"program\":\"p1\"", "/v1/embeddings"] {
        assert!(access.contains(word), "{word} is not in {access}");
    }
}
