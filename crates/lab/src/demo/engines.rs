//! The simulated fleet, and its counts since the end of the warm-up.

use crate::engine::cost::Costs;
use crate::engine::model::{Counters, Gauges};
use crate::engine::{EngineConfig, Server, StartError};

/// Number of engines in the fleet.
pub(super) const ENGINES: usize = 2;
const BLOCK_SIZE: usize = 16;
const BLOCKS: u32 = 3000;
/// KV cache of one engine, in tokens.
pub(super) const CAPACITY_TOKENS: u64 = BLOCK_SIZE as u64 * BLOCKS as u64;

/// Speed of an engine that stands for GLM-4.6 on 8×H100 on a small scale. Its cache has a tenth of 500,000 tokens,
/// contexts are a fifth as long, and all times are divided by ten. An iteration of 20 ms and 83 µs a token become 2 ms
/// and 8.3 µs. Both are then multiplied by five, so that recomputing one of the shorter contexts costs the same share
/// of an answer's time.
const PREFILL_TPS: f64 = 24_000.0;
const DECODE_MS: f64 = 10.0;

pub(super) struct Engines {
    servers: Vec<Server>,
    /// Counters of each engine when the warm-up ended.
    marked: Vec<Counters>,
}

/// Gauges of one engine, and its counts since the mark.
#[derive(Clone, Copy)]
pub(super) struct EngineReading {
    pub gauges: Gauges,
    pub queries: u64,
    pub hits: u64,
    pub preemptions: u64,
}

// === impl Engines ===

impl Engines {
    pub(super) async fn start(seed: u64) -> Result<Self, StartError> {
        let mut config = EngineConfig { seed, ..EngineConfig::default() };
        (config.shape.kv_blocks, config.shape.block_size) = (BLOCKS, BLOCK_SIZE);
        config.shape.costs = Costs::simple(PREFILL_TPS, DECODE_MS);
        let mut servers = Vec::new();
        for _ in 0..ENGINES {
            servers.push(Server::start(config.clone()).await?);
        }
        Ok(Self { servers, marked: vec![Counters::default(); ENGINES] })
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Server::url).collect()
    }

    /// Sets the counts of all engines to zero.
    pub(super) fn mark(&mut self) {
        self.marked = self.servers.iter().map(Server::counters).collect();
    }

    pub(super) fn readings(&self) -> impl Iterator<Item = EngineReading> {
        self.servers.iter().zip(&self.marked).map(|(server, before)| {
            let now = server.counters();
            EngineReading {
                gauges: server.gauges(),
                queries: now.prefix_queries - before.prefix_queries,
                hits: now.prefix_hits - before.prefix_hits,
                preemptions: now.preemptions - before.preemptions,
            }
        })
    }

    /// Share of the prompt tokens that were found in a cache, over all engines together.
    pub(super) fn hit_rate(&self) -> f64 {
        let (hits, queries) = self.readings().fold((0, 0), |(hits, all), one| (hits + one.hits, all + one.queries));
        hits as f64 / queries.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn engines_are_counted_from_the_mark_on() {
        let mut engines = Engines::start(1).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let body = json!({"prompt": "word".repeat(33), "max_tokens": 1});
        for _ in 0..2 {
            let sent = http.post(engines.servers[0].url() + "/v1/completions").json(&body).send().await.unwrap();
            assert_eq!(sent.status(), 200);
        }
        assert_eq!(engines.readings().next().unwrap().queries, 66);
        assert_eq!(engines.hit_rate(), 32.0 / 66.0);
        engines.mark();
        assert_eq!((engines.hit_rate(), engines.readings().next().unwrap().preemptions), (0.0, 0));
    }
}
