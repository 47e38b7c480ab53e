//! ThunderAgent's flags, with its names and defaults. A flag that was given wins over the YAML.

use super::draft::Draft;
use super::mistake::{Failure, Mistake};
use super::text::parse_log_level;
use super::tree::{Anonymous, Backend, Config, Engine, Listener, Notes, Pool, Profile, Routing};
use super::yaml;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// The command line of the server. A field is `None` (or `false`) unless its flag was given.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// YAML with these settings and all others; a flag wins over it
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on [default: 0.0.0.0]
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Port to listen on [default: 8300]
    #[arg(long)]
    pub port: Option<u16>,
    /// debug, info, warning, error, critical [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Backends, with commas between; "" starts without any [default: http://localhost:8000]
    #[arg(long, value_name = "URL,URL,…")]
    pub backends: Option<String>,
    /// tr: by program, held while there is no room; default: round robin [default: tr]
    #[arg(long)]
    pub router: Option<Router>,
    /// What the backends run [default: vllm]
    #[arg(long, value_name = "TYPE")]
    pub backend_type: Option<Engine>,
    /// Keep the times of every step and write them to step_profiles.csv
    #[arg(long)]
    pub profile: bool,
    /// Where step_profiles.csv goes [default: /tmp/thunderagent_profiles]
    #[arg(long, value_name = "DIR")]
    pub profile_dir: Option<PathBuf>,
    /// Show the backends' own metrics, with their history, in GET /metrics
    #[arg(long)]
    pub metrics: bool,
    /// Seconds between two readings of a backend's metrics [default: 5.0]
    #[arg(long, value_name = "SECONDS")]
    pub metrics_interval: Option<f64>,
    /// Accepted, without a meaning: decisions are made at every event [default: 5.0]
    #[arg(long, value_name = "SECONDS")]
    pub scheduler_interval: Option<f64>,
    /// How much an idle program's tokens count against capacity, 0 to 1 [default: 1.0]
    #[arg(long, value_name = "WEIGHT")]
    pub acting_token_weight: Option<f64>,
    /// Let that weight halve with every second that the program is idle
    #[arg(long)]
    pub use_acting_token_decay: bool,
    /// Take over from the running server without a refused connection: waits until that server is sent SIGQUIT
    #[arg(long)]
    pub upgrade: bool,
    /// Socket where the old and the new server meet [default: in the directory for temporary files, by user and address]
    #[arg(long, value_name = "SOCKET")]
    pub upgrade_socket: Option<PathBuf>,
}

/// ThunderAgent's `--router`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Router {
    Tr,
    Default,
}

// === impl Flags ===

impl Flags {
    /// Reads the YAML, if there is one, puts the flags over it, and validates the whole.
    ///
    /// # Errors
    /// A file that cannot be read, or every mistake.
    pub fn load(&self) -> Result<(Config, Notes), Failure> {
        Ok(self.draft()?.finish()?)
    }

    /// Reads the same again for a server that runs with `running`. Pools keep the order that they have there.
    ///
    /// # Errors
    /// Those of [`Flags::load`], every change that needs a new process, and a server without a file.
    pub fn reload(&self, running: &Config) -> Result<Config, Failure> {
        if self.config.is_none() {
            return Err(Failure::NoFile);
        }
        let (mut config, _) = self.draft()?.finish_for(running)?;
        config.models.sort_by_key(|pool| running.models.iter().position(|known| known.name == pool.name));
        Ok(config)
    }

    fn draft(&self) -> Result<Draft, Failure> {
        let mut draft = match &self.config {
            Some(file) => yaml::open(file)?,
            None => self.alone(),
        };
        self.apply(&mut draft);
        Ok(draft)
    }

    /// The configuration without any file: that of ThunderAgent.
    fn alone(&self) -> Draft {
        let mut draft = Draft::default();
        let mut config = Config::default();
        config.programs.anonymous = Anonymous::Default;
        if self.backends.is_none() {
            let backend = Backend::at("http://localhost:8000");
            config.models = vec![Pool::unnamed(backend.into_iter().collect())];
        }
        draft.config = Some(config);
        draft
    }

    /// Lays the flags over the draft's configuration.
    pub(super) fn apply(&self, draft: &mut Draft) {
        let Some(mut config) = draft.config.take() else {
            return;
        };
        self.apply_listener(&mut config, draft);
        self.apply_pools(&mut config, draft);
        self.apply_scheduler(&mut config, draft);
        self.apply_telemetry(&mut config, draft);
        draft.config = Some(config);
    }

    fn apply_listener(&self, config: &mut Config, draft: &mut Draft) {
        if self.host.is_none() && self.port.is_none() {
            return;
        }
        if config.listeners.is_empty() {
            config.listeners = Config::default().listeners;
        }
        let Some(Listener { address, .. }) = config.listeners.first_mut() else {
            return;
        };
        if let Some(host) = &self.host {
            match resolve(host) {
                Some(ip) => address.set_ip(ip),
                None => wrong(draft, "--host", format!("`{host}` is not an address of this machine")),
            }
            draft.alias_path("listeners[0].address", "--host");
        }
        if let Some(port) = self.port {
            address.set_port(port);
            draft.alias_path("listeners[0].address", "--port");
        }
    }

    fn apply_pools(&self, config: &mut Config, draft: &mut Draft) {
        if let Some(list) = &self.backends {
            let mut backends = Vec::new();
            for url in list.split(',').map(str::trim).filter(|url| !url.is_empty()) {
                match Backend::at(url) {
                    Ok(backend) => backends.push(backend),
                    Err(message) => wrong(draft, "--backends", format!("{message}, found `{url}`")),
                }
            }
            // Where every URL was wrong, that was told above.
            draft.without_backends = backends.is_empty();
            draft.alias_path("models", "--backends");
            config.models = vec![Pool::unnamed(backends)];
        }
        for (index, pool) in config.models.iter_mut().enumerate() {
            if let Some(engine) = self.backend_type {
                pool.engine = engine;
                draft.alias_path(&format!("models[{index}].engine"), "--backend-type");
            }
            match self.router {
                Some(Router::Tr) => pool.routing = Routing::Program,
                Some(Router::Default) => pool.routing = Routing::RoundRobin,
                None => {}
            }
        }
    }

    fn apply_scheduler(&self, config: &mut Config, draft: &mut Draft) {
        if let Some(weight) = self.acting_token_weight {
            config.scheduler.acting_weight = weight;
            draft.alias_path("scheduler.acting_weight", "--acting-token-weight");
        }
        config.scheduler.acting_decay |= self.use_acting_token_decay;
        if self.scheduler_interval.is_some() {
            draft.notes.insert(
                "--scheduler-interval".into(),
                "has no meaning here: the scheduler decides at every event, not at intervals".into(),
            );
        }
    }

    fn apply_telemetry(&self, config: &mut Config, draft: &mut Draft) {
        if let Some(level) = &self.log_level {
            match parse_log_level(level) {
                Ok(level) => config.logging.level = level,
                Err(message) => wrong(draft, "--log-level", format!("{message}, found `{level}`")),
            }
        }
        if self.profile {
            config.profile.get_or_insert_with(Profile::default);
        }
        match (&self.profile_dir, &mut config.profile) {
            (Some(dir), Some(profile)) => profile.dir.clone_from(dir),
            (Some(_), None) => {
                draft.notes.insert("--profile-dir".into(), "has no meaning without --profile".into());
            }
            (None, _) => {}
        }
        config.metrics.enabled |= self.metrics;
        if let Some(seconds) = self.metrics_interval {
            match Duration::try_from_secs_f64(seconds) {
                Ok(interval) if !interval.is_zero() && seconds <= 86_400.0 => {
                    config.metrics.interval = interval;
                }
                _ => wrong(
                    draft,
                    "--metrics-interval",
                    format!("expected seconds above 0, at most a day, found `{seconds}`"),
                ),
            }
        }
    }
}

fn wrong(draft: &mut Draft, flag: &str, message: impl Into<String>) {
    draft.mistakes.push(Mistake::new(flag, message));
}

/// The address of `host`: an IP address, or a name of this machine such as `localhost`. IPv4 comes first.
fn resolve(host: &str) -> Option<IpAddr> {
    if let Ok(ip) = host.trim_matches(['[', ']']).parse() {
        return Some(ip);
    }
    let found: Vec<SocketAddr> = (host, 0).to_socket_addrs().ok()?.collect();
    let first = found.iter().find(|a| a.is_ipv4()).or(found.first())?;
    Some(first.ip())
}
