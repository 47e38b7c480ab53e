//! A request body: what is found in it, and what of it goes upstream, against `serde_json`.

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;
use std::sync::Arc;
use thundergate::body::envelope::{AskUsage, Edits, Envelope, Field, Forwarded};
use thundergate::identity::Sources;

/// `serde_json` goes no deeper.
const ITS_DEPTH: usize = 120;

/// What has no business upstream.
const OURS: [&str; 2] = ["program_id", "docker_ids"];

/// Members in their order, duplicates and spelling kept.
struct Members<'a>(Vec<(String, &'a RawValue)>);

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        assert!(scan(data, usize::MAX).is_none(), "not UTF-8, and accepted");
        return;
    };
    let found = scan(data, usize::MAX);
    let depth = depth(text);
    if depth <= ITS_DEPTH && !["NaN", "Infinity"].iter().any(|word| text.contains(word)) {
        let strict = text.trim_ascii_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
        assert_eq!(found.is_some(), strict, "{text}");
    }
    let Some(envelope) = found else { return };
    assert!(scan(data, depth).is_some(), "its own depth is deep enough");
    assert!(scan(data, depth - 1).is_none(), "nested deeper than it may be");
    let _ = (envelope.class(), envelope.max_output(), envelope.prompt_bytes());
    let _ = Sources::default().find(&http::HeaderMap::new(), &envelope, &Arc::from(""));
    reads_as(text, &envelope);
    cuts(text);
    edits(data);
}

fn scan(body: &[u8], depth: usize) -> Option<Envelope> {
    Envelope::scan(Bytes::copy_from_slice(body), depth).ok()
}

/// Of a body that is an object: the same in place as in a copy.
fn forward(body: &[u8], edits: &Edits<'_>) -> Forwarded {
    let in_place = scan(body, usize::MAX).expect("an object").forward(edits);
    let held = Bytes::copy_from_slice(body);
    let copied = Envelope::scan(held.clone(), usize::MAX).expect("an object").forward(edits);
    assert_eq!((&held[..], &in_place.body, in_place.usage_added), (body, &copied.body, copied.usage_added));
    in_place
}

/// Most objects and arrays open at once, whatever else it is.
fn depth(text: &str) -> usize {
    let (mut depth, mut most) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// Of duplicate keys the last one counts.
fn reads_as(text: &str, envelope: &Envelope) {
    let Ok(body) = serde_json::from_str::<Value>(text) else { return };
    let inside = &body["extra_body"]["program_id"];
    for (field, value) in [(Field::ProgramId, &body["program_id"]), (Field::ExtraProgramId, inside)] {
        let found = envelope.scalar(field);
        match value {
            Value::String(text) => {
                assert_eq!(found.ok().flatten().as_deref(), Some(&**text).filter(|id| !id.is_empty()))
            }
            Value::Null => assert_eq!(found, Ok(None)),
            Value::Bool(value) => assert_eq!(found.ok().flatten().as_deref(), Some(&*value.to_string())),
            Value::Number(_) => assert!(found.is_ok_and(|id| id.is_some())),
            Value::Array(_) | Value::Object(_) => assert!(found.is_err()),
        }
    }
    assert_eq!(envelope.model().as_deref(), body["model"].as_str());
    if let Some(stream) = body["stream"].as_bool() {
        assert_eq!(envelope.stream(), stream);
    }
}

/// What is ours is gone, everything else is there as it was written.
fn cuts(text: &str) {
    let out = forward(text.as_bytes(), &Edits::default());
    assert!(!out.usage_added);
    let mut rest = text.bytes();
    assert!(out.body.iter().all(|byte| rest.any(|other| other == *byte)), "bytes that were not there");
    let again = forward(&out.body, &Edits::default());
    assert_eq!(again.body, out.body, "something was left to cut");
    let upstream = std::str::from_utf8(&out.body).expect("still UTF-8");
    let (Some(before), Some(after)) = (members(text), members(upstream)) else { return };
    let mut after = after.iter();
    for (key, value) in before.iter().filter(|(key, _)| !OURS.contains(&key.as_str())) {
        let inner = members(value.get()).filter(|_| key == "extra_body");
        if inner.is_none() && key == "extra_body" && value.get().starts_with('{') {
            // With a key that `serde_json` does not take for text, such as a lone surrogate.
            return;
        }
        let is_ours = |(key, _): &&(String, &RawValue)| OURS.contains(&key.as_str());
        let emptied = |inner: &Vec<_>| !inner.is_empty() && inner.iter().all(|member| is_ours(&member));
        if inner.as_ref().is_some_and(emptied) {
            continue;
        }
        let (name, sent) = after.next().expect("a member is lost");
        assert_eq!(name, key);
        match inner {
            Some(inner) => {
                let kept: Vec<_> = inner.iter().filter(|member| !is_ours(member)).map(spelled).collect();
                let sent = members(sent.get()).expect("still an object");
                assert_eq!(sent.iter().map(spelled).collect::<Vec<_>>(), kept);
            }
            None => assert_eq!(sent.get(), value.get()),
        }
    }
    assert!(after.next().is_none(), "a member too many: {upstream}");
}

/// Another model and the wish for usage leave a body that says so.
fn edits(body: &[u8]) {
    for usage in [AskUsage::Vllm, AskUsage::Openai] {
        let out = forward(body, &Edits { model: Some("other \"one\""), usage });
        let sent = scan(&out.body, usize::MAX).expect("still an object");
        assert_eq!(
            sent.model().is_some(),
            sent.scalar(Field::Model).is_ok_and(|m| m.is_some_and(|m| m == "other \"one\""))
        );
        if let (true, Ok(body)) = (out.usage_added, serde_json::from_slice::<Value>(&out.body)) {
            assert_eq!(body["stream_options"]["include_usage"], true, "{body}");
        }
    }
}

fn members(object: &str) -> Option<Vec<(String, &RawValue)>> {
    serde_json::from_str::<Members<'_>>(object).ok().map(|members| members.0)
}

fn spelled<'a>((key, value): &'a (String, &RawValue)) -> (&'a str, &'a str) {
    (key, value.get())
}

// === impl Members ===

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
