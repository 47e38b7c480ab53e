//! Builds everything from a configuration, listens, serves, drains.

mod door;
mod line;
mod listen;
mod tls;

pub use listen::ListenError;

use crate::app::App;
use crate::config::Config;
use crate::control::Listener as Side;
use crate::identity::SourceError;
use crate::proxy::Proxy;
use door::{Door, Seats};
use futures_util::future::join_all;
use listen::Listeners;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::Service as _;
use pingora_core::services::listening::Service;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tls::Certificates;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// When the last answer is written, for the last bytes to leave and connections to close.
const LINGER: Duration = Duration::from_secs(1);

/// For the access log to reach the disk at the end.
const FLUSH: Duration = Duration::from_secs(2);

/// Connections to backends that are kept for the next request, all backends together.
const IDLE_UPSTREAM: usize = 4096;

/// A server that has its sockets and everything behind them, and does not serve yet.
pub struct Server {
    app: Arc<App>,
    services: Vec<Service<Door>>,
    listeners: Listeners,
    certificates: Vec<Arc<Certificates>>,
    seats: Vec<Arc<Seats>>,
}

/// How a server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Refuse new and held steps, let answers in flight finish within `timeouts.grace`.
    Drain,
    Now,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("identity.sources: {0}")]
    Identity(#[from] SourceError),
    #[error("logs and profiles: {0}")]
    Telemetry(io::Error),
    #[error("runtime: {0}")]
    Runtime(io::Error),
}

/// Serves until SIGTERM (drains) or SIGINT (stops at once).
///
/// # Errors
/// What keeps it from starting.
pub fn run(config: Config) -> Result<(), StartError> {
    raise_descriptors(config.limits.connections as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(StartError::Runtime)?;
    let served = runtime.block_on(async {
        let server = Server::bind(config)?;
        let stop = signals().map_err(StartError::Runtime)?;
        for address in server.addresses() {
            log::info!("listening on {address}");
        }
        server.serve(stop).await;
        Ok(())
    });
    runtime.shutdown_background();
    served
}

/// A client and its backend take a descriptor each, and shells often allow no more than 1,024.
fn raise_descriptors(connections: u64) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit / 2 < connections => {
            log::warn!("limits.connections is {connections}, but `ulimit -n` allows only {limit} open files");
        }
        Ok(_) => {}
        Err(e) => log::warn!("the limit on open files stays as it is: {e}"),
    }
}

/// SIGTERM and SIGINT, from now on.
fn signals() -> io::Result<mpsc::Receiver<Stop>> {
    let (out, stop) = mpsc::channel(4);
    for (kind, stop) in [(SignalKind::terminate(), Stop::Drain), (SignalKind::interrupt(), Stop::Now)] {
        tokio::spawn(relay(signal(kind)?, stop, out.clone()));
    }
    Ok(stop)
}

async fn relay(mut signal: Signal, stop: Stop, out: mpsc::Sender<Stop>) {
    while signal.recv().await.is_some() && out.send(stop).await.is_ok() {}
}

// === impl Server ===

impl Server {
    /// Takes the addresses of the configuration; port 0 is any free one. To be called in a runtime.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let app = Arc::new(App::new(Arc::new(config)).map_err(StartError::Telemetry)?);
        let conf = Arc::new(pingora_conf());
        let idle = app.config.timeouts.client_idle;
        let http = |side| Ok::<_, StartError>(door::http(Proxy::new(Arc::clone(&app), side)?, &conf, idle));
        let (mut services, mut listeners, mut certificates) = (Vec::new(), Listeners::default(), Vec::new());
        let main = http(Side::Main)?;
        let clients = Arc::<Seats>::default();
        for listener in &app.config.listeners {
            let load = |tls| Certificates::load(tls).map(Arc::new);
            let tls = listener.tls.as_ref().map(load).transpose();
            let tls = tls.map_err(|cause| ListenError::Tls { address: listener.address, cause })?;
            certificates.extend(tls.clone());
            let door = Door::new(Arc::clone(&app), Side::Main, Arc::clone(&main), Arc::clone(&clients), tls);
            let mut service = Service::new("proxy".to_owned(), door);
            listeners.add(&mut service, listener.address)?;
            services.push(service);
        }
        let mut seats = vec![clients];
        if let Some(admin) = &app.config.admin {
            let operators = Arc::<Seats>::default();
            let door = Door::new(Arc::clone(&app), Side::Admin, http(Side::Admin)?, Arc::clone(&operators), None);
            let mut service = Service::new("admin".to_owned(), door);
            listeners.add(&mut service, admin.listen)?;
            services.push(service);
            seats.push(operators);
        }
        Ok(Self { services, listeners, certificates, seats, app })
    }

    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Where it listens: the listeners in the order of the configuration, then the admin listener.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        self.listeners.addresses()
    }

    /// Serves until it is told to stop, or `stop` is closed.
    pub async fn serve(self, mut stop: mpsc::Receiver<Stop>) {
        let Self { app, services, listeners, certificates, seats } = self;
        let (shutdown, watch) = watch::channel(false);
        let fds = listeners.into_fds();
        let mut tasks = JoinSet::new();
        let (fleet, gate) = (app.fleet.clone(), app.gate.clone());
        tasks.spawn(async move { fleet.run().await });
        tasks.spawn(async move { gate.run_ticks().await });
        for certificates in certificates {
            tasks.spawn(certificates.watch());
        }
        for mut service in services {
            let (fds, watch) = (Arc::clone(&fds), watch.clone());
            tasks.spawn(async move { service.start_service(Some(fds), watch, 1).await });
        }
        if stop.recv().await == Some(Stop::Drain) {
            tokio::select! {
                () = drain(&app, &shutdown, &seats) => {}
                () = until_now(&mut stop) => {}
            }
        }
        shutdown.send_replace(true);
        let telemetry = Arc::clone(&app.telemetry);
        let flushed = tokio::task::spawn_blocking(move || telemetry.flush(FLUSH)).await;
        if !flushed.unwrap_or(false) {
            log::warn!("the end of the access log or of the profiles may be lost");
        }
    }
}

fn pingora_conf() -> ServerConf {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    ServerConf { threads, upstream_keepalive_pool_size: IDLE_UPSTREAM, ..ServerConf::default() }
}

async fn drain(app: &App, shutdown: &watch::Sender<bool>, seats: &[Arc<Seats>]) {
    log::info!("draining");
    app.drain();
    let grace = app.config.timeouts.grace;
    if tokio::time::timeout(grace, app.open.idle()).await.is_err() {
        log::warn!("{} answers are cut off after {grace:?} of grace", app.open.count());
    }
    // Nobody is served any more; now the sockets close.
    shutdown.send_replace(true);
    let _ = tokio::time::timeout(LINGER, join_all(seats.iter().map(|seats| seats.empty()))).await;
}

/// A second word may cut a drain short.
async fn until_now(stop: &mut mpsc::Receiver<Stop>) {
    while let Some(word) = stop.recv().await {
        if word == Stop::Now {
            return;
        }
    }
    std::future::pending().await
}
