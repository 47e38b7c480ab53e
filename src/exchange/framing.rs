//! Where the body of an answer of HTTP/1.1 ends (RFC 9112, 6.3 and 7.1).

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

/// The most bytes that the line with a chunk's size (with its extensions) may have, and all trailers together.
const MAX_LINE: usize = 8 * 1024;

/// The framing of a body: what tells its end.
#[derive(Debug)]
pub enum Framing {
    /// Bytes left.
    Length(u64),
    Chunked(Chunked),
    /// The connection closes.
    Close,
}

/// `Size ─▶ Data ─▶ DataEnd ─▶ Size`, or from a size of zero `Trailers ─▶ Whole`.
#[derive(Debug)]
pub enum Chunked {
    Size,
    /// Bytes left.
    Data(u64),
    DataEnd,
    /// Bytes of trailers so far.
    Trailers(usize),
    Whole,
}

/// The framing of an answer is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Misframed(pub &'static str);

// === impl Framing ===

impl Framing {
    /// Takes out of `read` what belongs to the body, in one piece, up to where the framing breaks. A single chunk is
    /// not copied.
    pub fn take(&mut self, read: &mut BytesMut) -> (Bytes, Result<(), Misframed>) {
        match self {
            Self::Length(left) => {
                let piece = up_to(*left, read);
                *left -= piece.len() as u64;
                (piece.freeze(), Ok(()))
            }
            Self::Chunked(chunked) => {
                let mut piece = BytesMut::new();
                let taken = chunked.take(read, &mut piece);
                (piece.freeze(), taken)
            }
            Self::Close => (read.split().freeze(), Ok(())),
        }
    }

    /// Whether the body has come to its end.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked::Whole))
    }

    /// Whether the end of the connection is the end of the body.
    #[must_use]
    pub fn ends_by_close(&self) -> bool {
        matches!(self, Self::Close)
    }
}

// === impl Chunked ===

impl Chunked {
    fn take(&mut self, read: &mut BytesMut, piece: &mut BytesMut) -> Result<(), Misframed> {
        loop {
            *self = match self {
                Self::Size => match line(read, MAX_LINE)? {
                    Some(line) => match size(&line)? {
                        0 => Self::Trailers(0),
                        size => Self::Data(size),
                    },
                    None => return Ok(()),
                },
                Self::Data(_) if read.is_empty() => return Ok(()),
                Self::Data(left) => {
                    let part = up_to(*left, read);
                    let left = *left - part.len() as u64;
                    match piece.is_empty() {
                        true => *piece = part,
                        // Chunks that were read together are relayed together.
                        false => piece.extend_from_slice(&part),
                    }
                    if left > 0 { Self::Data(left) } else { Self::DataEnd }
                }
                Self::DataEnd if read.len() < 2 => return Ok(()),
                Self::DataEnd if read.starts_with(b"\r\n") => {
                    read.advance(2);
                    Self::Size
                }
                Self::DataEnd => return Err(Misframed("a chunk is longer than its size")),
                Self::Trailers(before) => match line(read, MAX_LINE - *before)? {
                    Some(line) if line.is_empty() => Self::Whole,
                    Some(line) => Self::Trailers((*before + line.len() + 2).min(MAX_LINE)),
                    None => return Ok(()),
                },
                Self::Whole => return Ok(()),
            };
        }
    }
}

fn up_to(max: u64, read: &mut BytesMut) -> BytesMut {
    read.split_to(usize::try_from(max).unwrap_or(usize::MAX).min(read.len()))
}

/// The next line, without its end; `None` as long as it is not whole.
fn line(read: &mut BytesMut, max: usize) -> Result<Option<BytesMut>, Misframed> {
    let Some(end) = memchr(b'\n', &read[..read.len().min(max)]) else {
        return match read.len() >= max {
            true => Err(Misframed("a line between its chunks has no end")),
            false => Ok(None),
        };
    };
    let mut line = read.split_to(end + 1);
    if !line.ends_with(b"\r\n") {
        return Err(Misframed("a line between its chunks does not end in CRLF"));
    }
    line.truncate(end - 1);
    Ok(Some(line))
}

/// At least one digit and at most 15, which no number of bytes needs; what follows is an extension.
fn size(line: &[u8]) -> Result<u64, Misframed> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = line[digits..].trim_ascii_start();
    if !(1..=15).contains(&digits) || !(extension.is_empty() || extension.starts_with(b";")) {
        return Err(Misframed("a chunk has no size"));
    }
    let digit = |digit: &u8| u64::from(char::from(*digit).to_digit(16).unwrap_or_default());
    Ok(line[..digits].iter().fold(0, |size, next| size * 16 + digit(next)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunked() -> Framing {
        Framing::Chunked(Chunked::Size)
    }

    /// What comes of `bytes` when they arrive in pieces of `step`, and what is left over.
    fn taken(mut framing: Framing, bytes: &[u8], step: usize) -> Result<(Vec<u8>, bool, usize), Misframed> {
        let (mut read, mut body) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step) {
            read.extend_from_slice(piece);
            let (taken, fault) = framing.take(&mut read);
            body.extend_from_slice(&taken);
            fault?;
        }
        Ok((body, framing.is_whole(), read.len()))
    }

    proptest! {
        #[test]
        fn chunks_are_undone_however_they_arrive(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
            trailers in 0..3usize,
            step in 1..700usize,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend(format!("{:x};ext=1\r\n", chunk.len()).bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\n");
            wire.extend(b"x-t: 1\r\n".repeat(trailers));
            wire.extend(b"\r\nHTTP/1.1 ");
            let got = taken(chunked(), &wire, step).expect("chunks");
            prop_assert_eq!(got, (chunks.concat(), true, 9));
        }

        #[test]
        fn no_bytes_break_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1..50usize) {
            let _ = taken(chunked(), &bytes, step);
        }
    }

    #[test]
    fn a_body_of_known_length_takes_no_more_than_that() {
        let whole = taken(Framing::Length(5), b"hello world", 3).expect("a body");
        assert_eq!(whole, (b"hello".to_vec(), true, 6));
        let part = taken(Framing::Length(50), b"hello", 5).expect("a body");
        assert_eq!(part, (b"hello".to_vec(), false, 0));
    }

    #[test]
    fn what_came_before_the_framing_broke_is_given_out() {
        let (piece, fault) = chunked().take(&mut BytesMut::from("5\r\nhello\r\n2\r\n, \r\nzz\r\n"));
        assert_eq!((&piece[..], fault.is_err()), (&b"hello, "[..], true));
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let long = format!("5;{}\r\n", "x".repeat(MAX_LINE));
        let trailers = format!("0\r\n{}", "x-long: y\r\n".repeat(MAX_LINE / 11 + 1));
        let wires =
            ["\r\n", "zz\r\n", "-1\r\n", "ffffffffffffffff\r\n", "5\nhello", "5\r\nhellomore\r\n", "5 6\r\nhello"];
        for wire in wires.into_iter().chain([long.as_str(), &trailers]) {
            for step in [1, 7, wire.len()] {
                assert!(taken(chunked(), wire.as_bytes(), step).is_err(), "{wire:.20}");
            }
        }
    }
}
