//! A backend that does what the test says, step by step. The test gets each request that reaches the backend as an
//! `Exchange`. The backend itself answers for health, metrics and models.

use super::{wire, within};
use bytes::Bytes;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wire::{Message, Reader};

pub struct Backend {
    pub address: SocketAddr,
    pub state: Arc<State>,
    exchanges: mpsc::UnboundedReceiver<Exchange>,
    task: tokio::task::JoinHandle<()>,
}

/// State that all connections of a backend share.
pub struct State {
    pub healthy: AtomicBool,
    /// Number of KV blocks of 16 tokens that `/metrics` tells.
    pub blocks: AtomicUsize,
    /// Bytes that `/metrics` sends in place of a good answer, head included. The connection stays open behind them.
    pub metrics: Mutex<Option<Bytes>>,
    /// Number of times that the metrics were asked for.
    pub scrapes: AtomicUsize,
    /// Whether requests are handed over with their head alone, while their body stays unread.
    pub early: AtomicBool,
    connections: AtomicUsize,
    out: mpsc::UnboundedSender<Exchange>,
}

/// A request that waits for its answer. The request came whole, unless the backend's `early` is set.
pub struct Exchange {
    pub request: Message,
    /// Number of the connection that the request came on, counted from one.
    pub connection: usize,
    io: Io,
}

/// An answer in chunks whose head was sent.
pub struct Answer {
    io: Io,
}

/// The way in which a backend stops sending an answer, whole or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Close,
    /// RST, as from a process that crashed.
    Reset,
    /// FIN alone: the backend would still read.
    HalfClose,
    /// Nothing more is sent, as by a machine that has vanished.
    Silence,
}

struct Io {
    number: usize,
    reader: Reader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    state: Arc<State>,
}

// === impl Backend ===

impl Backend {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (out, exchanges) = mpsc::unbounded_channel();
        let state = Arc::new(State {
            healthy: AtomicBool::new(true),
            blocks: AtomicUsize::new(10_000),
            metrics: Mutex::default(),
            scrapes: AtomicUsize::new(0),
            early: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            out,
        });
        let shared = Arc::clone(&state);
        let task = accept(listener, shared);
        Self { address, state, exchanges, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request that is not for health, metrics or models.
    pub async fn next(&mut self) -> Exchange {
        within("a request to the backend", self.recv()).await.expect("the backend runs")
    }

    /// The next such request, however long it takes to come.
    pub async fn recv(&mut self) -> Option<Exchange> {
        self.exchanges.recv().await
    }

    /// Number of connections that the backend has accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Whether no request waits for its answer.
    pub fn is_quiet(&mut self) -> bool {
        self.exchanges.is_empty()
    }

    /// Refuses connections from now on. Open connections stay.
    pub async fn stop_listening(&mut self) {
        self.task.abort();
        // The listener ends with the task.
        let _ = (&mut self.task).await;
    }

    /// Accepts connections again, at the same address.
    pub async fn listen_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is still free");
        self.task = accept(listener, Arc::clone(&self.state));
    }
}

fn accept(listener: TcpListener, state: Arc<State>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            Io::accept(stream, &state).serve();
        }
    })
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Exchange ===

impl Exchange {
    pub async fn json(self, status: u16, body: &str) {
        self.whole(status, "application/json", body.as_bytes()).await;
    }

    /// Sends a whole answer with its length. The connection stays.
    pub async fn whole(mut self, status: u16, kind: &str, body: &[u8]) {
        self.io.whole(status, kind, body).await;
        self.io.serve();
    }

    /// Sends the head of an answer in chunks.
    pub async fn chunks(mut self, status: u16, kind: &str) -> Answer {
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
        self.io.write(head.as_bytes()).await;
        Answer { io: self.io }
    }

    /// Sends the head of an answer of server-sent events.
    pub async fn events(self) -> Answer {
        self.chunks(200, "text/event-stream; charset=utf-8").await
    }

    /// Sends the bytes as they are.
    pub async fn raw(&mut self, bytes: &[u8]) {
        self.io.write(bytes).await;
    }

    /// Reads the next `bytes` bytes that came behind the request.
    pub async fn said(&mut self, bytes: usize) -> Vec<u8> {
        let said = within("what the client says", self.io.reader.take(bytes)).await;
        said.expect("an open connection").to_vec()
    }

    /// Both directions of the connection, with nothing read beyond the request.
    pub fn into_halves(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        (self.io.reader.into_inner(), self.io.writer)
    }

    /// Closes the connection without an answer.
    pub fn die(self) {}

    /// Sends nothing more, in the way that `ending` says. The task ends when the proxy has closed the connection.
    pub async fn end(self, ending: Ending) -> tokio::task::JoinHandle<()> {
        let mut io = self.io;
        match ending {
            Ending::Close => return tokio::spawn(async { drop(io) }),
            Ending::Reset => return tokio::spawn(async { io.reset() }),
            Ending::HalfClose => io.writer.shutdown().await.expect("an open connection"),
            Ending::Silence => {}
        }
        tokio::spawn(async move { io.closed().await })
    }

    /// Number of `bytes` that the connection takes. The number is smaller than their length if the connection takes
    /// none for `patience`, or is closed.
    pub async fn push(&mut self, bytes: &[u8], patience: Duration) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            match tokio::time::timeout(patience, self.io.writer.write(&bytes[sent..])).await {
                Ok(Ok(written)) => sent += written,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        sent
    }

    /// Waits until the proxy has closed the connection.
    pub async fn abandoned(mut self) {
        self.io.closed().await;
    }
}

// === impl Answer ===

impl Answer {
    pub async fn send(&mut self, data: &[u8]) {
        let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
        chunk.extend_from_slice(data);
        chunk.extend_from_slice(b"\r\n");
        self.io.write(&chunk).await;
    }

    /// Sends one server-sent event.
    pub async fn event(&mut self, data: &str) {
        self.send(format!("data: {data}\n\n").as_bytes()).await;
    }

    /// Ends the answer. The connection stays.
    pub async fn finish(mut self) {
        self.io.write(b"0\r\n\r\n").await;
        self.io.serve();
    }

    /// Breaks off with a clean close in the middle of the answer.
    pub fn die(self) {}

    /// Breaks off with a reset.
    pub fn reset(self) {
        self.io.reset();
    }

    /// Waits until the proxy has closed the connection.
    pub async fn abandoned(mut self) {
        self.io.closed().await;
    }
}

// === impl Io ===

impl Io {
    fn accept(stream: TcpStream, state: &Arc<State>) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        let (reader, writer) = stream.into_split();
        Self {
            number: state.connections.fetch_add(1, Ordering::Relaxed) + 1,
            reader: Reader::new(reader),
            writer,
            state: Arc::clone(state),
        }
    }

    /// Reads requests and answers them, until one is for the test.
    fn serve(mut self) {
        tokio::spawn(async move {
            while let Ok(Some(mut request)) = self.reader.head().await {
                if request.header("expect").is_some() {
                    self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await;
                }
                let early = self.state.early.load(Ordering::Relaxed) && request.method() == "POST";
                if early {
                    let out = self.state.out.clone();
                    let _ = out.send(Exchange { request, connection: self.number, io: self });
                    return;
                }
                if self.reader.body(&mut request).await.is_err() || !request.complete {
                    return;
                }
                match request.path() {
                    "/health" => {
                        let healthy = self.state.healthy.load(Ordering::Relaxed);
                        let status = if healthy { 200 } else { 503 };
                        self.whole(status, "text/plain", b"").await;
                    }
                    "/metrics" => {
                        self.state.scrapes.fetch_add(1, Ordering::Relaxed);
                        let wrong = self.state.metrics.lock().clone();
                        if let Some(wrong) = wrong {
                            self.write(&wrong).await;
                            return self.closed().await;
                        }
                        let metrics = metrics(self.state.blocks.load(Ordering::Relaxed));
                        self.whole(200, "text/plain", metrics.as_bytes()).await;
                    }
                    "/v1/models" => {
                        let models = br#"{"object":"list","data":[{"id":"tiny","object":"model"}]}"#;
                        self.whole(200, "application/json", models).await;
                    }
                    _ => {
                        let out = self.state.out.clone();
                        let _ = out.send(Exchange { request, connection: self.number, io: self });
                        return;
                    }
                }
            }
        });
    }

    async fn whole(&mut self, status: u16, kind: &str, body: &[u8]) {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.write(&bytes).await;
    }

    /// Errors of writing are ignored: whether the proxy may have gone is for the test to check.
    async fn write(&mut self, bytes: &[u8]) {
        let _ = self.writer.write_all(bytes).await;
    }

    fn reset(self) {
        let stream = self.reader.into_inner().reunite(self.writer).expect("two halves of one");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    }

    async fn closed(&mut self) {
        within("the proxy to close the connection", async { while let Ok(true) = self.reader.more().await {} }).await;
    }
}

fn metrics(blocks: usize) -> String {
    format!(
        "# TYPE vllm:cache_config_info gauge\n\
         vllm:cache_config_info{{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"{blocks}\"}} 1.0\n\
         # TYPE vllm:num_requests_running gauge\n\
         vllm:num_requests_running{{engine=\"0\",model_name=\"tiny\"}} 0.0\n\
         # TYPE vllm:kv_cache_usage_perc gauge\n\
         vllm:kv_cache_usage_perc{{engine=\"0\",model_name=\"tiny\"}} 0.0\n"
    )
}

/// Answers every request with what `answer` makes of it, until the backend is dropped. For tests that look at one side
/// only.
pub fn answer_all(mut backend: Backend, answer: fn(&Message) -> Bytes) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let address = backend.address;
    let task = tokio::spawn(async move {
        while let Some(exchange) = backend.exchanges.recv().await {
            let body = answer(&exchange.request);
            exchange.whole(200, "application/json", &body).await;
        }
    });
    (address, task)
}
