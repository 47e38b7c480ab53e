//! One process takes over from another. The new process listens at a unix socket. The old process connects there when it
//! gets SIGQUIT, hands everything over, and stops once the new process serves. If that fails at any point, the old
//! process goes on as before.
//!
//! ```text
//! old ─▶ new   the listening sockets, and what was set at run time (`Handover`)
//! new ─▶ old   READY: it could be started
//! old ─▶ new   the program table (`state::Snapshot`)
//! new ─▶ old   SERVING: it has looked at its backends; now both accept, and the old one stops
//! ```

mod wire;

use super::listen::Socket;
use crate::app::App;
use crate::config::{self, Config, Secret};
use crate::fleet::{BackendStatus, Origin};
use crate::state::{self, Snapshot};
use serde::{Deserialize, Serialize};
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use wire::{check_peer, read_frame, receive_descriptors, send_descriptors, write_frame};

/// Time that the old process has to be sent SIGQUIT while the new one waits.
const ACCEPT_LIMIT: Duration = Duration::from_secs(60);
/// Time that the old process tries to connect to the new one, and the pause between two attempts.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Time that each answer of the other process may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Time that the first checks of all backends are waited for: that of a healthy one takes `health.timeout` at most.
const LOOK_OVER: Duration = Duration::from_secs(3);
/// Version of the messages, which both processes must share.
const VERSION: u32 = 1;

const READY: u8 = b'R';
const SERVING: u8 = b'S';

/// Why nobody took over.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("{}: {cause}", .path.display())]
    Socket { path: PathBuf, cause: io::Error },
    #[error("{}: another process waits there already", .path.display())]
    Taken { path: PathBuf },
    #[error("nobody came to {} within {ACCEPT_LIMIT:?}: send SIGQUIT to the running server", .path.display())]
    Alone { path: PathBuf },
    #[error("no process waits at {}: start one with --upgrade first", .path.display())]
    Nobody { path: PathBuf },
    #[error("the other process belongs to another user")]
    Stranger,
    #[error("the other process is of another version")]
    Version,
    #[error("the other process: {0}")]
    Broken(#[from] io::Error),
    #[error("the other process is silent")]
    Silent(#[from] tokio::time::error::Elapsed),
    #[error("a weight sync is going on")]
    WeightSync,
}

/// What goes along with the sockets.
#[derive(Serialize, Deserialize)]
struct Handover {
    version: u32,
    /// Addresses of the sockets as configured, in the order of the descriptors.
    addresses: Vec<SocketAddr>,
    /// Backends that no file names.
    backends: Vec<AddedBackend>,
}

/// A backend that came by `POST /backends` or by discovery. Discovered ones are looked up again, but programs may be at
/// home there.
#[derive(Serialize, Deserialize)]
struct AddedBackend {
    discovered: bool,
    model: String,
    url: String,
    weight: u32,
    api_key: Option<String>,
    capacity_tokens: Option<u64>,
}

/// Path of the socket by default: one for each user and first address.
pub fn socket_path(config: &Config) -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let address = config.listeners.first().map(|listener| listener.address.to_string());
    std::env::temp_dir().join(format!("thundergate-{user}-{}.sock", address.unwrap_or_default()))
}

// === the new process ===

/// The process before this one, which still serves.
pub struct Predecessor {
    stream: UnixStream,
    backends: Vec<AddedBackend>,
}

impl Predecessor {
    /// Waits for the old process at `path`, and takes its sockets.
    ///
    /// # Errors
    /// The old process does not connect, or what it sends cannot be used.
    pub async fn accept(path: &Path) -> Result<(Self, Vec<Socket>), UpgradeError> {
        let socket = UpgradeSocket::open(path).await?;
        log::info!("waiting at {}: send SIGQUIT to the running server", path.display());
        let alone = |_| UpgradeError::Alone { path: path.to_owned() };
        timeout(ACCEPT_LIMIT, socket.accept()).await.map_err(alone)?
    }

    /// Takes backends and programs over, before the fleet of `app` runs. `false` if the programs cannot be read.
    ///
    /// # Errors
    /// The old process has given up.
    pub async fn take_programs(&mut self, app: &App) -> Result<bool, UpgradeError> {
        for added in std::mem::take(&mut self.backends) {
            added.add_to(app);
        }
        self.stream.write_u8(READY).await?;
        let table = timeout(ANSWER_LIMIT, read_frame(&mut self.stream)).await??;
        match state::decode(&table) {
            Ok(snapshot) => {
                let restored = snapshot.restore(&app.gate, &app.fleet);
                log::info!("{} programs are taken over", restored.programs);
                Ok(true)
            }
            // The schedulers learn anew what they are not told.
            Err(damage) => {
                log::warn!("the programs are not taken over: {damage}");
                Ok(false)
            }
        }
    }

    /// Tells the old process that this one accepts connections, so that it stops. When this returns, the old process
    /// writes no more state.
    ///
    /// # Errors
    /// The old process is gone already.
    pub async fn dismiss(mut self) -> io::Result<()> {
        self.stream.write_u8(SERVING).await?;
        let mut nothing = [0];
        timeout(ANSWER_LIMIT, self.stream.read(&mut nothing)).await??;
        Ok(())
    }
}

/// Waits until every backend was checked, so that no step is held because none is known to be up.
pub async fn look_over(app: &App) {
    if timeout(LOOK_OVER, app.fleet.looked_over()).await.is_err() {
        log::warn!("some backends have not answered yet");
    }
}

/// The socket of the new process. Its file is removed when this is dropped.
struct UpgradeSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl UpgradeSocket {
    async fn open(path: &Path) -> Result<Self, UpgradeError> {
        let failed = |cause| UpgradeError::Socket { path: path.to_owned(), cause };
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(UpgradeError::Taken { path: path.to_owned() });
                }
                // Left behind by a process that was killed.
                std::fs::remove_file(path).map_err(failed)?;
                UnixListener::bind(path).map_err(failed)?
            }
            bound => bound.map_err(failed)?,
        };
        let socket = Self { listener, path: path.to_owned() };
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(socket)
    }

    /// Accepts the old process. Others connect only to see whether somebody listens here.
    async fn accept(&self) -> Result<(Predecessor, Vec<Socket>), UpgradeError> {
        loop {
            let (mut stream, _) = self.listener.accept().await?;
            if check_peer(&stream).is_err() {
                continue;
            }
            match read_handover(&mut stream).await {
                Ok((handover, sockets)) => return Ok((Predecessor { stream, backends: handover.backends }, sockets)),
                Err(UpgradeError::Broken(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for UpgradeSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn read_handover(stream: &mut UnixStream) -> Result<(Handover, Vec<Socket>), UpgradeError> {
    let fds = receive_descriptors(stream).await?;
    let handover = timeout(ANSWER_LIMIT, read_frame(stream)).await??;
    let handover: Handover = serde_json::from_slice(&handover).map_err(|_| UpgradeError::Version)?;
    if handover.version != VERSION || handover.addresses.len() != fds.len() {
        return Err(UpgradeError::Version);
    }
    let socket = |(fd, &configured): (OwnedFd, _)| Socket { configured, listener: fd.into() };
    let sockets = fds.into_iter().zip(&handover.addresses).map(socket).collect();
    Ok((handover, sockets))
}

// === the old process ===

/// Hands everything over to the process that waits at `path`. That process serves when this returns. It writes the state
/// as well once the stream is closed.
///
/// # Errors
/// The new process does not serve, and this one is to go on.
pub async fn hand_over(app: &App, sockets: &[Socket], path: &Path) -> Result<UnixStream, UpgradeError> {
    if app.weight_sync.active() {
        return Err(UpgradeError::WeightSync);
    }
    let mut stream = connect(path).await?;
    check_peer(&stream)?;
    let addresses = sockets.iter().map(|socket| socket.configured).collect();
    let handover = Handover { version: VERSION, addresses, backends: AddedBackend::all(app) };
    let handover = serde_json::to_vec(&handover).map_err(io::Error::from)?;
    let fds: Vec<_> = sockets.iter().map(|socket| socket.listener.as_fd()).collect();
    send_descriptors(&stream, &fds).await?;
    timeout(ANSWER_LIMIT, write_frame(&mut stream, &handover)).await??;
    expect(&mut stream, READY).await?;
    send_programs(&mut stream, app).await?;
    expect(&mut stream, SERVING).await?;
    Ok(stream)
}

async fn send_programs(stream: &mut UnixStream, app: &App) -> Result<(), UpgradeError> {
    let (gate, fleet) = (app.gate.clone(), app.fleet.clone());
    let table = tokio::task::spawn_blocking(move || state::encode(&Snapshot::take(&gate, &fleet))).await;
    let table = table.map_err(io::Error::from)?;
    timeout(ANSWER_LIMIT, write_frame(stream, &table)).await??;
    Ok(())
}

/// Connects to the new process, which may still be starting.
async fn connect(path: &Path) -> Result<UnixStream, UpgradeError> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => sleep(CONNECT_PAUSE).await,
            Err(_) => return Err(UpgradeError::Nobody { path: path.to_owned() }),
        }
    }
}

/// Waits for this answer of the new process.
async fn expect(stream: &mut UnixStream, answer: u8) -> Result<(), UpgradeError> {
    let got = timeout(ANSWER_LIMIT, stream.read_u8()).await??;
    if got == answer { Ok(()) } else { Err(UpgradeError::Version) }
}

// === impl AddedBackend ===

impl AddedBackend {
    /// The backends of `app` that no file names.
    fn all(app: &App) -> Vec<Self> {
        let added = |status: BackendStatus| {
            let backend = status.backend;
            let settings = backend.settings();
            // Of a server's ranks the first stands for all.
            let here = settings.origin != Origin::File && !status.draining && backend.rank.is_none_or(|rank| rank == 0);
            here.then(|| Self {
                discovered: settings.origin == Origin::Dns,
                model: app.fleet.pool_name(backend.pool).unwrap_or_default().to_owned(),
                url: backend.server().to_owned(),
                weight: settings.weight,
                api_key: settings.api_key.as_ref().map(|key| key.0.clone()),
                capacity_tokens: settings.capacity_tokens,
            })
        };
        app.fleet.statuses().into_iter().filter_map(added).collect()
    }

    /// Adds the backend, unless the new configuration names it itself, or does not have its pool any more.
    fn add_to(self, app: &App) {
        let add = || {
            let at = config::Backend::at(&self.url)?;
            let api_key = self.api_key.map(Secret);
            let backend = config::Backend { api_key, weight: self.weight, capacity_tokens: self.capacity_tokens, ..at };
            let model = Some(self.model.as_str()).filter(|name| !name.is_empty());
            let origin = if self.discovered { Origin::Dns } else { Origin::Api };
            app.fleet.add(app.fleet.pool_for(model).ok_or("its pool is gone")?, &backend, origin)
        };
        if let Err(reason) = add() {
            log::info!("{} is not taken over: {reason}", self.url);
        }
    }
}
