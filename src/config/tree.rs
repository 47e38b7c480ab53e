//! The one configuration tree. YAML, flags and reload all produce it; nothing else holds settings.
//!
//! Types that look alike in YAML derive their surface form here, and their doc comments become the
//! schema; the root has its own in `yaml.rs`. Defaults are in `defaults.rs`; the scheduler's settings are its own.

use super::allow::HostPattern;
use super::humane;
use crate::scheduler::Policy;
pub use crate::scheduler::{Feedback, OnTimeout, Routing, Settings as Scheduler};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be set. Its surface form in YAML is `yaml::File`.
#[derive(Clone, Debug)]
pub struct Config {
    pub listeners: Vec<Listener>,
    pub admin: Option<Admin>,
    /// One per model pool; `backends:` at the top of the YAML gives one pool with an empty name.
    pub models: Vec<Pool>,
    pub scheduler: Scheduler,
    pub programs: Programs,
    pub identity: Identity,
    pub auth: Auth,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub retry: Retry,
    pub state: State,
    pub logging: Logging,
    pub profile: Option<Profile>,
    pub metrics: Metrics,
}

/// One address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// IP address and port, such as `0.0.0.0:8300`.
    #[serde(deserialize_with = "humane::address")]
    #[schemars(with = "String")]
    pub address: SocketAddr,
    /// Serve HTTPS here.
    #[serde(default)]
    pub tls: Option<Tls>,
}

/// Certificate and key of a listener. Relative paths start at the directory of the YAML file. Changed files are
/// read anew within seconds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate chain, the server's own certificate first.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
    /// PEM file with the authorities whose client certificates are accepted; every client needs one then.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// The oldest version of TLS that is spoken.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

/// A listener of its own for the control endpoints.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// IP address and port. Anything but loopback needs a token.
    #[serde(deserialize_with = "humane::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// What clients send as `Authorization: Bearer TOKEN`, or `sha256:` and its hash in hex. None asked for when absent.
    pub token: Option<Secret>,
    /// Where backends that are added at run time may be: networks (`10.0.0.0/8`), addresses, host names (`gpu1`),
    /// names below a domain (`*.vllm.svc`). Without it anywhere but link-local addresses, where clouds keep their
    /// credentials.
    #[schemars(with = "Option<Vec<String>>")]
    pub allow_backends: Option<Vec<HostPattern>>,
}

/// Never printed: `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Secret(pub String);

impl Secret {
    /// SHA-256 of the secret, which may be given as `sha256:` and its hash.
    ///
    /// # Errors
    /// What was expected.
    pub fn digest(&self) -> Result<[u8; 32], &'static str> {
        let Some(hex) = self.0.strip_prefix("sha256:") else {
            return Ok(Sha256::digest(&self.0).into());
        };
        let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        let whole = hex.len() == 64 && digits.len() == 64;
        bytes.try_into().ok().filter(|_| whole).ok_or("expected 64 hex digits after `sha256:`")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

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

/// What happens to a step that names no program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Anonymous {
    /// It is routed by load and not tracked.
    #[default]
    Passthrough,
    /// It belongs to one program named `default`, as in ThunderAgent.
    Default,
    /// Its program is the one whose last prompt is the start of this step's prompt; there need be no id.
    Fingerprint,
}

/// The backends that serve one model.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// What clients ask for in `model`; empty serves any model that no other pool serves.
    pub name: String,
    /// Other names that clients may ask for; `name` is sent to the backend instead.
    pub aliases: Vec<String>,
    /// Which inference server the backends run.
    pub engine: Engine,
    /// How a step finds its backend.
    pub routing: Routing,
    /// What becomes of a vLLM server with several data-parallel ranks, each with a KV cache of its own.
    pub ranks: Ranks,
    /// The servers: an URL each, or a mapping.
    #[schemars(with = "Vec<UrlOrBackend>")]
    pub backends: Vec<Backend>,
    /// Backends that a name server knows, besides those of `backends`.
    pub discovery: Option<Discovery>,
    /// When a backend is well enough to be used.
    pub health: Health,
}

/// One backend for each address of a name, such as a Kubernetes headless service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Discovery {
    /// Name and port, such as `vllm.default.svc:8000`; all its IPv4 and IPv6 addresses are backends.
    #[serde(deserialize_with = "humane::host_port")]
    #[schemars(with = "String")]
    pub dns: HostPort,
    /// Time between two lookups.
    #[serde(default = "discovery_interval", with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub interval: Duration,
    /// Sent to the backends as `Authorization: Bearer KEY` in place of the client's own.
    #[serde(default)]
    pub api_key: Option<Secret>,
}

fn discovery_interval() -> Duration {
    Duration::from_secs(5)
}

/// A name of the DNS, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// One inference server.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schemars(rename = "Backend")]
pub struct Backend {
    /// `http://` or `https://`, host, port, and a path if the server lives below one.
    #[serde(deserialize_with = "humane::url")]
    #[schemars(with = "String")]
    pub url: url::Url,
    /// Sent to it as `Authorization: Bearer KEY` in place of the client's own.
    #[serde(default)]
    pub api_key: Option<Secret>,
    /// Its share of steps that are routed by load, relative to the others: 1 to 1000.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
    /// KV cache size in tokens, in place of what the server reports.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub capacity_tokens: Option<u64>,
}

fn one() -> u32 {
    1
}

/// The two forms of a backend, for the schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum UrlOrBackend {
    Url(String),
    Backend(Backend),
}

/// When a backend is well enough to be used: how often it is asked, and what its requests may show.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Path of the check; any 2xx answer is healthy. When absent `/health`; and `/v1/models` for `engine: openai`,
    /// where any answer below 500 will do, since the path may not be there, or ask for a client's key.
    pub path: Option<String>,
    /// Time between two checks.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub interval: Duration,
    /// A check that takes longer has failed. When absent 2 s; 10 s for `engine: sglang`, whose check waits for a token.
    #[serde(with = "humane::optional_duration")]
    #[schemars(with = "Option<humane::DurationText>")]
    pub timeout: Option<Duration>,
    /// Failed checks in a row that take a backend out.
    #[schemars(range(min = 1))]
    pub unhealthy_after: u32,
    /// Good checks in a row that bring it back.
    #[schemars(range(min = 1))]
    pub healthy_after: u32,
    /// How long a backend that returns takes to get its full share of the steps that are routed by load. Programs
    /// need no such time: they return one prefill after another.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub slow_start: Duration,
    /// When a backend is taken out by what its requests show, whatever its checks say.
    pub eject: Eject,
}

impl Health {
    /// Path of the check.
    #[must_use]
    pub fn path(&self, engine: Engine) -> &str {
        self.path.as_deref().unwrap_or(if engine == Engine::Openai { "/v1/models" } else { "/health" })
    }

    /// Any answer below 500 is good enough.
    #[must_use]
    pub fn is_lenient(&self, engine: Engine) -> bool {
        engine == Engine::Openai && self.path.is_none()
    }

    /// How long a check may take.
    #[must_use]
    pub fn timeout(&self, engine: Engine) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(if engine == Engine::Sglang { 10 } else { 2 }))
    }
}

/// When a backend is taken out by what its requests show, whatever its checks say. Answers below 500 never count
/// against it. Whenever a request fails, a check follows at once, and if that one fails too, the backend is out. (A
/// check that is only late agrees with a connection that could not be made, with nothing else.)
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Eject {
    /// Failed connections in a row.
    #[schemars(range(min = 1))]
    pub connect_failures: u32,
    /// Connections in a row that broke before the end of an answer.
    #[schemars(range(min = 1))]
    pub resets: u32,
    /// Answers in a row with status 500, 502, 503 or 504, and not a byte of a good one in between.
    #[schemars(range(min = 1))]
    pub errors: u32,
    /// Steps in flight, and in this time not a byte of an answer and nothing that moves in the backend's metrics,
    /// while another backend of the pool answers; five times this, if none does. It is longer where a prompt is so
    /// large that computing it at 1,000 tokens a second would take longer.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub no_progress: Duration,
    /// How long a backend stays out the first time; each time it is doubled. It returns after that, once its
    /// checks are good. It counts as the first time again when it was well for as long as `max`.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub base: Duration,
    /// Longest time out.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub max: Duration,
    /// Share of the pool's backends that may be out this way at once, rounded down: 0 to 1; 0 takes none out.
    /// The last one that is left is never taken out. A backend that fails its checks is out regardless.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
}

impl Config {
    /// What the scheduler of this pool goes by.
    #[must_use]
    pub fn policy(&self, pool: &Pool) -> Policy {
        Policy {
            routing: pool.routing,
            settings: self.scheduler.clone(),
            idle_ttl: self.programs.idle_ttl,
            max_programs: self.programs.max,
            slow_start: pool.health.slow_start,
        }
    }
}

/// What is remembered of programs.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Programs {
    /// A program without a step for this long is forgotten.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub idle_ttl: Duration,
    /// Programs remembered at once; beyond it the longest idle are forgotten.
    #[schemars(range(min = 1))]
    pub max: usize,
    /// What happens to a step that names no program.
    pub anonymous: Anonymous,
}

/// Where a step's program is looked for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Places in the request, the first valid one wins.
    pub sources: Vec<String>,
    /// A longer id is replaced by its hash.
    #[schemars(range(min = 1))]
    pub max_bytes: usize,
}

/// Who may use the proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Keys that clients send as `Authorization: Bearer KEY` or `x-api-key: KEY`; without any, everybody may.
    pub keys: Vec<ApiKey>,
}

/// One client's key.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Shown in logs in place of the key.
    pub name: String,
    /// The key itself, or `sha256:` and its hash in hex.
    pub key: Secret,
    /// Programs are kept apart by tenant; the key's name when absent.
    #[serde(default)]
    pub tenant: String,
}

impl ApiKey {
    /// Whose key it is.
    #[must_use]
    pub fn tenant(&self) -> &str {
        if self.tenant.is_empty() { &self.name } else { &self.tenant }
    }
}

/// Bounds on what clients may ask for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body.
    #[serde(with = "humane::size")]
    #[schemars(with = "humane::SizeText")]
    pub body: usize,
    /// All request bodies together, from the first byte to the end of the answer; beyond it requests get 503.
    #[serde(with = "humane::size")]
    #[schemars(with = "humane::SizeText")]
    pub body_total: usize,
    /// Deepest nesting of a JSON body.
    #[schemars(range(min = 1))]
    pub json_depth: usize,
    /// Client connections open at once.
    #[schemars(range(min = 1))]
    pub connections: usize,
    /// Limits of each key of `auth.keys`.
    pub per_key: PerKey,
}

/// Limits of each API key; absent: none.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PerKey {
    /// Steps per minute.
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<u64>,
    /// Prompt and completion tokens per minute.
    #[schemars(range(min = 1))]
    pub tokens_per_minute: Option<u64>,
    /// Steps in flight or held at once.
    #[schemars(range(min = 1))]
    pub concurrent: Option<u64>,
}

/// How long each part of a request may take.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// To connect to a backend, TLS included.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub connect: Duration,
    /// For a client's TLS handshake, for its request header, and for a pause within its request body.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub request_header: Duration,
    /// How long a client's connection may be idle between two requests.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub client_idle: Duration,
    /// From the request sent to the backend's first byte: queueing and prefill there.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub first_byte: Duration,
    /// Longest silence within an answer.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub stream_idle: Duration,
    /// For answers in flight to finish after SIGTERM.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub grace: Duration,
}

/// What is tried again. Only a request of which nothing reached a backend is.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Further backends tried after the first one could not be connected to: 0 to 15.
    #[schemars(range(max = 15))]
    pub connect_attempts: usize,
    /// Share of a pool's requests of the last 10 s that may be tried again: 0 to 1. Besides it 10 a second may
    /// always be. Beyond both the client gets 503.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub budget: f64,
}

/// What outlives the process.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// File that keeps programs, their leases and what was learned, at most 2 s behind. Its directory must exist. A
    /// relative path starts at the directory of the YAML file. Nothing is kept when absent.
    pub snapshot: Option<PathBuf>,
}

/// What is logged, and where.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,pingora_core=warn`.
    /// The environment variable `RUST_LOG` wins over it.
    #[serde(deserialize_with = "humane::log_level")]
    pub level: String,
    /// One line for every request; none when absent.
    pub access: Option<Access>,
}

/// How a line of the access log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum AccessFormat {
    #[default]
    Json,
    Text,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// How a line looks.
    pub format: AccessFormat,
    /// `stdout`, `stderr`, or a file to append to.
    pub path: PathBuf,
}

/// Times of every step, kept and written to `step_profiles.csv`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// Directory of `step_profiles.csv`, made when missing.
    pub dir: PathBuf,
}

/// How the backends' own `/metrics` are read.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Report them in ThunderAgent's JSON and keep their history. They are read for the backends'
    /// capacity in any case.
    pub enabled: bool,
    /// Time between two readings.
    #[serde(with = "humane::duration")]
    #[schemars(with = "humane::DurationText")]
    pub interval: Duration,
}

/// Names given on the command line that mean nothing under this scheduler, with the reason; logged at start.
pub type Notes = BTreeMap<String, String>;
