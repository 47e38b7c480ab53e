//! What a vLLM server tells of itself on `/metrics`: its KV cache, its load, and whether it has restarted.

use super::{Gauges, prometheus};
use crate::scheduler::{BackendReport, Life};
use crate::units::Tokens;
use std::time::{Duration, Instant};

/// Shortest span over which a prefill rate is taken: 5 s, less the jitter of a scrape.
/// Shorter ones catch single bursts and read more than the hardware can do.
const RATE_WINDOW: Duration = Duration::from_millis(4_500);

/// Label values above this are garbage: no KV cache has so many tokens, and a float counts exactly up to here.
const LARGEST_COUNT: f64 = 9_007_199_254_740_992.0;

/// One page, summed over the server's engines (data-parallel ranks).
#[derive(Clone, Debug, Default)]
pub struct Reading {
    gauges: Gauges,
    /// KV cache of all engines; `None` if the page does not say.
    capacity: Option<Tokens>,
    kv_usage: Option<f64>,
    /// Unix time in seconds.
    started: Option<f64>,
    /// Prompt tokens computed and not found in a cache.
    computed: Option<f64>,
    /// Lines of metrics that we want and could not read.
    pub malformed: usize,
}

/// Turns readings into reports: remembers what the last one said.
#[derive(Debug, Default)]
pub struct Tracker {
    last: Option<Reading>,
    window: Option<(Instant, f64)>,
}

/// One `engine` label's part of a page.
#[derive(Debug, Default)]
struct Rank {
    label: String,
    /// It has a line of `cache_config_info`; servers without data-parallel ranks may give that no label.
    configured: bool,
    block_size: u64,
    blocks: u64,
    capacity: Option<u64>,
    kv_usage: Option<f64>,
}

#[derive(Clone, Copy)]
enum Metric {
    Started,
    CacheConfig,
    KvUsage,
    PromptBySource,
    Sum(fn(&mut Gauges) -> &mut f64),
}

impl Metric {
    fn named(name: &str) -> Option<Self> {
        if name == "process_start_time_seconds" {
            return Some(Self::Started);
        }
        Some(match name.strip_prefix("vllm:")? {
            "cache_config_info" => Self::CacheConfig,
            "kv_cache_usage_perc" => Self::KvUsage,
            "prompt_tokens_by_source_total" => Self::PromptBySource,
            "num_requests_running" => Self::Sum(|g| &mut g.running),
            "num_requests_waiting" => Self::Sum(|g| &mut g.waiting),
            "prefix_cache_queries_total" => Self::Sum(|g| &mut g.prefix_queries),
            "prefix_cache_hits_total" => Self::Sum(|g| &mut g.prefix_hits),
            "prompt_tokens_total" => Self::Sum(|g| &mut g.prompt_tokens),
            "generation_tokens_total" => Self::Sum(|g| &mut g.generation_tokens),
            "num_preemptions_total" => Self::Sum(|g| &mut g.preemptions),
            "request_success_total" => Self::Sum(|g| &mut g.requests_completed),
            _ => return None,
        })
    }
}

/// Reads a `/metrics` page. `None` if nothing on it is vLLM's.
#[must_use]
pub fn read(page: &[u8]) -> Option<Reading> {
    let mut reading = Reading::default();
    let mut ranks: Vec<Rank> = Vec::new();
    let mut ours = false;
    for line in prometheus::lines(page) {
        let Some(metric) = Metric::named(line.name) else {
            continue;
        };
        let Some(sample) = line.sample() else {
            reading.malformed += 1;
            continue;
        };
        if !sample.value.is_finite() {
            continue;
        }
        ours |= !matches!(metric, Metric::Started);
        match metric {
            Metric::Started => reading.started = Some(sample.value),
            Metric::CacheConfig => rank(&mut ranks, &sample).configure(&sample),
            Metric::KvUsage => rank(&mut ranks, &sample).kv_usage = Some(sample.value),
            Metric::PromptBySource => {
                if sample.label("source").as_deref() == Some("local_compute") {
                    *reading.computed.get_or_insert(0.0) += sample.value;
                }
            }
            Metric::Sum(field) => *field(&mut reading.gauges) += sample.value,
        }
    }
    reading.add_up(&ranks);
    ours.then_some(reading)
}

fn rank<'a>(ranks: &'a mut Vec<Rank>, sample: &prometheus::Sample<'_>) -> &'a mut Rank {
    let label = sample.label("engine").unwrap_or_default();
    let at = ranks.iter().position(|rank| rank.label == label).unwrap_or_else(|| {
        ranks.push(Rank { label: label.into_owned(), ..Rank::default() });
        ranks.len() - 1
    });
    &mut ranks[at]
}

fn count(label: &str) -> Option<u64> {
    let value: f64 = label.parse().ok()?;
    (1.0..=LARGEST_COUNT).contains(&value).then_some(value as u64)
}

// === impl Rank ===

impl Rank {
    fn configure(&mut self, sample: &prometheus::Sample<'_>) {
        let number = |name| sample.label(name).and_then(|value| count(&value));
        let block_size = number("block_size");
        let blocks = number("num_gpu_blocks");
        self.configured = true;
        self.block_size = block_size.unwrap_or(self.block_size);
        self.blocks = blocks.unwrap_or(self.blocks);
        let whole = number("kv_cache_size_tokens")
            .or_else(|| block_size.zip(blocks).map(|(size, blocks)| size.saturating_mul(blocks)));
        // Both numbers count the null block, which never holds a token.
        let usable = whole.map(|whole| whole.saturating_sub(block_size.unwrap_or(0)));
        self.capacity = usable.filter(|tokens| *tokens > 0).or(self.capacity);
    }
}

// === impl Reading ===

impl Reading {
    fn add_up(&mut self, ranks: &[Rank]) {
        self.gauges.block_size = ranks.iter().map(|rank| rank.block_size).max().unwrap_or(0);
        self.gauges.num_gpu_blocks = ranks.iter().map(|rank| rank.blocks).sum();
        // A rank whose size is not told would make the sum too small, not unknown.
        let configured = ranks.iter().filter(|rank| rank.configured);
        let capacity: Option<Tokens> = configured.map(|rank| rank.capacity.map(Tokens)).sum();
        self.capacity = capacity.filter(|tokens| *tokens > Tokens::ZERO);
        self.gauges.capacity_tokens = self.capacity.map_or(0, |tokens| tokens.0);

        // Ranks of unknown size weigh alike.
        let weight = |rank: &Rank| {
            if self.capacity.is_some() { rank.capacity } else { None }
        };
        let (sum, weights) = ranks
            .iter()
            .filter_map(|rank| Some((rank.kv_usage?, weight(rank).unwrap_or(1) as f64)))
            .fold((0.0, 0.0), |(sum, weights), (usage, weight)| (sum + usage * weight, weights + weight));
        self.kv_usage = (weights > 0.0).then(|| (sum / weights).clamp(0.0, 1.0));
        self.gauges.kv_usage = self.kv_usage.unwrap_or(0.0);
    }

    fn life(&self) -> Life {
        let started_ms = self.started.map(|seconds| (seconds * 1000.0).round() as u64);
        Life { started_ms, prompt_tokens: self.gauges.prompt_tokens as u64 }
    }

    /// This page comes from another process than `last`.
    fn restarted_since(&self, last: &Self) -> bool {
        let started_anew = self
            .started
            .zip(last.started)
            // One process always says the same; the margin is for the rounding of other exporters.
            .is_some_and(|(now, before)| (now - before).abs() > 0.01);
        let fell = |counter: fn(&Gauges) -> f64| counter(&self.gauges) < counter(&last.gauges);
        started_anew
            || fell(|g| g.prompt_tokens)
            || fell(|g| g.generation_tokens)
            || fell(|g| g.requests_completed)
            || self.computed.zip(last.computed).is_some_and(|(now, before)| now < before)
    }
}

// === impl Tracker ===

impl Tracker {
    /// Takes in what a page said at `now`.
    pub fn observe(&mut self, now: Instant, mut reading: Reading) -> (Gauges, BackendReport) {
        let restarted = self.last.as_ref().is_some_and(|last| reading.restarted_since(last));
        let report = BackendReport {
            capacity: reading.capacity,
            restarted,
            life: Some(reading.life()),
            prefill_rate: self.prefill_rate(now, reading.computed, restarted),
            kv_usage: reading.kv_usage,
        };
        if let (None, Some(last)) = (reading.capacity, &self.last) {
            reading.gauges.capacity_tokens = last.gauges.capacity_tokens;
            reading.gauges.block_size = last.gauges.block_size;
            reading.gauges.num_gpu_blocks = last.gauges.num_gpu_blocks;
        }
        let gauges = reading.gauges.clone();
        self.last = Some(reading);
        (gauges, report)
    }

    /// Tokens per second, given once a window.
    fn prefill_rate(&mut self, now: Instant, computed: Option<f64>, anew: bool) -> Option<f64> {
        let Some(computed) = computed else {
            self.window = None;
            return None;
        };
        match self.window {
            Some((since, before)) if !anew => {
                let span = now.saturating_duration_since(since);
                if span < RATE_WINDOW {
                    return None;
                }
                self.window = Some((now, computed));
                Some((computed - before).max(0.0) / span.as_secs_f64())
            }
            _ => {
                self.window = Some((now, computed));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
