//! Endpoints for probes and scrapers: health, models, metrics. They differ between the flavors of engine.

use super::chain::mix;
use super::driver::{Driver, Snapshot};
use super::face::{Face, Flavor};
use super::metrics as pages;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// Version of vLLM that is imitated.
const VERSION: &str = "0.32.0";

type SharedFace = State<Arc<Face>>;

pub(super) async fn health(face: SharedFace) -> StatusCode {
    if face.flavor == Flavor::Openai { StatusCode::NOT_FOUND } else { StatusCode::OK }
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

pub(super) async fn metrics(face: SharedFace) -> Response {
    let ranks: Vec<_> = face.drivers.iter().map(Driver::snapshot).collect();
    let page = match face.flavor {
        Flavor::Vllm => pages::vllm(&ranks, &face.shape, &face.model, face.started),
        Flavor::Sglang => pages::sglang(&ranks, face.capacity(), &face.model),
        Flavor::Skyrl => return Json(skyrl(&ranks, face.started)).into_response(),
        Flavor::Openai => return StatusCode::NOT_FOUND.into_response(),
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

pub(super) async fn server_info(face: SharedFace) -> Response {
    if face.flavor != Flavor::Sglang {
        return StatusCode::NOT_FOUND.into_response();
    }
    let state = json!({"memory_usage": {"token_capacity": face.capacity()}});
    Json(json!({
        "served_model_name": face.model, "dp_size": face.drivers.len(), "max_total_num_tokens": face.capacity(),
        "internal_states": vec![state; face.drivers.len()],
    }))
    .into_response()
}

pub(super) async fn models(face: SharedFace) -> Json<Value> {
    let created = face.started as u64;
    let permission = json!({
        "id": format!("modelperm-{:016x}", mix(created)), "object": "model_permission", "created": created,
        "allow_create_engine": false, "allow_sampling": true, "allow_logprobs": true, "allow_search_indices": false,
        "allow_view": true, "allow_fine_tuning": false, "organization": "*", "group": null, "is_blocking": false,
    });
    let model = json!({
        "id": face.model, "object": "model", "created": created, "owned_by": "vllm", "root": face.model,
        "parent": null, "max_model_len": face.max_model_len, "permission": [permission],
    });
    Json(json!({"object": "list", "data": [model]}))
}

fn skyrl(ranks: &[Snapshot], now: f64) -> Value {
    let engine = |(id, rank): (usize, &Snapshot)| {
        json!({
            "engine_id": id, "kv_cache_usage_pct": rank.gauges.kv_usage * 100.0,
            "num_running_reqs": rank.gauges.running, "num_waiting_reqs": rank.gauges.waiting,
            "num_cumulative_preemption": rank.counters.preemptions,
        })
    };
    json!({"timestamp": now, "engines": ranks.iter().enumerate().map(engine).collect::<Vec<_>>()})
}
