//! Faults and changes, every few seconds: those of the engines in one task, those of the proxy itself in another.

use crate::engines::{BLOCKS, Engine};
use crate::journal::{CONT, Journal};
use crate::plan::Random;
use crate::support::process::Process;
use rustix::process::Signal;
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Time limit for the old process of an upgrade to finish its requests.
const LAST_ANSWERS: Duration = Duration::from_secs(90);

pub const TOKEN: &str = "soak-admin";
pub const GREEDY: &str = "greedy";
/// Number of API keys of the clients that stay within their limits.
pub const KEYS: u64 = 8;

/// Kills and stops engines until the run is over. All of them are well again when this function returns.
pub async fn of_engines(mut engines: Vec<Engine>, seed: u64, journal: Arc<Journal>) -> Vec<Engine> {
    let mut random = Random::new(seed, [u64::MAX, 0]);
    while !journal.is_over() {
        sleep(random.millis(1000..4000)).await;
        let one = random.below(engines.len() as u64) as usize;
        let (what, pause) = (random.below(10), random.millis(500..4000));
        let engine = &mut engines[one];
        match what {
            0..=5 => {
                journal.breaks("kill -9", &engine.url);
                engine.kill().await;
                sleep(pause).await;
                let blocks = if what < 2 { BLOCKS / 2 } else { BLOCKS };
                engine.again(blocks).await;
                journal.fault("restart", &format!("restart {} with {blocks} blocks", engine.url));
            }
            6..=8 => {
                engine.signal(Signal::STOP);
                journal.fault("SIGSTOP", &format!("SIGSTOP {}", engine.url));
                sleep(pause + Duration::from_secs(1)).await;
                journal.breaks(CONT, &engine.url);
                engine.signal(Signal::CONT);
            }
            _ => {
                for engine in &mut engines {
                    journal.breaks("kill -9 of all", &engine.url);
                    engine.kill().await;
                }
                sleep(pause / 2).await;
                for engine in &mut engines {
                    engine.again(BLOCKS).await;
                    journal.fault("restart", &format!("restart {}", engine.url));
                }
            }
        }
    }
    engines
}

/// The proxy, its configuration file, and the process that serves now.
pub struct Site {
    pub directory: tempfile::TempDir,
    /// URLs of the backends. All are in the file but the last, which is added and removed at run time.
    urls: Vec<String>,
    /// Number of processes so far. Each has an access log of its own.
    generation: usize,
    pub current: Process,
    pub id: watch::Sender<u32>,
    admin: reqwest::Client,
    pub admin_at: String,
    journal: Arc<Journal>,
}

// === impl Site ===

impl Site {
    pub async fn start(urls: Vec<String>, journal: &Arc<Journal>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let text = yaml(directory.path(), &urls[..urls.len() - 1], 1, 20);
        std::fs::write(directory.path().join("soak.yaml"), text).expect("a file");
        let current = Process::serve(&directory.path().join("soak.yaml"), &[]);
        current.ready().await;
        let admin_at = format!("http://{}", current.address(1).await);
        let admin = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        let (id, journal) = (watch::Sender::new(current.id()), Arc::clone(journal));
        Self { directory, urls, generation: 1, current, id, admin, admin_at, journal }
    }

    pub fn access_log(&self) -> PathBuf {
        self.directory.path().join(format!("access-{}.jsonl", self.generation))
    }

    fn write(&self, urls: &[String], concurrent: u64) {
        let text = yaml(self.directory.path(), urls, self.generation, concurrent);
        std::fs::write(self.directory.path().join("soak.yaml"), text).expect("a file");
    }

    /// Changes something every few seconds until the run is over. The `upgrades` fall into its first half.
    pub async fn changes(mut self, seed: u64, length: Duration, upgrades: u32) -> Self {
        let mut random = Random::new(seed, [u64::MAX, 1]);
        let mut done = 0;
        while !self.journal.is_over() {
            sleep(random.millis(2000..5000)).await;
            let what = random.below(8);
            let due = length * (done + 1) / (upgrades * 2 + 2);
            if done < upgrades && self.journal.began.elapsed() > due {
                done += 1;
                self.upgrade().await;
                continue;
            }
            match what {
                0 | 1 => self.reload(random.below(3) == 0, random.below(2) == 0).await,
                2 | 3 => {
                    // One backend is drained, and comes back with the next reload.
                    let some: Vec<_> = self.urls[..self.urls.len() - 2].to_vec();
                    self.write(&some, 16);
                    self.reloaded("reload without a backend", "loaded anew").await;
                    sleep(random.millis(500..3000)).await;
                    self.reload(true, false).await;
                }
                4 => self.refused_reload().await,
                5 => self.weight_sync(random.millis(100..1500)).await,
                _ => self.spare(random.millis(1000..5000)).await,
            }
        }
        self
    }

    async fn reload(&self, wide: bool, post: bool) {
        self.write(&self.urls[..self.urls.len() - 1], if wide { 24 } else { 20 });
        if post {
            self.journal.fault("POST /reload", "POST /reload");
            return self.control("POST", "/reload", json!({}), 200).await;
        }
        self.reloaded("reload", "loaded anew").await;
    }

    async fn refused_reload(&self) {
        let file = self.directory.path().join("soak.yaml");
        let good = std::fs::read_to_string(&file).expect("the file");
        std::fs::write(&file, good.replace("retry:", "retries:")).expect("a file");
        self.reloaded("reload of a mistake", "the configuration stays as it was").await;
        std::fs::write(&file, good).expect("a file");
    }

    async fn reloaded(&self, kind: &'static str, answer: &str) {
        self.journal.fault(kind, kind);
        let said = self.current.lines();
        self.current.signal(Signal::HUP);
        self.current.says_after(said, answer).await;
    }

    async fn weight_sync(&self, length: Duration) {
        self.journal.fault("weight sync", &format!("weight sync of {length:?}"));
        self.control("POST", "/weight_sync/begin", json!({}), 200).await;
        sleep(length).await;
        self.control("POST", "/weight_sync/end", json!({}), 200).await;
    }

    async fn spare(&self, stay: Duration) {
        let url = self.urls.last().expect("a spare one");
        self.journal.fault("POST /backends", &format!("POST /backends {url} for {stay:?}"));
        self.control("POST", "/backends", json!({"url": url}), 201).await;
        sleep(stay).await;
        self.journal.fault("DELETE /backends", &format!("DELETE /backends {url}"));
        let path = format!("/backends/{}", url.replace('/', "%2F"));
        self.control("DELETE", &path, json!({}), 202).await;
    }

    async fn upgrade(&mut self) {
        self.generation += 1;
        self.write(&self.urls[..self.urls.len() - 1], 20);
        self.journal.fault("upgrade", "upgrade begins");
        let new = Process::serve(&self.directory.path().join("soak.yaml"), &["--upgrade"]);
        new.says("waiting at").await;
        self.current.signal(Signal::QUIT);
        self.current.says("another process serves").await;
        self.id.send_replace(new.id());
        let mut old = std::mem::replace(&mut self.current, new);
        self.journal.fault("upgrade done", "the new process serves");
        match timeout(LAST_ANSWERS, old.exit()).await {
            Ok(status) if status.success() => self.journal.fault("old process gone", "the old process has ended"),
            ended => self.journal.wrong(format!("the old process of an upgrade: {ended:?}")),
        }
    }

    async fn control(&self, method: &str, path: &str, body: serde_json::Value, status: u16) {
        let method = method.parse().expect("a method");
        let request = self.admin.request(method, format!("{}{path}", self.admin_at)).bearer_auth(TOKEN).json(&body);
        match timeout(LAST_ANSWERS, request.send()).await {
            Ok(Ok(answer)) if answer.status() == status => {}
            other => self.journal.wrong(format!("{path}: {other:?}")),
        }
    }

    /// The text of a page of the admin listener.
    pub async fn page(&self, path: &str) -> String {
        let request = self.admin.get(format!("{}{path}", self.admin_at)).bearer_auth(TOKEN);
        let answer = request.send().await.expect("the admin listener answers");
        answer.text().await.expect("a page")
    }
}

fn yaml(directory: &Path, urls: &[String], generation: usize, concurrent: u64) -> String {
    let mut text = format!(
        "listen: 127.0.0.1:0\n\
         admin: {{listen: 127.0.0.1:0, token: {TOKEN}}}\n\
         models:\n\
         \x20 - backends: [{}]\n\
         \x20   health: {{interval: 500ms, timeout: 500ms, slow_start: 2s, eject: {{base: 1s, max: 4s}}}}\n\
         scheduler: {{no_backend_wait: 20s, fair: {{after: 5s}}}}\n\
         programs: {{idle_ttl: 15s}}\n\
         limits: {{per_key: {{requests_per_minute: 6000, concurrent: {concurrent}}}}}\n\
         timeouts: {{grace: 2m}}\n\
         retry: {{connect_attempts: 2}}\n\
         state: {{snapshot: state}}\n\
         logging: {{access: {{format: json, path: {}/access-{generation}.jsonl}}}}\n\
         metrics: {{interval: 500ms}}\n\
         auth:\n\
         \x20 keys:\n",
        urls.join(", "),
        directory.display()
    );
    let names = (0..KEYS).map(|n| format!("key-{n}")).chain([GREEDY.to_owned()]);
    for name in names {
        let _ = writeln!(text, "    - {{name: {name}, key: {name}}}");
    }
    text
}
