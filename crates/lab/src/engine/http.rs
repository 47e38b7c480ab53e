//! The routes of the simulated engine.

use super::driver::{Generation, Signal};
use super::error::ApiError;
use super::face::{Api, Face, parse};
use super::prompt::Prompt;
use super::status;
use super::token::piece_of;
use super::wire::{Chat, Completion, Generate, Messages, Reply, Responses, Wire};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

type SharedFace = State<Arc<Face>>;

/// All endpoints.
pub(super) fn router(face: Arc<Face>) -> Router {
    Router::new()
        .route("/v1/chat/completions", inference(Api::Chat, || Chat))
        .route("/v1/completions", inference(Api::Completion, || Completion))
        .route("/v1/responses", inference(Api::Responses, Responses::default))
        .route("/v1/messages", inference(Api::Messages, || Messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/generate", inference(Api::Generate, Generate::default))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(status::health))
        .route("/health_generate", get(status::health))
        .route("/server_info", get(status::server_info))
        .route("/get_server_info", get(status::server_info))
        .route("/version", get(status::version))
        .route("/v1/models", get(status::models))
        .route("/metrics", get(status::metrics))
        .fallback(|| async { detail(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async { detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") })
        .layer(DefaultBodyLimit::disable())
        .with_state(face)
}

fn detail(status: StatusCode, text: &str) -> (StatusCode, Json<Value>) {
    (status, Json(json!({"detail": text})))
}

fn inference<W: Wire>(api: Api, wire: fn() -> W) -> MethodRouter<Arc<Face>> {
    post(move |face: SharedFace, headers: HeaderMap, body: Bytes| async move {
        face.received.fetch_add(1, Ordering::Relaxed);
        match face.begin(api, &headers, &body) {
            Err(error) if api == Api::Messages => error.into_anthropic(),
            Err(error) => error.into_response(),
            Ok((reply, generation, true)) => streamed(wire(), reply, generation),
            Ok((reply, mut generation, false)) => match generation.finished().await {
                Some(usage) => Json(wire().whole(&reply, &usage)).into_response(),
                None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            },
        }
    })
}

/// Writes events as the tokens come. When the client leaves, hyper drops the body, and the generation with it.
fn streamed<W: Wire>(wire: W, reply: Reply, generation: Generation) -> Response {
    let events = stream::unfold((wire, reply, generation, 0), |(mut wire, reply, mut generation, mut at)| async move {
        loop {
            let mut out = String::new();
            match generation.next().await? {
                Signal::Token => {
                    if at == 0 {
                        out += &wire.start(&reply);
                    }
                    out += &wire.token(&reply, at);
                    at += 1;
                }
                Signal::Done(usage) => out += &wire.end(&reply, &usage),
            }
            if !out.is_empty() {
                let event = Ok::<_, Infallible>(Bytes::from(out));
                return Some((event, (wire, reply, generation, at)));
            }
        }
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
    (kind, Body::from_stream(events)).into_response()
}

async fn tokenize(face: SharedFace, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, ApiError> {
    let body = parse(&headers, &body)?;
    let prompt = if body["messages"].is_null() { Prompt::raw(&body, "prompt")? } else { Prompt::chat(&body)? };
    Ok(Json(json!({
        "count": prompt.tokens.len(), "max_model_len": face.max_model_len, "tokens": prompt.tokens, "token_strs": null,
    })))
}

async fn detokenize(headers: HeaderMap, body: Bytes) -> Result<Json<Value>, ApiError> {
    let body = parse(&headers, &body)?;
    let tokens = Prompt::raw(&body, "tokens")?.tokens;
    let text: String = tokens.into_iter().map(piece_of).collect();
    Ok(Json(json!({"prompt": text})))
}

async fn count_tokens(headers: HeaderMap, body: Bytes) -> Response {
    let prompt = parse(&headers, &body).and_then(|body| Prompt::anthropic(&body));
    prompt.map_or_else(ApiError::into_anthropic, |prompt| {
        Json(json!({"input_tokens": prompt.tokens.len()})).into_response()
    })
}
