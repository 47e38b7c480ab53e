//! ThunderAgent's JSON, to the key. Some keys mean nothing here and are 0 (`marked_for_pause`, `future_paused_tokens`,
//! `shared_tokens`, `buffer_per_program`): no running step is marked, and no token is charged twice or in advance.

use super::overview::{Activity, Overview, prefix_hit_ratio};
use crate::app::App;
use crate::config::{Config, Engine, Routing};
use crate::fleet::{BackendStatus, Gauges};
use crate::gate::{PoolId, ProgramView};
use crate::telemetry::{ProfileSummary, round4};
use crate::units::unix_time;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A value of `GET /programs`.
#[derive(Serialize)]
pub(super) struct ProgramJson<'a> {
    pub(super) backend: Option<&'a str>,
    /// Tokens of the last finished step, prompt and answer, as the backend counted them.
    pub(super) context_len: u64,
    /// Tokens with the estimate for a step in flight.
    pub(super) total_tokens: u64,
    pub(super) step_count: u64,
    pub(super) status: &'static str,
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile: Option<ProfileSummary>,
}

/// `GET /health`.
#[derive(Serialize)]
pub(super) struct HealthJson<'a> {
    status: &'static str,
    router_mode: &'static str,
    scheduling_enabled: bool,
    backends: Vec<&'a str>,
    programs_count: usize,
    reasoning_count: usize,
    acting_count: usize,
    paused_count: usize,
    per_backend: BTreeMap<&'a str, BackendPrograms>,
    profile_enabled: bool,
}

#[derive(Default, Serialize)]
struct BackendPrograms {
    total: usize,
    reasoning: usize,
    acting: usize,
    paused: usize,
    marked_for_pause: usize,
    future_paused_tokens: u64,
}

/// `GET /metrics`.
#[derive(Serialize)]
pub(super) struct MetricsJson<'a> {
    metrics_enabled: bool,
    metrics_interval: Option<f64>,
    backends: BTreeMap<&'a str, BackendJson<'a>>,
}

#[derive(Serialize)]
struct BackendJson<'a> {
    url: &'a str,
    active_program_tokens: u64,
    reasoning_program_tokens: u64,
    acting_program_tokens: u64,
    active_program_count: usize,
    reasoning_program_count: usize,
    acting_program_count: usize,
    active_program_tokens_ratio: f64,
    total_program_tokens: u64,
    paused_program_count: usize,
    future_paused_tokens: u64,
    shared_tokens: u64,
    buffer_per_program: u64,
    capacity_overflow: u64,
    healthy: bool,
    monitoring: bool,
    /// Present for SkyRL alone, as in ThunderAgent.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_config: Option<CacheConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<EngineJson>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum CacheConfig {
    Vllm { block_size: u64, num_gpu_blocks: u64, total_tokens_capacity: u64 },
    Skyrl { total_tokens_capacity: u64, num_engines: usize },
    Other { total_tokens_capacity: u64 },
}

#[derive(Serialize)]
struct EngineJson {
    num_requests_running: u64,
    num_requests_waiting: u64,
    #[serde(flatten)]
    own: OwnMetrics,
    /// Time of the last reading: Unix time, seconds.
    last_updated: f64,
    history_size: usize,
}

/// Metrics that only one kind of engine has.
#[derive(Serialize)]
#[serde(untagged)]
enum OwnMetrics {
    Vllm {
        kv_cache_usage_perc: f64,
        prefix_cache_hit_rate: f64,
        prefix_cache_queries: u64,
        prefix_cache_hits: u64,
        prompt_tokens_total: u64,
        generation_tokens_total: u64,
        num_preemptions: u64,
        requests_completed: u64,
    },
    Sglang {
        token_usage: f64,
        cache_hit_rate: f64,
        num_used_tokens: u64,
        prompt_tokens_total: u64,
        generation_tokens_total: u64,
    },
    Skyrl {
        /// 0–100, as SkyRL has it.
        kv_cache_usage_perc: f64,
        num_preemptions: u64,
        num_engines: usize,
    },
}

// === impl ProgramJson ===

impl<'a> ProgramJson<'a> {
    pub(super) fn new(
        pool: PoolId,
        view: &ProgramView,
        backend: Option<&'a str>,
        profile: Option<ProfileSummary>,
        config: &Config,
    ) -> Self {
        let activity = Activity::of(pool, view, config);
        Self {
            backend,
            context_len: view.context.0,
            total_tokens: view.context.max(view.footprint).0,
            step_count: view.steps,
            status: if activity.is_reasoning() { "reasoning" } else { "acting" },
            state: if activity.is_paused() { "paused" } else { "active" },
            profile,
        }
    }
}

// === impl Overview ===

impl Overview {
    pub(super) fn health(&self, app: &App) -> HealthJson<'_> {
        let status = if app.draining() { "draining" } else { "ok" };
        self.health_of(&app.settings(), status, app.telemetry.profiles().is_some())
    }

    pub(super) fn health_of(&self, config: &Config, status: &'static str, profile_enabled: bool) -> HealthJson<'_> {
        let scheduled = |pool: &crate::config::Pool| pool.routing == Routing::Program;
        let scheduling_enabled = config.models.iter().any(scheduled);
        let count = |is: fn(Activity) -> bool| {
            let views = self.programs.iter();
            views.filter(|(pool, view)| is(Activity::of(*pool, view, config))).count()
        };
        let reasoning_count = count(Activity::is_reasoning);
        HealthJson {
            status,
            router_mode: if scheduling_enabled { "tr" } else { "default" },
            scheduling_enabled,
            backends: self.statuses.iter().map(|status| status.backend.url.as_str()).collect(),
            programs_count: self.programs.len(),
            reasoning_count,
            acting_count: self.programs.len() - reasoning_count,
            paused_count: count(Activity::is_paused),
            per_backend: self.per_backend(config),
            profile_enabled,
        }
    }

    fn per_backend(&self, config: &Config) -> BTreeMap<&str, BackendPrograms> {
        let paused = self.paused_by_backend(config);
        let entry = |status: &'_ BackendStatus| {
            let id = status.backend.id;
            let (reasoning, acting) =
                self.loads.get(&id).map_or((0, 0), |load| (load.leased_running, load.leased_idle));
            BackendPrograms {
                total: reasoning + acting,
                reasoning,
                acting,
                paused: paused.get(&id).copied().unwrap_or(0),
                ..BackendPrograms::default()
            }
        };
        self.statuses.iter().map(|status| (status.backend.url.as_str(), entry(status))).collect()
    }

    pub(super) fn metrics(&self, config: &Config) -> MetricsJson<'_> {
        let paused = self.paused_by_backend(config);
        let enabled = config.metrics.enabled;
        let mut backends = BTreeMap::new();
        for status in &self.statuses {
            let engine = config.models.get(status.backend.pool.0).map_or(Engine::Vllm, |pool| pool.engine);
            let mut backend = self.backend_metrics(status, engine);
            backend.monitoring = enabled;
            backend.paused_program_count = paused.get(&status.backend.id).copied().unwrap_or(0);
            backends.insert(backend.url, backend);
        }
        MetricsJson {
            metrics_enabled: enabled,
            metrics_interval: enabled.then_some(config.metrics.interval.as_secs_f64()),
            backends,
        }
    }

    fn backend_metrics<'a>(&'a self, status: &'a BackendStatus, engine: Engine) -> BackendJson<'a> {
        let load = self.loads.get(&status.backend.id);
        let (running, idle) = load.map_or((0, 0), |load| (load.charged_running.0, load.charged_idle.0));
        let (leased_running, leased_idle) = load.map_or((0, 0), |load| (load.leased_running, load.leased_idle));
        let effective = load.and_then(|load| load.effective_capacity).map(|n| n.0);
        let charged = running + idle;
        let ratio = match status.capacity.or(effective) {
            Some(capacity) if capacity > 0 => charged as f64 / capacity as f64,
            _ => 0.0,
        };
        BackendJson {
            url: &status.backend.url,
            active_program_tokens: charged,
            reasoning_program_tokens: running,
            acting_program_tokens: idle,
            active_program_count: leased_running + leased_idle,
            reasoning_program_count: leased_running,
            acting_program_count: leased_idle,
            active_program_tokens_ratio: round4(ratio),
            total_program_tokens: charged,
            paused_program_count: 0,
            future_paused_tokens: 0,
            shared_tokens: 0,
            buffer_per_program: 0,
            capacity_overflow: effective.map_or(0, |capacity| charged.saturating_sub(capacity)),
            healthy: status.healthy,
            monitoring: false,
            backend_type: (engine == Engine::Skyrl).then_some("skyrl"),
            cache_config: cache_config(status, engine, effective),
            metrics: engine_metrics(status, engine),
        }
    }
}

/// The cache's size. Absent while the capacity is not known, as in ThunderAgent.
fn cache_config(status: &BackendStatus, engine: Engine, effective: Option<u64>) -> Option<CacheConfig> {
    let total_tokens_capacity = status.capacity.or(effective)?;
    let gauges = status.gauges.as_ref();
    Some(match engine {
        Engine::Vllm => CacheConfig::Vllm {
            block_size: gauges.map_or(0, |gauges| gauges.block_size),
            num_gpu_blocks: gauges.map_or(0, |gauges| gauges.num_gpu_blocks),
            total_tokens_capacity,
        },
        Engine::Skyrl => {
            let num_engines = gauges.map_or(0, |gauges| gauges.engines);
            CacheConfig::Skyrl { total_tokens_capacity, num_engines }
        }
        Engine::Sglang | Engine::Openai => CacheConfig::Other { total_tokens_capacity },
    })
}

/// The engine's own metrics. Absent before the first reading, as in ThunderAgent, and for an engine without metrics.
fn engine_metrics(status: &BackendStatus, engine: Engine) -> Option<EngineJson> {
    let gauges: &Gauges = status.gauges.as_ref()?;
    let read_at = unix_time().saturating_sub(status.scrape_age.unwrap_or(Duration::ZERO));
    let own = match engine {
        Engine::Vllm | Engine::Openai => OwnMetrics::Vllm {
            kv_cache_usage_perc: round4(gauges.kv_usage),
            prefix_cache_hit_rate: round4(prefix_hit_ratio(status).unwrap_or(0.0)),
            prefix_cache_queries: gauges.prefix_queries as u64,
            prefix_cache_hits: gauges.prefix_hits as u64,
            prompt_tokens_total: gauges.prompt_tokens as u64,
            generation_tokens_total: gauges.generation_tokens as u64,
            num_preemptions: gauges.preemptions as u64,
            requests_completed: gauges.requests_completed as u64,
        },
        Engine::Sglang => OwnMetrics::Sglang {
            token_usage: round4(gauges.kv_usage),
            cache_hit_rate: round4(gauges.cache_hit_rate),
            num_used_tokens: gauges.used_tokens as u64,
            prompt_tokens_total: gauges.prompt_tokens as u64,
            generation_tokens_total: gauges.generation_tokens as u64,
        },
        Engine::Skyrl => OwnMetrics::Skyrl {
            kv_cache_usage_perc: round4(gauges.kv_usage * 100.0),
            num_preemptions: gauges.preemptions as u64,
            num_engines: gauges.engines,
        },
    };
    Some(EngineJson {
        num_requests_running: gauges.running as u64,
        num_requests_waiting: gauges.waiting as u64,
        own,
        last_updated: read_at.as_secs_f64(),
        history_size: 1,
    })
}
