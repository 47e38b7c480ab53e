//! Durations as people write them: `250ms`, `1.5s`, `30s`, `5m`, `1h`, `1d`. For use with `#[serde(with =
//! "duration")]`.

use serde::{Deserialize, Deserializer, Serializer, de};
use std::time::Duration;

/// Longest duration that is accepted: far beyond any use, and far too short to overflow an `Instant`.
const LONGEST: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// Seconds in each unit.
const UNITS: &[(&str, f64)] = &[("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];

/// Reads a duration above zero: digits with at most one point, and a unit.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    seconds(text)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero() && *duration <= LONGEST)
        .ok_or("expected a duration above zero such as 250ms, 1.5s, 30s, 5m or 1h")
}

fn seconds(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit.trim_start())?;
    Some(number.parse::<f64>().ok()? * factor)
}

/// Reads a string.
///
/// # Errors
/// No string, or not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(source)?).map_err(de::Error::custom)
}

/// Writes the duration in the largest unit that divides it, milliseconds at the least.
///
/// # Errors
/// Those of the sink.
pub fn serialize<S: Serializer>(value: &Duration, sink: S) -> Result<S::Ok, S::Error> {
    let (seconds, fraction) = (value.as_secs(), value.subsec_millis());
    match (seconds, fraction) {
        (_, 1..) => sink.collect_str(&format_args!("{}ms", value.as_millis())),
        (s, _) if s % 3600 == 0 => sink.collect_str(&format_args!("{}h", s / 3600)),
        (s, _) if s % 60 == 0 => sink.collect_str(&format_args!("{}m", s / 60)),
        (s, _) => sink.collect_str(&format_args!("{s}s")),
    }
}

/// A duration in a JSON Schema; an expression such as `${NAME}` may stand for one.
#[cfg(feature = "settings")]
#[derive(schemars::JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct Text(#[schemars(regex(pattern = r"^[0-9.]+ ?(ms|s|m|h|d)$|\$\{"))] String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        let read = |text| parse(text).ok();
        assert_eq!(read("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(read("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(read("0.1s"), Some(Duration::from_millis(100)));
        assert_eq!(read("5m"), Some(Duration::from_secs(300)));
        assert_eq!(read("1 h"), Some(Duration::from_secs(3600)));
        for wrong in ["", "30", "0s", "-1s", "1e3s", "s", "1.2.3s", "5 weeks", "nans", "infs", "9999999d"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
