//! HTTP/1.1 messages, read and written by hand, so that a test sees exactly the bytes on the wire.

use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A message: its first line, its headers, and its body without the framing.
#[derive(Clone, Debug)]
pub struct Message {
    pub first_line: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// Whether the body came to the end that its framing announced.
    pub complete: bool,
}

/// Reader of messages from one side of a connection.
pub struct Reader<R> {
    io: R,
    buffer: BytesMut,
}

// === impl Message ===

impl Message {
    /// All values of `name`, joined by commas as HTTP joins them.
    pub fn header(&self, name: &str) -> Option<String> {
        let values = self.headers.iter();
        let values = values.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let values: Vec<_> = values.map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub fn status(&self) -> u16 {
        let status = self.first_line.split(' ').nth(1);
        status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {:?}", self.first_line))
    }

    pub fn method(&self) -> &str {
        self.first_line.split(' ').next().unwrap_or("")
    }

    pub fn path(&self) -> &str {
        self.first_line.split(' ').nth(1).unwrap_or("")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }
}

// === impl Reader ===

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// Reads first line and headers; `None` at a clean end of the connection. The body stays unread.
    pub async fn head(&mut self) -> io::Result<Option<Message>> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await? {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        };
        let head = self.buffer.split_to(end);
        let head = std::str::from_utf8(&head).expect("the head is text");
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let first_line = lines.next().unwrap_or("").to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header has a colon");
            (name.to_owned(), value.trim().to_owned())
        };
        Ok(Some(Message { first_line, headers: lines.map(header).collect(), body: Bytes::new(), complete: false }))
    }

    /// Reads the body of `message`, up to its end or the end of the connection.
    pub async fn body(&mut self, message: &mut Message) -> io::Result<()> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.piece(message, body.len()).await? {
            body.extend_from_slice(&piece);
        }
        message.body = body.freeze();
        Ok(())
    }

    /// Reads `bytes` bytes, fewer only at the end of the connection.
    pub async fn take(&mut self, bytes: usize) -> io::Result<Bytes> {
        while self.buffer.len() < bytes && self.more().await? {}
        Ok(self.buffer.split_to(bytes.min(self.buffer.len())).freeze())
    }

    /// Reads the next piece of the body, of which `read` bytes were read so far; `None` at the end of the body, whole
    /// or not.
    pub async fn piece(&mut self, message: &mut Message, read: usize) -> io::Result<Option<Bytes>> {
        let chunked = message.header("transfer-encoding").is_some();
        if chunked {
            return self.chunk(message).await;
        }
        let length = message.header("content-length");
        let length: Option<usize> = length.map(|n| n.parse().expect("a number"));
        let response = message.first_line.starts_with("HTTP/");
        let left = match length {
            Some(length) => length - read,
            None if response => usize::MAX,
            None => 0,
        };
        if left == 0 {
            message.complete = true;
            return Ok(None);
        }
        if self.buffer.is_empty() && !self.more().await? {
            message.complete = length.is_none();
            return Ok(None);
        }
        let take = left.min(self.buffer.len());
        Ok(Some(self.buffer.split_to(take).freeze()))
    }

    async fn chunk(&mut self, message: &mut Message) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(line_end) = find(&self.buffer, b"\r\n") {
                let size = std::str::from_utf8(&self.buffer[..line_end]).expect("a chunk size");
                let size = usize::from_str_radix(size, 16).expect("a chunk size");
                let whole = line_end + 2 + size + 2;
                if self.buffer.len() >= whole {
                    let mut chunk = self.buffer.split_to(whole);
                    let data = chunk.split_off(line_end + 2).split_to(size).freeze();
                    message.complete = size == 0;
                    return Ok((size > 0).then_some(data));
                }
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    pub fn into_inner(self) -> R {
        self.io
    }

    /// Waits for the other side to send something (`true`) or to close (`false`). A reset counts as a close.
    pub async fn more(&mut self) -> io::Result<bool> {
        match self.io.read_buf(&mut self.buffer).await {
            Ok(n) => Ok(n > 0),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}
