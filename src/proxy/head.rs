//! Heads of HTTP/1 that the next server may read in another way than this one. A message that is one request to one
//! server and two to the other is how requests are smuggled. Pingora refuses most such heads; the rest is refused here.

use crate::exchange::nominated;
use http::{Version, header};
use memchr::memchr_iter;
use pingora_proxy::Session;

/// The reason for which the framing of this request, or its host, is in doubt.
#[must_use]
pub fn fault(session: &Session) -> Option<&'static str> {
    let request = session.req_header();
    if let Err(fault) = nominated(&request.headers) {
        return Some(fault);
    }
    let h1 = session.as_http1()?;
    let raw = h1.get_headers_raw_bytes();
    if memchr_iter(b'\n', &raw).any(|at| at == 0 || raw[at - 1] != b'\r') {
        return Some("a line of its head does not end in CRLF");
    }
    if request.version == Version::HTTP_11 && !request.headers.contains_key(header::HOST) {
        return Some("it has no Host");
    }
    let mut codings = request.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Some("its Transfer-Encoding is not `chunked`");
        }
        // Pingora has removed it from the parsed head.
        let mut lines = raw.split(|byte| *byte == b'\n');
        if lines.any(|line| line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:"))) {
            return Some("it has a Transfer-Encoding and a Content-Length");
        }
    }
    let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).iter();
    let plain = |length: &[u8]| !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    let doubtful = lengths.next().is_some_and(|length| !plain(length.as_bytes()) || lengths.next().is_some());
    doubtful.then_some("its Content-Length is not one number")
}
