//! HTTP/2 written frame by frame, for frames that no library sends.

use super::*;
use bytes::{BufMut, BytesMut};
use tokio::io::AsyncReadExt;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One h2c connection on which anything may be sent.
pub struct Wire {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    buffer: BytesMut,
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Bytes,
}

/// A header block, without compression.
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            // A length of up to 126 bytes takes one byte. Longer ones have another form, which no test needs.
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

pub fn request<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "http"), (":authority", "proxy"), (":path", path)]
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.extend_from_slice(payload);
    frame
}

// === impl Wire ===

impl Wire {
    /// Opens a connection with these settings of the client.
    pub async fn open(proxy: &Proxy, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(proxy.address).await.expect("the proxy listens");
        stream.set_nodelay(true).expect("a socket option");
        let (reader, writer) = stream.into_split();
        let mut wire = Self { reader, writer, buffer: BytesMut::new() };
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.put_u16(*name);
            payload.put_u32(*value);
        }
        assert!(wire.send(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await);
        wire
    }

    /// Sends `bytes`; `false` if the proxy has closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        within("room to write", self.writer.write_all(bytes)).await.is_ok()
    }

    /// Sends for as long as the proxy takes the bytes; `None` if the proxy took all of them.
    pub async fn stalls_or_ends(&mut self, bytes: &[u8]) -> Option<()> {
        let sent = tokio::time::timeout(Duration::from_secs(2), self.writer.write_all(bytes)).await;
        (!matches!(sent, Ok(Ok(())))).then_some(())
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let length =
                    usize::from(self.buffer[0]) << 16 | usize::from(self.buffer[1]) << 8 | usize::from(self.buffer[2]);
                if self.buffer.len() >= 9 + length {
                    let mut frame = self.buffer.split_to(9 + length);
                    let payload = frame.split_off(9).freeze();
                    let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
                    return Some(Frame { kind: frame[3], stream, payload });
                }
            }
            match within("a frame or the end", self.reader.read_buf(&mut self.buffer)).await {
                Ok(n) if n > 0 => {}
                _ => return None,
            }
        }
    }

    /// The first frame of this kind on this stream; `None` if the connection ends without one.
    pub async fn find(&mut self, kind: u8, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind && frame.stream == stream {
                return Some(frame);
            }
        }
    }

    /// Waits until the stream or the whole connection is refused. Tells how, with the error code.
    pub async fn refused(&mut self, stream: u32) -> Refused {
        loop {
            let Some(frame) = self.next().await else { return Refused::Closed };
            let code = |at: usize| {
                frame.payload.get(at..at + 4).map(|code| u32::from_be_bytes([code[0], code[1], code[2], code[3]]))
            };
            match frame.kind {
                GOAWAY => return Refused::Connection(code(4).expect("a code")),
                RST_STREAM if frame.stream == stream => return Refused::Stream(code(0).expect("a code")),
                HEADERS if frame.stream == stream => return Refused::Answer(frame.payload),
                _ => {}
            }
        }
    }
}

/// The way in which a request was refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// An answer, given as its header block.
    Answer(Bytes),
    Stream(u32),
    Connection(u32),
    Closed,
}
