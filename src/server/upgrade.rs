//! One process takes over from another: the new one waits at a unix socket, the old one comes there when it is
//! told to (SIGQUIT), and goes on as if nothing had been unless the new one says at the end that it serves.
//!
//! ```text
//! old ─▶ new   the listening sockets, and what was set at run time
//! new ─▶ old   READY: it could be started
//! old ─▶ new   the program table
//! new ─▶ old   SERVING: it has looked at its backends; now both accept, and the old one stops
//! ```

use super::listen::Socket;
use crate::app::App;
use crate::config::{self, Config, Secret};
use crate::fleet::Origin;
use crate::state::{self, Snapshot};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};

/// How long the new process waits for the old one to be sent SIGQUIT.
const ARRIVAL: Duration = Duration::from_secs(60);
/// How long the old one looks for the new one, and how often.
const SEARCH: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(50));
/// For each answer of the other process.
const PATIENCE: Duration = Duration::from_secs(60);
/// Backends that hang are waited for no longer: the first check of a healthy one takes `health.timeout` at most.
const LOOK_OVER: Duration = Duration::from_secs(3);
/// Descriptors in one message (Linux, `SCM_MAX_FD`).
const MOST_SOCKETS: usize = 253;
/// Far above the table of `programs.max` at its default.
const LARGEST_FRAME: u64 = 1 << 30;
/// Of the messages; both have to be of the same.
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
    #[error("nobody came to {} within {ARRIVAL:?}: send SIGQUIT to the running server", .path.display())]
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
    /// As configured, in the order of the descriptors.
    addresses: Vec<SocketAddr>,
    /// Those of which no file knows.
    backends: Vec<AddedBackend>,
}

/// By `POST /backends` or by discovery. The latter are looked up again, but programs may be at home there.
#[derive(Serialize, Deserialize)]
struct AddedBackend {
    discovered: bool,
    model: String,
    url: String,
    weight: u32,
    api_key: Option<String>,
    capacity_tokens: Option<u64>,
}

/// Where the two meet, by default: one place for each user and first address.
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
    /// Waits for it at `path`, and takes its sockets.
    ///
    /// # Errors
    /// It does not come, or what it brings cannot be used.
    pub async fn accept(path: &Path) -> Result<(Self, Vec<Socket>), UpgradeError> {
        let socket = UpgradeSocket::open(path).await?;
        log::info!("waiting at {}: send SIGQUIT to the running server", path.display());
        let alone = |_| UpgradeError::Alone { path: path.to_owned() };
        timeout(ARRIVAL, socket.visit()).await.map_err(alone)?
    }

    /// Takes backends and programs over, before the fleet of `app` runs; `false` if its programs cannot be read.
    ///
    /// # Errors
    /// It has given up.
    pub async fn take_programs(&mut self, app: &App) -> Result<bool, UpgradeError> {
        for added in std::mem::take(&mut self.backends) {
            added.add_to(app);
        }
        self.stream.write_u8(READY).await?;
        let table = timeout(PATIENCE, read_frame(&mut self.stream)).await??;
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

    /// This process accepts connections: the other one may stop. It writes no more state when this returns.
    ///
    /// # Errors
    /// It is gone already.
    pub async fn dismiss(mut self) -> io::Result<()> {
        self.stream.write_u8(SERVING).await?;
        let mut nothing = [0];
        timeout(PATIENCE, self.stream.read(&mut nothing)).await??;
        Ok(())
    }
}

/// Waits until every backend was checked, so that no step is held for want of one.
pub async fn look_over(app: &App) {
    if timeout(LOOK_OVER, app.fleet.looked_over()).await.is_err() {
        log::warn!("some backends have not answered yet");
    }
}

/// A place to be met at; gone when dropped.
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

    /// The first visitor that is who it should be; others only look whether somebody is here.
    async fn visit(&self) -> Result<(Predecessor, Vec<Socket>), UpgradeError> {
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
    let mut first = [0];
    let fds = stream.async_io(Interest::READABLE, || receive(stream.as_fd(), &mut first)).await?;
    let handover = timeout(PATIENCE, read_frame(stream)).await??;
    let handover: Handover = serde_json::from_slice(&handover).map_err(|_| UpgradeError::Version)?;
    if handover.version != VERSION || handover.addresses.len() != fds.len() {
        return Err(UpgradeError::Version);
    }
    let socket = |(fd, &configured): (OwnedFd, _)| Socket { configured, listener: fd.into() };
    let sockets = fds.into_iter().zip(&handover.addresses).map(socket).collect();
    Ok((handover, sockets))
}

// === the old process ===

/// Gives everything to the process that waits at `path`. It serves when this returns; when the stream is closed, it
/// writes the state too.
///
/// # Errors
/// It does not, and this one is to go on.
pub async fn hand_over(app: &Arc<App>, sockets: &[Socket], path: &Path) -> Result<UnixStream, UpgradeError> {
    if app.weight_sync.active() {
        return Err(UpgradeError::WeightSync);
    }
    let mut stream = find(path).await?;
    check_peer(&stream)?;
    let addresses = sockets.iter().map(|socket| socket.configured).collect();
    let handover = Handover { version: VERSION, addresses, backends: AddedBackend::all(app) };
    let handover = serde_json::to_vec(&handover).map_err(io::Error::from)?;
    let fds: Vec<_> = sockets.iter().map(|socket| socket.listener.as_fd()).collect();
    stream.async_io(Interest::WRITABLE, || send(stream.as_fd(), &fds)).await?;
    write_frame(&mut stream, &handover).await?;
    hear(&mut stream, READY).await?;
    let (gate, fleet) = (app.gate.clone(), app.fleet.clone());
    let table = tokio::task::spawn_blocking(move || state::encode(&Snapshot::take(&gate, &fleet))).await;
    let table = table.map_err(io::Error::from)?;
    timeout(PATIENCE, write_frame(&mut stream, &table)).await??;
    hear(&mut stream, SERVING).await?;
    Ok(stream)
}

/// The new process may still be on its way.
async fn find(path: &Path) -> Result<UnixStream, UpgradeError> {
    let (limit, pause) = SEARCH;
    let deadline = Instant::now() + limit;
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => sleep(pause).await,
            Err(_) => return Err(UpgradeError::Nobody { path: path.to_owned() }),
        }
    }
}

async fn hear(stream: &mut UnixStream, word: u8) -> Result<(), UpgradeError> {
    match timeout(PATIENCE, stream.read_u8()).await?? {
        heard if heard == word => Ok(()),
        _ => Err(UpgradeError::Version),
    }
}

// === impl AddedBackend ===

impl AddedBackend {
    fn all(app: &App) -> Vec<Self> {
        let added = |status: crate::fleet::BackendStatus| {
            let backend = status.backend;
            let settings = backend.settings();
            // Of a server with ranks one stands for all.
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

    /// The new configuration has the last word: it may name the backend itself, or not have its pool any more.
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

// === messages ===

/// Only the same user, or root, may be given sockets, or give them.
fn check_peer(stream: &UnixStream) -> Result<(), UpgradeError> {
    let (own, other) = (rustix::process::geteuid().as_raw(), stream.peer_cred()?.uid());
    (other == own || other == 0).then_some(()).ok_or(UpgradeError::Stranger)
}

/// One byte, with descriptors on its back.
fn send(stream: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other(format!("more than {MOST_SOCKETS} listeners")));
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(b"F")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: BorrowedFd<'_>, byte: &mut [u8; 1]) -> io::Result<Vec<OwnedFd>> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(byte)], &mut control, flags)?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    };
    Ok(control.drain().filter_map(rights).flatten().collect())
}

async fn write_frame(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_u64(bytes.len() as u64).await?;
    stream.write_all(bytes).await
}

async fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u64().await?;
    if length > LARGEST_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes).await?;
    match bytes.len() as u64 == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
