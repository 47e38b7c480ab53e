//! The one configuration tree. YAML, flags and reload all produce it; nothing else holds settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    pub logging: Logging,
    pub profile: Option<Profile>,
    pub metrics: Metrics,
}

#[derive(Clone, Debug)]
pub struct Listener {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
}
#[derive(Clone, Debug)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}
#[derive(Clone, Debug)]
pub struct Admin {
    pub listen: SocketAddr,
    pub token: Option<Secret>,
}

/// Never printed: `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Vllm,
    Sglang,
    Skyrl,
    Openai,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    Program,
    LeastLoad,
    RoundRobin,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    Passthrough,
    Default,
    Fingerprint,
}

#[derive(Clone, Debug)]
pub struct Pool {
    /// What clients ask for in `model`; empty serves any model.
    pub name: String,
    pub aliases: Vec<String>,
    pub engine: Engine,
    pub routing: Routing,
    pub backends: Vec<Backend>,
    pub health: Health,
}
#[derive(Clone, Debug)]
pub struct Backend {
    pub url: url::Url,
    pub api_key: Option<Secret>,
    pub weight: u32,
    pub capacity_tokens: Option<u64>,
}
#[derive(Clone, Debug)]
pub struct Health {
    pub path: String,
    pub interval: Duration,
    pub timeout: Duration,
    pub unhealthy_after: u32,
    pub healthy_after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    Admit,
    Reject,
}
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub hold_max: Duration,
    pub hold_on_timeout: OnTimeout,
    pub hold_queue: usize,
    /// Share of the capacity left free, 0–1.
    pub headroom: f64,
    pub evict_cost_factor: f64,
    pub evict_idle_factor: f64,
    pub tick: Duration,
    pub no_backend_wait: Duration,
    /// Weight of an idle program's footprint, 0–1 (ThunderAgent's `--acting-token-weight`).
    pub acting_weight: f64,
    /// Let the weight of an idle program fall as 2^(-idle seconds).
    pub acting_decay: bool,
}
#[derive(Clone, Debug)]
pub struct Programs {
    pub idle_ttl: Duration,
    pub max: usize,
    pub anonymous: Anonymous,
}
#[derive(Clone, Debug)]
pub struct Identity {
    pub sources: Vec<String>,
    pub max_bytes: usize,
}
#[derive(Clone, Debug, Default)]
pub struct Auth {
    pub keys: Vec<ApiKey>,
}
#[derive(Clone, Debug)]
pub struct ApiKey {
    pub name: String,
    pub key: Secret,
    pub tenant: String,
}
#[derive(Clone, Debug)]
pub struct Limits {
    pub body: usize,
    pub json_depth: usize,
    pub connections: usize,
    pub per_key: PerKey,
}
#[derive(Clone, Debug, Default)]
pub struct PerKey {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub concurrent: Option<u64>,
}
#[derive(Clone, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    pub request_header: Duration,
    pub first_byte: Duration,
    pub stream_idle: Duration,
    pub grace: Duration,
}
#[derive(Clone, Debug)]
pub struct Retry {
    pub connect_attempts: usize,
}
#[derive(Clone, Debug)]
pub struct Logging {
    pub level: String,
    pub access: Option<Access>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    Json,
    Text,
}
#[derive(Clone, Debug)]
pub struct Access {
    pub format: AccessFormat,
    pub path: PathBuf,
}
#[derive(Clone, Debug)]
pub struct Profile {
    pub dir: PathBuf,
}
/// `--metrics`, `--metrics-interval`: how often each backend's own `/metrics` is read.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub enabled: bool,
    pub interval: Duration,
}

/// Names given on the command line that mean nothing under this scheduler, with the reason; logged at start.
pub type Notes = BTreeMap<String, String>;
