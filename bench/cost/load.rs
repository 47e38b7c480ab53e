//! Clients that keep their connections and send bodies like those of agents.

use super::mock::length;
use super::numbers::Durations;
use memchr::memmem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const SYSTEM: &str = r#"{"role":"system","content":"You are a helpful assistant that can interact with a computer.\nYour response must contain exactly ONE bash code block with ONE command."}"#;
const TURN: &str = r#",{"role":"assistant","content":"THOUGHT: I should look at how \"Field.clean\" treats None before I change it.\n\n```bash\ngrep -rn \"def clean\" django/forms/fields.py | head -20\n```"},{"role":"user","content":"<returncode>0</returncode>\n<output>\ndjango/forms/fields.py:142:    def clean(self, value):\ndjango/forms/fields.py:143:        \"\"\"\n        Validates the given value and returns its \"cleaned\" value as an\n        appropriate Python object. Raises ValidationError for any errors.\n        \"\"\"\ndjango/forms/fields.py:1012:    def clean(self, value):\n            clean_data = []\n            errors = ErrorList()\n            if self.disabled and not isinstance(value, list):\n                value = self.widget.decompress(value)\n</output>"}"#;

/// Number of digits in a program's id.
const DIGITS: usize = 8;

/// One request that all clients send: only the digits of the program's id differ.
pub struct Request {
    bytes: Vec<u8>,
    digits: usize,
    /// Number of ids. They are used in turn.
    programs: usize,
    next: AtomicUsize,
}

/// Size and pace of a load: the number of connections, and the pause between two requests on one. Agents do not send
/// one request after the other as fast as they can. A proxy that never sleeps is cheaper than one that is woken for
/// each request.
#[derive(Clone, Copy)]
pub struct Crowd {
    pub connections: usize,
    pub pause: Duration,
}

/// A connection, and the bytes that have come on it.
pub struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

// === impl Request ===

impl Request {
    /// A request with a body of about `size` bytes. Its ids are those of `programs` programs.
    pub fn new(size: usize, programs: usize, stream: bool) -> Self {
        let turns = size.saturating_sub(SYSTEM.len() + 100) / TURN.len();
        let rest = size.saturating_sub(SYSTEM.len() + 130 + turns * TURN.len());
        let last = format!(r#",{{"role":"user","content":"{}"}}"#, "Go on. ".repeat(rest / 7));
        let messages = [SYSTEM, &TURN.repeat(turns), &last].concat();
        let body = format!(
            r#"{{"model":"bench","stream":{stream},"max_tokens":1024,"temperature":0.0,"messages":[{messages}],"program_id":"{}"}}"#,
            "0".repeat(DIGITS)
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\naccept: application/json\r\naccept-encoding: identity\r\n\
             content-type: application/json\r\nuser-agent: OpenAI/Python 2.8.0\r\nauthorization: Bearer none\r\n\
             x-stainless-lang: python\r\nx-stainless-runtime: CPython\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let bytes = [head, body].concat().into_bytes();
        Self { digits: bytes.len() - 2 - DIGITS, bytes, programs, next: AtomicUsize::new(0) }
    }

    fn next_in(&self, bytes: &mut [u8]) {
        let program = self.next.fetch_add(1, Relaxed) % self.programs;
        bytes[self.digits..][..DIGITS].copy_from_slice(format!("{program:0DIGITS$}").as_bytes());
    }
}

/// Sends `count` requests, each after a pause. Returns the number of requests that were not answered rightly.
pub async fn requests(address: SocketAddr, request: &Arc<Request>, crowd: Crowd, count: usize) -> usize {
    let left = Arc::new(AtomicUsize::new(count));
    let mut clients = JoinSet::new();
    for number in 0..crowd.connections {
        let (left, request) = (Arc::clone(&left), Arc::clone(request));
        clients.spawn(async move {
            let (mut client, mut bytes) = (Client::new(address), request.bytes.clone());
            let mut failed = 0;
            let mut next = Instant::now() + crowd.pause * number as u32 / crowd.connections as u32;
            while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                request.next_in(&mut bytes);
                if !crowd.pause.is_zero() {
                    tokio::time::sleep_until(next.into()).await;
                    next = next.max(Instant::now() - crowd.pause) + crowd.pause;
                }
                failed += usize::from(client.exchange(&bytes).await.is_err());
            }
            failed
        });
    }
    clients.join_all().await.into_iter().sum()
}

/// Sends `count` requests for streams, one on each connection. Returns the number of events that came.
pub async fn streams(address: SocketAddr, request: &Arc<Request>, count: usize) -> usize {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let mut bytes = request.bytes.clone();
        request.next_in(&mut bytes);
        clients.spawn(async move { Client::new(address).events(&bytes).await.unwrap_or(0) });
    }
    clients.join_all().await.into_iter().sum()
}

/// Sends `count` requests on one connection, one after the other. Returns the times that they took.
pub async fn times(client: &mut Client, request: &Request, count: usize) -> Durations {
    let (mut times, mut bytes) = (Durations::default(), request.bytes.clone());
    for _ in 0..count {
        request.next_in(&mut bytes);
        let start = Instant::now();
        client.exchange(&bytes).await.expect("an answer");
        times.push(start.elapsed());
    }
    times
}

// === impl Client ===

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, buffer: Vec::with_capacity(1 << 16) }
    }

    /// Reads a whole answer, which must have status 200.
    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<()> {
        let head = self.head(request).await?;
        let whole = head + length(&self.buffer[..head]);
        let chunked = memmem::find(&self.buffer[..head], b"chunked").is_some();
        while (chunked && !self.buffer.ends_with(b"0\r\n\r\n")) || (!chunked && self.buffer.len() < whole) {
            self.more().await?;
        }
        let lower = self.buffer[..head].to_ascii_lowercase();
        if memmem::find(&lower, b"connection: close").is_some() {
            self.stream = None;
        }
        if self.buffer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
    }

    async fn events(&mut self, request: &[u8]) -> std::io::Result<usize> {
        self.head(request).await?;
        let mut events = 0;
        loop {
            // An event that comes in two pieces is counted with the second.
            if let Some(end) = memmem::rfind(&self.buffer, b"\n\n") {
                events += memmem::find_iter(&self.buffer[..end], b"data: ").count();
                self.buffer.drain(..end + 2);
            }
            if self.buffer.ends_with(b"0\r\n\r\n") {
                return Ok(events);
            }
            self.more().await?;
        }
    }

    /// Sends the request. Returns the position where the answer's head ends.
    async fn head(&mut self, request: &[u8]) -> std::io::Result<usize> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        self.buffer.clear();
        if let Some(stream) = &mut self.stream {
            stream.write_all(request).await?;
        }
        loop {
            self.more().await?;
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                return Ok(end + 4);
            }
        }
    }

    async fn more(&mut self) -> std::io::Result<()> {
        let read = match &mut self.stream {
            Some(stream) => stream.read_buf(&mut self.buffer).await?,
            None => 0,
        };
        if read == 0 {
            self.stream = None;
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}
