//! A new configuration for a running server, and the end of a server: the real binary, told by signals.

mod support;

use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::backend::{Answer, Backend};
use support::client::{Client, H2};
use support::process::Process;
use support::wire::Message;
use support::within;

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = include_str!("samples/vllm-0.32-chat.json");
const STEP: &[u8] = br#"{"model":"tiny","messages":[],"program_id":"p1"}"#;
const STREAMED: &[u8] = br#"{"model":"tiny","messages":[],"program_id":"p1","stream":true}"#;
const KEY: &str = "authorization: Bearer one\r\n";

/// A directory with a configuration file.
struct Home {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Home {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("thundergate.yaml");
        let home = Self { _dir: dir, file };
        home.write(text);
        home
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.file, text).expect("a file");
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.file.with_file_name(name)
    }
}

/// A configuration with both listeners, and with backends that are checked often.
fn yaml(backends: &[&Backend], more: &str) -> String {
    let urls: Vec<_> = backends.iter().map(|backend| backend.url()).collect();
    format!(
        "listen: 127.0.0.1:0\nadmin: {{listen: 127.0.0.1:0}}\n\
         models: [{{backends: [{}], health: {{interval: 50ms}}}}]\n{more}",
        urls.join(", ")
    )
}

async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> Message {
    let mut client = Client::connect(address).await;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    client.send(head.as_bytes()).await;
    client.response().await
}

/// The value of a metric without labels.
async fn metric(admin: std::net::SocketAddr, name: &str) -> f64 {
    let page = ask(admin, "GET", "/metrics").await;
    let line = page.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
    line.unwrap_or_else(|| panic!("no {name} in {}", page.text())).parse().expect("a number")
}

async fn backends(admin: std::net::SocketAddr) -> Vec<Value> {
    ask(admin, "GET", "/backends").await.json()["backends"].as_array().expect("a list").clone()
}

/// A stream that has sent a token.
async fn streaming(backend: &mut Backend, client: &mut Client, headers: &str) -> (Answer, Message) {
    client.post(CHAT, headers, STREAMED).await;
    let mut answer = backend.next().await.events().await;
    let mut message = client.head().await;
    answer.event("1").await;
    assert_eq!(client.piece(&mut message, 0).await.expect("an event"), "data: 1\n\n");
    (answer, message)
}

async fn finish(mut answer: Answer, mut message: Message, client: &mut Client) {
    answer.event("[DONE]").await;
    answer.finish().await;
    while client.piece(&mut message, 0).await.is_some() {}
    assert!(message.complete, "the stream is whole");
}

#[tokio::test]
async fn sighup_drains_what_the_file_names_no_more_and_reads_secrets_again() {
    let (mut one, mut two) = (Backend::start().await, Backend::start().await);
    let auth = "auth: {keys: [{name: a, key: '${file:key}'}]}\n";
    let home = Home::with(&yaml(&[&one], auth));
    std::fs::write(home.beside("key"), "one\n").expect("a file");
    let process = Process::serve(&home.file, &[]);
    let (address, admin) = (process.ready().await, process.address(1).await);
    let mut running = Client::connect(address).await;
    let (answer, message) = streaming(&mut one, &mut running, KEY).await;

    home.write(&yaml(&[&two], auth));
    std::fs::write(home.beside("key"), "two\n").expect("a file");
    process.signal(Signal::HUP);
    process.says("the configuration was loaded anew").await;
    process.says(&format!("backend {} is up", two.url())).await;
    let draining: Vec<_> = backends(admin).await.iter().map(|b| b["draining"] == true).collect();
    assert_eq!(draining, [true, false]);

    let mut client = Client::connect(address).await;
    client.post(CHAT, KEY, STEP).await;
    assert_eq!(client.response().await.status(), 401, "that key is no more");
    let other = br#"{"model":"tiny","messages":[],"program_id":"p2"}"#;
    client.post(CHAT, "authorization: Bearer two\r\n", other).await;
    two.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200, "what is new goes elsewhere");

    finish(answer, message, &mut running).await;
    client.post(CHAT, "authorization: Bearer two\r\n", STEP).await;
    two.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200, "and so does the program's next turn");
    process.says(&format!("backend {} is removed", one.url())).await;
    assert_eq!(backends(admin).await.len(), 1);
}

#[tokio::test]
async fn a_mistake_changes_nothing_and_is_told_with_its_place() {
    let mut backend = Backend::start().await;
    let home = Home::with(&yaml(&[&backend], ""));
    let process = Process::serve(&home.file, &[]);
    let (address, admin) = (process.ready().await, process.address(1).await);
    assert_eq!(metric(admin, "thundergate_config_reload_success").await, 1.0);
    let first = metric(admin, "thundergate_config_last_reload_success_timestamp_seconds").await;

    // One good change stands beside the bad one. The server takes neither.
    home.write(&yaml(&[&backend], "limits: {body: 1}\ntimeouts: {grace: soon}\n"));
    process.signal(Signal::HUP);
    let said = process.says("the configuration stays as it was").await;
    assert!(said.contains(&format!("{}:5:19: timeouts.grace: expected a duration", home.file.display())), "{said}");
    assert_eq!(metric(admin, "thundergate_config_reload_success").await, 0.0);
    let mut client = Client::connect(address).await;
    client.post(CHAT, "", STEP).await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200);

    home.write(&yaml(&[&backend], "limits: {body: 1}\n"));
    let response = ask(admin, "POST", "/reload").await;
    assert_eq!((response.status(), response.json()["status"].as_str()), (200, Some("ok")));
    assert_eq!(metric(admin, "thundergate_config_reload_success").await, 1.0);
    assert!(metric(admin, "thundergate_config_last_reload_success_timestamp_seconds").await >= first);
    client.post(CHAT, "", STEP).await;
    assert_eq!(client.response().await.status(), 413, "a connection that was there sees it too");
}

#[tokio::test]
async fn every_limit_holds_from_the_reload_that_sets_it() {
    let mut backend = Backend::start().await;
    let auth = "auth: {keys: [{name: a, key: one}]}\n";
    let home = Home::with(&yaml(&[&backend], auth));
    let process = Process::serve(&home.file, &[]);
    let (address, admin) = (process.ready().await, process.address(1).await);
    let common = yaml(&[&backend], auth);
    let limit = async |limits: &str| {
        home.write(&format!("{common}limits: {{{limits}}}\n"));
        assert_eq!(ask(admin, "POST", "/reload").await.status(), 200, "{limits}");
    };
    let (mut first, mut client) = (Client::connect(address).await, Client::connect(address).await);
    first.post(CHAT, KEY, STEP).await;
    let running = backend.next().await;
    for (limits, refused) in [
        ("body: 80, body_total: 80", (503, "overloaded")),
        ("json_depth: 1", (400, "invalid_json")),
        ("per_key: {concurrent: 1}", (429, "rate_limited")),
        ("per_key: {requests_per_minute: 1}", (429, "rate_limited")),
    ] {
        limit(limits).await;
        client.post(CHAT, KEY, STEP).await;
        assert_eq!(code(&client.response().await), (refused.0, Some(refused.1.to_owned())), "{limits}");
    }
    limit("connections: 2").await;
    assert!(Client::connect(address).await.closed().await);
    running.json(200, WHOLE).await;
    assert_eq!(first.response().await.status(), 200);
    client.post(CHAT, KEY, STEP).await;
    backend.next().await.json(200, WHOLE).await;
    assert_eq!(client.response().await.status(), 200, "and those that are gone hold no more");
}

#[tokio::test]
async fn what_needs_a_new_process_is_refused_whole_with_the_remedy() {
    let backend = Backend::start().await;
    let home = Home::with(&yaml(&[&backend], ""));
    let process = Process::serve(&home.file, &[]);
    let (address, admin) = (process.ready().await, process.address(1).await);
    let changed =
        yaml(&[&backend], "limits: {body: 1}\n").replace("listen: 127.0.0.1:0\nadmin", "listen: '[::1]:1'\nadmin");
    home.write(&changed);
    let response = ask(admin, "POST", "/reload").await;
    let detail = response.json()["detail"].as_str().expect("a detail").to_owned();
    assert_eq!(response.status(), 400);
    let place = format!("{}:1:9: listen: ", home.file.display());
    assert!(detail.starts_with(&place) && detail.contains("--upgrade"), "{detail}");
    let mut client = Client::connect(address).await;
    client.post("/v1/embeddings", "", STEP).await;
    let mut backend = backend;
    backend.next().await.json(200, "{}").await;
    assert_eq!(client.response().await.status(), 200, "nothing of it was taken");
}

#[tokio::test]
async fn the_level_of_the_log_changes_with_the_file() {
    let backend = Backend::start().await;
    let home = Home::with(&yaml(&[&backend], "logging: {level: info}\n"));
    let process = Process::serve(&home.file, &[]);
    let admin = process.address(1).await;
    process.says("is up").await;
    home.write(&yaml(&[&backend], "logging: {level: error}\n"));
    assert_eq!(ask(admin, "POST", "/reload").await.status(), 200);
    let quiet = process.lines();
    home.write(&yaml(&[&backend], "logging: {level: info}\n"));
    assert_eq!(ask(admin, "POST", "/reload").await.status(), 200);
    let said = process.says_after(quiet, "").await;
    assert!(said.contains("loaded anew"), "the first word since: {said}");
}

#[tokio::test]
async fn without_a_file_sighup_says_that_there_is_nothing_to_read() {
    let backend = Backend::start().await;
    let url = backend.url();
    let process = Process::start(&["--host", "127.0.0.1", "--port", "0", "--backends", &url]);
    process.ready().await;
    process.signal(Signal::HUP);
    process.says("nothing to read again: the server was started without --config").await;
    process.ready().await;
}

fn code(response: &Message) -> (u16, Option<String>) {
    (response.status(), response.header("x-thundergate-error"))
}

#[tokio::test]
async fn sigterm_refuses_what_is_new_and_ends_with_the_last_stream() {
    let mut backend = Backend::start().await;
    let home = Home::with(&yaml(&[&backend], "timeouts: {grace: 1h}\n"));
    let mut process = Process::serve(&home.file, &[]);
    let address = process.ready().await;
    let mut running = Client::connect(address).await;
    let (answer, message) = streaming(&mut backend, &mut running, "").await;
    let mut kept = Client::connect(address).await;
    kept.get("/livez").await;
    assert_eq!(kept.response().await.header("connection").as_deref(), Some("keep-alive"));
    let mut h2 = H2::connect(address).await;
    let mut request = h2.post(CHAT, Some(STEP.len())).await;
    request.send(STEP.into(), true).await;
    let exchange = backend.next().await;

    process.signal(Signal::TERM);
    process.says("draining").await;
    let draining = (503, Some("draining".to_owned()));
    kept.post(CHAT, "", STEP).await;
    let response = kept.response().await;
    assert_eq!(code(&response), draining);
    assert!(response.header("retry-after").is_some());
    assert_eq!(response.header("connection").as_deref(), Some("close"));
    assert!(kept.closed().await);
    let mut late = Client::connect(address).await;
    late.post(CHAT, "", STEP).await;
    assert_eq!(code(&late.response().await), draining);
    assert_eq!(ask(address, "GET", "/readyz").await.status(), 503);
    // Requests under way over HTTP/2 end in peace, but the connection takes no new ones.
    exchange.json(200, WHOLE).await;
    assert_eq!(request.response().await.status(), 200);
    assert!(h2.is_told_to_go().await);
    assert!(process.runs());

    finish(answer, message, &mut running).await;
    let done = Instant::now();
    assert!(process.ended().await.success());
    assert!(done.elapsed() < Duration::from_secs(3), "it took {:?}", done.elapsed());
}

#[tokio::test]
async fn sigterm_waits_no_longer_than_its_grace_and_sigint_not_at_all() {
    for (grace, signals) in
        [("200ms", &[Signal::TERM][..]), ("1h", &[Signal::INT]), ("1h", &[Signal::TERM, Signal::INT])]
    {
        let mut backend = Backend::start().await;
        let home = Home::with(&yaml(&[&backend], &format!("timeouts: {{grace: {grace}}}\n")));
        let mut process = Process::serve(&home.file, &[]);
        let mut running = Client::connect(process.ready().await).await;
        let _stream = streaming(&mut backend, &mut running, "").await;
        for signal in signals {
            process.signal(*signal);
        }
        assert!(process.ended().await.success(), "{signals:?}");
    }
}

#[tokio::test]
async fn a_name_in_the_file_is_looked_up_and_its_addresses_are_backends() {
    let mut backend = Backend::start().await;
    let port = backend.url().rsplit_once(':').expect("a port").1.to_owned();
    let home = Home::with(&format!(
        "listen: 127.0.0.1:0\nmodels: [{{discovery: {{dns: 'localhost:{port}', interval: 50ms}}}}]\n"
    ));
    let process = Process::serve(&home.file, &[]);
    let address = process.ready().await;
    let mut client = Client::connect(address).await;
    client.post(CHAT, "", STEP).await;
    within("the request", backend.next()).await.json(200, WHOLE).await;
    let response = client.response().await;
    assert_eq!(response.header("x-thundergate-backend"), Some(backend.url()));
    assert!(Path::new(&home.file).exists());
}
