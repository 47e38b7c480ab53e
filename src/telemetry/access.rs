//! The access log: one line per request, never with prompt text, queries or keys.

use super::writer::Format;
use crate::config::AccessFormat;
use crate::scheduler::Usage;
use serde::{Serialize, Serializer};
use std::io::Write as _;
use std::net::SocketAddr;
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

/// One line as it is written.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request_id: &'a str,
    client: Option<String>,
    method: &'a str,
    path: &'a str,
    status: u16,
    model: Option<&'a str>,
    program: Option<&'a str>,
    backend: Option<&'a str>,
    #[serde(serialize_with = "millis")]
    held_ms: Duration,
    #[serde(serialize_with = "opt_millis")]
    ttft_ms: Option<Duration>,
    #[serde(serialize_with = "millis")]
    duration_ms: Duration,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    error: Option<&'static str>,
}

// === impl AccessFormat ===

impl Format for AccessFormat {
    type Item = Box<AccessRecord>;

    fn render(&self, record: Self::Item, out: &mut Vec<u8>) {
        let line = Line::new(&record);
        match self {
            Self::Json => push_json(out, &line),
            Self::Text => line.push_text(out),
        }
        out.push(b'\n');
    }
}

// === impl Line ===

impl<'a> Line<'a> {
    fn new(record: &'a AccessRecord) -> Self {
        Self {
            time: timestamp(record.time),
            request_id: &record.request_id,
            client: record.client.map(|client| client.to_string()),
            method: record.method.as_str(),
            path: &record.path,
            status: record.status,
            model: record.model.as_deref(),
            program: record.program.as_deref(),
            backend: record.backend.as_deref(),
            held_ms: record.held,
            ttft_ms: record.ttft,
            duration_ms: record.duration,
            prompt_tokens: record.usage.map(|usage| usage.prompt.0),
            cached_tokens: record.usage.and_then(|usage| usage.cached).map(|n| n.0),
            completion_tokens: record.usage.map(|usage| usage.completion.0),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            error: record.error,
        }
    }

    /// `time client method "path" status key=value …`; absent values are left out, strings are quoted as in JSON.
    fn push_text(&self, out: &mut Vec<u8>) {
        let client = self.client.as_deref().unwrap_or("-");
        let _ = write!(out, "{} {client} {} ", self.time, self.method);
        push_json(out, &self.path);
        let _ = write!(out, " {}", self.status);
        let strings = [
            ("request_id", Some(self.request_id)),
            ("model", self.model),
            ("program", self.program),
            ("backend", self.backend),
            ("error", self.error),
        ];
        for (name, value) in strings {
            if let Some(value) = value {
                let _ = write!(out, " {name}=");
                push_json(out, &value);
            }
        }
        let numbers = [
            ("held_ms", Some(as_millis(self.held_ms))),
            ("ttft_ms", self.ttft_ms.map(as_millis)),
            ("duration_ms", Some(as_millis(self.duration_ms))),
            ("prompt_tokens", self.prompt_tokens),
            ("cached_tokens", self.cached_tokens),
            ("completion_tokens", self.completion_tokens),
            ("bytes_in", Some(self.bytes_in)),
            ("bytes_out", Some(self.bytes_out)),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                let _ = write!(out, " {name}={value}");
            }
        }
    }
}

/// A terminal or a log viewer obeys it: a control character, DEL and C1 too, a Unicode line end, a bidirectional
/// override.
pub(crate) fn is_unsafe_to_show(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Appends `value` as JSON. serde escapes what JSON asks for (below U+0020) and no more.
fn push_json(out: &mut Vec<u8>, value: &impl Serialize) {
    let start = out.len();
    let _ = serde_json::to_writer(&mut *out, value);
    if out[start..].iter().all(|byte| *byte < 0x7f) {
        return;
    }
    let json = out.split_off(start);
    for c in String::from_utf8_lossy(&json).chars() {
        let _ = match is_unsafe_to_show(c) {
            true => write!(out, "\\u{:04x}", u32::from(c)),
            false => write!(out, "{c}"),
        };
    }
}

/// RFC 3339, UTC, milliseconds.
fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| format!("{time:.3}")).unwrap_or_default()
}

fn as_millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(as_millis(*duration))
}

fn opt_millis<S: Serializer>(duration: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    duration.map(as_millis).serialize(s)
}

#[cfg(test)]
pub(super) mod tests;
