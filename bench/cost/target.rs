//! The targets of the measurement, and the setup of each: body inspection, scheduling, metrics and an access log, as
//! far as the target has them.

use super::load::{Crowd, Request, requests};
use super::mock::Mock;
use super::process::Process;
use clap::ValueEnum;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::process::Command;

/// Time limit within which a target must be ready for requests.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Thundergate,
    /// The same proxy under Pingora's own executor: bodies of up to 64 KiB only.
    Stock,
    /// With room in memory for every body, which it needs to be at its quickest.
    Nginx,
    /// With the buffers that it has by default: what is over 16 kB of a body goes through a file.
    NginxStock,
    Haproxy,
    VllmRouter,
    SglangRouter,
    Smg,
}

/// A target that runs.
pub struct Target {
    pub kind: Kind,
    pub name: String,
    pub version: String,
    pub address: SocketAddr,
    pub process: Process,
    _directory: TempDir,
}

// === impl Kind ===

impl Kind {
    /// The kinds of target that can be started here.
    pub fn installed() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|kind| kind.program().is_some()).collect()
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn program(self) -> Option<PathBuf> {
        let found = |path: PathBuf| path.exists().then_some(path);
        let from = |variable: &str, name: &str| found(Path::new(&std::env::var_os(variable)?).join("bin").join(name));
        match self {
            Self::Thundergate => Some(PathBuf::new()),
            Self::Stock => std::env::current_exe().ok(),
            Self::Nginx | Self::NginxStock => found("/usr/sbin/nginx".into()),
            Self::Haproxy => found("/usr/sbin/haproxy".into()),
            Self::VllmRouter => from("VLLM_ROUTER", "vllm-router"),
            Self::SglangRouter => from("SGLANG_ROUTER", "python"),
            Self::Smg => from("SMG", "smg"),
        }
    }

    /// The command of a target that listens on `port` and has its files in `directory`.
    fn command(self, program: &Path, directory: &Path, port: u16, backend: SocketAddr) -> Command {
        let place = directory.display();
        let mut command = Command::new(program);
        let args = match self {
            Self::Thundergate => format!("--config {}", written(directory, &thundergate(directory, port, backend))),
            Self::Stock => format!("--serve-stock {}", written(directory, &thundergate(directory, port, backend))),
            Self::Nginx | Self::NginxStock => {
                let buffer = if self == Self::Nginx { "client_body_buffer_size 2m;" } else { "" };
                format!("-p {place} -e {place}/error -c {}", written(directory, &nginx(port, backend, buffer)))
            }
            Self::Haproxy => format!("-f {}", written(directory, &haproxy(port, backend))),
            Self::VllmRouter => format!(
                "--host 127.0.0.1 --port {port} --worker-urls http://{backend} --policy consistent_hash --prometheus-port {}",
                free_port()
            ),
            Self::SglangRouter => format!(
                "-m sglang_router.launch_router --host 127.0.0.1 --port {port} --worker-urls http://{backend} --policy cache_aware --prometheus-port {}",
                free_port()
            ),
            Self::Smg => format!(
                "launch --host 127.0.0.1 --port {port} --worker-urls http://{backend} --policy cache_aware --prometheus-port {}",
                free_port()
            ),
        };
        command.args(args.split(' ')).env_remove("RUST_LOG");
        command
    }
}

// === impl Target ===

impl Target {
    /// Starts a target, and waits for its first answer.
    pub async fn start(kind: Kind, gate: &Path, mock: &Mock) -> Self {
        let program = match kind {
            Kind::Thundergate => gate.to_owned(),
            _ => kind.program().unwrap_or_else(|| panic!("{} is not installed", kind.name())),
        };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = kind.command(&program, directory.path(), address.port(), mock.address);
        let log = directory.path().join("log");
        let mut process = Process::start(&mut command, &log);
        let (request, start) = (Arc::new(Request::new(500, 1, false)), Instant::now());
        while requests(address, &request, Crowd { connections: 1, pause: Duration::ZERO }, 1).await > 0 {
            if !process.runs() || start.elapsed() > PATIENCE {
                panic!("{}: {}", kind.name(), fs::read_to_string(&log).unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let name = if kind == Kind::Thundergate { program_name(gate) } else { kind.name() };
        let version = version(kind, &program).await;
        Self { kind, name, version, address, process, _directory: directory }
    }
}

/// The last part of a path that tells the binary from another one.
fn program_name(gate: &Path) -> String {
    match gate.starts_with(Path::new(env!("CARGO_BIN_EXE_thundergate")).parent().unwrap_or(Path::new("/"))) {
        true => "thundergate".to_owned(),
        false => gate.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
    }
}

async fn version(kind: Kind, program: &Path) -> String {
    let python = program.with_file_name("python");
    let (program, args) = match kind {
        Kind::Thundergate => (program.to_owned(), vec!["--version"]),
        Kind::Stock => return format!("pingora-proxy, in {}", env!("CARGO_PKG_VERSION")),
        Kind::Nginx | Kind::NginxStock | Kind::Haproxy => (program.to_owned(), vec!["-v"]),
        Kind::VllmRouter => (python, vec!["-m", "pip", "show", "vllm-router"]),
        Kind::SglangRouter => (python, vec!["-m", "pip", "show", "sglang-router"]),
        Kind::Smg => (python, vec!["-m", "pip", "show", "smg"]),
    };
    let Ok(output) = Command::new(program).args(args).output().await else {
        return "?".to_owned();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let version = said.lines().find_map(|line| line.strip_prefix("Version: "));
    version.or_else(|| said.lines().next()).unwrap_or("?").to_owned()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn written(directory: &Path, text: &str) -> String {
    let file = directory.join("conf");
    fs::write(&file, text).expect("a writable directory");
    file.display().to_string()
}

fn thundergate(directory: &Path, port: u16, backend: SocketAddr) -> String {
    format!(
        "listen: 127.0.0.1:{port}\nmodels:\n  - name: bench\n    backends: ['http://{backend}']\n\
         logging: {{access: {{format: json, path: '{}/access'}}}}\n",
        directory.display()
    )
}

fn nginx(port: u16, backend: SocketAddr, buffer: &str) -> String {
    format!(
        "daemon off; worker_processes 2; pid pid;
         events {{ worker_connections 8192; }}
         http {{
             access_log access; client_max_body_size 64m; {buffer} keepalive_requests 1000000000;
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
             upstream backend {{ server {backend}; keepalive 1024; keepalive_requests 1000000000; }}
             server {{
                 listen 127.0.0.1:{port};
                 location / {{
                     proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection '';
                     proxy_buffering off;
                 }}
             }}
         }}\n"
    )
}

fn haproxy(port: u16, backend: SocketAddr) -> String {
    format!(
        "global\n  nbthread 2\n  maxconn 2000\n  log stdout format raw local0\n\
         defaults\n  mode http\n  log global\n  option httplog\n  http-reuse always\n  timeout connect 2s\n  \
         timeout client 10m\n  timeout server 10m\n\
         frontend front\n  bind 127.0.0.1:{port}\n  default_backend back\n\
         backend back\n  server one {backend} check\n"
    )
}
