//! Builds everything from a configuration, listens, serves, drains.

mod acceptor;
mod client_conn;
mod listen;
mod supervisor;
mod tls;
mod upgrade;
mod workers;

pub use listen::ListenError;
pub use upgrade::UpgradeError;

use crate::app::{App, AppError};
use crate::config::{Config, Flags, Listener};
use crate::control::Side;
use crate::exchange::Exchange;
use crate::proxy::Proxy;
use crate::state::{SnapshotWriter, StoreError};
use acceptor::{Acceptor, ConnectionLimit};
use futures_util::future::join_all;
use listen::{Listeners, Socket};
use pingora_core::services::listening::Service;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tls::Certificates;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use upgrade::Predecessor;

/// Time for the last bytes to leave and connections to close, once the last answer is written.
const LINGER: Duration = Duration::from_secs(1);

/// Time for the state, and for the access log, to reach the disk at the end.
const FLUSH: Duration = Duration::from_secs(2);

/// Time that a connection without a request is left open in an upgrade, so that no client writes into a connection that
/// is being closed.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// A server that has its sockets and everything behind them, and does not serve yet.
pub struct Server {
    app: Arc<App>,
    /// The services of each worker, one for each listener.
    services: Vec<Vec<Service<Acceptor>>>,
    listeners: Listeners,
    certificates: Vec<Arc<Certificates>>,
    /// The executors of the main listeners and of the admin listener, and their connections.
    sides: Vec<(Arc<Exchange<Proxy>>, Arc<ConnectionLimit>)>,
    /// Whether connections are to end.
    leave: watch::Sender<bool>,
    /// Whether no more connections are accepted.
    shut: watch::Sender<bool>,
    /// The workers' lifeline: when it is dropped, they end with whatever they serve.
    serving: watch::Sender<()>,
    /// Closed when the last worker has let in its last connection.
    accepting: Option<mpsc::Receiver<()>>,
    /// The socket on which a process that takes over waits.
    meeting: PathBuf,
    tasks: JoinSet<()>,
    writer: Option<Arc<SnapshotWriter>>,
}

/// How a server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Refuse new and held steps, let answers in flight finish within `timeouts.grace`.
    Drain,
    /// Let the process that waits take over, then finish everything here within `timeouts.grace`. If there is none,
    /// go on.
    HandOver,
    Now,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error("state.snapshot: {0}")]
    State(#[from] StoreError),
    #[error("runtime: {0}")]
    Runtime(io::Error),
    #[error("--upgrade: {0}")]
    Upgrade(#[from] UpgradeError),
}

/// Serves until SIGTERM (drains), SIGINT (stops at once), or SIGQUIT (lets another process take over). SIGHUP reads
/// the configuration again. `flags` are what `config` was made of.
///
/// # Errors
/// What keeps it from starting.
pub fn run(config: Config, flags: &Flags) -> Result<(), StartError> {
    raise_descriptors(config.limits.connections as u64);
    // Probes, ticks and the control API run here; requests are served by workers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(StartError::Runtime)?;
    let served = runtime.block_on(start(config, flags));
    runtime.shutdown_background();
    served
}

async fn start(config: Config, flags: &Flags) -> Result<(), StartError> {
    let meeting = flags.upgrade_socket.clone().unwrap_or_else(|| upgrade::socket_path(&config));
    let (predecessor, inherited) = match flags.upgrade {
        true => Some(Predecessor::accept(&meeting).await?).unzip(),
        false => (None, None),
    };
    let mut server = Server::launch(config, flags.clone(), meeting, inherited.unwrap_or_default())?;
    let stop = signals(&server.app).map_err(StartError::Runtime)?;
    match predecessor {
        None => {
            server.load();
            server.keep();
            server.watch_fleet();
            server.open().map_err(StartError::Runtime)?;
        }
        Some(mut predecessor) => {
            if !predecessor.take_programs(&server.app).await? {
                server.load();
            }
            server.watch_fleet();
            upgrade::look_over(&server.app).await;
            server.open().map_err(StartError::Runtime)?;
            if let Err(e) = predecessor.dismiss().await {
                log::warn!("the process before this one was gone already: {e}");
            }
            server.keep();
        }
    }
    supervisor::serving();
    server.until(stop).await;
    Ok(())
}

/// Shells often allow no more than 1,024 open files.
fn raise_descriptors(connections: u64) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => shortage(connections, limit).iter().for_each(|shortage| log::warn!("{shortage}")),
        Err(e) => log::warn!("the limit on open files stays as it is: {e}"),
    }
}

/// What there is to say where `limit` open files are too few for `connections` of clients.
fn shortage(connections: u64, limit: u64) -> Option<String> {
    let needed = connections.saturating_mul(2);
    (limit < needed).then(|| {
        format!(
            "limits.connections is {connections}: with a backend's connection for each, {needed} open files; \
             `ulimit -n` allows only {limit}"
        )
    })
}

/// The words of signals, from now on. Without a handler SIGQUIT would leave a core dump.
fn signals(app: &Arc<App>) -> io::Result<mpsc::Receiver<Shutdown>> {
    let (out, stop) = mpsc::channel(4);
    let words = [
        (SignalKind::terminate(), Shutdown::Drain),
        (SignalKind::quit(), Shutdown::HandOver),
        (SignalKind::interrupt(), Shutdown::Now),
    ];
    for (kind, stop) in words {
        tokio::spawn(relay(signal(kind)?, stop, out.clone()));
    }
    tokio::spawn(reload_on(signal(SignalKind::hangup())?, Arc::clone(app)));
    Ok(stop)
}

async fn reload_on(mut signal: Signal, app: Arc<App>) {
    while signal.recv().await.is_some() {
        let app = Arc::clone(&app);
        // The reload logs and counts its own outcome.
        let _ = tokio::task::spawn_blocking(move || app.reload()).await;
    }
}

async fn relay(mut signal: Signal, stop: Shutdown, out: mpsc::Sender<Shutdown>) {
    while signal.recv().await.is_some() && out.send(stop).await.is_ok() {}
}

// === impl Server ===

impl Server {
    /// Takes the addresses of the configuration; port 0 is any free one. To be called in a runtime.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let meeting = upgrade::socket_path(&config);
        Self::launch(config, Flags::default(), meeting, Vec::new())
    }

    fn launch(config: Config, flags: Flags, meeting: PathBuf, inherited: Vec<Socket>) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let app = Arc::new(App::with_flags(Arc::clone(&config), flags)?);
        let writer = |file: &PathBuf| {
            SnapshotWriter::open(file, app.gate.clone(), app.fleet.clone(), Arc::clone(&app.telemetry)).map(Arc::new)
        };
        let writer = config.state.snapshot.as_ref().map(writer).transpose()?;
        let mut server = Self {
            app,
            services: (0..workers::count()).map(|_| Vec::new()).collect(),
            listeners: Listeners::new(inherited),
            certificates: Vec::new(),
            sides: Vec::new(),
            leave: watch::Sender::new(false),
            shut: watch::Sender::new(false),
            serving: watch::Sender::new(()),
            accepting: None,
            meeting,
            tasks: JoinSet::new(),
            writer,
        };
        server.listen(Side::Main, &config.listeners)?;
        if let Some(admin) = &config.admin {
            server.listen(Side::Admin, &[Listener { address: admin.listen, tls: None }])?;
        }
        Ok(server)
    }

    /// Takes the addresses of one side: a service for each and each worker, with one proxy behind them all.
    fn listen(&mut self, side: Side, listeners: &[Listener]) -> Result<(), StartError> {
        let app = &self.app;
        let proxy = acceptor::http(app, side);
        let limit = Arc::<ConnectionLimit>::default();
        for &Listener { address, ref tls } in listeners {
            let tls = tls.as_ref().map(Certificates::load).transpose();
            let tls = tls.map_err(|cause| ListenError::Tls { address, cause })?.map(Arc::new);
            self.certificates.extend(tls.clone());
            let address = self.listeners.add(address)?;
            for services in &mut self.services {
                let (proxy, limit, leave) = (Arc::clone(&proxy), Arc::clone(&limit), self.leave.subscribe());
                let acceptor = Acceptor::new(Arc::clone(app), side, proxy, limit, tls.clone(), leave);
                services.push(listen::service(format!("{side:?}"), acceptor, address));
            }
        }
        self.sides.push((proxy, limit));
        Ok(())
    }

    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// The addresses it listens on: the listeners in the order of the configuration, then the admin listener.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        self.listeners.addresses()
    }

    /// Serves until it is told to stop, or `stop` is closed.
    pub async fn serve(mut self, stop: mpsc::Receiver<Shutdown>) {
        self.load();
        self.keep();
        self.watch_fleet();
        match self.open() {
            Ok(()) => self.until(stop).await,
            Err(e) => log::error!("cannot serve: {e}"),
        }
    }

    /// Restores what a process before this one has left on disk.
    fn load(&self) {
        self.writer.iter().for_each(|writer| writer.load());
    }

    /// Writes the state from now on.
    fn keep(&mut self) {
        if let Some(writer) = self.writer.clone() {
            self.tasks.spawn(async move { writer.run().await });
        }
    }

    /// Starts to look after the backends.
    fn watch_fleet(&mut self) {
        let (fleet, gate) = (self.app.fleet.clone(), self.app.gate.clone());
        self.tasks.spawn(async move { fleet.run().await });
        self.tasks.spawn(async move { gate.run_ticks().await });
        for (proxy, _) in &self.sides {
            let proxy = Arc::clone(proxy);
            self.tasks.spawn(async move { proxy.sweep().await });
        }
    }

    /// Starts to accept connections.
    fn open(&mut self) -> io::Result<()> {
        for certificates in self.certificates.drain(..) {
            self.tasks.spawn(certificates.watch());
        }
        let (accepting, acceptors) = mpsc::channel(1);
        for services in self.services.drain(..) {
            workers::start(services, self.listeners.open()?, &self.shut, &self.serving, accepting.clone())?;
        }
        self.accepting = Some(acceptors);
        for address in self.addresses() {
            log::info!("listening on {address}");
        }
        Ok(())
    }

    async fn until(mut self, mut stop: mpsc::Receiver<Shutdown>) {
        let mut word = stop.recv().await;
        while word == Some(Shutdown::HandOver) {
            // Another word ends the attempt.
            word = tokio::select! {
                replaced = self.hand_over() => match replaced {
                    true => break,
                    false => stop.recv().await,
                },
                other = stop.recv() => other,
            };
        }
        let ending = async {
            match word {
                Some(Shutdown::Drain) => self.drain().await,
                Some(Shutdown::HandOver) => self.finish().await,
                Some(Shutdown::Now) | None => {}
            }
        };
        tokio::select! {
            () = ending => {}
            () = until_now(&mut stop) => {}
        }
        self.shut.send_replace(true);
        if let Some(writer) = self.writer.take() {
            // A disk that hangs does not keep the process.
            let _ = timeout(FLUSH, tokio::task::spawn_blocking(move || writer.save())).await;
        }
        let telemetry = Arc::clone(&self.app.telemetry);
        let flushed = tokio::task::spawn_blocking(move || telemetry.flush(FLUSH)).await;
        if !flushed.unwrap_or(false) {
            log::warn!("the end of the access log or of the profiles may be lost");
        }
    }

    /// Whether another process serves in place of this one.
    async fn hand_over(&self) -> bool {
        log::info!("handing over to the process that waits at {}", self.meeting.display());
        let done = upgrade::hand_over(&self.app, self.listeners.sockets(), &self.meeting).await;
        if let Err(reason) = &done {
            log::error!("nobody takes over, this process goes on: {reason}");
        } else if let Some(writer) = self.writer.clone() {
            // A write may be under way; the other process waits until `done` is dropped.
            let _ = tokio::task::spawn_blocking(move || writer.retire()).await;
        }
        done.is_ok()
    }

    /// Refuses new requests; ends with the last answer, or after the grace.
    async fn drain(&mut self) {
        self.app.drain();
        self.leave.send_replace(true);
        supervisor::stopping();
        log::info!("draining");
        let grace = self.app.settings().timeouts.grace;
        if timeout(grace, self.app.open.idle()).await.is_err() {
            log::warn!("{} answers are cut off after {grace:?} of grace", self.app.open.count());
        }
        // Nobody is served any more; now the sockets close.
        self.close().await;
        let _ = timeout(LINGER, self.empty()).await;
    }

    /// Serves to the end all that came here, held steps too: another process accepts in place of this one.
    async fn finish(&mut self) {
        self.listeners.close();
        self.shut.send_replace(true);
        if let Some(mut acceptors) = self.accepting.take() {
            // Without this wait the last connections might not be counted yet.
            let _ = timeout(LINGER, acceptors.recv()).await;
        }
        self.leave.send_replace(true);
        log::info!("another process serves; {} answers are finished here", self.app.open.count());
        let grace = self.app.settings().timeouts.grace;
        if timeout(grace, self.deserted()).await.is_err() {
            log::warn!("{} answers are cut off after {grace:?} of grace", self.app.open.count());
        }
        self.close().await;
        let _ = timeout(LINGER, self.empty()).await;
    }

    /// Returns when no request is open, and none has come for a while on a connection that is still there.
    async fn deserted(&self) {
        loop {
            self.app.open.idle().await;
            tokio::select! {
                () = self.empty() => return,
                () = self.app.open.busy() => {}
                () = sleep(LAST_REQUEST) => return,
            }
        }
    }

    /// Returns when every connection is closed.
    async fn empty(&self) {
        join_all(self.sides.iter().map(|(_, limit)| limit.empty())).await;
    }

    /// Closes the sockets, and the connections without a request.
    async fn close(&mut self) {
        self.listeners.close();
        self.shut.send_replace(true);
        for (proxy, _) in &self.sides {
            proxy.close();
        }
    }
}

/// A second word may cut a drain short.
async fn until_now(stop: &mut mpsc::Receiver<Shutdown>) {
    while let Some(word) = stop.recv().await {
        if word == Shutdown::Now {
            return;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::shortage;

    #[test]
    fn a_shortage_of_descriptors_names_what_is_needed_and_less_that_is_there() {
        for (connections, limit) in [(20_000, 20_000), (20_000, 39_999), (1, 1), (u64::MAX, u64::MAX - 1)] {
            let said = shortage(connections, limit).expect("too few");
            let needed = connections.saturating_mul(2);
            assert!(
                said.contains(&format!("{needed} open files")) && said.ends_with(&format!("only {limit}")),
                "{said}"
            );
        }
        for (connections, limit) in [(20_000, 40_000), (0, 0), (u64::MAX, u64::MAX)] {
            assert_eq!(shortage(connections, limit), None);
        }
    }
}
