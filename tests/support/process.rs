//! The real binary as a process: the test starts it, sends it signals, and reads its standard error.

use super::{client::Client, within};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// A process that is killed when dropped.
pub struct Process {
    child: Child,
    /// Lines that the process has logged.
    log: watch::Receiver<Vec<String>>,
}

// === impl Process ===

impl Process {
    pub fn start<S: AsRef<OsStr>>(args: &[S]) -> Self {
        Self::start_in(args, [])
    }

    fn start_in<'a, S: AsRef<OsStr>>(args: &[S], env: impl IntoIterator<Item = (&'a str, &'a OsStr)>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thundergate"));
        command.args(args).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").envs(env);
        command.stderr(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("the binary");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (writer, log) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                eprintln!("{line}");
                writer.send_modify(|log: &mut Vec<String>| log.push(line));
            }
        });
        Self { child, log }
    }

    /// Starts a server with a configuration file, and its socket for upgrades beside the file.
    pub fn serve(file: &Path, more: &[&str]) -> Self {
        Self::serve_in(file, more, [])
    }

    /// Starts a server with more variables in its environment.
    pub fn serve_in<'a>(file: &Path, more: &[&str], env: impl IntoIterator<Item = (&'a str, &'a OsStr)>) -> Self {
        let socket = file.with_extension("sock").into_os_string();
        let mut args = vec!["--config".into(), file.as_os_str().to_owned(), "--upgrade-socket".into(), socket];
        args.extend(more.iter().map(Into::into));
        Self::start_in(&args, env)
    }

    /// Waits for a line that holds `words`, apart from the first `from` lines.
    pub async fn says_after(&self, from: usize, words: &str) -> String {
        let mut log = self.log.clone();
        let found = |log: &Vec<String>| log.iter().skip(from).find(|line| line.contains(words)).cloned();
        let said = within(words, log.wait_for(|log| found(log).is_some())).await;
        let said = said.unwrap_or_else(|_| panic!("it ended without a word of `{words}`"));
        found(&said).expect("waited for")
    }

    pub async fn says(&self, words: &str) -> String {
        self.says_after(0, words).await
    }

    pub fn lines(&self) -> usize {
        self.log.borrow().len()
    }

    /// Address of the `nth` listener.
    pub async fn address(&self, nth: usize) -> SocketAddr {
        let mut log = self.log.clone();
        let listening = |line: &String| Some(line.split_once("listening on ")?.1.parse().expect("an address"));
        let enough = |log: &Vec<String>| log.iter().filter_map(listening).count() > nth;
        let log = within("an address", log.wait_for(enough)).await.expect("it listens");
        log.iter().filter_map(listening).nth(nth).expect("waited for")
    }

    /// Waits until the server has a usable backend.
    pub async fn ready(&self) -> SocketAddr {
        let address = self.address(0).await;
        within("a usable backend", async {
            loop {
                let mut client = Client::connect(address).await;
                client.get("/readyz").await;
                if client.response().await.status() == 200 {
                    return;
                }
            }
        })
        .await;
        address
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.id().cast_signed()).expect("it runs");
        kill_process(pid, signal).expect("it runs");
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub async fn ended(&mut self) -> ExitStatus {
        within("the end of the process", self.exit()).await
    }

    /// Waits for the end, however long it takes.
    pub async fn exit(&mut self) -> ExitStatus {
        self.child.wait().await.expect("a child")
    }
}
