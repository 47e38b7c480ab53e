//! Values as people write them: durations, sizes, addresses, URLs, log levels.
//!
//! Every error reads "expected …"; the reader of the YAML adds what stands there instead.

pub(super) use crate::scheduler::duration;
use log::LevelFilter;
use schemars::JsonSchema;
use serde::de::{self, Deserialize, Deserializer};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;
use url::Url;

/// Bytes in each unit.
const SIZE_UNITS: &[(&str, f64)] = &[
    ("", 1.0),
    ("B", 1.0),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
];

/// A number of bytes above zero: `64MiB`, `1GB`, `4096`.
///
/// # Errors
/// What was expected.
pub fn parse_size(text: &str) -> Result<usize, String> {
    quantity(text, SIZE_UNITS)
        .filter(|bytes| *bytes >= 1.0 && *bytes < (1u64 << 53) as f64)
        .map(|bytes| bytes as usize)
        .ok_or_else(|| "expected a size above zero such as 64MiB, 1GB or 4096 (bytes)".into())
}

/// A number and one of `units`; digits and at most one point, no sign, no exponent.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    Some(number.parse::<f64>().ok()? * factor)
}

/// The URL of a backend: `http://` or `https://` with a host, without user, password, `?` and `#`.
///
/// # Errors
/// What was expected.
pub fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or("expected an http:// or https:// URL such as http://gpu1:8000")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected a URL without user and password (use api_key)".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("expected a URL without `?` and `#`".into());
    }
    Ok(url)
}

/// A level, or a filter for `env_logger`. Python's names of levels are understood.
///
/// # Errors
/// What was expected.
pub fn parse_log_level(text: &str) -> Result<String, String> {
    let directive = |part: &str| {
        let (target, level) = part.rsplit_once('=').unwrap_or(("", part));
        let level = match level.trim().to_ascii_lowercase().as_str() {
            "warning" => "warn".to_owned(),
            "critical" | "fatal" => "error".to_owned(),
            other => LevelFilter::from_str(other).ok()?.as_str().to_lowercase(),
        };
        Some(match target.trim() {
            "" => level,
            target => format!("{target}={level}"),
        })
    };
    text.split(',').map(directive).collect::<Option<Vec<_>>>().map(|parts| parts.join(",")).ok_or_else(|| {
        "expected off, error, warn, info, debug, trace, or a filter such as info,pingora_core=warn".into()
    })
}

/// A DNS name and a port.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        read(source, parse_host_port)
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an IP address and port such as 0.0.0.0:8300".into())
}

fn parse_host_port(text: &str) -> Result<HostPort, String> {
    let parse = || {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let label = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = !host.is_empty() && host.chars().all(label);
        named.then(|| HostPort { host: host.to_owned(), port })
    };
    parse().ok_or_else(|| "expected a name and port such as vllm.default.svc:8000".into())
}

// === the same for serde ===

pub(super) fn read<'de, D: Deserializer<'de>, T>(
    source: D,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    let text = String::deserialize(source)?;
    parse(&text).map_err(de::Error::custom)
}

pub(super) fn address<'de, D: Deserializer<'de>>(source: D) -> Result<SocketAddr, D::Error> {
    read(source, parse_address)
}

pub(super) fn some_address<'de, D: Deserializer<'de>>(source: D) -> Result<Option<SocketAddr>, D::Error> {
    address(source).map(Some)
}

pub(super) fn url<'de, D: Deserializer<'de>>(source: D) -> Result<Url, D::Error> {
    read(source, parse_url)
}

pub(super) fn log_level<'de, D: Deserializer<'de>>(source: D) -> Result<String, D::Error> {
    read(source, parse_log_level)
}

pub(super) fn some_duration<'de, D: Deserializer<'de>>(source: D) -> Result<Option<Duration>, D::Error> {
    duration::deserialize(source).map(Some)
}

/// A duration in YAML and in its schema, for `#[serde(with = …)]`.
#[derive(JsonSchema)]
#[schemars(inline, with = "duration::Text")]
pub(super) struct DurationText;

impl DurationText {
    pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Duration, D::Error> {
        duration::deserialize(source)
    }

    /// Writes a default into the schema.
    pub fn serialize<S: serde::Serializer>(value: &Duration, sink: S) -> Result<S::Ok, S::Error> {
        duration::serialize(value, sink)
    }
}

/// A size in YAML and in its schema, for `#[serde(with = …)]`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum SizeText {
    Bytes(#[schemars(range(min = 1))] u64),
    Text(#[schemars(regex(pattern = r"^[0-9.]+ ?([kKMG]?B|[KMG]iB)?$|\$\{"))] String),
}

impl SizeText {
    pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<usize, D::Error> {
        read(source, parse_size)
    }

    /// Writes a default into the schema.
    pub fn serialize<S: serde::Serializer>(value: &usize, sink: S) -> Result<S::Ok, S::Error> {
        if value.is_multiple_of(1 << 20) {
            sink.collect_str(&format_args!("{}MiB", value >> 20))
        } else {
            sink.serialize_u64(*value as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_have_a_unit() {
        let read = |text| parse_size(text).ok();
        assert_eq!(read("64MiB"), Some(64 << 20));
        assert_eq!(read("1GB"), Some(1_000_000_000));
        assert_eq!(read("1.5KiB"), Some(1536));
        assert_eq!(read("4096"), Some(4096));
        for wrong in ["", "0", "0.5", "-1", "64 mib", "MiB", "99999999999999999"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_url_needs_a_scheme_and_no_credentials() {
        assert!(parse_url("http://gpu1:8000").is_ok());
        assert!(parse_url("https://gpu/prefix/").is_ok());
        for wrong in ["gpu1:8000", "localhost:8000", "ftp://gpu", "http://", "http://u:p@gpu", "http://gpu?x"] {
            assert!(parse_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pythons_names_of_log_levels_are_understood() {
        assert_eq!(parse_log_level("INFO").as_deref(), Ok("info"));
        assert_eq!(parse_log_level("warning").as_deref(), Ok("warn"));
        assert_eq!(parse_log_level("info, pingora_core=WARNING").as_deref(), Ok("info,pingora_core=warn"));
        assert!(parse_log_level("loud").is_err());
        assert!(parse_log_level("").is_err());
    }
}
