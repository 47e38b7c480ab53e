//! The life of a server: listen, serve, stop gently or at once, start again.

use super::EngineConfig;
use super::answer::Author;
use super::driver::Driver;
use super::face::{Face, unix_time};
use super::http::router;
use super::model::{Counters, Engine, Gauges};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Time after which an idle connection is closed: uvicorn's default, which vLLM keeps.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A simulated engine on the current tokio runtime; killed when dropped.
pub struct Server {
    /// Address where the server listens. The port is the real one even if 0 was asked for.
    pub addr: SocketAddr,
    config: EngineConfig,
    face: Arc<Face>,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

/// Reason why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: std::io::Error },
    #[error("script {}: {error}", path.display())]
    Script { path: PathBuf, error: String },
    #[error("--{flag}: {problem}")]
    Flag { flag: &'static str, problem: &'static str },
    #[error(transparent)]
    Runtime(#[from] std::io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Serve,
    /// Refuse new connections and requests, and finish those under way.
    Stop,
    Kill,
}

// === impl Server ===

impl Server {
    pub async fn start(config: EngineConfig) -> Result<Self, StartError> {
        let author = match &config.script {
            None => Author::new(config.seed),
            Some(path) => {
                Author::scripted(config.seed, path).map_err(|error| StartError::Script { path: path.clone(), error })?
            }
        };
        let address = format!("{}:{}", config.host, config.port);
        let failed = |error| StartError::Listen { address: address.clone(), error };
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;

        let engine = Engine::new(config.shape.clone());
        let capacity = engine.capacity();
        let mut drivers = vec![Driver::new(engine)];
        drivers.extend((1..config.ranks).map(|_| Driver::new(Engine::new(config.shape.clone()))));
        let face = Arc::new(Face {
            model: config.model.clone(),
            max_model_len: config.max_model_len.map_or(capacity, |len| len.min(capacity)),
            flavor: config.flavor,
            shape: config.shape.clone(),
            drivers: drivers.clone(),
            author,
            started: unix_time(),
            received: AtomicU64::new(0),
        });
        let (mode, changes) = watch::channel(Mode::Serve);
        let app = router(Arc::clone(&face));
        let task = tokio::spawn(async move {
            tokio::select! {
                () = serve(listener, app, changes) => {}
                () = run_all(drivers) => {}
            }
        });
        Ok(Self { addr, config, face, mode, task })
    }

    /// URL of the server, `http://HOST:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Refuses new connections, finishes the requests under way, and ends.
    pub async fn stop(self) {
        self.end(Mode::Stop).await;
    }

    /// Drops the listener and all connections at once.
    pub async fn kill(self) {
        self.end(Mode::Kill).await;
    }

    /// Kills the server and starts a new one on the same port, with an empty cache.
    pub async fn restart(self) -> Result<Self, StartError> {
        let config = EngineConfig { port: self.addr.port(), ..self.config.clone() };
        self.kill().await;
        Self::start(config).await
    }

    /// Number of inference requests received since the start, refused ones included.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.face.received.load(Ordering::Relaxed)
    }

    /// Number of running and waiting requests, and use of the cache, of the first rank.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        self.face.drivers[0].snapshot().gauges
    }

    /// Totals of the first rank.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters_of(0)
    }

    /// # Panics
    /// If there is no such rank.
    #[must_use]
    pub fn counters_of(&self, rank: usize) -> Counters {
        self.face.drivers[rank].snapshot().counters
    }

    async fn end(self, mode: Mode) {
        self.mode.send_replace(mode);
        // At worst the task has ended by a panic of its own. The server is over then too.
        let _ = self.task.await;
    }
}

async fn run_all(drivers: Vec<Driver>) {
    futures_util::future::join_all(drivers.into_iter().map(Driver::run)).await;
}

async fn serve(listener: TcpListener, app: Router, mut mode: watch::Receiver<Mode>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = mode.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, app.clone(), mode.clone()));
                }
                // Most likely there are no file descriptors left. The pause lets some connections end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
    drop(listener);
    if *mode.borrow() == Mode::Stop {
        while connections.join_next().await.is_some() {}
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, app: Router, mut mode: watch::Receiver<Mode>) {
    // Without this option, a small event would wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut serving = pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => return,
        _ = mode.changed() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}
