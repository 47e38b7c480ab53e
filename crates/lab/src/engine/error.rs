//! Errors in the wording of vLLM.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An error that ends a request before its first token.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
}

// === impl ApiError ===

impl ApiError {
    fn validation(detail: &str, param: Option<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "Bad Request",
            message: format!("1 validation error:\n  {detail}"),
            param,
        }
    }

    fn invalid(kind: &str, place: &str, text: &str, input: &str, more: &str) -> Self {
        let detail = format!("{{'type': '{kind}', 'loc': '{place}', 'msg': '{text}', 'input': '{input}'{more}}}");
        Self::validation(&detail, Some(place.to_owned()))
    }

    pub(super) fn media_type() -> Self {
        Self::validation("Unsupported Media Type: Only 'application/json' is allowed", None)
    }

    pub(super) fn empty_body() -> Self {
        Self::invalid("missing", "body", "Field required", "None", "")
    }

    /// Error for a body that is no JSON. `offset` is the position in bytes where the parser stopped.
    pub(super) fn bad_json(offset: usize) -> Self {
        Self::invalid(
            "json_invalid",
            &format!("body.{offset}"),
            "JSON decode error",
            "<dict of 0 items>",
            ", 'ctx': {'error': 'Expecting value'}",
        )
    }

    pub(super) fn not_an_object(body: &Value) -> Self {
        Self::invalid(
            "model_attributes_type",
            "body",
            "Input should be a valid dictionary or object to extract fields from",
            &describe(body),
            "",
        )
    }

    pub(super) fn missing(field: &str, body: &Value) -> Self {
        let place = format!("body.{field}");
        Self::invalid("missing", &place, "Field required", &describe(body), "")
    }

    pub(super) fn bad_parameter(message: String, param: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestError", message, param: Some(param.to_owned()) }
    }

    /// Error for a parameter out of its range.
    pub(super) fn value(problem: &str, param: &str, value: &str) -> Self {
        let message = format!("{problem} (parameter={param}, value={value})");
        Self::bad_parameter(message, param)
    }

    pub(super) fn stream_options() -> Self {
        let message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
        Self::bad_parameter(message.to_owned(), "stream_options")
    }

    pub(super) fn unknown_model(asked: &str, served: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!("The model `{asked}` does not exist. Valid aliases: {served}."),
            param: Some("model".to_owned()),
        }
    }

    /// The error in Anthropic's form, for `/v1/messages`.
    pub(super) fn into_anthropic(self) -> Response {
        let body = json!({"type": "error", "error": {"type": self.kind, "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = self.status.as_u16();
        let error = json!({"message": self.message, "type": self.kind, "param": self.param, "code": code});
        (self.status, Json(json!({"error": error}))).into_response()
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Object(map) => format!("<dict of {} items>", map.len()),
        Value::Array(items) => format!("<list of {} items>", items.len()),
        other => other.to_string(),
    }
}
