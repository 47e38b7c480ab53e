//! The access log: one line per request, never with prompt text, queries or keys.

use super::writer::Format;
use crate::config::AccessFormat;
use crate::logging::is_unsafe_to_show;
use crate::scheduler::Usage;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What is logged of a request once the request is over.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// Time of arrival.
    pub time: SystemTime,
    pub request_id: String,
    pub client: Option<SocketAddr>,
    pub method: http::Method,
    /// Path without the query.
    pub path: String,
    /// HTTP status of the answer; 499 when the client left before there was an answer.
    pub status: u16,
    /// Name of the pool that served the request.
    pub model: Option<Arc<str>>,
    pub program: Option<Arc<str>>,
    /// URL of the backend.
    pub backend: Option<String>,
    pub held: Duration,
    /// Time from arrival to the first token.
    pub ttft: Option<Duration>,
    pub duration: Duration,
    pub usage: Option<Usage>,
    /// Body bytes received from the client.
    pub bytes_in: u64,
    /// Body bytes sent to the client.
    pub bytes_out: u64,
    /// Code of an error that Thundergate answered with.
    pub error: Option<&'static str>,
}

/// A record as it is written, in this order.
#[derive(Serialize)]
struct Line<'a> {
    /// RFC 3339, UTC, milliseconds.
    time: String,
    request_id: &'a str,
    client: Option<SocketAddr>,
    method: &'a str,
    path: &'a str,
    status: u16,
    model: Option<&'a str>,
    program: Option<&'a str>,
    backend: Option<&'a str>,
    held_ms: u64,
    ttft_ms: Option<u64>,
    duration_ms: u64,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    error: Option<&'a str>,
}

/// JSON in which characters that may harm a reader are escaped, not only those that JSON asks for.
struct Harmless;

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
    /// One object with every field; `null` for what is not known.
    fn push_json(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail, and the line has no map with other keys than strings.
        let written = self.line().serialize(&mut Serializer::with_formatter(out, Harmless));
        debug_assert!(written.is_ok());
    }

    /// `time client method "path" status key=value …`, first the strings and then the numbers; absent values are left
    /// out, strings are quoted as in JSON.
    fn push_text(&self, out: &mut Vec<u8>) {
        let line = self.line();
        let client = self.client.map_or_else(|| "-".to_owned(), |client| client.to_string());
        let _ = write!(out, "{} {client} {} ", line.time, line.method);
        push_value(out, line.path);
        let _ = write!(out, " {}", line.status);
        let strings = [("request_id", Some(line.request_id)), ("model", line.model), ("program", line.program)];
        let strings = strings.into_iter().chain([("backend", line.backend), ("error", line.error)]);
        for (name, value) in strings.filter_map(|(name, value)| Some((name, value?))) {
            let _ = write!(out, " {name}=");
            push_value(out, value);
        }
        let numbers = [
            ("held_ms", Some(line.held_ms)),
            ("ttft_ms", line.ttft_ms),
            ("duration_ms", Some(line.duration_ms)),
            ("prompt_tokens", line.prompt_tokens),
            ("cached_tokens", line.cached_tokens),
            ("completion_tokens", line.completion_tokens),
            ("bytes_in", Some(line.bytes_in)),
            ("bytes_out", Some(line.bytes_out)),
        ];
        for (name, value) in numbers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let _ = write!(out, " {name}={value}");
        }
    }

    fn line(&self) -> Line<'_> {
        let millis = |duration: Duration| duration.as_millis().try_into().unwrap_or(u64::MAX);
        // No time is shown when the clock is beyond the year 9999.
        let time = Timestamp::try_from(self.time).map_or_else(|_| String::new(), |time| format!("{time:.3}"));
        Line {
            time,
            request_id: &self.request_id,
            client: self.client,
            method: self.method.as_str(),
            path: &self.path,
            status: self.status,
            model: self.model.as_deref(),
            program: self.program.as_deref(),
            backend: self.backend.as_deref(),
            held_ms: millis(self.held),
            ttft_ms: self.ttft.map(millis),
            duration_ms: millis(self.duration),
            prompt_tokens: self.usage.map(|usage| usage.prompt.0),
            cached_tokens: self.usage.and_then(|usage| usage.cached).map(|cached| cached.0),
            completion_tokens: self.usage.map(|usage| usage.completion.0),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            error: self.error,
        }
    }
}

fn push_value(out: &mut Vec<u8>, value: &str) {
    let written = value.serialize(&mut Serializer::with_formatter(out, Harmless));
    debug_assert!(written.is_ok());
}

// === impl Harmless ===

impl Formatter for Harmless {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return out.write_all(fragment.as_bytes());
        }
        fragment.chars().try_for_each(|c| match is_unsafe_to_show(c) {
            true => write!(out, "\\u{:04x}", u32::from(c)),
            false => write!(out, "{c}"),
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
