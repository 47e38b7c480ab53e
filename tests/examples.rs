//! The scripts of `examples/`, run as a user would run them, against simulated engines (`DRY=1`).

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// Time limit far beyond what a run takes. The agents' own packages, if they are installed, are slow to load.
const PATIENCE: Duration = Duration::from_secs(120);

/// A script in a directory of its own. Processes that the script leaves behind are killed in the end.
struct Script {
    child: Option<Child>,
    id: Pid,
    dir: TempDir,
}

// === impl Script ===

impl Script {
    fn start<'a>(script: &str, env: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("bash");
        command.arg(examples().join(script)).current_dir(dir.path()).process_group(0);
        command.env("THUNDERGATE", env!("CARGO_BIN_EXE_thundergate")).env_remove("LOGS").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).envs(env);
        let child = command.spawn().expect("bash");
        let id = Pid::from_raw(child.id().cast_signed()).expect("it was started");
        Self { child: Some(child), id, dir }
    }

    /// Waits for the script's end. Returns its status, and the output of the script and its logs.
    fn end(mut self) -> (Option<i32>, String) {
        let (sender, ended) = mpsc::channel();
        let child = self.child.take().expect("it ends once");
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let Ok(output) = ended.recv_timeout(PATIENCE) else { panic!("it does not end: {}", self.logs()) };
        let output = output.expect("a child");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
        (output.status.code(), format!("{said}\n{}", self.logs()))
    }

    /// The first line that the script prints.
    fn first_line(&mut self) -> String {
        let mut line = String::new();
        let out = self.child.as_mut().and_then(|child| child.stdout.as_mut()).expect("piped");
        BufReader::new(out).read_line(&mut line).expect("text");
        line.trim().to_owned()
    }

    fn logs(&self) -> String {
        let files = std::fs::read_dir(self.dir.path().join("logs")).into_iter().flatten().flatten();
        let read = |file: std::fs::DirEntry| std::fs::read_to_string(file.path()).ok();
        files.filter_map(read).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = kill_process_group(self.id, Signal::KILL);
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// `count` ports in a row that are free, below those that are given out for port 0. Tests that run at the same time, in
/// this process or another, look in different places.
fn ports(count: u16) -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let free = |port: &u16| (0..count).all(|n| TcpListener::bind((Ipv4Addr::LOCALHOST, port + n)).is_ok());
    let first = std::process::id() * 32 + CALLS.fetch_add(4, Ordering::Relaxed);
    let candidates = (0..18_000).map(|n| 12_000 + ((first + n) % 18_000) as u16);
    candidates.into_iter().find(free).expect("free ports")
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn dry(first_port: u16, port: u16) -> [(&'static str, String); 3] {
    [("DRY", "1".into()), ("FIRST_PORT", first_port.to_string()), ("PORT", port.to_string())]
}

/// A directory of commands, each with the text of its script.
fn commands(commands: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, body) in commands {
        let file = dir.path().join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{body}\n")).expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("a file of ours");
    }
    dir
}

/// A `PATH` with `dir` before the rest.
fn path_with(dir: &TempDir) -> (&'static str, String) {
    ("PATH", format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("a path")))
}

#[test]
fn on_one_machine_each_example_serves_gates_runs_and_leaves_nothing() {
    for example in ["mini-swe-agent", "openhands"] {
        let first = ports(3);
        let (status, said) = Script::start(&format!("{example}/run.sh"), dry(first, first + 2)).end();
        assert_eq!(status, Some(0), "{said}");
        assert!(said.contains("every program was released"), "{said}");
        for port in first..first + 3 {
            assert!(!listens(port), "{example} left something at {port}");
        }
    }
}

#[test]
fn with_several_machines_the_gate_comes_and_goes_and_the_servers_stay() {
    let first = ports(3);
    let serve = |port: u16| {
        let one = [("SERVERS", "1".to_owned())];
        let mut server = Script::start("serve.sh", dry(port, 0).into_iter().chain(one));
        assert_eq!(server.first_line(), format!("BACKENDS=http://127.0.0.1:{port}"));
        server
    };
    let servers = [serve(first), serve(first + 1)];
    let backends = format!("http://127.0.0.1:{first},http://127.0.0.1:{}", first + 1);
    let run = dry(0, first + 2).into_iter().chain([("BACKENDS", backends)]);
    let (status, said) = Script::start("mini-swe-agent/run.sh", run).end();
    assert_eq!(status, Some(0), "{said}");
    assert!(!listens(first + 2));
    for (server, port) in servers.into_iter().zip(first..) {
        assert!(listens(port), "the gate's script stopped a server that it had not started");
        kill_process(server.id, Signal::TERM).expect("it runs");
        let (status, said) = server.end();
        assert_eq!(status, Some(143), "{said}");
        assert!(!listens(port), "it left its server running");
    }
}

#[test]
fn a_port_that_is_taken_is_told_of_at_once() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let (status, said) = Script::start("serve.sh", dry(port, 0)).end();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(&format!("port {port} is taken")) && said.contains("set FIRST_PORT"), "{said}");
    let (status, said) = Script::start("openhands/run.sh", dry(0, port)).end();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(&format!("port {port} is taken")) && said.contains("set PORT"), "{said}");
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let nothing = commands(&[("nvidia-smi", "exit 9"), ("vllm", "exit 1")]);
    let (status, said) = Script::start("serve.sh", [path_with(&nothing), ("MODEL", "qwen".into())]).end();
    assert_eq!(status, Some(1));
    assert!(said.contains("of 4 GPUs each, and 0 GPUs here: set TP and SERVERS"), "{said}");

    let (status, said) = Script::start("serve.sh", [("THUNDERGATE", "/nowhere".into())]).end();
    assert_eq!(status, Some(1));
    assert!(said.contains("no /nowhere: run `make build`"), "{said}");

    let no_agent = commands(&[("python", "exit 1")]);
    let python = no_agent.path().join("python").display().to_string();
    let (status, said) = Script::start("mini-swe-agent/run.sh", [("PYTHON", python)]).end();
    assert_eq!(status, Some(1));
    assert!(said.contains("mini-swe-agent is not installed for"), "{said}");
}

/// A stand-in for vLLM that prints its flags and ends. The first of two ends only after the second has printed its own.
const VLLM: &str = r#"
echo "on $CUDA_VISIBLE_DEVICES: $*"
case $CUDA_VISIBLE_DEVICES in
  0,1,2,3) until [ -e "$0.second" ]; do sleep 0.02; done ;;
  4,5,6,7) touch "$0.second" ;;
esac
exit 1"#;

#[test]
fn each_model_is_served_with_its_flags_on_its_gpus() {
    for (model, served, gpus, flags) in [
        (
            "glm",
            "zai-org/GLM-4.6-FP8",
            "0,1,2,3,4,5,6,7",
            "--tensor-parallel-size 8 --tool-call-parser glm45 --reasoning-parser glm45",
        ),
        (
            "qwen",
            "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
            "4,5,6,7",
            "--tensor-parallel-size 4 --tool-call-parser hermes",
        ),
    ] {
        let machine = commands(&[
            ("nvidia-smi", "for n in 0 1 2 3 4 5 6 7; do echo GPU $n; done"),
            ("hf", "echo fetched $*"),
            ("vllm", VLLM),
        ]);
        let env = [path_with(&machine), ("MODEL", model.into()), ("VLLM_ARGS", "--max-model-len 65536".into())];
        let (status, said) =
            Script::start("serve.sh", env.into_iter().chain([("FIRST_PORT", ports(2).to_string())])).end();
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("error: vllm-0 has ended"), "{said}");
        assert!(said.contains(&format!("fetched download {served}")), "{said}");
        let all = format!(
            "{flags} --enable-auto-tool-choice --enable-prefix-caching --enable-prompt-tokens-details --max-model-len 65536"
        );
        let started = said.lines().find(|line| line.starts_with(&format!("on {gpus}: serve {served} ")));
        assert!(started.is_some_and(|line| line.ends_with(&all)), "{said}");
    }
}

#[test]
fn every_script_passes_shellcheck() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = "find examples tests bench -name '*.sh'; echo .ci/run";
    let files = Command::new("bash").args(["-c", list]).current_dir(root).output().expect("bash");
    let files = String::from_utf8(files.stdout).expect("text");
    assert!(files.lines().count() > 8, "{files}");
    match Command::new("shellcheck").args(files.lines()).current_dir(root).output() {
        Ok(Output { status, stdout, .. }) => assert!(status.success(), "{}", String::from_utf8_lossy(&stdout)),
        Err(e) => eprintln!("left out, shellcheck is not here: {e}"),
    }
}
