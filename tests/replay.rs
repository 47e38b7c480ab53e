//! Bodies of every size and framing, read whole before the backend is chosen, reach it byte for byte.
//!
//! This is the proof for `src/body/replay.rs`, which leans on internals of Pingora.

mod support;

use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::backend::{Backend, answer_all};
use support::client::{Client, H2, post_head};
use support::pingora::{Running, serve};
use support::wire::Message;
use support::{noise, within};
use thundergate::body::budget::Charge;
use thundergate::body::replay::{self, Bounds, Stop};

const SIZES: [usize; 8] = [0, 200, 65_536, 65_537, 70_000, 131_000, 1_000_000, 20_000_000];

/// Reads the body, changes it, and tries its upstreams in turn.
struct Replaying {
    upstreams: Vec<SocketAddr>,
    bounds: Bounds,
    change: fn(Bytes) -> Bytes,
}

#[derive(Default)]
struct Ctx {
    body: Bytes,
    tried: usize,
}

#[async_trait::async_trait]
impl ProxyHttp for Replaying {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        session.as_downstream_mut().set_pipelining_enabled(true);
        match replay::read(session, self.bounds, &mut Charge::default()).await {
            Ok(body) => {
                ctx.body = (self.change)(body);
                Ok(false)
            }
            Err(Stop::Gone(e)) => Err(e),
            Err(Stop::Refused(refusal)) => {
                let head = ResponseHeader::build(refusal.status(), None)?;
                let head = Box::new(head);
                session.write_response_header(head, true).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Ctx) -> pingora::Result<Box<HttpPeer>> {
        let address = self.upstreams[ctx.tried];
        ctx.tried += 1;
        Ok(Box::new(HttpPeer::new(address, false, String::new())))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<pingora::Error>,
    ) -> Box<pingora::Error> {
        e.set_retry(ctx.tried < self.upstreams.len());
        e
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        replay::prepare_upstream_headers(request, ctx.body.len())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        replay::replay(body, end_of_stream, &ctx.body);
        Ok(())
    }
}

/// What the backend saw: framing, length and digest.
fn describe(request: &Message) -> Bytes {
    let framing = [request.header("content-length"), request.header("transfer-encoding"), request.header("expect")];
    let digest = Sha256::digest(&request.body);
    Bytes::from(format!("{framing:?} {} {digest:x}", request.body.len()))
}

/// What it has to see of `body`.
fn expected(body: &[u8]) -> String {
    let length = body.len();
    let framing = [Some(length.to_string()), None, None];
    format!("{framing:?} {length} {:x}", Sha256::digest(body))
}

fn same(body: Bytes) -> Bytes {
    body
}

/// An address that refuses connections.
fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}

fn bounds() -> Bounds {
    Bounds { size: 64 << 20, pause: Duration::from_secs(20) }
}

async fn proxy_to(before: &[SocketAddr], change: fn(Bytes) -> Bytes) -> Running {
    let (address, _) = answer_all(Backend::start().await, describe);
    let upstreams = before.iter().copied().chain([address]).collect();
    serve(Replaying { upstreams, bounds: bounds(), change })
}

/// Uneven pieces: some tiny, some past 64 KiB.
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

/// Lets what was written become a read of its own on the other side.
async fn let_it_arrive() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn with_length(client: &mut Client, body: &[u8], dribbled: bool) -> Message {
    if !dribbled {
        client.post("/", "", body).await;
        return client.response().await;
    }
    client.send(post_head("/", "", body.len()).as_bytes()).await;
    for piece in pieces(body, true) {
        let_it_arrive().await;
        client.send(piece).await;
    }
    client.response().await
}

async fn chunked(client: &mut Client, body: &[u8], dribbled: bool) -> Message {
    let mut bytes = b"POST / HTTP/1.1\r\nhost: proxy\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
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
    let mut request = h2.post("/", length.then_some(body.len())).await;
    for piece in pieces(body, dribbled) {
        request.send(Bytes::copy_from_slice(piece), false).await;
        if dribbled {
            let_it_arrive().await;
        }
    }
    request.send(Bytes::new(), true).await;
    let response = request.response().await;
    assert_eq!(response.status(), 200);
    response.into_body()
}

async fn matrix(change: fn(Bytes) -> Bytes, before: &[SocketAddr], sizes: &[usize]) {
    let proxy = proxy_to(before, change).await;
    for &size in sizes {
        let body = noise(size);
        let expected = expected(&change(Bytes::from(body.clone())));
        for dribbled in [false, true] {
            let what = format!("{size} bytes, dribbled: {dribbled}");
            let mut client = Client::connect(proxy.address).await;
            let response = with_length(&mut client, &body, dribbled).await;
            assert_eq!(response.text(), expected, "HTTP/1.1 with a length, {what}");

            let mut client = Client::connect(proxy.address).await;
            let response = chunked(&mut client, &body, dribbled).await;
            assert_eq!(response.text(), expected, "HTTP/1.1 chunked, {what}");

            let mut h2 = H2::connect(proxy.address).await;
            for length in [true, false] {
                let answer = over_h2(&mut h2, &body, dribbled, length).await;
                assert_eq!(answer, expected, "h2c, length: {length}, {what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_size_and_framing_reaches_the_backend_byte_for_byte() {
    matrix(same, &[], &SIZES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_sent_to_another_backend_when_the_first_refuses() {
    matrix(same, &[nobody(), nobody()], &SIZES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_body_goes_in_the_place_of_the_one_that_was_read() {
    matrix(|body| body.slice(body.len() / 3..), &[nobody()], &SIZES[1..7]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_body_goes_in_the_place_of_the_one_that_was_read() {
    let longer = |body: Bytes| Bytes::from([&body[..], &body[..], b"and more"].concat());
    matrix(longer, &[nobody()], &SIZES[1..7]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_requests_of_any_size_share_a_connection() {
    let proxy = proxy_to(&[], same).await;
    for sizes in [[200, 300, 400], [70_000, 0, 65_537], [1_000_000, 131_000, 5]] {
        let mut client = Client::connect(proxy.address).await;
        for (size, dribbled) in sizes.into_iter().zip([false, true, false]) {
            let body = noise(size);
            let response = with_length(&mut client, &body, dribbled).await;
            assert_eq!(response.text(), expected(&body));
            assert_eq!(response.header("connection").as_deref(), Some("keep-alive"));
        }
    }
    let mut client = Client::connect(proxy.address).await;
    for size in [10, 60_000, 10] {
        let body = noise(size);
        let response = chunked(&mut client, &body, true).await;
        assert_eq!(response.text(), expected(&body));
    }
}

#[tokio::test]
async fn a_chunked_body_past_64_kib_ends_its_connection() {
    let proxy = proxy_to(&[], same).await;
    let mut client = Client::connect(proxy.address).await;
    let body = noise(65_537);
    let response = chunked(&mut client, &body, false).await;
    assert_eq!(response.text(), expected(&body));
    assert_eq!(response.header("connection").as_deref(), Some("close"));
    assert!(client.closed().await);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn() {
    let proxy = proxy_to(&[], same).await;
    for sizes in [[3, 200, 0], [70_000, 10, 66_000], [200_000, 0, 200_000]] {
        let bodies = sizes.map(noise);
        let mut bytes = Vec::new();
        for body in &bodies {
            bytes.extend_from_slice(post_head("/", "", body.len()).as_bytes());
            bytes.extend_from_slice(body);
        }
        let mut client = Client::connect(proxy.address).await;
        client.send(&bytes).await;
        for body in &bodies {
            assert_eq!(client.response().await.text(), expected(body));
        }
    }
}

#[tokio::test]
async fn a_request_pipelined_behind_a_running_one_is_answered_after_it() {
    let mut backend = Backend::start().await;
    let proxy = serve(Replaying { upstreams: vec![backend.address], bounds: bounds(), change: same });
    let mut client = Client::connect(proxy.address).await;
    client.post("/", "", b"first").await;
    let first = backend.next().await;
    client.post("/", "", b"second").await;
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
    let proxy = proxy_to(&[], same).await;
    for size in [200, 70_000] {
        let body = noise(size);
        let mut client = Client::connect(proxy.address).await;
        let head = post_head("/", "expect: 100-continue\r\n", size);
        client.send(head.as_bytes()).await;
        assert_eq!(client.head().await.status(), 100);
        client.send(&body).await;
        assert_eq!(client.response().await.text(), expected(&body));
    }
}

#[tokio::test]
async fn a_body_that_comes_apart_from_its_head_keeps_its_connection() {
    let proxy = proxy_to(&[], same).await;
    let mut client = Client::connect(proxy.address).await;
    for size in [4_000, 16_385, 30_000, 65_536, 65_537] {
        let body = noise(size);
        client.send(post_head("/", "", size).as_bytes()).await;
        let_it_arrive().await;
        client.send(&body).await;
        let response = client.response().await;
        assert_eq!(response.text(), expected(&body));
        assert_eq!(response.header("connection").as_deref(), Some("keep-alive"), "{size}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_in_every_framing() {
    let (address, _) = answer_all(Backend::start().await, describe);
    let proxy = serve(Replaying { upstreams: vec![address], bounds: Bounds { size: 1000, ..bounds() }, change: same });
    let (fits, over) = (noise(1000), noise(1001));
    let mut client = Client::connect(proxy.address).await;
    assert_eq!(with_length(&mut client, &fits, false).await.status(), 200);
    assert_eq!(chunked(&mut client, &fits, false).await.status(), 200);
    assert_eq!(with_length(&mut client, &over, false).await.status(), 413);
    let mut client = Client::connect(proxy.address).await;
    assert_eq!(chunked(&mut client, &over, true).await.status(), 413);
    for length in [Some(1001), None] {
        let mut h2 = H2::connect(proxy.address).await;
        let mut request = h2.post("/", length).await;
        request.send(Bytes::from(over.clone()), true).await;
        assert_eq!(request.head().await.0.status(), 413);
    }
}

/// Sends a byte now and then, in the client's own time, until it is stopped.
fn trickle_pause() -> Duration {
    Duration::from_millis(60)
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_refused() {
    let (address, _) = answer_all(Backend::start().await, describe);
    let proxy = serve(Replaying {
        upstreams: vec![address],
        bounds: Bounds { pause: Duration::from_millis(200), ..bounds() },
        change: same,
    });
    let mut client = Client::connect(proxy.address).await;
    client.send(post_head("/", "", 100).as_bytes()).await;
    client.send(b"some").await;
    assert_eq!(client.response().await.status(), 408);

    let mut h2 = H2::connect(proxy.address).await;
    let mut request = h2.post("/", None).await;
    request.send(Bytes::from_static(b"some"), false).await;
    assert_eq!(request.head().await.0.status(), 408);
}

#[tokio::test]
async fn a_body_that_trickles_in_is_refused_although_no_pause_is_long() {
    let (address, _) = answer_all(Backend::start().await, describe);
    let proxy = serve(Replaying {
        upstreams: vec![address],
        bounds: Bounds { pause: Duration::from_millis(300), ..bounds() },
        change: same,
    });
    let client = Client::connect(proxy.address).await;
    let (mut reader, mut writer) = client.split();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let trickle = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let head = post_head("/", "", 1000);
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
