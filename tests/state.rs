//! State that outlives the process. The real program is killed without warning and started anew.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::client::Client;
use support::wire::Message;
use support::within;
use thundergate::state;

const PROGRAMS: [&str; 6] = ["p0", "p1", "p2", "p3", "p4", "p5"];

/// The program with some arguments; killed and gone when dropped.
struct Process {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// Two engines, a directory for the state, and the proxy's configuration.
struct Scene {
    engines: Vec<Process>,
    dir: tempfile::TempDir,
}

// === impl Process ===

impl Process {
    /// Starts the program, and waits until it tells where it listens. Both its outputs are kept.
    async fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thundergate"));
        command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for output in outputs {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    log.lock().unwrap().push_str(&format!("{line}\n"));
                }
            });
        }
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut process = Self { child, address, log };
        let told = "listening on ";
        process.wait_for(told, |log| log.contains(told)).await;
        let log = process.log();
        let place = log.split(told).nth(1).and_then(|rest| rest.lines().next()).unwrap();
        process.address = place.trim_start_matches("http://").parse().unwrap();
        process
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    async fn wait_for(&self, what: &str, condition: impl Fn(&str) -> bool) {
        within(what, async {
            while !condition(&self.log()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn get(&self, path: &str) -> Message {
        let mut client = Client::connect(self.address).await;
        client.get(path).await;
        client.response().await
    }

    /// Sends one step of a program. Returns the backend that answered the step.
    async fn step(&self, program: &str, said: usize) -> String {
        let content = format!("{program} {}", "many words ".repeat(said));
        let body = json!({"model": "sim", "program_id": program, "max_tokens": 4,
            "messages": [{"role": "user", "content": content}]});
        let mut client = Client::connect(self.address).await;
        client.post("/v1/chat/completions", "", body.to_string().as_bytes()).await;
        let response = client.response().await;
        assert_eq!(response.status(), 200, "{}", response.text());
        response.header("x-thundergate-backend").expect("a backend")
    }

    async fn program(&self, id: &str) -> Value {
        self.get(&format!("/programs/{id}")).await.json()
    }

    /// The value of one series of the metrics.
    async fn metric(&self, series: &str) -> String {
        let mut client = Client::connect(self.address).await;
        client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\n\r\n").await;
        let page = client.response().await;
        let value = page.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{}", page.text())).to_owned()
    }

    /// Kills the program, as if the power had failed.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells the program to end, and waits for the end.
    async fn terminate(mut self) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(killed.unwrap().success());
        within("the end of the process", async {
            while self.child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Scene ===

impl Scene {
    async fn new() -> Self {
        let engines = vec![engine(0).await, engine(0).await];
        Self { engines, dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts the proxy, and waits until all backends are healthy.
    async fn proxy(&self) -> Process {
        let proxy = Process::start(&["--config", self.config("state").to_str().unwrap()]).await;
        let up = |log: &str| log.matches(" is up").count() == self.engines.len();
        proxy.wait_for("healthy backends", up).await;
        proxy
    }

    fn config(&self, snapshot: &str) -> PathBuf {
        let urls: Vec<_> = self.engines.iter().map(|engine| format!("http://{}", engine.address)).collect();
        let config = json!({"listen": "127.0.0.1:0", "backends": urls, "state": {"snapshot": snapshot},
            "metrics": {"interval": "100ms"}});
        let file = self.dir.path().join("config.yaml");
        fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// Waits until the file has these programs, all idle after their last step.
    async fn kept(&self, programs: usize) {
        let kept = || {
            let snapshot = state::decode(&fs::read(self.file()).ok()?).ok()?;
            let known = snapshot.pools.into_iter().flat_map(|pool| pool.memory.programs);
            Some(known.filter(|program| !program.running && program.steps > 0).count())
        };
        within("the state on disk", async {
            while kept() != Some(programs) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    fn beside(&self, prefix: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect()
    }
}

async fn engine(port: u16) -> Process {
    let args = ["engine", "--kv-blocks", "2000", "--decode-ms", "1", "--port"];
    Process::start(&[&args[..], &[port.to_string().as_str()]].concat()).await
}

// === the tests ===

#[tokio::test]
async fn programs_and_their_places_survive_a_kill() {
    let scene = Scene::new().await;
    let proxy = scene.proxy().await;
    let mut places = Vec::new();
    for program in PROGRAMS {
        places.push(proxy.step(program, 100).await);
    }
    assert!(places.iter().any(|place| *place != places[0]), "both backends have some");
    scene.kept(PROGRAMS.len()).await;
    proxy.kill();

    let proxy = scene.proxy().await;
    assert_eq!(proxy.get("/programs").await.json().as_object().unwrap().len(), PROGRAMS.len());
    for (program, place) in PROGRAMS.iter().zip(&places) {
        let known = proxy.program(program).await;
        assert_eq!(known["leased"], true, "{known}");
        assert_eq!((&known["step_count"], &known["backend"]), (&json!(1), &json!(place)));
    }
    for (program, place) in PROGRAMS.iter().zip(&places) {
        assert_eq!(&proxy.step(program, 120).await, place);
    }
    for kind in ["resumed", "new"] {
        assert_eq!(
            proxy.metric(&format!("thundergate_resumes_total{{kind=\"{kind}\"}}")).await,
            "0",
            "none has waited"
        );
    }
    assert_eq!(proxy.program("p0").await["step_count"], 2);
}

#[tokio::test]
async fn an_engine_that_restarted_meanwhile_holds_nothing_any_more() {
    let mut scene = Scene::new().await;
    let proxy = scene.proxy().await;
    let mut places = Vec::new();
    for program in PROGRAMS {
        places.push(proxy.step(program, 100).await);
    }
    scene.kept(PROGRAMS.len()).await;
    proxy.kill();
    let anew = scene.engines.remove(0).address;
    scene.engines.insert(0, engine(anew.port()).await);

    let proxy = scene.proxy().await;
    for (program, place) in PROGRAMS.iter().zip(&places) {
        let known = proxy.program(program).await;
        assert_eq!(known["leased"], *place != format!("http://{anew}"), "{known}");
        assert_eq!(known["step_count"], 1);
    }
    proxy.step("p0", 120).await;
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_the_server_starts() {
    let scene = Scene::new().await;
    let proxy = scene.proxy().await;
    proxy.step("p0", 10).await;
    scene.kept(1).await;
    proxy.kill();
    let mut bytes = fs::read(scene.file()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(scene.file(), &bytes).unwrap();

    let proxy = scene.proxy().await;
    assert_eq!(proxy.get("/programs").await.json(), json!({}));
    let aside = scene.beside("state.damaged-");
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(&aside[0]).unwrap(), bytes);
    let lines: Vec<_> = proxy.log().lines().filter(|line| line.contains("damaged")).map(str::to_owned).collect();
    assert!(lines.len() == 1 && lines[0].contains("its checksum is wrong"), "{lines:?}");
    proxy.step("p1", 10).await;
    scene.kept(1).await;
}

#[tokio::test]
async fn a_server_that_is_told_to_end_writes_the_last_change() {
    let scene = Scene::new().await;
    let proxy = scene.proxy().await;
    for program in PROGRAMS {
        proxy.step(program, 10).await;
        assert_eq!(proxy.program(program).await["step_count"], 1);
    }
    proxy.terminate().await;
    let snapshot = state::decode(&fs::read(scene.file()).unwrap()).unwrap();
    assert_eq!(snapshot.pools[0].memory.programs.len(), PROGRAMS.len());
    assert!(scene.beside("state.new").is_empty());
}

#[tokio::test]
async fn a_write_that_fails_is_told_once_and_when_it_is_over() {
    let scene = Scene::new().await;
    let kept = scene.dir.path().join("kept");
    fs::create_dir(&kept).unwrap();
    let config = scene.config("kept/state");
    let proxy = Process::start(&["--config", config.to_str().unwrap()]).await;
    fs::rename(&kept, scene.dir.path().join("gone")).unwrap();
    proxy.step("p0", 10).await;
    proxy.wait_for("a complaint", |log| log.contains("cannot be written")).await;
    assert_eq!(proxy.metric("thundergate_state_write_success").await, "0");
    proxy.step("p1", 10).await;
    fs::rename(scene.dir.path().join("gone"), &kept).unwrap();
    proxy.wait_for("the end of it", |log| log.contains("is written again")).await;
    assert_eq!(proxy.metric("thundergate_state_write_success").await, "1");
    assert_eq!(proxy.log().matches("cannot be written").count(), 1);
}

#[test]
fn a_state_that_cannot_be_kept_is_a_mistake_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let run = |snapshot: &Path| {
        let file = dir.path().join("config.yaml");
        let config = json!({"listen": "127.0.0.1:0", "backends": ["http://127.0.0.1:1"],
            "state": {"snapshot": snapshot}});
        fs::write(&file, config.to_string()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_thundergate")).arg("--config").arg(&file).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = run(Path::new("missing/state"));
    assert_eq!(code, Some(1));
    assert!(told.contains("state.snapshot: the directory") && told.contains("does not exist: create it"), "{told}");
    // Nobody may create a file in this directory, not even root.
    let (code, told) = run(Path::new("/proc/self/state"));
    assert_eq!(code, Some(1));
    assert!(told.contains("state.snapshot: nothing can be written in /proc/self ("), "{told}");
}
