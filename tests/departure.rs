//! A client that leaves at any point of its request. Afterwards everything is as if the request had never been.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;
use support::backend::{Answer, Backend, Exchange};
use support::client::Client;
use support::proxy::{Proxy, config};
use thundergate::gate::LoadView;
use thundergate::scheduler::ProgramKey;

const CHAT: &str = "/v1/chat/completions";

#[derive(Clone, Copy, Debug)]
enum Point {
    InItsHead,
    BeforeItsBody,
    InItsBody,
    InAChunkOfItsBody,
    Held,
    BeforeTheAnswer,
    BeforeTheFirstEvent,
    BetweenEvents,
    WithinAnEvent,
    BeforeTheUsageEvent,
    WithinAnAnswerInOnePiece,
}

const POINTS: [Point; 11] = [
    Point::InItsHead,
    Point::BeforeItsBody,
    Point::InItsBody,
    Point::InAChunkOfItsBody,
    Point::Held,
    Point::BeforeTheAnswer,
    Point::BeforeTheFirstEvent,
    Point::BetweenEvents,
    Point::WithinAnEvent,
    Point::BeforeTheUsageEvent,
    Point::WithinAnAnswerInOnePiece,
];

/// State of the request at the backend.
enum Upstream {
    Nothing,
    Request(Exchange),
    Answer(Answer),
}

/// A step of `program` with a prompt of `tokens` tokens, at the bytes per token that the proxy assumes before it has
/// measured any.
fn step(program: &str, tokens: usize, stream: bool) -> Vec<u8> {
    let prompt = "x".repeat(tokens * 4);
    let messages = serde_json::json!([{"role": "user", "content": prompt}]);
    let body = serde_json::json!(
        {"model": "tiny", "program_id": program, "max_tokens": 10, "stream": stream, "messages": messages}
    );
    body.to_string().into_bytes()
}

/// The ledger without the values that change as time goes by.
fn ledger(proxy: &Proxy) -> (Vec<String>, usize, usize, usize) {
    let gate = &proxy.app.gate;
    let load = |load: &LoadView| format!("{load:?}");
    let loads = gate.loads().iter().map(|(_, view)| load(view)).collect();
    (loads, gate.open_steps(), gate.held_steps(), gate.programs().len())
}

fn visitor() -> ProgramKey {
    ProgramKey { tenant: "".into(), id: "visitor".into() }
}

/// Brings a request of the program `visitor` to the point where its client is going to leave.
async fn reach(point: Point, client: &mut Client, proxy: &Proxy, backend: &mut Backend) -> Upstream {
    let head = |rest: &str| format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{rest}");
    match point {
        Point::InItsHead => client.send(&head("conte").into_bytes()).await,
        Point::BeforeItsBody => client.send(&head("content-length: 500\r\n\r\n").into_bytes()).await,
        Point::InItsBody => client.send(&head("content-length: 500\r\n\r\n{\"model\"").into_bytes()).await,
        Point::InAChunkOfItsBody => {
            client.send(&head("transfer-encoding: chunked\r\n\r\n100\r\n{\"model\"").into_bytes()).await;
        }
        Point::Held => {
            client.post(CHAT, "", &step("visitor", 1_000, true)).await;
            proxy.wait_for("the step to be held", || proxy.app.gate.held_steps() == 1).await;
        }
        _ => {
            let stream = !matches!(point, Point::WithinAnAnswerInOnePiece);
            client.post(CHAT, "", &step("visitor", 20, stream)).await;
            let exchange = backend.next().await;
            return answered(point, client, exchange).await;
        }
    }
    Upstream::Nothing
}

/// Lets the backend answer up to the point, and lets the client see the answer.
async fn answered(point: Point, client: &mut Client, mut exchange: Exchange) -> Upstream {
    if let Point::BeforeTheAnswer = point {
        return Upstream::Request(exchange);
    }
    if let Point::WithinAnAnswerInOnePiece = point {
        exchange.raw(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{\"id\"").await;
        return Upstream::Request(exchange);
    }
    let mut answer = exchange.events().await;
    let mut seen = client.head().await;
    let token = r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#;
    let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    if !matches!(point, Point::BeforeTheFirstEvent) {
        answer.event(token).await;
        let piece = client.piece(&mut seen, 0).await.expect("the first event");
        assert!(piece.starts_with(b"data: {\"choices\""));
    }
    match point {
        Point::WithinAnEvent => answer.send(b"data: {\"choices\":[{\"ind").await,
        Point::BeforeTheUsageEvent => answer.event(end).await,
        _ => {}
    }
    Upstream::Answer(answer)
}

#[tokio::test]
async fn a_client_that_leaves_at_any_point_leaves_everything_as_if_it_had_never_been() {
    let mut backend = Backend::start().await;
    // The cache has 1,600 tokens. A step that runs all the time takes some 800 of them.
    backend.state.blocks.store(100, Ordering::Relaxed);
    let mut config = config(&[&backend]);
    // The scheduler has no ticks here: only the departure can give anything back.
    config.scheduler.tick = Duration::from_secs(3600);
    let proxy = Proxy::with(config).await;
    let mut neighbour = proxy.client().await;
    neighbour.post(CHAT, "", &step("neighbour", 800, true)).await;
    let _running = backend.next().await;
    let before = ledger(&proxy);
    for point in POINTS {
        let mut client = proxy.client().await;
        let upstream = reach(point, &mut client, &proxy, &mut backend).await;
        drop(client);
        match upstream {
            Upstream::Nothing => {}
            Upstream::Request(exchange) => exchange.abandoned().await,
            Upstream::Answer(answer) => answer.abandoned().await,
        }
        proxy.wait_for(&format!("{point:?}: the ledger as before"), || ledger(&proxy) == before).await;
        assert!(proxy.app.gate.program(&visitor()).is_empty(), "{point:?}");
        assert!(backend.is_quiet(), "{point:?}: nothing more has reached the backend");
        proxy.app.gate.check().expect("a sound ledger");
    }
}
