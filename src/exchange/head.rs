//! The heads of a request and its answer as they stand on the connection to a backend (RFC 9112).

use super::framing::{Chunked, Framing, Misframed};
use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora_http::{RequestHeader, ResponseHeader};
use smallvec::SmallVec;
use std::mem::MaybeUninit;

/// The most bytes and lines that an answer's head may have.
const MAX_HEAD: usize = 256 * 1024;
const MAX_HEADERS: usize = 128;

/// The most headers that a `Connection` may name: each name is compared with each header.
const MAX_NOMINATED: usize = 10;

/// An answer's head, and what the head says of its body and connection.
#[derive(Debug)]
pub struct AnswerHead {
    pub head: Box<ResponseHeader>,
    pub framing: Framing,
    /// Whether the connection may carry another request after this answer.
    pub persists: bool,
}

/// Takes an answer's head out of `read`; `None` as long as it is not whole.
///
/// # Errors
/// The bytes are no answer, or nobody can tell where the answer ends.
pub fn take(read: &mut BytesMut, method: &Method) -> Result<Option<AnswerHead>, Misframed> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, read, &mut lines) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if read.len() <= MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(Misframed("its head has no end")),
        Err(_) => return Err(Misframed("its head cannot be read")),
    };
    let head = build(&parsed).ok_or(Misframed("its head cannot be read"))?;
    let persists = persists(&head, parsed.version == Some(1));
    let (framing, framed) = framing(&head, method)?;
    let _ = read.split_to(length);
    let mut head = Box::new(head);
    strip(&mut head, framed);
    Ok(Some(AnswerHead { head, persists: persists && !framing.ends_by_close(), framing }))
}

fn build(parsed: &httparse::Response) -> Option<ResponseHeader> {
    let status = StatusCode::from_u16(parsed.code?).ok()?;
    let mut head = ResponseHeader::build_no_case(status, Some(parsed.headers.len() + 6)).ok()?;
    let reason = parsed.reason.filter(|reason| !reason.is_empty() && status.canonical_reason() != Some(reason));
    head.set_reason_phrase(reason).ok()?;
    for line in &*parsed.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        head.append_header(name, HeaderValue::from_bytes(line.value).ok()?).ok()?;
    }
    Some(head)
}

fn persists(head: &ResponseHeader, http_11: bool) -> bool {
    let mut tokens = tokens(&head.headers, &header::CONNECTION);
    match http_11 {
        true => !tokens.any(|token| token.eq_ignore_ascii_case(b"close")),
        false => tokens.any(|token| token.eq_ignore_ascii_case(b"keep-alive")),
    }
}

/// How the body ends, and whether `Content-Length` says so or the answer has none at all.
fn framing(head: &ResponseHeader, method: &Method) -> Result<(Framing, bool), Misframed> {
    let bodiless = head.status.is_informational() || matches!(head.status.as_u16(), 204 | 304);
    if bodiless || method == Method::HEAD {
        return Ok((Framing::Length(0), true));
    }
    if let Some(last) = tokens(&head.headers, &header::TRANSFER_ENCODING).last() {
        let chunked = last.eq_ignore_ascii_case(b"chunked");
        return Ok((if chunked { Framing::Chunked(Chunked::Size) } else { Framing::Close }, false));
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok((Framing::Close, false));
    };
    let digits = length.as_bytes().iter().all(u8::is_ascii_digit);
    let number = length.to_str().ok().and_then(|length| length.parse().ok()).filter(|_| digits);
    match number {
        Some(number) if lengths.all(|other| other == length) => Ok((Framing::Length(number), true)),
        _ => Err(Misframed("its Content-Length is not one number")),
    }
}

/// Takes away the headers that concern the connection to the backend alone.
fn strip(head: &mut ResponseHeader, framed: bool) {
    // Where a backend names too much, or what may not be named, its list counts as empty.
    let named = nominated(&head.headers).unwrap_or_default();
    let named: SmallVec<[HeaderName; 4]> = named.iter().filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    let upgrade = head.status == StatusCode::SWITCHING_PROTOCOLS;
    for name in named.iter().filter(|name| !upgrade || **name != header::UPGRADE) {
        head.remove_header(name);
    }
    if !upgrade {
        head.remove_header(&header::CONNECTION);
        head.remove_header(&header::UPGRADE);
    }
    head.remove_header("keep-alive");
    head.remove_header("proxy-connection");
    head.remove_header(&header::TRANSFER_ENCODING);
    head.remove_header(&header::TRAILER);
    if !framed {
        head.remove_header(&header::CONTENT_LENGTH);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).into_iter();
    let parts = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    parts.filter(|token| !token.is_empty())
}

/// The headers that a message's `Connection` names besides its own options: they concern this connection alone (RFC
/// 9110, 7.6.1).
///
/// # Errors
/// The list is too long, or has a header that nobody may take away.
pub fn nominated(headers: &HeaderMap) -> std::result::Result<Vec<&[u8]>, &'static str> {
    let protected = |token: &[u8]| {
        let names: [&[u8]; 4] = [b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"];
        names.iter().any(|name| token.eq_ignore_ascii_case(name))
    };
    let mut named = Vec::new();
    for token in tokens(headers, &header::CONNECTION) {
        if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close") {
            continue;
        }
        if named.len() == MAX_NOMINATED || protected(token) || HeaderName::from_bytes(token).is_err() {
            return Err("its Connection names what may not be taken away");
        }
        named.push(token);
    }
    Ok(named)
}

/// Whether `name` concerns a single connection, or frames the message on it.
#[must_use]
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "expect"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// The head of a request as it goes to a backend, with a body of `length` bytes. The body is framed here, whatever the
/// head says of it.
pub fn request(head: &RequestHeader, length: Option<usize>) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    for part in [head.method.as_str().as_bytes(), b" ", head.raw_path(), b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    let framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    for (name, value) in head.headers.iter().filter(|(name, _)| !framing.contains(name)) {
        put(&mut out, name.as_str(), value.as_bytes());
    }
    if length.is_some() || [Method::POST, Method::PUT, Method::PATCH].contains(&head.method) {
        put(&mut out, "content-length", length.unwrap_or(0).to_string().as_bytes());
    }
    out.put_slice(b"\r\n");
    out
}

fn put(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Frames the body of an answer for the client, where its length does not.
///
/// # Errors
/// Never: the header is a constant.
pub fn frame(head: &mut ResponseHeader, client: Version) -> pingora_core::Result<()> {
    head.set_version(Version::HTTP_11);
    match client {
        // The end of the connection ends the body.
        Version::HTTP_09 | Version::HTTP_10 => Ok(()),
        _ => head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_break_the_parser_and_none_behind_a_head_are_taken(
            lines in prop::collection::vec("[ -~]{0,30}", 0..8),
            bytes in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let wire = [format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", lines.join("\r\n")).as_bytes(), &bytes].concat();
            for whole in [&wire[..], &bytes] {
                let mut read = BytesMut::from(whole);
                if let Ok(Some(_)) = take(&mut read, &Method::GET) {
                    prop_assert!(whole.ends_with(&read) && read.len() < whole.len());
                } else {
                    prop_assert_eq!(&read[..], whole);
                }
            }
        }
    }

    fn head(wire: &str, method: &Method) -> Result<Option<AnswerHead>, Misframed> {
        take(&mut BytesMut::from(wire), method)
    }

    fn of(wire: &str) -> AnswerHead {
        head(wire, &Method::POST).expect("an answer").expect("whole")
    }

    #[test]
    fn a_head_is_taken_when_it_is_whole_and_nothing_behind_it() {
        let wire = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: b\r\n\r\nhello";
        let mut read = BytesMut::new();
        for (at, byte) in wire.bytes().enumerate() {
            read.put_u8(byte);
            let taken = take(&mut read, &Method::GET).expect("an answer");
            assert_eq!(taken.is_some(), at + 1 == wire.len() - 5, "after {at}");
            if let Some(answer) = taken {
                assert!(matches!(answer.framing, Framing::Length(5)) && answer.persists);
                assert_eq!(answer.head.headers["x-a"], "b");
                break;
            }
        }
        assert!(read.is_empty());
    }

    #[test]
    fn the_end_of_a_body_is_told_by_what_counts_most() {
        let chunked = of("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: gzip, Chunked\r\n\r\n");
        assert!(matches!(chunked.framing, Framing::Chunked(_)));
        assert!(chunked.head.headers.is_empty(), "{:?}", chunked.head.headers);
        assert!(matches!(of("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n").framing, Framing::Close));
        let open = of("HTTP/1.1 200 OK\r\n\r\n");
        assert!(open.framing.ends_by_close() && !open.persists);
        for bodiless in ["204 No Content", "304 Not Modified", "103 Early Hints"] {
            assert!(of(&format!("HTTP/1.1 {bodiless}\r\ncontent-length: 5\r\n\r\n")).framing.is_whole(), "{bodiless}");
        }
        let asked =
            head("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", &Method::HEAD).expect("an answer").expect("whole");
        assert!(asked.framing.is_whole() && asked.head.headers["content-length"] == "5");
    }

    #[test]
    fn a_connection_goes_on_when_both_versions_and_words_allow_it() {
        let cases = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x-a, Close\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: Keep-Alive\r\n\r\n", true),
        ];
        for (wire, persists) in cases {
            assert_eq!(of(wire).persists, persists, "{wire}");
        }
    }

    #[test]
    fn a_length_that_is_not_one_number_is_refused() {
        for length in ["", "-1", "+5", "5, 5", "5\r\ncontent-length: 6", "99999999999999999999", "0x5"] {
            let wire = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            assert!(head(&wire, &Method::GET).is_err(), "{length}");
        }
        assert!(of("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n").persists);
    }

    #[test]
    fn a_reason_of_its_own_is_kept() {
        assert_eq!(of("HTTP/1.1 200 Fine\r\n\r\n").head.get_reason_phrase(), Some("Fine"));
        assert_eq!(of("HTTP/1.1 404 Not Found\r\n\r\n").head.get_reason_phrase(), Some("Not Found"));
    }
}
