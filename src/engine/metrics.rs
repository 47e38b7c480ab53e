//! `/metrics` under vLLM's names, as far as a scraper needs them.

use super::driver::Snapshot;
use super::model::Shape;
use std::fmt::Write;
use std::time::Duration;

/// Upper bounds of the time-to-first-token histogram, in seconds: vLLM's.
const BOUNDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// Times to first token.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstTokens {
    /// Not cumulative; those above the last bound are counted in `count` alone.
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

/// Writes one exposition.
struct Exposition<'a> {
    out: String,
    model: &'a str,
}

// === impl FirstTokens ===

impl FirstTokens {
    pub(super) fn record(&mut self, after: Duration) {
        let seconds = after.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        if let Some(at) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.buckets[at] += 1;
        }
    }
}

/// The whole page. `started` is in seconds since 1970.
pub(super) fn render(snapshot: &Snapshot, shape: &Shape, model: &str, started: f64) -> String {
    let mut page = Exposition { out: String::with_capacity(8192), model };
    page.head("process_start_time_seconds", "gauge");
    let _ = writeln!(page.out, "process_start_time_seconds {started:?}");
    page.engine(snapshot);
    page.requests(snapshot);
    page.first_tokens(&snapshot.first_tokens);
    page.cache_config(shape);
    page.out
}

// === impl Exposition ===

impl Exposition<'_> {
    fn engine(&mut self, snapshot: &Snapshot) {
        let (gauges, counters) = (&snapshot.gauges, &snapshot.counters);
        let waiting = gauges.waiting as f64;
        self.one("vllm:num_requests_running", "gauge", gauges.running as f64);
        self.one("vllm:num_requests_waiting", "gauge", waiting);
        self.many(
            "vllm:num_requests_waiting_by_reason",
            "gauge",
            &[("reason=\"capacity\"", waiting), ("reason=\"deferred\"", 0.0)],
        );
        self.one("vllm:kv_cache_usage_perc", "gauge", gauges.kv_usage);
        let totals = [
            ("vllm:prefix_cache_queries_total", counters.prefix_queries),
            ("vllm:prefix_cache_hits_total", counters.prefix_hits),
            ("vllm:num_preemptions_total", counters.preemptions),
            ("vllm:prompt_tokens_total", counters.prompt_tokens),
            ("vllm:prompt_tokens_cached_total", counters.prompt_cached),
            ("vllm:generation_tokens_total", counters.generation_tokens),
        ];
        for (name, value) in totals {
            self.one(name, "counter", value as f64);
        }
        let computed = counters.prompt_tokens - counters.prompt_cached;
        self.many(
            "vllm:prompt_tokens_by_source_total",
            "counter",
            &[
                ("source=\"local_compute\"", computed as f64),
                ("source=\"local_cache_hit\"", counters.prompt_cached as f64),
                ("source=\"external_kv_transfer\"", 0.0),
            ],
        );
    }

    fn requests(&mut self, snapshot: &Snapshot) {
        let reasons = [
            ("stop", snapshot.counters.finished_stop),
            ("length", snapshot.counters.finished_length),
            ("abort", snapshot.counters.aborted),
            ("error", 0),
            ("repetition", 0),
        ];
        let name = "vllm:request_success_total";
        self.head(name, "counter");
        for (reason, count) in reasons {
            let labels = format!("engine=\"0\",finished_reason=\"{reason}\",model_name=\"{}\"", self.model);
            self.line(name, &labels, count as f64);
        }
    }

    fn first_tokens(&mut self, times: &FirstTokens) {
        let name = "vllm:time_to_first_token_seconds";
        self.head(name, "histogram");
        let bounds = BOUNDS.iter().map(|bound| format!("{bound:?}"));
        let bounds = bounds.chain(["+Inf".to_owned()]);
        let mut below = 0;
        for (at, bound) in bounds.enumerate() {
            below = times.buckets.get(at).map_or(times.count, |n| below + n);
            let labels = format!("engine=\"0\",le=\"{bound}\",model_name=\"{}\"", self.model);
            self.line(&format!("{name}_bucket"), &labels, below as f64);
        }
        let labels = self.labels();
        self.line(&format!("{name}_count"), &labels, times.count as f64);
        self.line(&format!("{name}_sum"), &labels, times.sum);
    }

    fn cache_config(&mut self, shape: &Shape) {
        let (size, blocks) = (shape.block_size, shape.kv_blocks);
        let labels = format!(
            "block_size=\"{size}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"0\",\
             gpu_memory_utilization=\"0.92\",kv_cache_size_tokens=\"{}\",num_cpu_blocks=\"None\",\
             num_gpu_blocks=\"{blocks}\",num_gpu_blocks_override=\"{blocks}\"",
            size * blocks as usize
        );
        self.head("vllm:cache_config_info", "gauge");
        self.line("vllm:cache_config_info", &labels, 1.0);
    }

    fn one(&mut self, name: &str, kind: &str, value: f64) {
        self.head(name, kind);
        let labels = self.labels();
        self.line(name, &labels, value);
    }

    /// Several series; each with a label that sorts after vLLM's common ones.
    fn many(&mut self, name: &str, kind: &str, series: &[(&str, f64)]) {
        self.head(name, kind);
        for (label, value) in series {
            let labels = format!("{},{label}", self.labels());
            self.line(name, &labels, *value);
        }
    }

    fn labels(&self) -> String {
        format!("engine=\"0\",model_name=\"{}\"", self.model)
    }

    fn head(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} Simulated.\n# TYPE {name} {kind}");
    }

    /// `{value:?}` writes a float as Python does, with a point.
    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.out, "{name}{{{labels}}} {value:?}");
    }
}
