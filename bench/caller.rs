//! Clients over HTTP/1.1 (a connection for each request) and h2c (a few connections for all), behind one interface.

use crate::support::client::{Client, H2Request, post_head};
use crate::support::wire::Message;
use crate::support::within;
use bytes::Bytes;
use clap::ValueEnum;
use h2::RecvStream;
use h2::client::SendRequest;
use std::fmt::Write as _;
use std::net::SocketAddr;
use tokio::net::TcpStream;

pub const CHAT: &str = "/v1/chat/completions";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wire {
    H1,
    H2c,
}

/// Source of requests.
pub enum Caller {
    H1(SocketAddr),
    H2(Vec<SendRequest<Bytes>>),
}

/// A request that was sent. The client leaves when this value is dropped.
pub enum Pending {
    H1(Client),
    H2(H2Request),
}

/// A response whose head has come. The client leaves when this value is dropped.
pub enum Answer {
    H1 { client: Client, head: Message, read: usize },
    H2(RecvStream),
}

// === impl Wire ===

impl Wire {
    pub fn label(self) -> &'static str {
        match self {
            Self::H1 => "HTTP/1.1",
            Self::H2c => "h2c",
        }
    }
}

// === impl Caller ===

impl Caller {
    /// A caller of `address`. Over h2c, `requests` requests at the same time share connections of at most 500 streams.
    pub async fn new(address: SocketAddr, wire: Wire, requests: usize) -> Self {
        if wire == Wire::H1 {
            return Self::H1(address);
        }
        let mut connections = Vec::new();
        for _ in 0..requests.div_ceil(500) {
            let stream = TcpStream::connect(address).await.expect("the proxy listens");
            stream.set_nodelay(true).expect("a socket option");
            let handshake = h2::client::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 24)
                .handshake(stream);
            let (requests, connection) = within("a handshake", handshake).await.expect("HTTP/2");
            tokio::spawn(connection);
            connections.push(requests);
        }
        Self::H2(connections)
    }

    /// Sends request number `n`.
    pub async fn post(&self, n: usize, headers: &[(&str, &str)], body: Bytes) -> Pending {
        match self {
            Self::H1(address) => {
                let mut client = Client::connect(*address).await;
                let mut lines = String::new();
                for (name, value) in headers {
                    let _ = write!(lines, "{name}: {value}\r\n");
                }
                let mut bytes = post_head(CHAT, &lines, body.len()).into_bytes();
                bytes.extend_from_slice(&body);
                client.send(&bytes).await;
                Pending::H1(client)
            }
            Self::H2(connections) => {
                let mut request = http::Request::post(format!("http://proxy{CHAT}"))
                    .header("content-type", "application/json")
                    .header("content-length", body.len());
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                let request = request.body(()).expect("a request");
                let connection = connections[n % connections.len()].clone();
                let ready = within("a free stream", connection.ready()).await;
                let (response, stream) = ready.expect("a connection").send_request(request, false).expect("a request");
                let mut request = H2Request { response, body: stream };
                request.send(body, true).await;
                Pending::H2(request)
            }
        }
    }
}

// === impl Pending ===

impl Pending {
    /// The status of the answer, and the rest of it.
    pub async fn answer(self) -> (u16, Answer) {
        match self {
            Self::H1(mut client) => {
                let head = client.head().await;
                (head.status(), Answer::H1 { client, head, read: 0 })
            }
            Self::H2(request) => {
                let (head, body) = request.head().await.0.into_parts();
                (head.status.as_u16(), Answer::H2(body))
            }
        }
    }
}

// === impl Answer ===

impl Answer {
    /// The next piece; `None` at the end of the answer.
    pub async fn piece(&mut self) -> Option<Bytes> {
        match self {
            Self::H1 { client, head, read } => {
                let piece = client.piece(head, *read).await?;
                *read += piece.len();
                Some(piece)
            }
            Self::H2(stream) => {
                let piece = within("more of a response", stream.data()).await?.expect("an open stream");
                let _ = stream.flow_control().release_capacity(piece.len());
                Some(piece)
            }
        }
    }

    /// Whether the end came as announced, and not because the connection broke.
    pub fn complete(&self) -> bool {
        match self {
            Self::H1 { head, .. } => head.complete,
            Self::H2(stream) => stream.is_end_stream(),
        }
    }

    pub async fn rest(&mut self) {
        while self.piece().await.is_some() {}
    }
}

/// A body of about `size` bytes.
pub fn body(size: usize, stream: bool, usage: bool) -> Bytes {
    let options = if usage { r#","stream_options":{"include_usage":true}"# } else { "" };
    let front = format!(
        r#"{{"model":"bench","stream":{stream}{options},"max_tokens":16,"messages":[{{"role":"user","content":""#
    );
    let back = r#""}]}"#;
    let text = "The quick brown fox jumps over the lazy dog, 0123456789. ";
    let fill = size.saturating_sub(front.len() + back.len());
    let content: String = text.chars().cycle().take(fill).collect();
    Bytes::from(format!("{front}{content}{back}"))
}
