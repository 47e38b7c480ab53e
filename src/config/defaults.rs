//! Every default of the tree, and the small constructors around them.

use super::tree::{
    Access, AccessFormat, Admin, Auth, Backend, Config, Eject, Health, Identity, Limits, Listener, Logging, Metrics,
    PerKey, Pool, Profile, Programs, Retry, Scheduler, State, Timeouts,
};
use super::{Anonymous, source, text};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn minutes(count: u64) -> Duration {
    seconds(60 * count)
}

impl Default for Config {
    /// The configuration of an empty YAML file: ThunderAgent's address, and no backends yet.
    fn default() -> Self {
        Self {
            listen: None,
            listeners: vec![Listener::plain(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8300)))],
            admin: None,
            backends: None,
            models: Vec::new(),
            scheduler: Scheduler::default(),
            programs: Programs::default(),
            identity: Identity::default(),
            auth: Auth::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            state: State::default(),
            logging: Logging::default(),
            profile: None,
            metrics: Metrics::default(),
        }
    }
}

impl Listener {
    /// A listener without TLS.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

impl Default for Admin {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 9300));
        Self { listen, token: None, allow_backends: None }
    }
}

impl Backend {
    /// A backend with nothing but an address.
    ///
    /// # Errors
    /// What is wrong with the URL, as "expected …".
    pub fn at(url: &str) -> Result<Self, String> {
        Ok(Self { url: text::parse_url(url)?, api_key: None, weight: 1, capacity_tokens: None })
    }
}

impl Pool {
    /// The unnamed pool, which serves any model.
    #[must_use]
    pub fn unnamed(backends: Vec<Backend>) -> Self {
        Self { backends, ..Self::default() }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: None,
            interval: seconds(5),
            timeout: None,
            unhealthy_after: 3,
            healthy_after: 2,
            slow_start: seconds(30),
            eject: Eject::default(),
        }
    }
}

impl Default for Eject {
    /// Patient numbers: the programs of a backend that is taken out lose their KV cache.
    fn default() -> Self {
        Self {
            connect_failures: 3,
            resets: 3,
            errors: 5,
            no_progress: seconds(60),
            base: seconds(10),
            max: minutes(5),
            share: 0.5,
        }
    }
}

impl Default for Programs {
    fn default() -> Self {
        Self { idle_ttl: minutes(30), max: 200_000, anonymous: Anonymous::Passthrough }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self { sources: source::DEFAULT.iter().map(ToString::to_string).collect(), max_bytes: 256 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 64 << 20, body_total: 2 << 30, json_depth: 128, connections: 20_000, per_key: PerKey::default() }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: seconds(2),
            request_header: seconds(10),
            client_idle: seconds(60),
            first_byte: minutes(30),
            stream_idle: minutes(10),
            grace: minutes(10),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { connect_attempts: 2, budget: 0.2 }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self { level: "info".to_owned(), access: None }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self { format: AccessFormat::Json, path: PathBuf::from("stdout") }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self { dir: PathBuf::from("/tmp/thunderagent_profiles") }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { enabled: false, interval: seconds(5) }
    }
}
