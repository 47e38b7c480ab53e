//! Clients that read slowly, or not at all.

use crate::support::backend::{Backend, Ending, Exchange};
use crate::support::client::H2;
use crate::support::proxy::{Proxy, config};
use crate::support::within;
use crate::{CHAT, SOON, STREAMED};
use bytes::Bytes;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// Bytes of a stream: more than all buffers between a backend and a client. Most of `BUFFERS` is the kernel's, for the
/// two connections.
const STREAM_SIZE: usize = 32 * MIB;
const BUFFERS: usize = 24 * MIB;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// 64 KiB of a stream: one event that differs for each `n`, with its framing.
fn event(n: usize) -> Vec<u8> {
    let head = format!("data: {{\"choices\":[{{\"text\":\"{n:08}");
    let event = format!("{head:x<65530}\"}}]}}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

/// Sends events until the proxy takes no more of them. Gives the number of bytes taken, the number of the next event,
/// and the rest of the last one.
async fn until_it_stalls(exchange: &mut Exchange) -> (usize, usize, Vec<u8>) {
    exchange.raw(HEAD).await;
    let mut taken = 0;
    for n in 0.. {
        let event = event(n);
        let sent = exchange.push(&event, Duration::from_millis(500)).await;
        taken += sent;
        assert!(taken < BUFFERS, "nobody reads, and {taken} bytes were taken");
        if sent < event.len() {
            return (taken, n + 1, event[sent..].to_vec());
        }
    }
    unreachable!("it stalls")
}

/// Sends the rest of the stream while the client reads.
fn go_on(
    mut exchange: Exchange,
    taken: usize,
    next: usize,
    rest: Vec<u8>,
) -> tokio::task::JoinHandle<(Exchange, usize)> {
    tokio::spawn(async move {
        exchange.raw(&rest).await;
        let mut sent = taken + rest.len();
        let mut n = next;
        while sent < STREAM_SIZE {
            let event = event(n);
            exchange.raw(&event).await;
            (sent, n) = (sent + event.len(), n + 1);
        }
        exchange.raw(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await;
        (exchange, n)
    })
}

/// A check of the events as they come.
#[derive(Default)]
struct Events {
    open: Vec<u8>,
    seen: usize,
    done: bool,
}

impl Events {
    fn feed(&mut self, piece: &[u8]) {
        self.open.extend_from_slice(piece);
        while let Some(end) = memchr::memmem::find(&self.open, b"\n\n") {
            let event: Vec<u8> = self.open.drain(..end + 2).collect();
            if event.starts_with(b"data: [DONE]") {
                self.done = true;
                continue;
            }
            let framed = self::event(self.seen);
            let from = memchr::memchr(b'\n', &framed).expect("a chunk") + 1;
            assert!(framed[from..framed.len() - 2] == event, "event {} came as it was sent", self.seen);
            self.seen += 1;
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_its_backend_and_gets_every_byte_when_it_reads_on() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STREAMED).await;
    let mut exchange = backend.next().await;
    let (taken, next, rest) = until_it_stalls(&mut exchange).await;
    let sending = go_on(exchange, taken, next, rest);
    let (mut message, mut events) = (client.head().await, Events::default());
    while let Some(piece) = client.piece(&mut message, 0).await {
        events.feed(&piece);
    }
    let (exchange, sent) = sending.await.expect("no panic");
    exchange.end(Ending::HalfClose).await.await.expect("no panic");
    assert!(message.complete && events.done);
    assert_eq!(events.seen, sent);
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn over_http2_a_stream_that_is_not_read_stops_its_backend_and_no_other_stream() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut h2 = H2::connect(proxy.address).await;
    let mut request = h2.post(CHAT, None).await;
    request.send(Bytes::from_static(STREAMED), true).await;
    let mut exchange = backend.next().await;
    let (taken, next, rest) = until_it_stalls(&mut exchange).await;
    let mut sibling = h2.post(CHAT, None).await;
    sibling.send(Bytes::from_static(crate::STEP), true).await;
    backend.next().await.json(200, "{}").await;
    assert_eq!(sibling.response().await.body(), "{}");
    let sending = go_on(exchange, taken, next, rest);
    let (response, _body) = request.head().await;
    let (mut body, mut events) = (response.into_body(), Events::default());
    while let Some(data) = within("more of a response", body.data()).await {
        let data = data.expect("no reset");
        let _ = body.flow_control().release_capacity(data.len());
        events.feed(&data);
    }
    let (exchange, sent) = sending.await.expect("no panic");
    exchange.end(Ending::HalfClose).await.await.expect("no panic");
    assert!(events.done);
    assert_eq!(events.seen, sent);
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_for_too_long_is_left_and_its_backend_is_not_blamed() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.timeouts.stream_idle = 5 * SOON;
    let proxy = Proxy::with(config).await;
    for http2 in [false, true] {
        let mut client = proxy.client().await;
        let mut h2 = H2::connect(proxy.address).await;
        let mut request = None;
        if http2 {
            let request = request.insert(h2.post(CHAT, None).await);
            request.send(Bytes::from_static(STREAMED), true).await;
        } else {
            client.post(CHAT, "", STREAMED).await;
        }
        let before = proxy.metric("thundergate_client_disconnects_total").await;
        let mut exchange = backend.next().await;
        exchange.raw(HEAD).await;
        let flood = tokio::spawn(async move {
            let event = event(0);
            while exchange.push(&event, Duration::from_secs(10)).await == event.len() {}
        });
        within("the end of the backend's connection", flood).await.expect("no panic");
        proxy.balanced().await;
        assert_eq!(proxy.metric("thundergate_client_disconnects_total").await, before + 1.0, "HTTP/2: {http2}");
        let status = &proxy.app.fleet.statuses()[0];
        assert!(status.healthy && status.downs.iter().all(|(_, times)| *times == 0));
        let page = proxy.page().await;
        assert!(!page.contains("thundergate_upstream_errors_total{"), "{page}");
    }
    proxy.unharmed(&mut backend).await;
}
