//! One reading of gate and fleet, and the figures that are computed from that reading.

use crate::app::App;
use crate::config::{Config, Routing};
use crate::fleet::BackendStatus;
use crate::gate::{LoadView, PoolId, ProgramView};
use crate::scheduler::BackendId;
use crate::telemetry::{BackendMetrics, CurrentMetrics};
use std::collections::HashMap;

/// Programs, ledgers and backends at about one time: each is read under its own lock.
pub(super) struct Overview {
    pub(super) programs: Vec<(PoolId, ProgramView)>,
    pub(super) loads: HashMap<BackendId, LoadView>,
    pub(super) statuses: Vec<BackendStatus>,
}

/// What a program is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// A step runs on a backend.
    Running,
    /// A step waits.
    Held,
    /// A tool runs, and the program's KV cache is expected to stay on its backend.
    Idle,
    /// The program has no step, and no lease on a backend.
    Paused,
}

// === impl Overview ===

impl Overview {
    pub(super) fn of(app: &App) -> Self {
        Self::new(app.gate.programs(), app.gate.loads(), app.fleet.statuses())
    }

    /// A reading without the programs, of which there may be many.
    pub(super) fn of_backends(app: &App) -> Self {
        Self::new(Vec::new(), app.gate.loads(), app.fleet.statuses())
    }

    pub(super) fn new(
        programs: Vec<(PoolId, ProgramView)>,
        loads: Vec<(PoolId, LoadView)>,
        statuses: Vec<BackendStatus>,
    ) -> Self {
        let loads = loads.into_iter().map(|(_, load)| (load.backend, load)).collect();
        Self { programs, loads, statuses }
    }

    /// The URL of a backend; `None` once it is forgotten.
    pub(super) fn url(&self, id: BackendId) -> Option<&str> {
        let mut statuses = self.statuses.iter();
        let status = statuses.find(|status| status.backend.id == id)?;
        Some(&status.backend.url)
    }

    /// How many paused programs each backend had last.
    pub(super) fn paused_by_backend(&self, config: &Config) -> HashMap<BackendId, usize> {
        let mut paused = HashMap::new();
        for (pool, view) in &self.programs {
            if let Some(backend) = view.backend
                && Activity::of(*pool, view, config).is_paused()
            {
                *paused.entry(backend).or_default() += 1;
            }
        }
        paused
    }

    /// `held_steps` includes steps without a program.
    pub(super) fn current(&self, config: &Config, held_steps: usize) -> CurrentMetrics {
        let states = [Activity::Running, Activity::Held, Activity::Idle, Activity::Paused];
        let programs = states.map(|state| {
            let is = |(pool, view): &&(PoolId, ProgramView)| Activity::of(*pool, view, config) == state;
            let count = self.programs.iter().filter(is).count();
            (state.label(), count as u64)
        });
        CurrentMetrics {
            programs: programs.to_vec(),
            held_steps: held_steps as u64,
            backends: self.statuses.iter().map(|status| self.metrics_of(status, config)).collect(),
        }
    }

    fn metrics_of(&self, status: &BackendStatus, config: &Config) -> BackendMetrics {
        let load = self.loads.get(&status.backend.id);
        let effective = load.and_then(|load| load.effective_capacity).map(|n| n.0);
        BackendMetrics {
            url: status.backend.url.clone(),
            model: model_name(config, status.backend.pool).to_owned(),
            healthy: status.healthy,
            downs: status.downs.iter().map(|(cause, count)| (cause.label(), *count)).collect(),
            capacity: status.capacity.or(effective),
            effective_capacity: effective,
            charged_running: load.map_or(0, |load| load.charged_running.0),
            charged_idle: load.map_or(0, |load| load.charged_idle.0),
            kv_usage: status.gauges.as_ref().map(|gauges| gauges.kv_usage),
            prefix_hit: prefix_hit_ratio(status),
            scrape_age_seconds: status.scrape_age.map(|age| age.as_secs_f64()),
        }
    }
}

// === impl Activity ===

impl Activity {
    pub(super) fn of(pool: PoolId, view: &ProgramView, config: &Config) -> Self {
        let scheduled = config.models.get(pool.0).is_none_or(|pool| pool.routing == Routing::Program);
        if view.in_flight > 0 {
            Self::Running
        } else if view.held > 0 {
            Self::Held
        } else if view.leased || !scheduled {
            // Without a scheduler nobody has a lease, and nobody is paused.
            Self::Idle
        } else {
            Self::Paused
        }
    }

    /// ThunderAgent's `state: "paused"`.
    pub(super) fn is_paused(self) -> bool {
        matches!(self, Self::Held | Self::Paused)
    }

    /// ThunderAgent's `status: "reasoning"`: a step has come and is not answered yet.
    pub(super) fn is_reasoning(self) -> bool {
        matches!(self, Self::Running | Self::Held)
    }

    fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Held => "held",
            Self::Idle => "idle",
            Self::Paused => "paused",
        }
    }
}

/// Prefix cache hits over queries since the backend started.
pub(super) fn prefix_hit_ratio(status: &BackendStatus) -> Option<f64> {
    let gauges = status.gauges.as_ref()?;
    (gauges.prefix_queries > 0.0).then(|| gauges.prefix_hits / gauges.prefix_queries)
}

/// The pool's name, empty for the unnamed one.
pub(super) fn model_name(config: &Config, pool: PoolId) -> &str {
    config.models.get(pool.0).map_or("", |pool| &pool.name)
}
