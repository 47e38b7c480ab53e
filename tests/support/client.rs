//! Small clients: HTTP/1.1 written by hand, and h2c.

use super::wire::{Message, Reader};
use super::within;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use std::io;
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// One HTTP/1.1 connection.
pub struct Client {
    reader: Reader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// One h2c connection.
pub struct H2 {
    requests: SendRequest<Bytes>,
}

/// A request over h2c whose body may still be going out.
pub struct H2Request {
    pub response: h2::client::ResponseFuture,
    pub body: SendStream<Bytes>,
}

// === impl Client ===

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.expect("the proxy listens")
    }

    pub async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader: Reader::new(reader), writer })
    }

    /// Sends a POST and reads its whole answer, however long the answer takes.
    pub async fn exchange(&mut self, path: &str, body: &[u8]) -> io::Result<Message> {
        let mut bytes = post_head(path, "", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        self.writer.write_all(&bytes).await?;
        let mut message = self.reader.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.reader.body(&mut message).await?;
        match message.complete {
            true => Ok(message),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads everything that comes until the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        let rest = within("the end of the connection", self.reader.take(usize::MAX)).await;
        rest.expect("a readable connection").to_vec()
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("the proxy reads");
    }

    /// Sends a POST with a JSON body and more headers, each line ended by CRLF.
    pub async fn post(&mut self, path: &str, headers: &str, body: &[u8]) {
        let mut bytes = post_head(path, headers, body.len()).into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes).await;
    }

    pub async fn get(&mut self, path: &str) {
        let head = format!("GET {path} HTTP/1.1\r\nhost: proxy\r\n\r\n");
        self.send(head.as_bytes()).await;
    }

    /// Reads status and headers of the next response.
    pub async fn head(&mut self) -> Message {
        let head = within("a response", self.reader.head()).await;
        head.expect("a response").expect("a response before the end")
    }

    /// Reads the next whole response, and skips informational responses before it.
    pub async fn response(&mut self) -> Message {
        let mut message = self.head().await;
        while (102..200).contains(&message.status()) {
            message = self.head().await;
        }
        let body = within("the body of a response", self.reader.body(&mut message)).await;
        body.expect("a body");
        message
    }

    /// Reads more of the body of `message`, of which `read` bytes were read already; `None` at the end of the body.
    pub async fn piece(&mut self, message: &mut Message, read: usize) -> Option<Bytes> {
        let piece = within("more of a response", self.reader.piece(message, read)).await;
        piece.expect("a readable connection")
    }

    pub fn split(self) -> (Reader<OwnedReadHalf>, OwnedWriteHalf) {
        (self.reader, self.writer)
    }

    /// Whether the proxy has closed the connection and sent nothing more.
    pub async fn closed(&mut self) -> bool {
        let more = within("the proxy to close", self.reader.more()).await;
        !more.expect("a readable connection")
    }
}

/// The head of a POST as `Client::post` sends it.
pub fn post_head(path: &str, headers: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n"
    )
}

// === impl H2 ===

impl H2 {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the proxy listens");
        stream.set_nodelay(true).expect("a socket option");
        // The window of the connection is large: a stream that nobody reads must not take the window of the other
        // streams.
        let builder = h2::client::Builder::new().initial_connection_window_size(1 << 20).to_owned();
        let handshake = within("a handshake", builder.handshake(stream)).await;
        let (requests, connection) = handshake.expect("HTTP/2");
        tokio::spawn(connection);
        Self { requests }
    }

    /// Waits until the connection takes no new stream, because it was told so or is closed.
    pub async fn is_told_to_go(&mut self) -> bool {
        let gone = async {
            loop {
                match self.requests.clone().ready().await {
                    Err(_) => return true,
                    // Sending a request shows whether the connection refuses it.
                    Ok(mut requests) => {
                        let request = Request::get("http://proxy/livez").body(()).expect("a request");
                        if requests.send_request(request, true).is_err() {
                            return true;
                        }
                        tokio::task::yield_now().await;
                    }
                }
            }
        };
        within("the end of the connection", gone).await
    }

    /// A handle for a request that a test makes itself.
    pub async fn ready(&mut self) -> SendRequest<Bytes> {
        let ready = within("a free stream", self.requests.clone().ready()).await;
        ready.expect("a connection")
    }

    /// Starts a POST. The caller sends the body.
    pub async fn post(&mut self, path: &str, length: Option<usize>) -> H2Request {
        let mut request = Request::post(format!("http://proxy{path}"));
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.header("content-type", "application/json").body(()).expect("a request");
        let (response, body) = self.ready().await.send_request(request, false).expect("a request");
        H2Request { response, body }
    }
}

// === impl H2Request ===

impl H2Request {
    /// Sends a piece of the body, as fast as the flow control permits.
    pub async fn send(&mut self, mut data: Bytes, end: bool) {
        while !data.is_empty() {
            self.body.reserve_capacity(data.len());
            let room = std::future::poll_fn(|cx| self.body.poll_capacity(cx));
            let room = within("flow control", room).await;
            let room = room.expect("an open stream").expect("capacity");
            let piece = data.split_to(room.min(data.len()));
            self.body.send_data(piece, end && data.is_empty()).expect("an open stream");
            if data.is_empty() {
                return;
            }
        }
        self.body.send_data(data, end).expect("an open stream");
    }

    /// Ends the body. A server that has already answered may have closed the stream.
    pub fn end(&mut self) {
        let _ = self.body.send_data(Bytes::new(), true);
    }

    pub async fn head(self) -> (Response<RecvStream>, SendStream<Bytes>) {
        let response = within("a response", self.response).await;
        (response.expect("a response"), self.body)
    }

    /// Reads the whole response.
    pub async fn response(self) -> Response<Bytes> {
        let (response, _body) = self.head().await;
        let (parts, mut stream) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = within("more of a response", stream.data()).await {
            let data = data.expect("an open stream");
            let _ = stream.flow_control().release_capacity(data.len());
            bytes.extend_from_slice(&data);
        }
        Response::from_parts(parts, bytes.into())
    }
}
