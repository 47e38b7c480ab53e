//! Faults that are injected, on real sockets: backends, their metrics, clients, programs. docs/reliability.md has the
//! list. After each fault the ledger is balanced and the next request is served.

mod support;

#[path = "faults/backend.rs"]
mod backend;
#[path = "faults/client.rs"]
mod client;
#[path = "faults/metrics.rs"]
mod metrics;
#[path = "faults/programs.rs"]
mod programs;
#[path = "faults/wire.rs"]
mod wire;

use bytes::Bytes;
use std::time::Duration;
use support::client::{Client, H2, H2Request};
use support::proxy::Proxy;
use support::wire::Message;
use support::within;

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = include_str!("samples/vllm-0.32-chat-stream.txt");
const WHOLE: &str = include_str!("samples/vllm-0.32-chat.json");
const STEP: &[u8] = br#"{"model":"tiny","messages":[],"program_id":"p1"}"#;
const STREAMED: &[u8] = br#"{"model":"tiny","messages":[],"program_id":"p1","stream":true}"#;

const SOON: Duration = Duration::from_millis(200);

/// A request that waits for its response, over HTTP/1.1 or HTTP/2.
enum Asked {
    Http1(Client),
    /// An HTTP/2 connection ends when its handle is dropped, so the handle is kept.
    Http2(H2, H2Request),
}

/// A response as a client received it.
struct Got {
    status: u16,
    error: String,
    body: String,
    /// Whether the response came to its end; over HTTP/2, without a reset.
    complete: bool,
}

fn error_code(response: &Message) -> String {
    response.header("x-thundergate-error").unwrap_or_default()
}

// === impl Asked ===

impl Asked {
    async fn of(proxy: &Proxy, http2: bool, body: &[u8]) -> Self {
        if http2 {
            let mut h2 = H2::connect(proxy.address).await;
            let mut request = h2.post(CHAT, None).await;
            request.send(Bytes::copy_from_slice(body), true).await;
            return Self::Http2(h2, request);
        }
        let mut client = proxy.client().await;
        client.post(CHAT, "", body).await;
        Self::Http1(client)
    }

    async fn got(self) -> Got {
        let (_h2, request) = match self {
            Self::Http1(mut client) => {
                let response = client.response().await;
                let body = response.text().to_owned();
                let (status, error) = (response.status(), error_code(&response));
                return Got { status, error, body, complete: response.complete };
            }
            Self::Http2(h2, request) => (h2, request),
        };
        let (response, _body) = request.head().await;
        let (head, mut stream) = response.into_parts();
        let error = head.headers.get("x-thundergate-error").map_or("", |code| code.to_str().expect("a code"));
        let (mut body, mut complete) = (Vec::new(), true);
        while let Some(data) = within("more of a response", stream.data()).await {
            let Ok(data) = data else {
                complete = false;
                break;
            };
            let _ = stream.flow_control().release_capacity(data.len());
            body.extend_from_slice(&data);
        }
        let body = String::from_utf8(body).expect("text");
        Got { status: head.status.as_u16(), error: error.to_owned(), body, complete }
    }
}
