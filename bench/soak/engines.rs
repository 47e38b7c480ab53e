//! Simulated engines. Each is a process that can be killed, stopped, and started again at the same address.

use crate::support::within;
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Number of blocks of 16 tokens.
pub const BLOCKS: u32 = 1024;

pub struct Engine {
    pub url: String,
    host: String,
    port: String,
    child: Child,
}

// === impl Engine ===

impl Engine {
    /// Starts engine number `n`, on an address of its own. So its port is still free when the engine comes back.
    pub async fn start(n: usize) -> Self {
        let host = format!("127.0.0.{}", n + 2);
        let (child, url) = launch(&host, "0", BLOCKS).await;
        let port = url.rsplit_once(':').expect("a port").1.to_owned();
        Self { url, host, port, child }
    }

    /// Kills the engine with `kill -9`, and waits for its end.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it runs");
    }

    pub async fn again(&mut self, blocks: u32) {
        (self.child, _) = launch(&self.host, &self.port, blocks).await;
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        kill_process(Pid::from_raw(id.cast_signed()).expect("a process"), signal).expect("it runs");
    }
}

/// Starts the process, and waits until it listens.
async fn launch(host: &str, port: &str, blocks: u32) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thundergate"));
    command.args(["engine", "--host", host, "--port", port, "--kv-blocks", &blocks.to_string()]);
    command.args(["--prefill-tps", "60000", "--decode-ms", "4"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("the binary");
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    within("an engine", out.read_line(&mut line)).await.expect("its address");
    let url = line.trim().strip_prefix("listening on ").expect("its address").to_owned();
    (child, url)
}
