//! The code behind the endpoints: reads a request, checks it, and starts it on the model.

use super::answer::{Author, Bounds};
use super::chain::{Chain, mix};
use super::driver::{Driver, Generation};
use super::error::ApiError;
use super::model::{Request, Shape};
use super::prompt::Prompt;
use super::wire::Reply;
use axum::http::{HeaderMap, header};
use serde_json::Value;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

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

/// State that all handlers share.
pub(super) struct Face {
    pub model: String,
    /// Number of tokens of prompt and output together, at most.
    pub max_model_len: usize,
    pub flavor: Flavor,
    pub shape: Shape,
    /// Drivers, one for each data-parallel rank.
    pub drivers: Vec<Driver>,
    pub author: Author,
    /// Start of the server, in seconds since 1970.
    pub started: f64,
    /// Number of inference requests received.
    pub received: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    Completion,
    Responses,
    Messages,
    Generate,
}

/// Reads the body as a JSON object.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::media_type());
    }
    if body.is_empty() {
        return Err(ApiError::empty_body());
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let lines = body.split(|&byte| byte == b'\n');
        let before: usize = lines.take(error.line() - 1).map(|l| l.len() + 1).sum();
        let within = error.column() - usize::from(error.column() > 0 && !error.is_eof());
        ApiError::bad_json(before + within)
    })?;
    if value.is_object() { Ok(value) } else { Err(ApiError::not_an_object(&value)) }
}

/// The present time in seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "clients are told the time of day")]
pub(super) fn unix_time() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

// === impl Face ===

impl Face {
    /// Reads a request and starts it. Also tells whether the answer is to be streamed.
    pub(super) fn begin(
        &self,
        api: Api,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(Reply, Generation, bool), ApiError> {
        let body = parse(headers, body)?;
        let prompt = api.prompt(&body)?;
        self.check_model(&body)?;
        let stream = body["stream"].as_bool().unwrap_or(false);
        check_parameters(api, &body, stream)?;
        let bounds = self.bounds(api, &body, prompt.tokens.len())?;

        let mut chain = Chain::new(self.shape.block_size);
        chain.extend(prompt.tokens.iter().copied());
        let answer = self.author.answer(&prompt, chain.digest(), bounds);
        chain.extend(answer.tokens.iter().map(|token| token.id));
        let request = Request {
            id: 0,
            chain: chain.hashes().into(),
            prompt_tokens: prompt.tokens.len(),
            output_tokens: answer.tokens.len(),
            recalled: 0,
            finish: answer.finish(),
            stream,
        };
        let generation = self
            .driver(api, headers)?
            .submit(request)
            .map_err(|error| ApiError::value(&error.to_string(), "input_tokens", &prompt.tokens.len().to_string()))?;
        let reply = Reply {
            id: format!("{:016x}", mix(self.author.seed ^ mix(generation.id))),
            created: unix_time() as u64,
            model: self.model.clone(),
            answer,
            prompt_tokens: prompt.tokens.len(),
            max_tokens: bounds.max_tokens,
            include_usage: body["stream_options"]["include_usage"] == true,
        };
        Ok((reply, generation, stream))
    }

    /// Number of tokens that one rank can hold.
    pub(super) fn capacity(&self) -> usize {
        (self.shape.kv_blocks as usize).saturating_sub(1) * self.shape.block_size
    }

    /// The driver of the rank that the header names, else of the rank with the fewest requests. Of vLLM 0.32's
    /// endpoints, `/v1/responses` does not read the header. A header that is no number counts as absent.
    fn driver(&self, api: Api, headers: &HeaderMap) -> Result<&Driver, ApiError> {
        let named = headers.get("x-data-parallel-rank").filter(|_| api != Api::Responses);
        let named = named.and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
        if let Some(rank) = named {
            let found = usize::try_from(rank).ok().and_then(|rank| self.drivers.get(rank));
            let problem = || format!("data_parallel_rank {rank} is out of range [0, {}).", self.drivers.len());
            return found.ok_or_else(|| ApiError::value(&problem(), "data_parallel_rank", &rank.to_string()));
        }
        let load = |driver: &&Driver| {
            let gauges = driver.snapshot().gauges;
            gauges.running + gauges.waiting
        };
        self.drivers.iter().min_by_key(load).ok_or_else(|| ApiError::bad_parameter("no engine".into(), "model"))
    }

    fn check_model(&self, body: &Value) -> Result<(), ApiError> {
        match body["model"].as_str() {
            Some(asked) if asked != self.model => Err(ApiError::unknown_model(asked, &self.model)),
            _ => Ok(()),
        }
    }

    /// Limits on the length of the answer. The requested length is checked against the model's limit.
    fn bounds(&self, api: Api, body: &Value, prompt: usize) -> Result<Bounds, ApiError> {
        let limit = self.max_model_len;
        let (name, asked) = api.max_tokens(body);
        let problem = match asked {
            None if api == Api::Messages => return Err(ApiError::missing(name, body)),
            Some(asked) if asked < 1 => Some(format!("{name} must be at least 1, got {asked}.")),
            Some(asked) if asked > limit as i64 => Some(format!(
                "{name}={asked} cannot be greater than max_model_len={limit}. \
                 Please request fewer output tokens."
            )),
            _ => None,
        };
        if let (Some(problem), Some(asked)) = (problem, asked) {
            return Err(ApiError::value(&problem, name, &asked.to_string()));
        }
        let asked = asked.and_then(|asked| usize::try_from(asked).ok());
        if prompt + asked.unwrap_or(1) > limit {
            return Err(self.too_long(prompt, asked));
        }
        let sampling = api.sampling(body);
        Ok(Bounds {
            max_tokens: asked.unwrap_or(limit - prompt),
            min_tokens: sampling["min_tokens"].as_u64().unwrap_or(0) as usize,
            ignore_eos: sampling["ignore_eos"] == true,
        })
    }

    fn too_long(&self, prompt: usize, asked: Option<usize>) -> ApiError {
        let limit = self.max_model_len;
        let (what, tokens) = match asked {
            Some(asked) if prompt <= limit => (
                format!(
                    "you asked for {asked} output tokens and your prompt contains {prompt} input \
                     tokens, {} together.",
                    prompt + asked
                ),
                prompt,
            ),
            _ => (
                format!(
                    "your prompt contains at least {0} input tokens, which exceeds this limit even \
                     without any output tokens.",
                    limit + 1
                ),
                limit + 1,
            ),
        };
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, {what} \
             Please reduce the length of the input prompt."
        );
        ApiError::value(&message, "input_tokens", &tokens.to_string())
    }
}

/// Checks for parameters that this server refuses as vLLM does, or cannot honour.
fn check_parameters(api: Api, body: &Value, stream: bool) -> Result<(), ApiError> {
    if !stream && !body["stream_options"].is_null() {
        return Err(ApiError::stream_options());
    }
    let sampling = api.sampling(body);
    if let Some(value) = sampling["temperature"].as_f64().filter(|value| *value < 0.0) {
        let problem = format!("temperature must be non-negative, got {value:?}.");
        return Err(ApiError::value(&problem, "temperature", &format!("{value:?}")));
    }
    match sampling["n"].as_i64() {
        Some(n) if n != 1 => {
            let problem = format!("n must be 1 on this server, got {n}.");
            Err(ApiError::value(&problem, "n", &n.to_string()))
        }
        _ => Ok(()),
    }
}

// === impl Api ===

impl Api {
    fn prompt(self, body: &Value) -> Result<Prompt, ApiError> {
        match self {
            Self::Chat => Prompt::chat(body),
            Self::Completion => Prompt::raw(body, "prompt"),
            Self::Responses => Prompt::responses(body),
            Self::Messages => Prompt::anthropic(body),
            Self::Generate if body["text"].is_null() => Prompt::raw(body, "input_ids"),
            Self::Generate => Prompt::raw(body, "text"),
        }
    }

    /// The object that has the sampling parameters.
    fn sampling(self, body: &Value) -> &Value {
        match self {
            Self::Generate => &body["sampling_params"],
            _ => body,
        }
    }

    /// The name and the value of the limit on the output. The value is the requested one, else the API's default.
    fn max_tokens(self, body: &Value) -> (&'static str, Option<i64>) {
        let (name, default) = match self {
            Self::Chat if !body["max_completion_tokens"].is_null() => ("max_completion_tokens", None),
            Self::Chat | Self::Messages => ("max_tokens", None),
            Self::Completion => ("max_tokens", Some(16)),
            Self::Responses => ("max_output_tokens", None),
            Self::Generate => ("max_new_tokens", Some(128)),
        };
        (name, self.sampling(body)[name].as_i64().or(default))
    }
}
