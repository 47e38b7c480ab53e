//! The one configuration tree. YAML, flags and reload all produce it; nothing else holds settings.
//!
//! The types are the form of the YAML as well, and their doc comments become its schema. An attribute `garde` bounds a
//! value, for the schema and for `validate.rs`. Defaults are in `defaults.rs`.

pub use super::pool::{Backend, Discovery, Eject, Engine, Health, Pool, Ranks};
use super::reach::HostPattern;
pub use super::secret::Secret;
use super::{secret, text};
use crate::scheduler::Policy;
pub use crate::scheduler::{Feedback, OnTimeout, Routing, Settings as Scheduler};
use garde::Validate;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Every setting.
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Thundergate configuration")]
#[garde(allow_unvalidated)]
pub struct Config {
    /// IP address and port that clients connect to, such as `0.0.0.0:8300`, without TLS.
    // Once the file was read, the address is the first of `listeners`.
    #[serde(deserialize_with = "text::some_address")]
    pub listen: Option<SocketAddr>,
    /// More addresses that clients connect to.
    pub listeners: Vec<Listener>,
    /// A listener of its own for the control endpoints.
    #[garde(dive)]
    pub admin: Option<Admin>,
    /// Short for one pool without a name, which serves any model that no other pool serves.
    // Once the file was read, that pool is the last of `models`.
    pub backends: Option<Vec<Backend>>,
    /// Pools of backends, one for each model.
    #[garde(dive)]
    pub models: Vec<Pool>,
    /// When and where steps run, in pools with `routing: program`.
    #[garde(dive)]
    pub scheduler: Scheduler,
    /// What is remembered of programs.
    #[garde(dive)]
    pub programs: Programs,
    /// Where a step's program is looked for.
    #[garde(dive)]
    pub identity: Identity,
    /// Who may use the proxy.
    #[garde(dive)]
    pub auth: Auth,
    /// Bounds on what clients may ask for.
    #[garde(dive)]
    pub limits: Limits,
    /// How long each part of a request may take.
    pub timeouts: Timeouts,
    /// What is tried again.
    #[garde(dive)]
    pub retry: Retry,
    /// What outlives the process.
    pub state: State,
    /// What is logged, and where.
    pub logging: Logging,
    /// Times of every step, kept and written to `step_profiles.csv`; off when absent.
    pub profile: Option<Profile>,
    /// How the backends' own `/metrics` are read.
    pub metrics: Metrics,
}

/// One address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// IP address and port, such as `0.0.0.0:8300`.
    #[serde(deserialize_with = "text::address")]
    pub address: SocketAddr,
    /// Certificate and key, to serve HTTPS here.
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
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Admin {
    /// IP address and port. Anything but loopback needs a token.
    #[serde(deserialize_with = "text::address")]
    pub listen: SocketAddr,
    /// Token that clients send as `Authorization: Bearer TOKEN`, or `sha256:` and its hash in hex. No token is asked for
    /// when absent.
    #[garde(dive, custom(secret::some_hash))]
    pub token: Option<Secret>,
    /// Places where backends that are added at run time may be: networks (`10.0.0.0/8`), addresses, host names (`gpu1`),
    /// names below a domain (`*.vllm.svc`). When absent, anywhere but at link-local addresses, where clouds keep
    /// credentials.
    pub allow_backends: Option<Vec<HostPattern>>,
}

/// What happens to a step that names no program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Anonymous {
    /// The step is routed by load and not tracked.
    #[default]
    Passthrough,
    /// The step belongs to one program named `default`, as in ThunderAgent.
    Default,
    /// The step's program is the one whose last prompt is the start of this step's prompt; no id is needed.
    Fingerprint,
}

impl Config {
    /// The policy for the scheduler of this pool.
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
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Programs {
    /// A program without a step for this long is forgotten.
    #[serde(with = "text::DurationText")]
    pub idle_ttl: Duration,
    /// Programs remembered at once; beyond this number the longest idle are forgotten.
    #[garde(range(min = 1))]
    pub max: usize,
    /// What happens to a step that names no program.
    pub anonymous: Anonymous,
}

/// Where a step's program is looked for.
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Identity {
    /// Places in the request; the first with a valid id wins.
    pub sources: Vec<String>,
    /// Longest id in bytes; a longer one is replaced by its hash.
    #[garde(range(min = 1))]
    pub max_bytes: usize,
}

/// Who may use the proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Auth {
    /// Keys that clients send as `Authorization: Bearer KEY` or `x-api-key: KEY`; without any, everybody may.
    #[garde(dive)]
    pub keys: Vec<ApiKey>,
}

/// One client's key.
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[garde(allow_unvalidated)]
pub struct ApiKey {
    /// Name that logs show in place of the key.
    #[garde(length(min = 1))]
    pub name: String,
    /// The key itself, or `sha256:` and its hash in hex.
    #[garde(dive, custom(secret::hash))]
    pub key: Secret,
    /// Tenant of the key's programs, which are kept apart from those of others; the key's name when absent.
    #[serde(default)]
    pub tenant: String,
}

impl ApiKey {
    /// The key's tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        if self.tenant.is_empty() { &self.name } else { &self.tenant }
    }
}

/// Bounds on what clients may ask for.
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Limits {
    /// Largest request body.
    #[serde(with = "text::SizeText")]
    pub body: usize,
    /// All request bodies together, from the first byte to the end of the answer; beyond this size requests get 503.
    #[serde(with = "text::SizeText")]
    pub body_total: usize,
    /// Deepest nesting of a JSON body.
    #[garde(range(min = 1))]
    pub json_depth: usize,
    /// Client connections open at once.
    #[garde(range(min = 1))]
    pub connections: usize,
    /// Limits of each key of `auth.keys`.
    #[garde(dive)]
    pub per_key: PerKey,
}

/// Limits of each API key; absent: none.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct PerKey {
    /// Steps per minute.
    #[garde(range(min = 1))]
    pub requests_per_minute: Option<u64>,
    /// Prompt and completion tokens per minute.
    #[garde(range(min = 1))]
    pub tokens_per_minute: Option<u64>,
    /// Steps in flight or held at once.
    #[garde(range(min = 1))]
    pub concurrent: Option<u64>,
}

/// How long each part of a request may take.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Time to connect to a backend, TLS included.
    #[serde(with = "text::DurationText")]
    pub connect: Duration,
    /// Time for a client's TLS handshake, for its request header, and for a pause within its request body.
    #[serde(with = "text::DurationText")]
    pub request_header: Duration,
    /// Longest time that a client's connection may be idle between two requests.
    #[serde(with = "text::DurationText")]
    pub client_idle: Duration,
    /// Time from the request sent to the backend's first byte: queueing and prefill there.
    #[serde(with = "text::DurationText")]
    pub first_byte: Duration,
    /// Longest silence within an answer.
    #[serde(with = "text::DurationText")]
    pub stream_idle: Duration,
    /// Time for answers in flight to finish after SIGTERM.
    #[serde(with = "text::DurationText")]
    pub grace: Duration,
}

/// What is tried again: only requests of which nothing reached a backend.
#[derive(Clone, Debug, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct Retry {
    /// Further backends tried after the first one could not be connected to: 0 to 15.
    #[garde(range(max = 15))]
    pub connect_attempts: usize,
    /// Share of a pool's requests of the last 10 s that may be tried again: 0 to 1. Another 10 a second may always be
    /// tried again. Beyond both the client gets 503.
    #[garde(range(min = 0.0, max = 1.0))]
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
    /// Level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or a filter such as `info,pingora_core=warn`. The
    /// environment variable `RUST_LOG` wins over this setting.
    #[serde(deserialize_with = "text::log_level")]
    pub level: String,
    /// One line for every request; none when absent.
    pub access: Option<Access>,
}

/// The form of a line of the access log.
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
    /// Form of a line.
    pub format: AccessFormat,
    /// Destination: `stdout`, `stderr`, or a file to append to.
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
    /// Whether ThunderAgent's JSON reports them, with their history. They are read for the backends' capacity in any
    /// case.
    pub enabled: bool,
    /// Time between two readings.
    #[serde(with = "text::DurationText")]
    pub interval: Duration,
}

/// Names given on the command line that mean nothing under this scheduler, with the reason; logged at start.
pub type Notes = BTreeMap<String, String>;
