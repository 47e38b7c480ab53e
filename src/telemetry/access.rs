//! The access log: one line per request, never with prompt text, queries or keys.

use super::writer::Format;
use crate::config::AccessFormat;
use crate::logging::is_unsafe_to_show;
use crate::scheduler::Usage;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What is logged of a request, once it is over.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// When it arrived.
    pub time: SystemTime,
    pub request_id: String,
    pub client: Option<SocketAddr>,
    pub method: http::Method,
    /// Without the query.
    pub path: String,
    /// 499 when the client left before there was an answer.
    pub status: u16,
    /// The pool that served it.
    pub model: Option<Arc<str>>,
    pub program: Option<Arc<str>>,
    /// The backend's URL.
    pub backend: Option<String>,
    pub held: Duration,
    /// From arrival to the first token.
    pub ttft: Option<Duration>,
    pub duration: Duration,
    pub usage: Option<Usage>,
    /// Body bytes received from the client, and sent to it.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The code of an error of our own.
    pub error: Option<&'static str>,
}

// === impl AccessFormat ===

impl Format for AccessFormat {
    type Item = Box<AccessRecord>;

    fn render(&self, record: Self::Item, out: &mut Vec<u8>) {
        match self {
            Self::Json => record.push_json(out),
            Self::Text => record.push_text(out),
        }
        out.push(b'\n');
    }
}

// === impl AccessRecord ===

impl AccessRecord {
    /// One object with every field.
    fn push_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        push_time(out, self.time);
        out.push(b'"');
        let [request_id, names @ .., error] = self.strings();
        let string = |out: &mut _, (name, value)| push_member(out, name, value, push_string);
        string(out, request_id);
        push_member(out, "client", self.client, |out, client| {
            out.push(b'"');
            push_address(out, client);
            out.push(b'"');
        });
        string(out, ("method", Some(self.method.as_str())));
        string(out, ("path", Some(&self.path)));
        push_member(out, "status", Some(self.status.into()), push_number);
        names.into_iter().for_each(|name| string(out, name));
        for (name, value) in self.numbers() {
            push_member(out, name, value, push_number);
        }
        string(out, error);
        out.push(b'}');
    }

    /// `time client method "path" status key=value …`; absent values are left out, strings are quoted as in JSON.
    fn push_text(&self, out: &mut Vec<u8>) {
        push_time(out, self.time);
        out.push(b' ');
        match self.client {
            Some(client) => push_address(out, client),
            None => out.push(b'-'),
        }
        let _ = write!(out, " {} ", self.method);
        push_string(out, &self.path);
        out.push(b' ');
        push_number(out, self.status.into());
        for (name, value) in self.strings() {
            if let Some(value) = value {
                let _ = write!(out, " {name}=");
                push_string(out, value);
            }
        }
        for (name, value) in self.numbers() {
            if let Some(value) = value {
                let _ = write!(out, " {name}={value}");
            }
        }
    }

    fn strings(&self) -> [(&'static str, Option<&str>); 5] {
        [
            ("request_id", Some(&self.request_id)),
            ("model", self.model.as_deref()),
            ("program", self.program.as_deref()),
            ("backend", self.backend.as_deref()),
            ("error", self.error),
        ]
    }

    fn numbers(&self) -> [(&'static str, Option<u64>); 8] {
        let millis = |duration: Duration| duration.as_millis().try_into().unwrap_or(u64::MAX);
        [
            ("held_ms", Some(millis(self.held))),
            ("ttft_ms", self.ttft.map(millis)),
            ("duration_ms", Some(millis(self.duration))),
            ("prompt_tokens", self.usage.map(|usage| usage.prompt.0)),
            ("cached_tokens", self.usage.and_then(|usage| usage.cached).map(|cached| cached.0)),
            ("completion_tokens", self.usage.map(|usage| usage.completion.0)),
            ("bytes_in", Some(self.bytes_in)),
            ("bytes_out", Some(self.bytes_out)),
        ]
    }
}

/// A member that is not the first one.
fn push_member<T>(out: &mut Vec<u8>, name: &str, value: Option<T>, push: impl Fn(&mut Vec<u8>, T)) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    match value {
        Some(value) => push(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn push_address(out: &mut Vec<u8>, address: SocketAddr) {
    let SocketAddr::V4(v4) = address else {
        let _ = write!(out, "{address}");
        return;
    };
    for (octet, end) in v4.ip().octets().into_iter().zip(*b"...:") {
        push_number(out, octet.into());
        out.push(end);
    }
    push_number(out, v4.port().into());
}

/// As JSON. What JSON asks for (below U+0020) is escaped, and what may harm a reader.
fn push_string(out: &mut Vec<u8>, text: &str) {
    // No early end: so the compiler takes many bytes at once.
    let as_it_is = |byte: &u8| (b' '..=b'~').contains(byte) & (*byte != b'"') & (*byte != b'\\');
    if text.bytes().fold(true, |all, byte| all & as_it_is(&byte)) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    let json = serde_json::Value::from(text).to_string();
    for c in json.chars() {
        let _ = match is_unsafe_to_show(c) {
            true => write!(out, "\\u{:04x}", u32::from(c)),
            false => write!(out, "{c}"),
        };
    }
}

/// RFC 3339, UTC, milliseconds; nothing when it is beyond the year 9999.
fn push_time(out: &mut Vec<u8>, time: SystemTime) {
    let Ok(stamp) = jiff::Timestamp::try_from(time) else {
        return;
    };
    let time = jiff::tz::Offset::UTC.to_datetime(stamp);
    if time.year() < 0 {
        let _ = write!(out, "{stamp:.3}");
        return;
    }
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |place: Range<usize>, mut number: i16| {
        for digit in text[place].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0..4, time.year());
    put(5..7, time.month().into());
    put(8..10, time.day().into());
    put(11..13, time.hour().into());
    put(14..16, time.minute().into());
    put(17..19, time.second().into());
    put(20..23, time.millisecond());
    out.extend_from_slice(&text);
}

#[cfg(test)]
pub(super) mod tests;
