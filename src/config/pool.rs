//! A pool: the backends of one model, and when each is well enough to be used.

use super::secret::Secret;
use super::text::{self, HostPort};
use crate::scheduler::Routing;
use garde::Validate;
use schemars::{JsonSchema, Schema, json_schema};
use serde::Deserialize;
use std::time::Duration;

/// Which inference server the backends of a pool run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Engine {
    /// Its load and the size of its KV cache are read from `/metrics`.
    #[default]
    Vllm,
    /// The size of its KV cache is read from `/server_info`, its load from `/metrics` if it has `--enable-metrics`.
    Sglang,
    /// The HTTP endpoint of SkyRL's inference engines; each counts as 200,000 tokens of KV cache, unless
    /// `capacity_tokens` says otherwise.
    Skyrl,
    /// Any other server with OpenAI's API. Nothing is read: without `capacity_tokens` no step is held for room.
    Openai,
}

/// What becomes of a vLLM server with several data-parallel ranks, each with a KV cache of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Ranks {
    /// Each rank is a backend: programs are placed on one and stay there, by the header `x-data-parallel-rank`. A
    /// client's own is replaced. `capacity_tokens` and `weight` are those of each rank.
    #[default]
    Auto,
    /// The server is one backend, and spreads its steps over its ranks itself. A client's header is passed on.
    Off,
}

/// The backends that serve one model.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Pool {
    /// Name that clients ask for in `model`; a pool without a name serves any model that no other pool serves.
    pub name: String,
    /// Other names that clients may ask for; the backend is sent `name` instead.
    pub aliases: Vec<String>,
    /// Which inference server the backends run.
    pub engine: Engine,
    /// How a step finds its backend.
    pub routing: Routing,
    /// What becomes of a vLLM server with several data-parallel ranks, each with a KV cache of its own.
    pub ranks: Ranks,
    /// Servers, each as a URL or as a mapping.
    #[garde(dive)]
    pub backends: Vec<Backend>,
    /// Backends that a name server knows, besides those of `backends`.
    #[garde(dive)]
    pub discovery: Option<Discovery>,
    /// When a backend is well enough to be used.
    #[garde(dive)]
    pub health: Health,
}

/// One backend for each address of a name, such as a Kubernetes headless service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[garde(allow_unvalidated)]
pub struct Discovery {
    /// Name and port, such as `vllm.default.svc:8000`; all its IPv4 and IPv6 addresses are backends.
    pub dns: HostPort,
    /// Time between two lookups.
    #[serde(default = "discovery_interval", with = "text::DurationText")]
    pub interval: Duration,
    /// Key that the backends are sent as `Authorization: Bearer KEY` in place of the client's own.
    #[serde(default)]
    #[garde(dive)]
    pub api_key: Option<Secret>,
}

fn discovery_interval() -> Duration {
    Duration::from_secs(5)
}

/// One inference server.
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(transform = or_url)]
#[garde(allow_unvalidated)]
pub struct Backend {
    /// URL: `http://` or `https://`, host, port, and a path if the server lives below one.
    #[serde(deserialize_with = "text::url")]
    #[schemars(with = "String")]
    pub url: url::Url,
    /// Key that the server is sent as `Authorization: Bearer KEY` in place of the client's own.
    #[serde(default)]
    #[garde(dive)]
    pub api_key: Option<Secret>,
    /// Share of steps that are routed by load, relative to the other backends: 1 to 1000.
    #[serde(default = "one")]
    #[garde(range(min = 1, max = 1000))]
    pub weight: u32,
    /// KV cache size in tokens, in place of what the server reports.
    #[serde(default)]
    #[garde(range(min = 1))]
    pub capacity_tokens: Option<u64>,
}

fn one() -> u32 {
    1
}

/// Lets a URL stand for the whole mapping.
fn or_url(schema: &mut Schema) {
    let mapping = std::mem::take(schema);
    *schema = json_schema!({"anyOf": [{"type": "string"}, mapping]});
}

/// When a backend is well enough to be used: how often it is asked, and what its requests may show.
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Health {
    /// Path of the check; any 2xx answer is healthy. When absent `/health`, or `/v1/models` for `engine: openai`. There
    /// any answer below 500 will do, since the path may be missing, or ask for a client's key.
    pub path: Option<String>,
    /// Time between two checks.
    #[serde(with = "text::DurationText")]
    pub interval: Duration,
    /// Longest time that a check may take. When absent 2 s, or 10 s for `engine: sglang`, whose check waits for a token.
    #[serde(deserialize_with = "text::some_duration")]
    #[schemars(with = "Option<text::DurationText>")]
    pub timeout: Option<Duration>,
    /// Failed checks in a row that take a backend out.
    #[garde(range(min = 1))]
    pub unhealthy_after: u32,
    /// Good checks in a row that bring a backend back.
    #[garde(range(min = 1))]
    pub healthy_after: u32,
    /// Time in which a backend that returns gets its full share of the steps that are routed by load. Programs need no
    /// such time: they return one prefill after another.
    #[serde(with = "text::DurationText")]
    pub slow_start: Duration,
    /// Failures of requests that take a backend out, whatever its checks say.
    #[garde(dive)]
    pub eject: Eject,
}

impl Health {
    /// Path of the check.
    #[must_use]
    pub fn path(&self, engine: Engine) -> &str {
        self.path.as_deref().unwrap_or(if engine == Engine::Openai { "/v1/models" } else { "/health" })
    }

    /// Whether any answer below 500 is good enough.
    #[must_use]
    pub fn is_lenient(&self, engine: Engine) -> bool {
        engine == Engine::Openai && self.path.is_none()
    }

    /// Longest time that a check may take.
    #[must_use]
    pub fn timeout(&self, engine: Engine) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(if engine == Engine::Sglang { 10 } else { 2 }))
    }
}

/// When a backend is taken out by what its requests show, whatever its checks say. Answers below 500 never count
/// against it. Whenever a request fails, a check follows at once, and if that one fails too, the backend is out. (A
/// check that is only late agrees with a connection that could not be made, with nothing else.)
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Eject {
    /// Failed connections in a row.
    #[garde(range(min = 1))]
    pub connect_failures: u32,
    /// Connections in a row that broke before the end of an answer.
    #[garde(range(min = 1))]
    pub resets: u32,
    /// Answers in a row with status 500, 502, 503 or 504, and not a byte of a good one in between.
    #[garde(range(min = 1))]
    pub errors: u32,
    /// Time with steps in flight, without a byte of an answer and without any change in the backend's metrics, while
    /// another backend of the pool answers. Five times as long if none answers, and longer where a prompt would take
    /// longer to compute at 1,000 tokens a second.
    #[serde(with = "text::DurationText")]
    pub no_progress: Duration,
    /// Time that a backend stays out at first, doubled each time. After that the backend returns once its checks are
    /// good. A backend that was well for as long as `max` starts at `base` again.
    #[serde(with = "text::DurationText")]
    pub base: Duration,
    /// Longest time out.
    #[serde(with = "text::DurationText")]
    pub max: Duration,
    /// Share of the pool's backends that may be out this way at once, rounded down: 0 to 1; with 0 none is taken out.
    /// The last backend that is left is never taken out. A backend that fails its checks is out regardless.
    #[garde(range(min = 0.0, max = 1.0))]
    pub share: f64,
}
