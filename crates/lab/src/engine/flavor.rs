//! What differs between the engines that can be simulated: where they tell what, and in which words.

use super::driver::Snapshot;
use super::http::Face;
use super::metrics;
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Which engine a simulated one looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavor {
    #[default]
    Vllm,
    Sglang,
    /// SkyRL's HTTP endpoint.
    Skyrl,
    /// Any other server with OpenAI's API: no health check and no metrics.
    Openai,
}

// === impl Flavor ===

impl Flavor {
    /// `GET /health`.
    pub(super) fn health(self) -> StatusCode {
        if self == Self::Openai { StatusCode::NOT_FOUND } else { StatusCode::OK }
    }

    /// `GET /metrics`. `started` is in seconds since 1970.
    pub(super) fn metrics(self, ranks: &[Snapshot], face: &Face, started: f64) -> Response {
        let text =
            |page: String| ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response();
        match self {
            Self::Vllm => text(metrics::vllm(ranks, &face.shape, &face.model, started)),
            Self::Sglang => text(metrics::sglang(ranks, face.capacity(), &face.model)),
            Self::Skyrl => Json(skyrl(ranks, started)).into_response(),
            Self::Openai => StatusCode::NOT_FOUND.into_response(),
        }
    }

    /// `GET /server_info`, and its older name.
    pub(super) fn server_info(self, face: &Face) -> Response {
        if self != Self::Sglang {
            return StatusCode::NOT_FOUND.into_response();
        }
        let state = || json!({"memory_usage": {"token_capacity": face.capacity()}});
        let states: Vec<Value> = face.drivers.iter().map(|_| state()).collect();
        Json(json!({
            "served_model_name": face.model,
            "dp_size": face.drivers.len(),
            "max_total_num_tokens": face.capacity(),
            "internal_states": states,
        }))
        .into_response()
    }
}

fn skyrl(ranks: &[Snapshot], now: f64) -> Value {
    let engine = |(id, rank): (usize, &Snapshot)| {
        json!({
            "engine_id": id,
            "kv_cache_usage_pct": rank.gauges.kv_usage * 100.0,
            "num_running_reqs": rank.gauges.running,
            "num_waiting_reqs": rank.gauges.waiting,
            "num_cumulative_preemption": rank.counters.preemptions,
        })
    };
    json!({"timestamp": now, "engines": ranks.iter().enumerate().map(engine).collect::<Vec<_>>()})
}
