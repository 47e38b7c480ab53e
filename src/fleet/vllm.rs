//! The state that a vLLM server tells of itself on `/metrics`: its KV cache and its load.

use super::prometheus;
use super::reading::{Gauges, Reading, is_sound};
use crate::units::Tokens;

/// Number of ranks that are read, more than any server has. A page that names more ranks takes no more memory and time.
const MOST_RANKS: usize = 1024;

/// Values that a page gives for one `engine` label.
#[derive(Debug, Default)]
struct Rank {
    label: String,
    /// Whether the page has a line of `cache_config_info` for this rank. Servers without data-parallel ranks may give
    /// that line no label.
    configured: bool,
    block_size: u64,
    /// Number of KV blocks of all ranks together. vLLM adds up the blocks and writes the sum on the line of each rank.
    blocks: u64,
    /// KV cache of this rank in tokens, with the null block.
    tokens: Option<u64>,
    kv_usage: Option<f64>,
}

#[derive(Clone, Copy)]
enum VllmMetric {
    Started,
    CacheConfig,
    KvUsage,
    PromptBySource,
    Sum(fn(&mut Gauges) -> &mut f64),
}

impl VllmMetric {
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

/// Reads a `/metrics` page, either all of it or the part about one rank. Ranks are counted from zero in the order of
/// their labels: where a server has several nodes, the labels of one node need not begin at zero. `None` if no metric
/// on the page is vLLM's. For a rank that is not there, the reading tells nothing but the number of ranks.
#[must_use]
pub fn read(page: &[u8], rank: Option<u32>) -> Option<Reading> {
    let labels = labels(page);
    let mut reading = Reading { ranks: labels.len(), ..Reading::default() };
    let wanted = rank.map(|rank| labels.get(rank as usize).map_or_else(String::new, u32::to_string));
    let mut ranks: Vec<Rank> = Vec::new();
    let mut ours = false;
    for (metric, sample) in prometheus::wanted(page, VllmMetric::named, &mut reading.malformed) {
        let elsewhere =
            wanted.as_ref().is_some_and(|wanted| sample.label("engine").is_some_and(|engine| engine != *wanted));
        ours |= elsewhere;
        if elsewhere || !is_sound(sample.value) {
            continue;
        }
        ours |= !matches!(metric, VllmMetric::Started);
        match metric {
            VllmMetric::Started => reading.started = Some(sample.value),
            VllmMetric::CacheConfig => note(&mut ranks, &sample, |rank| rank.configure(&sample)),
            VllmMetric::KvUsage => note(&mut ranks, &sample, |rank| rank.kv_usage = Some(sample.value)),
            VllmMetric::PromptBySource => {
                if sample.label("source").as_deref() == Some("local_compute") {
                    *reading.computed.get_or_insert(0.0) += sample.value;
                }
            }
            VllmMetric::Sum(field) => *field(&mut reading.gauges) += sample.value,
        }
    }
    reading.add_up(&ranks);
    ours.then_some(reading)
}

/// Labels of the ranks on a page, in order.
fn labels(page: &[u8]) -> Vec<u32> {
    let told = prometheus::lines(page).filter(|line| line.name == "vllm:num_requests_running");
    let mut labels: Vec<u32> = told.filter_map(|line| line.sample()?.label("engine")?.parse().ok()).collect();
    labels.sort_unstable();
    labels.dedup();
    labels
}

/// Notes the value of `sample` for its rank.
fn note(ranks: &mut Vec<Rank>, sample: &prometheus::Sample<'_>, what: impl FnOnce(&mut Rank)) {
    let label = sample.label("engine").unwrap_or_default();
    let at = ranks.iter().position(|rank| rank.label == label).unwrap_or(ranks.len());
    if at == ranks.len() && at < MOST_RANKS {
        ranks.push(Rank { label: label.into_owned(), ..Rank::default() });
    }
    if let Some(rank) = ranks.get_mut(at) {
        what(rank);
    }
}

fn count(label: &str) -> Option<u64> {
    let value: f64 = label.parse().ok()?;
    (value >= 1.0 && is_sound(value)).then_some(value as u64)
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
        self.tokens = number("kv_cache_size_tokens").or(self.tokens);
    }

    /// Number of tokens that this rank can hold, as one of `ranks`.
    fn capacity(&self, ranks: usize) -> Option<u64> {
        let all = || self.blocks.checked_mul(self.block_size).map(|all| all / ranks.max(1) as u64);
        // Both numbers include the null block, which never holds a token.
        let usable = self.tokens.or_else(all)?.saturating_sub(self.block_size);
        (usable > 0).then_some(usable)
    }
}

// === impl Reading ===

impl Reading {
    fn add_up(&mut self, ranks: &[Rank]) {
        self.gauges.block_size = ranks.iter().map(|rank| rank.block_size).max().unwrap_or(0);
        // If the size of one rank is not told, the sum is not told either: without that rank the sum would be too
        // small.
        let configured = || ranks.iter().filter(|rank| rank.configured);
        let count = configured().count().max(self.ranks);
        let blocks = ranks.iter().map(|rank| rank.blocks).max().unwrap_or(0);
        self.gauges.num_gpu_blocks = if ranks.len() < count { blocks / count as u64 } else { blocks };
        let capacity: Option<Tokens> = configured().map(|rank| rank.capacity(count).map(Tokens)).sum();
        self.gauges.capacity_tokens = capacity.map_or(0, |tokens| tokens.0);

        // Ranks of unknown size have equal weight.
        let sized = self.gauges.capacity_tokens > 0;
        let weight = |rank: &Rank| rank.capacity(count).filter(|_| sized).unwrap_or(1) as f64;
        let (sum, weights) = ranks
            .iter()
            .filter_map(|rank| Some((rank.kv_usage?, weight(rank))))
            .fold((0.0, 0.0), |(sum, weights), (usage, weight)| (sum + usage * weight, weights + weight));
        self.kv_usage = (weights > 0.0).then(|| (sum / weights).clamp(0.0, 1.0));
        self.gauges.kv_usage = self.kv_usage.unwrap_or(0.0);
    }
}

#[cfg(test)]
mod tests;
