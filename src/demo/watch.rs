//! Looks at the engines and the proxy from outside, as an operator would.

use crate::fleet::prometheus;
use reqwest::Client;
use serde_json::Value;

/// The latest readings.
pub(super) struct Watcher {
    http: Client,
    proxy: String,
    pub engines: Vec<EngineView>,
    /// Programs that wait for room in the proxy; `None` while it does not say.
    pub held: Option<u64>,
}

/// One engine.
#[derive(Default)]
pub(super) struct EngineView {
    url: String,
    pub now: Reading,
    /// As it was when the count began.
    marked: Reading,
}

/// One reading of an engine's `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub running: f64,
    pub waiting: f64,
    /// 0–1, of running requests.
    pub kv_usage: f64,
    pub queries: f64,
    pub hits: f64,
    pub preemptions: f64,
}

// === impl Watcher ===

impl Watcher {
    pub(super) fn new(http: Client, proxy: &str, engines: &[String]) -> Self {
        let engines = engines.iter().map(|url| EngineView { url: url.clone(), ..EngineView::default() });
        Self { http, proxy: proxy.to_owned(), engines: engines.collect(), held: None }
    }

    /// Reads everything anew; what cannot be read stays as it was.
    pub(super) async fn look(&mut self) {
        for engine in &mut self.engines {
            if let Some(page) = fetch(&self.http, &format!("{}/metrics", engine.url)).await {
                engine.now = Reading::parse(&page);
            }
        }
        let health = fetch(&self.http, &format!("{}/health", self.proxy)).await;
        let health = health.and_then(|page| serde_json::from_slice::<Value>(&page).ok());
        self.held = health.and_then(|health| health["paused_count"].as_u64()).or(self.held);
    }

    /// Counts from here on.
    pub(super) fn mark(&mut self) {
        for engine in &mut self.engines {
            engine.marked = engine.now;
        }
    }

    /// Share of prompt tokens found in the caches of all engines since the mark.
    pub(super) fn hit_rate(&self) -> f64 {
        let sum = |part: fn(&EngineView) -> f64| self.engines.iter().map(part).sum::<f64>();
        share(sum(|e| e.now.hits - e.marked.hits), sum(|e| e.now.queries - e.marked.queries))
    }

    pub(super) fn preemptions(&self) -> f64 {
        self.engines.iter().map(|engine| engine.now.preemptions - engine.marked.preemptions).sum()
    }
}

// === impl EngineView ===

impl EngineView {
    /// Since the mark.
    pub(super) fn hit_rate(&self) -> f64 {
        share(self.now.hits - self.marked.hits, self.now.queries - self.marked.queries)
    }
}

// === impl Reading ===

impl Reading {
    fn parse(page: &[u8]) -> Self {
        let mut reading = Self::default();
        for line in prometheus::lines(page) {
            let field = match line.name {
                "vllm:num_requests_running" => &mut reading.running,
                "vllm:num_requests_waiting" => &mut reading.waiting,
                "vllm:kv_cache_usage_perc" => &mut reading.kv_usage,
                "vllm:prefix_cache_queries_total" => &mut reading.queries,
                "vllm:prefix_cache_hits_total" => &mut reading.hits,
                "vllm:num_preemptions_total" => &mut reading.preemptions,
                _ => continue,
            };
            if let Some(sample) = line.sample() {
                *field = sample.value;
            }
        }
        reading
    }
}

async fn fetch(http: &Client, url: &str) -> Option<Vec<u8>> {
    let answer = http.get(url).send().await.ok()?.error_for_status().ok()?;
    Some(answer.bytes().await.ok()?.to_vec())
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EngineConfig, Server};
    use serde_json::json;

    #[tokio::test]
    async fn an_engines_page_is_read() {
        let engine = Server::start(EngineConfig::default()).await.unwrap();
        let http = Client::builder().no_proxy().build().unwrap();
        let mut watcher = Watcher::new(http.clone(), &engine.url(), &[engine.url()]);
        let body = json!({"prompt": "word".repeat(33), "max_tokens": 1});
        for _ in 0..2 {
            let sent = http.post(engine.url() + "/v1/completions").json(&body).send().await.unwrap();
            assert_eq!(sent.status(), 200);
            watcher.look().await;
        }
        assert_eq!(watcher.engines[0].now.queries, 66.0);
        assert_eq!(watcher.hit_rate(), 32.0 / 66.0);
        assert_eq!(watcher.held, None, "an engine tells nothing of held programs");
        watcher.mark();
        assert_eq!((watcher.hit_rate(), watcher.preemptions()), (0.0, 0.0));
    }
}
