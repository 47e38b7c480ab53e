//! The whole proxy in this process, on free ports, with scripted backends.

use super::backend::Backend;
use super::{client::Client, within};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use thundergate::app::App;
use thundergate::config::{self, Config};
use thundergate::server::{Server, Stop};
use tokio::sync::mpsc;

/// Serves until it is dropped, or told to stop.
pub struct Proxy {
    pub address: SocketAddr,
    /// All of them; the admin listener's is the last.
    pub addresses: Vec<SocketAddr>,
    pub app: Arc<App>,
    stop: mpsc::Sender<Stop>,
    task: tokio::task::JoinHandle<()>,
}

/// One unnamed pool with these backends, and quick health checks.
pub fn config(backends: &[&Backend]) -> Config {
    let urls = backends.iter().map(|backend| backend.url());
    config_of(urls)
}

/// The same of any URLs.
pub fn config_of(urls: impl IntoIterator<Item = String>) -> Config {
    let backends = urls.into_iter().map(|url| config::Backend::at(&url).expect("a URL"));
    let mut pool = config::Pool::unnamed(backends.collect());
    pool.health.interval = Duration::from_millis(100);
    let mut config = Config { models: vec![pool], ..Config::default() };
    config.listeners = vec![config::Listener::plain(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))];
    config.logging.access = None;
    config
}

// === impl Proxy ===

impl Proxy {
    /// Starts it, and waits until every backend is found healthy.
    pub async fn start(backends: &[&Backend]) -> Self {
        Self::with(config(backends)).await
    }

    pub async fn with(config: Config) -> Self {
        let proxy = Self::unready(config);
        let all = || proxy.app.fleet.statuses().iter().all(|status| status.healthy);
        proxy.wait_for("healthy backends", all).await;
        proxy
    }

    /// Starts it without waiting.
    pub fn unready(config: Config) -> Self {
        let server = Server::bind(config).expect("a usable configuration");
        let (stop, words) = mpsc::channel(2);
        let (addresses, app) = (server.addresses().to_vec(), Arc::clone(server.app()));
        let address = addresses[0];
        let task = tokio::spawn(server.serve(words));
        Self { address, addresses, app, stop, task }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Waits until `condition` holds; it is looked at every few milliseconds.
    pub async fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        within(what, async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// All steps are settled, and the ledger is sound.
    pub async fn settled(&self) {
        self.wait_for("every step to be settled", || self.app.gate.open_steps() == 0).await;
        self.app.gate.check().expect("a sound ledger");
    }

    pub async fn stop(&self, stop: Stop) {
        self.stop.send(stop).await.expect("it runs");
    }

    /// The server has ended by itself.
    pub async fn ended(&mut self) {
        let ended = within("the end of the server", &mut self.task).await;
        ended.expect("no panic");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
