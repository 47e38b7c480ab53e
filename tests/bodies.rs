//! Bodies of every size and framing. Each is read whole before the backend is chosen, and reaches the backend byte for
//! byte.

mod support;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::backend::{Backend, answer_all};
use support::client::{Client, H2, post_head};
use support::proxy::{Proxy, config};
use support::wire::Message;
use support::{noise, within};
use thundergate::config::Config;

/// Path of an endpoint whose bodies pass unread, so that they may be anything.
const PATH: &str = "/v1/embeddings";

const SIZES: [usize; 8] = [0, 200, 65_536, 65_537, 70_000, 131_000, 1_000_000, 20_000_000];

/// Description of the request that the backend saw: framing, length and digest.
fn describe(request: &Message) -> Bytes {
    let framing = [request.header("content-length"), request.header("transfer-encoding"), request.header("expect")];
    let digest = Sha256::digest(&request.body);
    Bytes::from(format!("{framing:?} {} {digest:x}", request.body.len()))
}

/// The description that the backend has to give of `body`.
fn expected(body: &[u8]) -> String {
    let length = body.len();
    let framing = [Some(length.to_string()), None, None];
    format!("{framing:?} {length} {:x}", Sha256::digest(body))
}

/// A proxy in front of a backend that describes the requests that it gets.
async fn proxy() -> Proxy {
    proxy_with(|_| {}).await
}

async fn proxy_with(change: impl FnOnce(&mut Config)) -> Proxy {
    let backend = Backend::start().await;
    let mut config = config(&[&backend]);
    change(&mut config);
    answer_all(backend, describe);
    Proxy::with(config).await
}

/// Pieces of uneven size: some tiny, some larger than 64 KiB.
fn pieces(body: &[u8], dribbled: bool) -> Vec<&[u8]> {
    if !dribbled {
        return vec![body];
    }
    let sizes = [1, 7, 1000, 16_384, 65_536, 65_537, 100_000, 3];
    let mut rest = body;
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            return pieces;
        }
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    unreachable!("a cycle does not end")
}

/// Waits, so that the bytes written so far become a read of their own on the other side.
async fn let_it_arrive() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn with_length(client: &mut Client, body: &[u8], dribbled: bool) -> Message {
    if !dribbled {
        client.post(PATH, "", body).await;
        return client.response().await;
    }
    client.send(post_head(PATH, "", body.len()).as_bytes()).await;
    for piece in pieces(body, true) {
        let_it_arrive().await;
        client.send(piece).await;
    }
    client.response().await
}

async fn chunked(client: &mut Client, body: &[u8], dribbled: bool) -> Message {
    let mut bytes = format!("POST {PATH} HTTP/1.1\r\nhost: proxy\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    for piece in pieces(body, dribbled).into_iter().filter(|piece| !piece.is_empty()) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
        if dribbled {
            client.send(&std::mem::take(&mut bytes)).await;
            let_it_arrive().await;
        }
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    client.send(&bytes).await;
    client.response().await
}

async fn over_h2(h2: &mut H2, body: &[u8], dribbled: bool, length: bool) -> Bytes {
    let mut request = h2.post(PATH, length.then_some(body.len())).await;
    for piece in pieces(body, dribbled) {
        request.send(Bytes::copy_from_slice(piece), false).await;
        if dribbled {
            let_it_arrive().await;
        }
    }
    request.end();
    let response = request.response().await;
    assert_eq!(response.status(), 200);
    response.into_body()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_size_and_framing_reaches_the_backend_byte_for_byte() {
    let proxy = proxy().await;
    for size in SIZES {
        let body = noise(size);
        let expected = expected(&body);
        for dribbled in [false, true] {
            let what = format!("{size} bytes, dribbled: {dribbled}");
            let mut client = proxy.client().await;
            let response = with_length(&mut client, &body, dribbled).await;
            assert_eq!(response.text(), expected, "HTTP/1.1 with a length, {what}");

            let mut client = proxy.client().await;
            let response = chunked(&mut client, &body, dribbled).await;
            assert_eq!(response.text(), expected, "HTTP/1.1 chunked, {what}");

            let mut h2 = H2::connect(proxy.address).await;
            for length in [true, false] {
                let answer = over_h2(&mut h2, &body, dribbled, length).await;
                assert_eq!(answer, expected, "h2c, length: {length}, {what}");
            }
        }
    }
    proxy.balanced().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_sent_to_another_backend_when_the_first_refuses() {
    for size in SIZES {
        let body = noise(size);
        let mut tried_again = 0.0;
        // Either of the two backends may be asked first.
        for gone in [0, 1] {
            let mut backends = [Backend::start().await, Backend::start().await];
            let mut config = config(&[&backends[0], &backends[1]]);
            config.models[0].health.interval = Duration::from_secs(3600);
            let proxy = Proxy::with(config).await;
            backends[gone].stop_listening().await;
            for backend in backends {
                answer_all(backend, describe);
            }
            let mut client = proxy.client().await;
            assert_eq!(with_length(&mut client, &body, false).await.text(), expected(&body), "{size} bytes");
            tried_again += proxy.metric("thundergate_retries_total{model=\"default\"}").await;
        }
        assert!(tried_again >= 1.0, "{size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_requests_of_any_size_share_a_connection() {
    let proxy = proxy().await;
    for sizes in [[200, 300, 400], [70_000, 0, 65_537], [1_000_000, 131_000, 5]] {
        let mut client = proxy.client().await;
        for (size, dribbled) in sizes.into_iter().zip([false, true, false]) {
            let body = noise(size);
            let response = with_length(&mut client, &body, dribbled).await;
            assert_eq!(response.text(), expected(&body));
            assert_eq!(response.header("connection").as_deref(), Some("keep-alive"));
        }
    }
    let mut client = proxy.client().await;
    for size in [10, 60_000, 10, 200_000, 10] {
        let body = noise(size);
        let response = chunked(&mut client, &body, true).await;
        assert_eq!(response.text(), expected(&body));
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn() {
    let proxy = proxy().await;
    for sizes in [[3, 200, 0], [70_000, 10, 66_000], [200_000, 0, 200_000]] {
        let bodies = sizes.map(noise);
        let mut bytes = Vec::new();
        for body in &bodies {
            bytes.extend_from_slice(post_head(PATH, "", body.len()).as_bytes());
            bytes.extend_from_slice(body);
        }
        let mut client = proxy.client().await;
        client.send(&bytes).await;
        for body in &bodies {
            assert_eq!(client.response().await.text(), expected(body));
        }
    }
}

/// A request whose body would pass for further requests, if a server took the body for requests.
fn deceptive(size: usize) -> Vec<u8> {
    let mut body = b"GET /v1/smuggled HTTP/1.1\r\nhost: x\r\n\r\n".repeat(size / 40 + 1);
    body.truncate(size);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pipelined_behind_a_body_is_the_next_request_however_long_heads_and_bodies_are() {
    let proxy = proxy().await;
    for head in [0, 4_000, 33_000, 60_000] {
        for size in [0, 300, 16_385, 17_000, 65_537, 200_000] {
            // The request is written in one piece, or in two that part at odd places and at the sizes of Pingora's
            // buffers.
            for split in [usize::MAX, 1_000, 16_384, 65_536, 70_001] {
                let long = format!("x-long: {}\r\n", "x".repeat(head));
                let bodies = [noise(size), deceptive(16_500), deceptive(300)];
                let mut bytes = Vec::new();
                for (body, headers) in bodies.iter().zip([&long[..], "", &long[..]]) {
                    bytes.extend_from_slice(post_head(PATH, headers, body.len()).as_bytes());
                    bytes.extend_from_slice(body);
                }
                let what = format!("head {head}, body {size}, split {split}");
                let mut client = proxy.client().await;
                let (first, second) = bytes.split_at(split.min(bytes.len()));
                client.send(first).await;
                let_it_arrive().await;
                client.send(second).await;
                for body in &bodies {
                    let response = client.response().await;
                    assert_eq!(response.text(), expected(body), "{what}");
                }
            }
        }
    }
    proxy.balanced().await;
}

#[tokio::test]
async fn a_request_pipelined_behind_a_running_one_is_answered_after_it() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(PATH, "", b"first").await;
    let first = backend.next().await;
    client.post(PATH, "", b"second").await;
    let_it_arrive().await;
    first.json(200, "1").await;
    assert_eq!(client.response().await.text(), "1");
    let second = backend.next().await;
    assert_eq!(&second.request.body[..], b"second");
    second.json(200, "2").await;
    assert_eq!(client.response().await.text(), "2");
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_and_the_backend_does_not_see_it() {
    let proxy = proxy().await;
    for size in [200, 70_000] {
        let body = noise(size);
        let mut client = proxy.client().await;
        let head = post_head(PATH, "expect: 100-continue\r\n", size);
        client.send(head.as_bytes()).await;
        assert_eq!(client.head().await.status(), 100);
        client.send(&body).await;
        assert_eq!(client.response().await.text(), expected(&body));
    }
}

#[tokio::test]
async fn a_body_that_comes_apart_from_its_head_keeps_its_connection() {
    let proxy = proxy().await;
    let mut client = proxy.client().await;
    for size in [4_000, 16_385, 30_000, 65_536, 65_537] {
        let body = noise(size);
        client.send(post_head(PATH, "", size).as_bytes()).await;
        let_it_arrive().await;
        client.send(&body).await;
        let response = client.response().await;
        assert_eq!(response.text(), expected(&body));
        assert_eq!(response.header("connection").as_deref(), Some("keep-alive"), "{size}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_in_every_framing() {
    let proxy = proxy_with(|config| config.limits.body = 1000).await;
    let (fits, over) = (noise(1000), noise(1001));
    let mut client = proxy.client().await;
    assert_eq!(with_length(&mut client, &fits, false).await.status(), 200);
    assert_eq!(chunked(&mut client, &fits, false).await.status(), 200);
    assert_eq!(with_length(&mut client, &over, false).await.status(), 413);
    let mut client = proxy.client().await;
    assert_eq!(chunked(&mut client, &over, true).await.status(), 413);
    for length in [Some(1001), None] {
        let mut h2 = H2::connect(proxy.address).await;
        let mut request = h2.post(PATH, length).await;
        request.send(Bytes::from(over.clone()), true).await;
        assert_eq!(request.head().await.0.status(), 413);
    }
}

/// Pause between two bytes of a client whose body trickles in.
fn trickle_pause() -> Duration {
    Duration::from_millis(60)
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_refused() {
    let proxy = proxy_with(|config| config.timeouts.request_header = Duration::from_millis(200)).await;
    let mut client = proxy.client().await;
    client.send(post_head(PATH, "", 100).as_bytes()).await;
    client.send(b"some").await;
    assert_eq!(client.response().await.status(), 408);

    let mut h2 = H2::connect(proxy.address).await;
    let mut request = h2.post(PATH, None).await;
    request.send(Bytes::from_static(b"some"), false).await;
    assert_eq!(request.head().await.0.status(), 408);
}

#[tokio::test]
async fn a_body_that_trickles_in_is_refused_although_no_pause_is_long() {
    let proxy = proxy_with(|config| config.timeouts.request_header = Duration::from_millis(300)).await;
    let client = proxy.client().await;
    let (mut reader, mut writer) = client.split();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let trickle = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let head = post_head(PATH, "", 1000);
        writer.write_all(head.as_bytes()).await.expect("a write");
        let mut pace = tokio::time::interval(trickle_pause());
        loop {
            pace.tick().await;
            if writer.write_all(b"x").await.is_err() {
                return;
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let head = within("a refusal", reader.head()).await;
    assert_eq!(head.expect("a head").expect("a head").status(), 408);
    assert!(sent.load(Ordering::Relaxed) > 1, "it was never idle");
    trickle.abort();
}

#[tokio::test]
async fn a_body_is_let_go_when_its_answer_begins() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(PATH, "", &noise(100_000)).await;
    let exchange = backend.next().await;
    assert_eq!(proxy.app.bodies.used(), 100_000);
    let mut answer = exchange.events().await;
    proxy.wait_for("room for other bodies", || proxy.app.bodies.used() == 0).await;
    answer.event("[DONE]").await;
    answer.finish().await;
    assert_eq!(client.response().await.text(), "data: [DONE]\n\n");
    proxy.balanced().await;
}
