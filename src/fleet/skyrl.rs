//! The state that SkyRL's HTTP endpoint tells of its engines: JSON on `/metrics`.

use super::reading::{Reading, is_sound};
use serde::Deserialize;

/// KV cache of one engine in tokens. SkyRL does not tell the size. The value is ThunderAgent's, usual for a 14B model
/// on one 80 GB GPU. The setting `capacity_tokens` overrides it.
const TOKENS_PER_ENGINE: u64 = 200_000;

#[derive(Deserialize)]
struct EnginesPage {
    engines: Vec<EngineStats>,
}

/// State that one engine tells. If an engine could not be asked, all its numbers are 0 and it has an `error`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct EngineStats {
    error: Option<serde::de::IgnoredAny>,
    /// Share of the KV cache in use, from 0 to 100.
    kv_cache_usage_pct: Option<f64>,
    num_running_reqs: Option<f64>,
    num_waiting_reqs: Option<f64>,
    num_cumulative_preemption: Option<f64>,
}

/// Reads a `/metrics` page. `None` if the page is not SkyRL's or names no engine.
#[must_use]
pub fn read(page: &[u8]) -> Option<Reading> {
    let EnginesPage { engines } = serde_json::from_slice(page).ok()?;
    if engines.is_empty() {
        return None;
    }
    let mut reading = Reading::default();
    let asked: Vec<&EngineStats> = engines.iter().filter(|engine| engine.error.is_none()).collect();
    let all = |value: fn(&EngineStats) -> Option<f64>| {
        asked.iter().filter_map(move |engine| value(engine)).filter(|value| is_sound(*value))
    };
    let usage: Vec<f64> = all(|engine| engine.kv_cache_usage_pct).collect();
    let mean = usage.iter().sum::<f64>() / usage.len() as f64 / 100.0;
    reading.kv_usage = (!usage.is_empty()).then(|| mean.clamp(0.0, 1.0));
    let gauges = &mut reading.gauges;
    gauges.engines = engines.len();
    gauges.capacity_tokens = TOKENS_PER_ENGINE * engines.len() as u64;
    gauges.kv_usage = reading.kv_usage.unwrap_or(0.0);
    gauges.running = all(|engine| engine.num_running_reqs).sum();
    gauges.waiting = all(|engine| engine.num_waiting_reqs).sum();
    gauges.preemptions = all(|engine| engine.num_cumulative_preemption).sum();
    Some(reading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Tokens;

    const PAGE: &[u8] = include_bytes!("../../tests/samples/skyrl-metrics.json");

    #[test]
    fn engines_add_up_and_their_usage_is_averaged() {
        let reading = read(PAGE).unwrap();
        assert_eq!(
            reading.gauges.capacity(),
            Some(Tokens(600_000)),
            "an engine that does not answer has its cache all the same"
        );
        assert!((reading.kv_usage.unwrap() - 0.1295).abs() < 1e-9);
        let gauges = reading.gauges;
        assert_eq!((gauges.running, gauges.waiting, gauges.preemptions), (5.0, 1.0, 4.0));
        assert_eq!((gauges.engines, gauges.capacity_tokens), (3, 600_000));
    }

    #[test]
    fn what_is_not_skyrls_is_not_taken_for_it() {
        for page in ["", "{}", "[]", r#"{"engines":[]}"#, r#"{"engines":3}"#, "vllm:num_requests_running 1"] {
            assert!(read(page.as_bytes()).is_none(), "{page}");
        }
        let odd = read(br#"{"engines":[{"kv_cache_usage_pct":null,"num_running_reqs":1.5}]}"#).unwrap();
        assert_eq!((odd.kv_usage, odd.gauges.running), (None, 1.5));
    }
}
