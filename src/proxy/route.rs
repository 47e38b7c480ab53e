//! What a request is for, by its path.

use crate::body::envelope::AskUsage;
use crate::config::Engine;
use crate::control::{self, ControlRoute};
use http::Method;
use percent_encoding::percent_decode;
use std::borrow::Cow;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Program-aware: read, held if need be, observed.
    Inference(Inference),
    /// Answered here.
    Control(ControlRoute),
    /// To any healthy backend of the model, unread.
    Pass,
    Unknown,
}

/// The endpoints that generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inference {
    Chat,
    Completions,
    Responses,
    Messages,
    Generate,
}

/// Their paths.
pub const INFERENCE: [(&str, Inference); 5] = [
    ("/v1/chat/completions", Inference::Chat),
    ("/v1/completions", Inference::Completions),
    ("/v1/responses", Inference::Responses),
    ("/v1/messages", Inference::Messages),
    ("/generate", Inference::Generate),
];

/// Endpoints of the engines outside `/v1/` that are passed through.
pub const PASSED: [&str; 7] = ["/tokenize", "/detokenize", "/pooling", "/score", "/rerank", "/classify", "/version"];

// === impl Route ===

impl Route {
    /// `path` is normal (see [`normal`]).
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Self {
        match INFERENCE.iter().find(|(own, _)| *own == path) {
            Some((_, inference)) => Self::Inference(*inference),
            None => Self::other(method, path),
        }
    }

    fn other(method: &Method, path: &str) -> Self {
        if let Some(route) = control::route(method, path) {
            return Self::Control(route);
        }
        match path.starts_with("/v1/") || PASSED.contains(&path) {
            true => Self::Pass,
            false => Self::Unknown,
        }
    }
}

// === impl Inference ===

impl Inference {
    /// Whether and how a streamed step of this endpoint is asked for its usage.
    #[must_use]
    pub fn ask_usage(self, engine: Engine) -> AskUsage {
        match (self, engine) {
            (Self::Chat | Self::Completions, Engine::Vllm | Engine::Skyrl) => AskUsage::Vllm,
            (Self::Chat | Self::Completions, Engine::Sglang | Engine::Openai) => AskUsage::Openai,
            _ => AskUsage::Never,
        }
    }
}

/// The path in its normal form (RFC 3986, 6.2.2 and 5.2.4): escapes of unreserved characters undone, empty and dot
/// segments resolved. A path reaches a backend under the one name that it was checked by. `None` if it is no absolute
/// path, or holds a broken escape.
#[must_use]
pub fn normal(path: &str) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') {
        return None;
    }
    let plain = !path.contains('%') && !path.contains("//") && !path.contains("/.");
    if plain {
        return Some(Cow::Borrowed(path));
    }
    let unescaped = unescape(path)?;
    let mut segments: Vec<&str> = Vec::new();
    for segment in unescaped.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let directory = ["/", "/.", "/.."].iter().any(|end| unescaped.ends_with(end)) && !segments.is_empty();
    let last = if directory { "/" } else { "" };
    Some(Cow::Owned(format!("/{}{last}", segments.join("/"))))
}

/// Whether a backend, or a proxy before it, that decodes more than [`normal`] does could read `path` (which is
/// normal) as another: one with dot segments behind encoded slashes, with backslashes for slashes, with parameters.
/// The escapes of escapes are undone too. A path with control characters counts as ambiguous.
#[must_use]
pub fn is_ambiguous(path: &str) -> bool {
    let mut read = Cow::Borrowed(path.as_bytes());
    if !read.iter().any(|byte| b"%\\;".contains(byte)) {
        return false;
    }
    loop {
        let dots = |segment: &[u8]| matches!(segment.split(|byte| *byte == b';').next(), Some(b"." | b".."));
        if read.iter().any(u8::is_ascii_control) || read.split(|byte| b"/\\".contains(byte)).any(dots) {
            return true;
        }
        let decoded: Vec<u8> = percent_decode(&read).collect();
        if decoded.len() == read.len() {
            return false;
        }
        read = Cow::Owned(decoded);
    }
}

fn unescape(path: &str) -> Option<String> {
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        let (escape, after) = escape.split_at_checked(3)?;
        let digits = escape[1..].bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = u8::from_str_radix(&escape[1..], 16).ok().filter(|_| digits)?;
        plain.push_str(before);
        match char::from(byte) {
            byte if byte.is_ascii_alphanumeric() || "-._~".contains(byte) => plain.push(byte),
            _ => plain.push_str(escape),
        }
        rest = after;
    }
    plain.push_str(rest);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_has_one_normal_form() {
        let cases = [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("//v1///chat/completions", "/v1/chat/completions"),
            ("/v1/./chat/../chat/completions", "/v1/chat/completions"),
            ("/%761/ch%61t/completions", "/v1/chat/completions"),
            ("/v1/%2e%2e/%2E%2E/metrics", "/metrics"),
            ("/../../v1/models", "/v1/models"),
            ("/v1/models/", "/v1/models/"),
            ("/v1/models/.", "/v1/models/"),
            ("/", "/"),
            ("/..", "/"),
            ("/programs/a%2Fb%20c", "/programs/a%2Fb%20c"),
        ];
        for (path, expected) in cases {
            assert_eq!(normal(path).as_deref(), Some(expected), "{path}");
        }
        for path in ["v1/models", "*", "", "/100%", "/%zz", "/%+1", "/%%32%65", "/%2", "/%2\u{e9}"] {
            assert_eq!(normal(path), None, "{path}");
        }
    }

    #[test]
    fn normal_is_idempotent_on_what_it_gives() {
        for path in ["/a/%2e%2e/b", "/%25%32%65%2e/x", "/%25%32%65/", "/%2e/%2E%2e", "/a//%2f//b/."] {
            let once = normal(path).expect("absolute").into_owned();
            assert_eq!(normal(&once).expect("absolute"), once, "{path}");
        }
    }

    #[test]
    fn a_path_that_others_may_read_as_another_is_seen() {
        for path in [
            "/v1/..%2fmetrics",
            "/v1/x%2F..%2F..%2Fmetrics",
            "/v1/..%5cmetrics",
            "/v1/..\\metrics",
            "/v1/%252e%252e/metrics",
            "/v1/%25252e%25252e/metrics",
            "/v1/..;/metrics",
            "/v1/..%3bx/metrics",
            "/v1/a%00",
            "/v1/a%0d%0aX:%20y",
            "/v1/a%7f",
        ] {
            let path = normal(path).expect("absolute");
            assert!(path.starts_with("/v1/") && is_ambiguous(&path), "{path}");
        }
        for path in
            ["/v1/models/org%2Fname", "/v1/a%20b", "/v1/a..b", "/v1/...", "/v1/a;b=c", "/v1/caf%C3%A9", "/v1/%25"]
        {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn paths_are_told_apart() {
        let of = |path| Route::of(&Method::POST, path);
        assert_eq!(of("/v1/chat/completions"), Route::Inference(Inference::Chat));
        assert_eq!(of("/v1/messages"), Route::Inference(Inference::Messages));
        assert_eq!(of("/v1/messages/count_tokens"), Route::Pass);
        assert_eq!(of("/v1/embeddings"), Route::Pass);
        assert_eq!(of("/tokenize"), Route::Pass);
        assert_eq!(of("/tokenizer"), Route::Unknown);
        assert_eq!(of("/v1"), Route::Unknown);
        assert!(matches!(of("/programs/release"), Route::Control(_)));
        assert!(matches!(Route::of(&Method::GET, "/v1/models"), Route::Control(_)));
        assert_eq!(Route::of(&Method::GET, "/v1/models/tiny"), Route::Pass);
    }
}
