//! The child processes: this very program, as engines and as the proxy.

use super::DemoError;
use parking_lot::Mutex;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::time::{Instant, sleep};

/// Engines in the fleet.
pub(super) const ENGINES: usize = 2;
const BLOCK_SIZE: u64 = 16;
const BLOCKS: u64 = 3000;
/// KV cache of one engine, in tokens.
pub(super) const CAPACITY_TOKENS: u64 = BLOCK_SIZE * BLOCKS;

/// GLM-4.6 on 8×H100 in small: a tenth of its 500,000 tokens of cache against contexts five times as short,
/// and all times divided by ten, so that recomputing a context costs as much in the time of an answer
/// as it does there (83 µs a token and 20 ms an iteration, times five, over ten).
const ENGINE: [&str; 4] = ["--prefill-tps", "24000", "--decode-ms", "10"];

/// How much of a child's complaints is kept, in bytes, about.
const MOST_COMPLAINT: usize = 4096;
/// How long a process may take to get ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// The simulated fleet.
pub(super) struct Engines {
    pub urls: Vec<String>,
    _processes: Vec<Process>,
}

/// Thundergate itself.
pub(super) struct Proxy {
    pub url: String,
    process: Process,
}

/// A child; killed, and gone, when dropped.
struct Process {
    child: Child,
    /// The end of what it wrote to stderr.
    complaint: Arc<Mutex<String>>,
}

// === impl Engines ===

impl Engines {
    pub(super) async fn start(seed: u64) -> Result<Self, DemoError> {
        let (mut urls, mut processes) = (Vec::new(), Vec::new());
        for _ in 0..ENGINES {
            let mut command = itself("engine")?;
            command.args(["engine", "--port", "0"]).args(ENGINE);
            command.args(["--kv-blocks", &BLOCKS.to_string(), "--block-size", &BLOCK_SIZE.to_string()]);
            command.args(["--seed", &seed.to_string()]);
            let mut process = Process::spawn("engine", command.stdout(Stdio::piped()))?;
            urls.push(process.announced().await?);
            processes.push(process);
        }
        Ok(Self { urls, _processes: processes })
    }
}

// === impl Proxy ===

impl Proxy {
    pub(super) async fn start(backends: &[String], router: &str) -> Result<Self, DemoError> {
        let what = "proxy";
        let port = free_port().map_err(|error| DemoError::Start { what, error })?;
        let mut command = itself(what)?;
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--router", router]);
        command.args(["--backends", &backends.join(","), "--log-level", "error", "--metrics-interval", "1"]);
        let process = Process::spawn(what, command.stdout(Stdio::null()))?;
        let mut proxy = Self { url: format!("http://127.0.0.1:{port}"), process };
        proxy.ready().await?;
        Ok(proxy)
    }

    async fn ready(&mut self) -> Result<(), DemoError> {
        let not_ready = |why: String| DemoError::NotReady { what: "proxy", why };
        let deadline = Instant::now() + PATIENCE;
        let client = reqwest::Client::builder().no_proxy().build();
        let client = client.map_err(|error| not_ready(error.to_string()))?;
        let url = format!("{}/readyz", self.url);
        loop {
            let why = match client.get(&url).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => answer.status().to_string(),
                Err(error) => error.to_string(),
            };
            if let Ok(Some(_)) = self.process.child.try_wait() {
                return Err(not_ready(self.process.complaint()));
            }
            if Instant::now() >= deadline {
                return Err(not_ready(why));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

// === impl Process ===

impl Process {
    fn spawn(what: &'static str, command: &mut Command) -> Result<Self, DemoError> {
        let failed = |error| DemoError::Start { what, error };
        let child = command.spawn().map_err(failed)?;
        let complaint = Arc::new(Mutex::new(String::new()));
        let mut process = Self { child, complaint: Arc::clone(&complaint) };
        if let Some(stderr) = process.child.stderr.take() {
            let stderr = ChildStderr::from_std(stderr).map_err(failed)?;
            // Read to its end, so that the child never waits for a reader.
            let mut lines = BufReader::new(stderr).lines();
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    let mut complaint = complaint.lock();
                    if complaint.len() > MOST_COMPLAINT {
                        complaint.clear();
                    }
                    complaint.push_str(&line);
                    complaint.push('\n');
                }
            });
        }
        Ok(process)
    }

    /// The address that an engine prints when it listens.
    async fn announced(&mut self) -> Result<String, DemoError> {
        let not_ready = |why: String| DemoError::NotReady { what: "engine", why };
        let Some(stdout) = self.child.stdout.take() else {
            return Err(not_ready(self.complaint()));
        };
        let stdout = ChildStdout::from_std(stdout).map_err(|error| not_ready(error.to_string()))?;
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        match tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await {
            Err(_) => return Err(not_ready(format!("silent for {PATIENCE:?}"))),
            Ok(Err(error)) => return Err(not_ready(error.to_string())),
            Ok(Ok(_)) => {}
        }
        match line.trim().strip_prefix("listening on ") {
            Some(url) => Ok(url.to_owned()),
            None => Err(not_ready(self.complaint())),
        }
    }

    fn complaint(&self) -> String {
        match self.complaint.lock().trim() {
            "" => "it ended without a word".to_owned(),
            text => text.to_owned(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that runs this program.
fn itself(what: &'static str) -> Result<Command, DemoError> {
    let program = std::env::current_exe().map_err(|error| DemoError::Start { what, error })?;
    let mut command = Command::new(program);
    // What the user set for the program he started is not meant for its children.
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
