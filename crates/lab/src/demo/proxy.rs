//! Thundergate itself, as a child process.

use super::DemoError;
use reqwest::Client;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// Time limit for the proxy to get ready.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The proxy as a child process; killed when dropped.
pub(super) struct ProxyProcess {
    pub url: String,
    pub http: Client,
    child: Child,
    /// Number of programs that wait for room, as the proxy told last.
    held: u64,
}

impl ProxyProcess {
    pub(super) async fn start(backends: &[String], router: &str) -> Result<Self, DemoError> {
        let what = "thundergate";
        let port = free_port().map_err(|error| DemoError::Start { what: "proxy", error })?;
        let mut command = Command::from(crate::beside(what));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--router", router]);
        command.args(["--backends", &backends.join(","), "--log-level", "error", "--metrics-interval", "1"]);
        // The user's RUST_LOG is meant for this process, not for the proxy.
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().map_err(|error| DemoError::Start { what, error })?;
        let http = Client::builder().no_proxy().build().map_err(|error| DemoError::NotReady(error.to_string()))?;
        let mut proxy = Self { url: format!("http://127.0.0.1:{port}"), http, child, held: 0 };
        proxy.ready().await?;
        Ok(proxy)
    }

    async fn ready(&mut self) -> Result<(), DemoError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let why = match self.http.get(format!("{}/readyz", self.url)).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.status().to_string(),
                Err(error) => error.to_string(),
            };
            // If the proxy has failed, its reason is on this terminal: both write to the same stderr.
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(DemoError::NotReady(status.to_string()));
            }
            if Instant::now() >= deadline {
                return Err(DemoError::NotReady(why));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Number of programs that wait for room.
    pub(super) async fn held(&mut self) -> u64 {
        if let Ok(answer) = self.http.get(format!("{}/health", self.url)).send().await
            && let Ok(health) = answer.json::<Value>().await
        {
            self.held = health["paused_count"].as_u64().unwrap_or(self.held);
        }
        self.held
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
