//! The whole proxy in this process, on free ports, with scripted backends.

use super::backend::Backend;
use super::{client::Client, within};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use thundergate::app::App;
use thundergate::config::{self, Config};
use thundergate::server::{Server, Shutdown};
use tokio::sync::mpsc;

/// A proxy that serves until it is dropped or told to stop.
pub struct Proxy {
    pub address: SocketAddr,
    /// Addresses of all listeners. The admin listener's address is the last.
    pub addresses: Vec<SocketAddr>,
    pub app: Arc<App>,
    stop: mpsc::Sender<Shutdown>,
    task: tokio::task::JoinHandle<()>,
}

/// One unnamed pool with these backends, and quick health checks.
pub fn config(backends: &[&Backend]) -> Config {
    let urls = backends.iter().map(|backend| backend.url());
    config_of(urls)
}

/// One unnamed pool with backends at these URLs, and quick health checks.
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
    /// Starts a proxy, and waits until every backend is found healthy.
    pub async fn start(backends: &[&Backend]) -> Self {
        Self::with(config(backends)).await
    }

    pub async fn with(config: Config) -> Self {
        let proxy = Self::unready(config);
        proxy.ready().await;
        proxy
    }

    /// Starts a proxy without waiting.
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

    /// A proxy whose requests are served by `task`, which runs until this value is dropped.
    pub async fn served_by(app: Arc<App>, address: SocketAddr, task: tokio::task::JoinHandle<()>) -> Self {
        let proxy = Self { address, addresses: vec![address], app, stop: mpsc::channel(1).0, task };
        proxy.ready().await;
        proxy
    }

    async fn ready(&self) {
        let all = || self.app.fleet.statuses().iter().all(|status| status.healthy);
        self.wait_for("healthy backends", all).await;
    }

    /// Waits until `condition` holds. The condition is checked every few milliseconds.
    pub async fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        within(what, async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Waits until all steps are settled and the ledger is sound.
    pub async fn settled(&self) {
        self.wait_for("every step to be settled", || self.app.gate.open_steps() == 0).await;
        self.app.gate.check().expect("a sound ledger");
    }

    /// Checks that the proxy is unharmed: no step is under way, the last charge goes with the last program, and the
    /// next request is served.
    pub async fn unharmed(&self, backend: &mut Backend) {
        self.balanced().await;
        let mut client = self.client().await;
        client.post("/v1/chat/completions", "", br#"{"model":"tiny","program_id":"next"}"#).await;
        backend.next().await.json(200, "{}").await;
        let response = client.response().await;
        assert_eq!((response.status(), response.text()), (200, "{}"));
        self.balanced().await;
    }

    /// Checks that the ledger is sound and, once its programs are released, empty. All clients have gone.
    pub async fn balanced(&self) {
        self.settled().await;
        let gate = &self.app.gate;
        for (_, program) in gate.programs() {
            assert_eq!((program.in_flight, program.held), (0, 0), "{program:?}");
            assert!(gate.release(&program.key));
        }
        assert!(gate.programs().is_empty());
        for (_, load) in gate.loads() {
            let counts = (load.in_flight, load.leased_running, load.leased_idle);
            let charges = (load.charged_running.0, load.charged_idle.0);
            assert_eq!((counts, charges), ((0, 0, 0), (0, 0)), "{load:?}");
        }
        gate.check().expect("a sound ledger");
        let given_back = || self.app.open.count() == 0 && self.app.bodies.used() == 0;
        self.wait_for("requests and their bodies to be given back", given_back).await;
    }

    /// Reads the proxy's page of metrics.
    pub async fn page(&self) -> String {
        let mut client = self.client().await;
        client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\n\r\n").await;
        client.response().await.text().to_owned()
    }

    /// The value of one series of the metrics; zero if there is no such series.
    pub async fn metric(&self, series: &str) -> f64 {
        let page = self.page().await;
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    pub async fn stop(&self, stop: Shutdown) {
        self.stop.send(stop).await.expect("it runs");
    }

    /// Waits until the server has ended by itself.
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
