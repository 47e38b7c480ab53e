//! The state that an SGLang server tells of itself: its KV cache on `/server_info`, and its load on `/metrics`, a page
//! that the server has only with `--enable-metrics`.

use super::prometheus;
use super::reading::{Gauges, Reading, is_sound};
use crate::units::Tokens;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Paths of the page that tells the size of the KV cache. Newer servers have the first path, older ones the second.
pub(super) const INFO_PATHS: [&str; 2] = ["/server_info", "/get_server_info"];

/// Page at [`INFO_PATHS`].
#[derive(Deserialize)]
struct ServerInfo {
    /// KV cache of one data-parallel rank, in tokens.
    #[serde(default)]
    max_total_num_tokens: Option<f64>,
    #[serde(default)]
    dp_size: Option<f64>,
    /// States of the data-parallel ranks.
    #[serde(default)]
    internal_states: Vec<InternalState>,
}

#[derive(Deserialize)]
struct InternalState {
    memory_usage: Option<MemoryUsage>,
}

#[derive(Deserialize)]
struct MemoryUsage {
    token_capacity: Option<f64>,
}

/// Values that the schedulers of one data-parallel rank tell. Each scheduler of the rank's tensor-parallel group may
/// tell a value, and one line may be a part of another (the requests of one priority). So the largest value counts.
type RankValues = BTreeMap<&'static str, f64>;

/// Names of the gauges and counters of the schedulers.
const OF_SCHEDULERS: [&str; 8] = [
    "num_running_reqs",
    "num_queue_reqs",
    "token_usage",
    "num_used_tokens",
    "cache_hit_rate",
    "max_total_num_tokens",
    "num_retracted_requests_total",
    PREFILLED,
];

/// Counter of tokens by `mode`. Only the tokens computed in a prefill are read.
const PREFILLED: &str = "realtime_tokens_total";

#[derive(Clone, Copy)]
enum SglangMetric {
    Started,
    /// Prompt tokens that were found in a cache.
    Cached,
    OfScheduler(&'static str),
    /// A counter that adds up over all its series.
    Sum(fn(&mut Gauges) -> &mut f64),
}

// === impl SglangMetric ===

impl SglangMetric {
    fn named(name: &str) -> Option<Self> {
        if name == "process_start_time_seconds" {
            return Some(Self::Started);
        }
        // SGLang has spelled the prefix in both ways.
        let name = name.strip_prefix("sglang:").or_else(|| name.strip_prefix("sglang_"))?;
        Some(match name {
            "cached_tokens_total" => Self::Cached,
            "prompt_tokens_total" => Self::Sum(|g| &mut g.prompt_tokens),
            "generation_tokens_total" => Self::Sum(|g| &mut g.generation_tokens),
            "num_requests_total" => Self::Sum(|g| &mut g.requests_completed),
            _ => Self::OfScheduler(OF_SCHEDULERS.into_iter().find(|known| *known == name)?),
        })
    }
}

/// KV cache of all ranks together, in tokens.
#[must_use]
pub fn capacity(info: &[u8]) -> Option<Tokens> {
    let info: ServerInfo = serde_json::from_slice(info).ok()?;
    let states = info.internal_states.iter().filter_map(|state| state.memory_usage.as_ref()?.token_capacity);
    let told: f64 = states.sum();
    let whole = if told > 0.0 { told } else { info.max_total_num_tokens? * info.dp_size.unwrap_or(1.0).max(1.0) };
    (whole >= 1.0 && is_sound(whole)).then_some(Tokens(whole as u64))
}

/// Reads a `/metrics` page. `None` if no metric on the page is SGLang's.
#[must_use]
pub fn read(page: &[u8]) -> Option<Reading> {
    let mut reading = Reading::default();
    let mut ranks: BTreeMap<String, RankValues> = BTreeMap::new();
    let mut cached = None;
    let mut ours = false;
    for (metric, sample) in prometheus::wanted(page, SglangMetric::named, &mut reading.malformed) {
        if !is_sound(sample.value) {
            continue;
        }
        ours |= !matches!(metric, SglangMetric::Started);
        match metric {
            SglangMetric::Started => reading.started = Some(sample.value),
            SglangMetric::Cached => *cached.get_or_insert(0.0) += sample.value,
            SglangMetric::Sum(field) => *field(&mut reading.gauges) += sample.value,
            SglangMetric::OfScheduler(PREFILLED) if sample.label("mode").as_deref() != Some("prefill_compute") => {}
            SglangMetric::OfScheduler(name) => {
                let rank = ranks.entry(sample.label("dp_rank").unwrap_or_default().into_owned()).or_default();
                let known = rank.entry(name).or_insert(sample.value);
                *known = known.max(sample.value);
            }
        }
    }
    if let Some(hits) = cached {
        reading.gauges.prefix_queries = reading.gauges.prompt_tokens;
        reading.gauges.prefix_hits = hits;
    }
    reading.add_up_schedulers(&ranks);
    ours.then_some(reading)
}

// === impl Reading ===

impl Reading {
    fn add_up_schedulers(&mut self, ranks: &BTreeMap<String, RankValues>) {
        let all = |name| -> Vec<f64> { ranks.values().filter_map(|rank| rank.get(name).copied()).collect() };
        let sum = |name| -> Option<f64> { Some(all(name)).filter(|all| !all.is_empty()).map(|all| all.iter().sum()) };
        // The mean needs no weights: all ranks have the same size.
        let mean = |name| sum(name).map(|sum| sum / all(name).len() as f64);
        self.kv_usage = mean("token_usage").map(|usage| usage.clamp(0.0, 1.0));
        self.computed = sum(PREFILLED);
        let gauges = &mut self.gauges;
        gauges.capacity_tokens = sum("max_total_num_tokens").map_or(0, |tokens| tokens as u64);
        gauges.kv_usage = self.kv_usage.unwrap_or(0.0);
        gauges.running = sum("num_running_reqs").unwrap_or(0.0);
        gauges.waiting = sum("num_queue_reqs").unwrap_or(0.0);
        gauges.used_tokens = sum("num_used_tokens").unwrap_or(0.0);
        gauges.cache_hit_rate = mean("cache_hit_rate").unwrap_or(0.0);
        gauges.preemptions = sum("num_retracted_requests_total").unwrap_or(0.0);
        gauges.engines = ranks.len();
    }
}

#[cfg(test)]
mod tests;
