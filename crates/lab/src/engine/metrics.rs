//! Page `/metrics` under vLLM's and SGLang's names, with as much as a scraper needs.

use super::driver::{BOUNDS, Snapshot};
use super::model::{Counters, Shape};
use std::fmt::Write;

/// Writer of one page.
struct Exposition<'a> {
    out: String,
    model: &'a str,
    /// State of each engine.
    ranks: &'a [Snapshot],
}

/// A further label, with the value of its series.
type Series<'a> = (&'a str, fn(&Snapshot) -> f64);

/// vLLM's page. `started` is in seconds since 1970.
pub(super) fn vllm(ranks: &[Snapshot], shape: &Shape, model: &str, started: f64) -> String {
    let mut page = Exposition { out: String::with_capacity(8192), model, ranks };
    page.head("process_start_time_seconds", "gauge");
    let _ = writeln!(page.out, "process_start_time_seconds {started:?}");
    page.engine();
    page.requests();
    page.first_tokens();
    page.cache_config(shape);
    page.out
}

/// SGLang's page; `capacity` is that of one rank.
pub(super) fn sglang(ranks: &[Snapshot], capacity: usize, model: &str) -> String {
    let mut page = Exposition { out: String::with_capacity(4096), model, ranks };
    let capacity = capacity as f64;
    let used = move |rank: &Snapshot| (rank.gauges.kv_usage * capacity).round();
    page.by_rank("num_running_reqs", "gauge", "", |rank| rank.gauges.running as f64);
    page.by_rank("num_queue_reqs", "gauge", "", |rank| rank.gauges.waiting as f64);
    page.by_rank("num_used_tokens", "gauge", "", used);
    page.by_rank("token_usage", "gauge", "", |rank| rank.gauges.kv_usage);
    page.by_rank("cache_hit_rate", "gauge", "", |rank| {
        rank.counters.prefix_hits as f64 / rank.counters.prefix_queries.max(1) as f64
    });
    page.by_rank("max_total_num_tokens", "gauge", "", |_| capacity);
    page.by_rank("num_retracted_requests_total", "counter", "", |rank| rank.counters.preemptions as f64);
    let tokens = "realtime_tokens_total";
    page.by_rank(tokens, "counter", ",mode=\"prefill_compute\"", |rank| rank.counters.prefilled as f64);
    page.by_rank(tokens, "counter", ",mode=\"prefill_cache\"", |rank| rank.counters.prefix_hits as f64);
    page.by_rank(tokens, "counter", ",mode=\"decode\"", |rank| rank.counters.generation_tokens as f64);
    page.total("prompt_tokens_total", "", |counters| counters.prompt_tokens);
    page.total("generation_tokens_total", "", |counters| counters.generation_tokens);
    page.total("cached_tokens_total", ",cache_source=\"device\"", |counters| counters.prompt_cached);
    page.total("num_requests_total", "", |counters| counters.finished_stop + counters.finished_length);
    page.out
}

// === impl Exposition ===

impl Exposition<'_> {
    fn engine(&mut self) {
        self.one("vllm:num_requests_running", "gauge", |rank| rank.gauges.running as f64);
        self.one("vllm:num_requests_waiting", "gauge", |rank| rank.gauges.waiting as f64);
        self.many(
            "vllm:num_requests_waiting_by_reason",
            "gauge",
            &[("reason=\"capacity\"", |rank| rank.gauges.waiting as f64), ("reason=\"deferred\"", |_| 0.0)],
        );
        self.one("vllm:kv_cache_usage_perc", "gauge", |rank| rank.gauges.kv_usage);
        self.counter("vllm:prefix_cache_queries_total", |counters| counters.prefix_queries);
        self.counter("vllm:prefix_cache_hits_total", |counters| counters.prefix_hits);
        self.counter("vllm:num_preemptions_total", |counters| counters.preemptions);
        self.counter("vllm:prompt_tokens_total", |counters| counters.prompt_tokens);
        self.counter("vllm:prompt_tokens_cached_total", |counters| counters.prompt_cached);
        self.counter("vllm:generation_tokens_total", |counters| counters.generation_tokens);
        self.many(
            "vllm:prompt_tokens_by_source_total",
            "counter",
            &[
                ("source=\"local_compute\"", |rank| (rank.counters.prompt_tokens - rank.counters.prompt_cached) as f64),
                ("source=\"local_cache_hit\"", |rank| rank.counters.prompt_cached as f64),
                ("source=\"external_kv_transfer\"", |_| 0.0),
            ],
        );
    }

    fn counter(&mut self, name: &str, value: impl Fn(&Counters) -> u64) {
        self.one(name, "counter", |rank| value(&rank.counters) as f64);
    }

    fn requests(&mut self) {
        let name = "vllm:request_success_total";
        self.head(name, "counter");
        for (at, rank) in self.ranks.iter().enumerate() {
            let reasons = [
                ("stop", rank.counters.finished_stop),
                ("length", rank.counters.finished_length),
                ("abort", rank.counters.aborted),
                ("error", 0),
                ("repetition", 0),
            ];
            for (reason, count) in reasons {
                let labels = format!("engine=\"{at}\",finished_reason=\"{reason}\",model_name=\"{}\"", self.model);
                self.line(name, &labels, count as f64);
            }
        }
    }

    fn first_tokens(&mut self) {
        let name = "vllm:time_to_first_token_seconds";
        self.head(name, "histogram");
        for (at, rank) in self.ranks.iter().enumerate() {
            let times = &rank.first_tokens;
            let bounds = BOUNDS.iter().map(|bound| format!("{bound:?}"));
            let bounds = bounds.chain(["+Inf".to_owned()]);
            let mut below = 0;
            for (bucket, bound) in bounds.enumerate() {
                below = times.buckets.get(bucket).map_or(times.count, |n| below + n);
                let labels = format!("engine=\"{at}\",le=\"{bound}\",model_name=\"{}\"", self.model);
                self.line(&format!("{name}_bucket"), &labels, below as f64);
            }
            let labels = self.labels(at);
            self.line(&format!("{name}_count"), &labels, times.count as f64);
            self.line(&format!("{name}_sum"), &labels, times.sum);
        }
    }

    /// Writes the size of the cache as real vLLM does: the line of each engine has the blocks of all engines, but the
    /// tokens of that engine alone.
    fn cache_config(&mut self, shape: &Shape) {
        let (size, blocks) = (shape.block_size, shape.kv_blocks);
        let all = blocks as usize * self.ranks.len();
        self.head("vllm:cache_config_info", "gauge");
        for at in 0..self.ranks.len() {
            let labels = format!(
                "block_size=\"{size}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"{at}\",\
                 gpu_memory_utilization=\"0.92\",kv_cache_size_tokens=\"{}\",num_cpu_blocks=\"None\",\
                 num_gpu_blocks=\"{all}\",num_gpu_blocks_override=\"{blocks}\"",
                size * blocks as usize
            );
            self.line("vllm:cache_config_info", &labels, 1.0);
        }
    }

    fn one(&mut self, name: &str, kind: &str, value: impl Fn(&Snapshot) -> f64) {
        self.head(name, kind);
        for (at, rank) in self.ranks.iter().enumerate() {
            let labels = self.labels(at);
            self.line(name, &labels, value(rank));
        }
    }

    /// Writes several series, each with a label that sorts after vLLM's common ones.
    fn many(&mut self, name: &str, kind: &str, series: &[Series<'_>]) {
        self.head(name, kind);
        for (at, rank) in self.ranks.iter().enumerate() {
            for (label, value) in series {
                let labels = format!("{},{label}", self.labels(at));
                self.line(name, &labels, value(rank));
            }
        }
    }

    fn labels(&self, rank: usize) -> String {
        format!("engine=\"{rank}\",model_name=\"{}\"", self.model)
    }

    /// Writes a metric of SGLang's schedulers, one series for each rank.
    fn by_rank(&mut self, name: &str, kind: &str, more: &str, value: impl Fn(&Snapshot) -> f64) {
        let name = format!("sglang:{name}");
        self.head(&name, kind);
        for (at, rank) in self.ranks.iter().enumerate() {
            let labels = format!("dp_rank=\"{at}\",engine_type=\"unified\",model_name=\"{}\"{more}", self.model);
            self.line(&name, &labels, value(rank));
        }
    }

    /// Writes a counter of SGLang's for all requests together.
    fn total(&mut self, name: &str, more: &str, value: impl Fn(&Counters) -> u64) {
        let name = format!("sglang:{name}");
        self.head(&name, "counter");
        let labels = format!("engine_type=\"unified\",model_name=\"{}\"{more}", self.model);
        let sum: u64 = self.ranks.iter().map(|rank| value(&rank.counters)).sum();
        self.line(&name, &labels, sum as f64);
    }

    fn head(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} Simulated.\n# TYPE {name} {kind}");
    }

    /// Writes one sample. `{value:?}` writes a float as Python does, with a point.
    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.out, "{name}{{{labels}}} {value:?}");
    }
}
