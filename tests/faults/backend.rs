//! Backends that break off, at each point of an answer and in each way.

use crate::support::backend::{Backend, Ending};
use crate::support::proxy::{Proxy, config};
use crate::{Asked, CHAT, Got, SOON, STEP, STREAMED};
use std::time::Duration;

/// Result that the client is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Status 502 with `upstream_failed`.
    Refused,
    /// A stream that ends with an error event, and over HTTP/1.1 without its last chunk.
    Broken,
    /// A body shorter than was announced.
    Short,
    /// The whole body, and its end.
    Whole,
}

/// Point at which the backend breaks off, and the result that the client is to see.
struct Point {
    name: &'static str,
    body: &'static [u8],
    sent: &'static str,
    seen: Seen,
}

macro_rules! events {
    ($($rest:expr),*) => {
        concat!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n", $($rest),*)
    };
}

macro_rules! json {
    ($($rest:expr),*) => { concat!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", $($rest),*) };
}

const POINTS: [Point; 16] = [
    Point { name: "before its head", body: STEP, sent: "", seen: Seen::Refused },
    Point { name: "before the head of a stream", body: STREAMED, sent: "", seen: Seen::Refused },
    Point { name: "in the status line", body: STEP, sent: "HTTP/1.1 20", seen: Seen::Refused },
    Point { name: "in a header", body: STREAMED, sent: "HTTP/1.1 200 OK\r\ncontent-ty", seen: Seen::Refused },
    Point {
        name: "behind 103",
        body: STEP,
        sent: "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
        seen: Seen::Refused,
    },
    Point { name: "behind the head", body: STREAMED, sent: events!(""), seen: Seen::Broken },
    Point { name: "in the size of a chunk", body: STREAMED, sent: events!("1"), seen: Seen::Broken },
    Point { name: "in a chunk and an event", body: STREAMED, sent: events!("25\r\ndata: {\"cho"), seen: Seen::Broken },
    Point {
        name: "between two chunks of an event",
        body: STREAMED,
        sent: events!("b\r\ndata: {\"cho\r\n"),
        seen: Seen::Broken,
    },
    Point {
        name: "before the end of a chunk",
        body: STREAMED,
        sent: events!("22\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n"),
        seen: Seen::Broken,
    },
    Point {
        name: "behind [DONE], without the last chunk",
        body: STREAMED,
        sent: events!("e\r\ndata: [DONE]\n\n\r\n"),
        seen: Seen::Whole,
    },
    Point {
        name: "behind [DONE], in the last chunk",
        body: STREAMED,
        sent: events!("e\r\ndata: [DONE]\n\n\r\n0\r\n"),
        seen: Seen::Whole,
    },
    Point {
        name: "in a body with a length",
        body: STEP,
        sent: json!("content-length: 100\r\n\r\n{\"id\": 1, "),
        seen: Seen::Short,
    },
    Point {
        name: "in a whole object that is shorter than its length",
        body: STEP,
        sent: json!("content-length: 100\r\n\r\n{\"id\": 1}"),
        seen: Seen::Short,
    },
    Point {
        name: "in a body in chunks",
        body: STEP,
        sent: json!("transfer-encoding: chunked\r\n\r\n9\r\n{\"id\": 1,\r\n"),
        seen: Seen::Short,
    },
    Point {
        name: "behind a whole object in chunks",
        body: STEP,
        sent: json!("transfer-encoding: chunked\r\n\r\n9\r\n{\"id\": 1}\r\n"),
        seen: Seen::Whole,
    },
];

// === impl Point ===

impl Point {
    /// Checks that the client saw the right result.
    fn check(&self, got: &Got, http2: bool, what: &str) {
        let Got { status, error, body, complete } = got;
        let what = format!("{what}: {status} {error} {body:?} {complete}");
        let last = body.split_terminator("\n\n").last().and_then(|event| event.strip_prefix("data: ")).unwrap_or("");
        let last: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
        match self.seen {
            Seen::Refused => assert!((*status, error.as_str()) == (502, "upstream_failed"), "{what}"),
            Seen::Broken => {
                assert!(*status == 200 && last["error"]["code"] == "upstream_failed", "{what}");
                assert!(!body.contains("[DONE]") && *complete == http2, "{what}");
            }
            Seen::Short => assert!(*status == 200 && !complete && error.is_empty(), "{what}"),
            Seen::Whole => assert!(*status == 200 && *complete && !body.contains("error"), "{what}"),
        }
    }
}

/// Breaks off at each point, over both protocols. The proxy waits for a silent backend no longer than `SOON`.
async fn at_each_point(ending: Ending) {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    (config.timeouts.first_byte, config.timeouts.stream_idle) = (SOON, SOON);
    let proxy = Proxy::with(config).await;
    for point in &POINTS {
        for http2 in [false, true] {
            let what = format!("{ending:?} {}, HTTP/2: {http2}", point.name);
            let asked = Asked::of(&proxy, http2, point.body).await;
            let mut exchange = backend.next().await;
            exchange.raw(point.sent.as_bytes()).await;
            let closed = exchange.end(ending).await;
            point.check(&asked.got().await, http2, &what);
            closed.await.expect("no panic");
            assert!(backend.is_quiet(), "{what}: it was not tried again");
            proxy.balanced().await;
        }
    }
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn a_backend_that_closes_at_any_point_of_its_answer_is_told_from_one_that_has_finished() {
    at_each_point(Ending::Close).await;
}

#[tokio::test]
async fn a_backend_that_resets_at_any_point_of_its_answer_is_told_from_one_that_has_finished() {
    at_each_point(Ending::Reset).await;
}

#[tokio::test]
async fn a_backend_that_closes_its_half_at_any_point_of_its_answer_is_told_from_one_that_has_finished() {
    at_each_point(Ending::HalfClose).await;
}

#[tokio::test]
async fn a_backend_that_falls_silent_at_any_point_of_its_answer_is_given_up_in_time() {
    at_each_point(Ending::Silence).await;
}

#[tokio::test]
async fn after_done_a_backend_that_keeps_its_connection_open_does_not_keep_its_client() {
    let mut backend = Backend::start().await;
    // The time limits for a silent backend are the default here: minutes.
    let proxy = Proxy::start(&[&backend]).await;
    for http2 in [false, true] {
        let asked = Asked::of(&proxy, http2, STREAMED).await;
        let mut answer = backend.next().await.events().await;
        answer.event("[DONE]").await;
        let got = asked.got().await;
        assert_eq!((got.body.as_str(), got.complete), ("data: [DONE]\n\n", true), "HTTP/2: {http2}");
        answer.abandoned().await;
        proxy.unharmed(&mut backend).await;
    }
}

#[tokio::test]
async fn a_kept_connection_that_dies_while_idle_costs_nothing() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.models[0].health.interval = Duration::from_secs(3600);
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    for ending in [Ending::HalfClose, Ending::Close, Ending::Reset] {
        client.post(CHAT, "", STEP).await;
        let mut exchange = backend.next().await;
        exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(client.response().await.text(), "{}");
        exchange.end(ending).await.await.expect("no panic");
    }
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn a_kept_connection_whose_peer_has_vanished_costs_one_502_in_time() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.timeouts.first_byte = SOON;
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let exchange = backend.next().await;
    let first = exchange.connection;
    exchange.json(200, "{}").await;
    assert_eq!(client.response().await.status(), 200);
    client.post(CHAT, "", STEP).await;
    let silent = backend.next().await;
    assert_eq!(silent.connection, first, "it was kept");
    let response = client.response().await;
    assert_eq!((response.status(), crate::error_code(&response).as_str()), (502, "upstream_failed"));
    silent.abandoned().await;
    proxy.unharmed(&mut backend).await;
}
