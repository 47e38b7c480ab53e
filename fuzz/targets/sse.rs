//! A stream of server-sent events: however it is split, the same comes out, and of it only usage events are missing.

use bytes::Bytes;
use serde_json::Value;
use thundergate::proxy::observe::Observer;
use thundergate::scheduler::Usage;
use xxhash_rust::xxh3::xxh3_64;

/// The first byte that no text has stands for so much text, so that a small input can hold a large event.
const FILLER: (u8, usize) = (0xff, 66_000);

/// What came of a stream: the client's bytes, and what was learned.
#[derive(Debug, PartialEq)]
struct Outcome {
    bytes: Vec<u8>,
    usage: Option<Usage>,
    output: u64,
    ended: bool,
}

/// What an event says of itself, read by the book.
#[derive(Debug, PartialEq)]
enum Kind {
    Kept,
    OnlyUsage,
    /// Its data is no JSON, or says things twice.
    Either,
}

pub fn check(data: &[u8]) {
    let large = data.contains(&FILLER.0);
    let stream = if large { filled(data) } else { data.to_vec() };
    let seed = xxh3_64(data);
    for strip in [false, true] {
        let whole = watch(strip, [&stream[..]]);
        let middle = (seed % (stream.len() as u64 + 1)) as usize;
        let (first, second) = stream.split_at(middle);
        assert_eq!(watch(strip, [first, second]), whole, "in two, at {middle}");
        assert_eq!(watch(strip, pieces(&stream, seed, if large { 20_000 } else { 40 })), whole, "in pieces");
        if stream.len() < 1024 {
            assert_eq!(watch(strip, stream.chunks(1)), whole, "byte by byte");
        }
        match strip {
            false => assert_eq!(whole.bytes, stream),
            true => loses_only_usage(&stream, &whole),
        }
    }
    let json = |pieces: Vec<&[u8]>| {
        let mut observer = Observer::json();
        pieces.iter().for_each(|piece| drop(observer.feed(Bytes::copy_from_slice(piece))));
        (observer.usage(), observer.ended(), observer.started())
    };
    assert_eq!(json(pieces(&stream, seed, 7)), json(vec![&stream]));
}

fn filled(data: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (n, part) in data.split(|byte| *byte == FILLER.0).enumerate() {
        if n == 1 {
            stream.resize(stream.len() + FILLER.1, b'y');
        }
        stream.extend_from_slice(part);
    }
    stream
}

fn watch<'a>(strip: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut observer = Observer::sse(strip);
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(&observer.feed(Bytes::copy_from_slice(piece)));
    }
    bytes.extend_from_slice(&observer.finish());
    Outcome { bytes, usage: observer.usage(), output: observer.output(), ended: observer.ended() }
}

/// Up to `most` bytes each, as the seed has it.
fn pieces(stream: &[u8], mut seed: u64, most: u64) -> Vec<&[u8]> {
    let mut rest = stream;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let size = ((seed >> 33) % most + 1) as usize;
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

fn loses_only_usage(stream: &[u8], outcome: &Outcome) {
    // A fingerprint on a usage event moves to the event before it.
    if memchr::memmem::find(stream, b"system_fingerprint").is_some() {
        return;
    }
    let mut out = &outcome.bytes[..];
    let parts = events(stream);
    for (n, &event) in parts.iter().enumerate() {
        // The last has no blank line behind it: clients take it for no event, and it passes.
        let kind = if n + 1 == parts.len() { Kind::Kept } else { kind(event) };
        match out.strip_prefix(event) {
            Some(rest) if kind != Kind::OnlyUsage => out = rest,
            _ => assert_ne!(kind, Kind::Kept, "lost: {}", String::from_utf8_lossy(event)),
        }
    }
    assert!(out.is_empty(), "left over: {}", String::from_utf8_lossy(out));
}

/// The stream in parts: events with the blank line behind them, and what stands between.
fn events(stream: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let (mut start, mut at, mut within) = (0, 0, false);
    while at < stream.len() {
        let len = stream[at..].iter().position(|byte| b"\r\n".contains(byte));
        let len = len.unwrap_or(stream.len() - at);
        let end = match stream[at + len..] {
            [b'\r', b'\n', ..] => at + len + 2,
            [] => at + len,
            _ => at + len + 1,
        };
        let comment = stream[at] == b':';
        within = if within { len > 0 } else { len > 0 && !comment };
        if !within {
            parts.push(&stream[start..end]);
            start = end;
        }
        at = end;
    }
    parts.push(&stream[start..]);
    parts
}

fn kind(event: &[u8]) -> Kind {
    let lines = event.split(|byte| b"\r\n".contains(byte));
    let data: Vec<&[u8]> = lines.filter_map(|line| line.strip_prefix(b"data:")).collect();
    let Ok(text) = String::from_utf8(data.join(&b'\n')) else { return Kind::Either };
    let twice = |word: &str| text.matches(word).count() > 1;
    if !text.contains("usage") {
        return Kind::Kept;
    }
    let Ok(Value::Object(body)) = serde_json::from_str(&text) else { return Kind::Either };
    if twice("choices") || twice("usage") || text.contains("\\") || event.len() > FILLER.1 {
        return Kind::Either;
    }
    let empty = body.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty);
    let Some(usage) = body.get("usage").and_then(Value::as_object).filter(|_| empty) else { return Kind::Kept };
    match usage.get("prompt_tokens").is_some_and(Value::is_u64) && usage.len() == 1 {
        true => Kind::OnlyUsage,
        false => Kind::Either,
    }
}
