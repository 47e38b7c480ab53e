//! Clients that mean harm, on real sockets. What they send reaches a backend only as the one request that was counted,
//! and costs nobody else anything.

mod support;

#[path = "hostile/flood.rs"]
mod flood;
#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/framing.rs"]
mod framing;
#[path = "hostile/json.rs"]
mod json;

use bytes::Bytes;
use std::time::Duration;
use support::backend::Backend;
use support::client::H2;
use support::proxy::{Proxy, config};
use support::wire::{Message, Reader};
use support::within;
use thundergate::config::Config;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = r#"{"id":"1","choices":[{"index":0,"message":{"content":"hi"}}],
    "usage":{"prompt_tokens":60,"completion_tokens":40,"total_tokens":100}}"#;
const STEP: &[u8] = br#"{"model":"tiny","messages":[{"role":"user","content":"hi"}],"program_id":"p1"}"#;

/// A proxy, and a backend that answers and remembers every request that reaches it.
struct Scene {
    proxy: Proxy,
    seen: mpsc::UnboundedReceiver<Message>,
}

/// Outcome of the bytes on one connection.
#[derive(Debug)]
struct Fate {
    /// All answers that came. The last may be cut off.
    answers: Vec<Message>,
    /// Whether the proxy closed the connection by itself.
    closed: bool,
}

// === impl Scene ===

impl Scene {
    async fn set() -> Self {
        Self::with(|_| {}).await
    }

    /// A scene with short time limits. `change` may change the configuration.
    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut backend = Backend::start().await;
        let mut config = config(&[&backend]);
        config.timeouts.request_header = Duration::from_millis(600);
        change(&mut config);
        let proxy = Proxy::with(config).await;
        let (out, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(exchange) = backend.recv().await {
                let _ = out.send(exchange.request.clone());
                exchange.json(200, WHOLE).await;
            }
        });
        Self { proxy, seen }
    }

    /// Sends the bytes as they are. Then reads until the connection is closed or this many `answers` came.
    async fn attack(&self, bytes: &[u8], answers: usize) -> Fate {
        let (mut reader, mut writer) = raw(&self.proxy).await;
        // The send may fail: a client that is refused early may find the connection closed.
        let sent = writer.write_all(bytes).await;
        let mut fate = Fate { answers: Vec::new(), closed: sent.is_err() };
        while fate.answers.len() < answers {
            match within("an answer or the end", answer(&mut reader)).await {
                Some(message) => fate.answers.push(message),
                None => {
                    fate.closed = true;
                    return fate;
                }
            }
        }
        let _ = writer.write_all(b"GET /livez HTTP/1.1\r\nhost: probe\r\n\r\n").await;
        fate.closed =
            !matches!(within("the probe's answer or the end", answer(&mut reader)).await, Some(m) if m.status() == 200);
        fate
    }

    /// The requests that have reached the backend since the last call.
    fn reached(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }

    /// Checks that nothing is left of an attack and that the next client is served over both protocols.
    async fn unharmed(&mut self) {
        self.proxy.settled().await;
        self.reached();
        let mut client = self.proxy.client().await;
        client.post(CHAT, "", STEP).await;
        assert_eq!(client.response().await.status(), 200);
        let mut h2 = H2::connect(self.proxy.address).await;
        let mut request = h2.post(CHAT, Some(STEP.len())).await;
        request.send(Bytes::from_static(STEP), true).await;
        assert_eq!(request.response().await.status(), 200);
        assert_eq!(self.reached().len(), 2);
        self.proxy.settled().await;
    }
}

async fn raw(proxy: &Proxy) -> (Reader<OwnedReadHalf>, OwnedWriteHalf) {
    let stream = TcpStream::connect(proxy.address).await.expect("the proxy listens");
    stream.set_nodelay(true).expect("a socket option");
    let (reader, writer) = stream.into_split();
    (Reader::new(reader), writer)
}

/// The next whole answer; `None` at the end of the connection, however the connection ends.
async fn answer(reader: &mut Reader<OwnedReadHalf>) -> Option<Message> {
    let mut message = reader.head().await.ok()??;
    reader.body(&mut message).await.ok()?;
    Some(message)
}

fn code(response: &Message) -> String {
    response.header("x-thundergate-error").unwrap_or_default()
}
