//! The release binary as a child process, with the figures that the kernel and the proxy's own endpoints give.

use crate::support::backend::Backend;
use crate::support::client::Client;
use crate::support::within;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub struct Gate {
    pub address: SocketAddr,
    child: Child,
    _config: TempDir,
}

// === impl Gate ===

impl Gate {
    /// Starts the binary on a free port in front of `backend`, and waits until it is ready for requests.
    pub async fn start(binary: &Path, backend: &Backend) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("bench.yaml");
        let yaml = format!(
            "listen: 127.0.0.1:0\nmodels:\n  - name: bench\n    backends: ['{}']\n    health: {{interval: 200ms}}\n",
            backend.url()
        );
        fs::write(&file, yaml).expect("a writable directory");
        let child = Command::new(binary)
            .arg("--config")
            .arg(&file)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = within("the address in the log", async {
            loop {
                let line = log.next_line().await.expect("a log").expect("an address before the end of the log");
                if let Some((_, address)) = line.split_once("listening on ") {
                    return address.trim().parse().expect("an address");
                }
            }
        });
        let address = address.await;
        tokio::spawn(async move {
            while let Ok(Some(line)) = log.next_line().await {
                if line.contains("WARN") || line.contains("ERROR") {
                    println!("  gate: {line}");
                }
            }
        });
        let gate = Self { address, child, _config: directory };
        let ready = async { while gate.get("/readyz").await.0 != 200 {} };
        within("a healthy backend", ready).await;
        gate
    }

    /// Status and body of the answer of a control endpoint.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let mut client = Client::connect(self.address).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: gate\r\naccept: text/plain\r\n\r\n").as_bytes()).await;
        let response = client.response().await;
        (response.status(), response.text().to_owned())
    }

    /// Value of a gauge without labels.
    pub async fn gauge(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} on the page"))
    }

    /// Waits until a gauge has a value.
    pub async fn until(&self, name: &str, value: f64) {
        let what = format!("{name} = {value}");
        within(&what, async { while (self.gauge(name).await - value).abs() > 0.5 {} }).await;
    }

    /// Number of programs that the proxy knows.
    pub async fn programs(&self) -> usize {
        let (_, body) = self.get("/programs").await;
        let programs: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        programs.as_object().map_or(0, serde_json::Map::len)
    }

    /// CPU time of all threads so far, to the nanosecond if the kernel tells it.
    pub fn cpu(&self) -> Duration {
        let threads = fs::read_dir(self.proc("task")).expect("the child runs");
        let spent = |thread: fs::DirEntry| {
            let line = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            line.split(' ').next()?.parse::<u64>().ok()
        };
        let exact: Option<u64> = threads.flatten().map(spent).sum();
        exact.map_or_else(|| self.ticks(), Duration::from_nanos)
    }

    /// CPU time from `/proc/PID/stat`, in hundredths of a second.
    fn ticks(&self) -> Duration {
        let stat = fs::read_to_string(self.proc("stat")).expect("the child runs");
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let times = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
        Duration::from_millis(times.sum::<u64>() * 10)
    }

    /// Resident memory in bytes. The buffers of sockets are the kernel's and are not included.
    pub fn resident(&self) -> i64 {
        let rollup = fs::read_to_string(self.proc("smaps_rollup")).expect("the child runs");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap_or("");
        let kib = line.trim().trim_end_matches(" kB").parse::<i64>();
        kib.expect("a number") * 1024
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id().expect("the child runs"))
    }

    /// Ends the process with SIGKILL, and waits for its end.
    pub async fn stop(mut self) {
        self.child.kill().await.expect("a child to end");
    }
}
