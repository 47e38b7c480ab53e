//! One process takes over from another under load. No connection is refused, and no answer is cut.

mod support;

use rustix::process::Signal;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use support::backend::Backend;
use support::client::Client;
use support::load::{self, Load};
use support::process::Process;
use support::wire::Message;

const UPGRADES: usize = 5;

struct Home {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Home {
    fn of(backends: &[&Backend]) -> Self {
        let urls: Vec<_> = backends.iter().map(|backend| backend.url()).collect();
        let text = format!(
            "listen: 127.0.0.1:0\nadmin: {{listen: 127.0.0.1:0}}\n\
             models: [{{backends: [{}], health: {{interval: 50ms}}}}]\n",
            urls.join(", ")
        );
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("thundergate.yaml");
        std::fs::write(&file, text).expect("a file");
        Self { _dir: dir, file }
    }

    fn socket(&self) -> PathBuf {
        self.file.with_extension("sock")
    }

    /// Starts the process that serves in place of `old`. The old process may still be there.
    async fn upgrade(&self, old: &Process) -> Process {
        let new = Process::serve(&self.file, &["--upgrade"]);
        new.says("waiting at").await;
        old.signal(Signal::QUIT);
        old.says("another process serves").await;
        new.ready().await;
        new
    }
}

async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Message {
    let mut client = Client::connect(address).await;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    client.send(format!("{head}{body}").as_bytes()).await;
    client.response().await
}

#[tokio::test]
async fn upgrades_under_load_refuse_no_connection_and_cut_no_stream() {
    let (one, two) = (Backend::start().await, Backend::start().await);
    let home = Home::of(&[&one, &two]);
    let _backends = [load::answer(one), load::answer(two)];
    let mut current = Process::serve(&home.file, &[]);
    let (address, admin) = (current.ready().await, current.address(1).await);
    let load = Load::start(address, 6, 4, 6);
    load.goes_on().await;
    let mut old = Vec::new();
    for _ in 0..UPGRADES {
        let new = home.upgrade(&current).await;
        assert_eq!((new.address(0).await, new.address(1).await), (address, admin), "the sockets are the same");
        assert_eq!(ask(admin, "GET", "/metrics", "").await.status(), 200);
        load.goes_on().await;
        old.push(std::mem::replace(&mut current, new));
    }
    for mut process in old {
        assert!(process.ended().await.success(), "its connections have ended");
    }
    let seen = load.stop().await;
    let (lost, cut) = (seen.lost.load(SeqCst), seen.cut.load(SeqCst));
    let (requests, streams) = (seen.requests.load(SeqCst), seen.streams.load(SeqCst));
    assert_eq!((lost, cut), (0, 0), "of {requests} requests and {streams} streams");
    assert!(!home.socket().exists());
}

#[tokio::test]
async fn an_idle_connection_is_served_once_more_and_then_closed() {
    let mut backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let mut old = Process::serve(&home.file, &[]);
    let address = old.ready().await;
    let (mut kept, mut unused) = (Client::connect(address).await, Client::connect(address).await);
    kept.get("/livez").await;
    assert_eq!(kept.response().await.header("connection").as_deref(), Some("keep-alive"));
    let _new = home.upgrade(&old).await;
    for client in [&mut kept, &mut unused] {
        client.post("/v1/chat/completions", "", b"{\"messages\":[]}").await;
        backend.next().await.json(200, "{}").await;
        let response = client.response().await;
        assert_eq!((response.status(), response.header("connection").as_deref()), (200, Some("close")));
        assert!(client.closed().await);
    }
    assert!(old.ended().await.success());
}

#[tokio::test]
async fn a_step_that_is_held_is_served_by_the_process_that_it_came_to() {
    let mut backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let mut old = Process::serve(&home.file, &[]);
    let (address, admin) = (old.ready().await, old.address(1).await);
    // Each program takes more than half of the cache.
    let large = |program: &str| {
        let prompt = "word ".repeat(100_000);
        format!(r#"{{"messages":[{{"role":"user","content":"{prompt}"}}],"program_id":"{program}"}}"#).into_bytes()
    };
    let (mut one, mut two) = (Client::connect(address).await, Client::connect(address).await);
    one.post("/v1/chat/completions", "", &large("one")).await;
    let running = backend.next().await;
    two.post("/v1/chat/completions", "", &large("two")).await;
    support::within("a held step", async {
        while !ask(admin, "GET", "/metrics", "").await.text().contains("thundergate_held_steps 1") {}
    })
    .await;
    let _new = home.upgrade(&old).await;
    assert!(old.runs());
    let usage = r#"{"usage": {"prompt_tokens": 100000, "completion_tokens": 1, "total_tokens": 100001}}"#;
    running.json(200, usage).await;
    assert_eq!(one.response().await.status(), 200);
    backend.next().await.json(200, usage).await;
    assert_eq!(two.response().await.status(), 200);
    drop((one, two));
    assert!(old.ended().await.success());
}

#[tokio::test]
async fn programs_are_handed_over_and_the_state_has_one_writer() {
    let mut backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let text = std::fs::read_to_string(&home.file).expect("a file");
    let snapshot = home.file.with_extension("state");
    let state = format!("state: {{snapshot: '{}'}}\n", snapshot.display());
    std::fs::write(&home.file, format!("{text}{state}")).expect("a file");
    let mut old = Process::serve(&home.file, &[]);
    let mut client = Client::connect(old.ready().await).await;
    let step = br#"{"messages": [], "program_id": "p"}"#;
    client.post("/v1/chat/completions", "", step).await;
    let usage = r#"{"usage": {"prompt_tokens": 700, "completion_tokens": 7, "total_tokens": 707}}"#;
    backend.next().await.json(200, usage).await;
    assert_eq!(client.response().await.status(), 200);
    drop(client);
    let new = home.upgrade(&old).await;
    new.says("1 programs are taken over").await;
    let program = ask(new.address(1).await, "GET", "/programs/p", "").await.json();
    assert_eq!((&program["total_tokens"], &program["leased"]), (&707.into(), &true.into()), "{program}");
    assert!(old.ended().await.success());
    std::fs::remove_file(&snapshot).ok();
    // The new process, which serves now, writes the file.
    let mut client = Client::connect(new.address(0).await).await;
    client.post("/v1/chat/completions", "", step).await;
    backend.next().await.json(200, usage).await;
    assert_eq!(client.response().await.status(), 200);
    support::within("the state on disk", async {
        while !snapshot.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cut_off() {
    let mut backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let text = std::fs::read_to_string(&home.file).expect("a file");
    std::fs::write(&home.file, format!("{text}timeouts: {{grace: 200ms}}\n")).expect("a file");
    let mut old = Process::serve(&home.file, &[]);
    let mut client = Client::connect(old.ready().await).await;
    client.post("/v1/chat/completions", "", b"{\"messages\":[]}").await;
    let _running = backend.next().await;
    let _new = home.upgrade(&old).await;
    old.says("1 answers are cut off").await;
    assert!(old.ended().await.success());
}

#[tokio::test]
async fn a_backend_added_at_run_time_is_handed_over() {
    let (one, two) = (Backend::start().await, Backend::start().await);
    let home = Home::of(&[&one]);
    let old = Process::serve(&home.file, &[]);
    old.ready().await;
    let admin = old.address(1).await;
    let new_backend = format!(r#"{{"url": "{}", "weight": 3, "capacity_tokens": 777}}"#, two.url());
    assert_eq!(ask(admin, "POST", "/backends", &new_backend).await.status(), 201);
    let _new = home.upgrade(&old).await;
    let known = ask(admin, "GET", "/backends", "").await.json();
    let known = known["backends"].as_array().expect("a list");
    assert_eq!(known.len(), 2);
    assert_eq!((&known[1]["url"], &known[1]["weight"]), (&two.url().into(), &3.into()));
    assert_eq!(known[1]["capacity_tokens"], 777);
    assert_eq!(known[1]["healthy"], true, "it was checked before the first request could come");
}

#[tokio::test]
async fn sigquit_may_come_before_the_new_process_does() {
    let backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let old = Process::serve(&home.file, &[]);
    old.ready().await;
    old.signal(Signal::QUIT);
    old.says("handing over").await;
    let new = Process::serve(&home.file, &["--upgrade"]);
    old.says("another process serves").await;
    new.ready().await;
}

#[tokio::test]
async fn a_server_to_which_nobody_comes_goes_on() {
    let backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let mut old = Process::serve(&home.file, &[]);
    let address = old.ready().await;
    old.signal(Signal::QUIT);
    old.says("this process goes on: no process waits at").await;
    assert_eq!(ask(address, "GET", "/readyz", "").await.status(), 200);
    assert!(old.runs());
    // The old process may be asked again.
    let new = home.upgrade(&old).await;
    new.ready().await;
}

#[tokio::test]
async fn a_new_process_that_cannot_start_leaves_the_old_one_as_it_was() {
    let backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let mut old = Process::serve(&home.file, &[]);
    let address = old.ready().await;
    // The new configuration has one more listener, on an address that is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let text = std::fs::read_to_string(&home.file).expect("a file");
    let more = format!("listeners: [{{address: '{}'}}]\n", taken.local_addr().expect("bound"));
    std::fs::write(&home.file, format!("{text}{more}")).expect("a file");
    let mut new = Process::serve(&home.file, &["--upgrade"]);
    new.says("waiting at").await;
    old.signal(Signal::QUIT);
    new.says("cannot listen on").await;
    assert!(!new.ended().await.success());
    old.says("this process goes on").await;
    assert_eq!(ask(address, "GET", "/readyz", "").await.status(), 200);
    assert!(old.runs());
    // The address is freed, which mends the mistake. The new process has one listener more than the old one.
    drop(taken);
    let new = home.upgrade(&old).await;
    assert_eq!(new.address(0).await, address);
    assert_eq!(ask(new.address(1).await, "GET", "/livez", "").await.status(), 200);
}

#[tokio::test]
async fn one_process_waits_at_a_time_where_no_other_user_can_reach_it() {
    let backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    // A socket was left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(home.socket()).expect("a socket"));
    let old = Process::serve(&home.file, &[]);
    old.ready().await;
    let first = Process::serve(&home.file, &["--upgrade"]);
    first.says("waiting at").await;
    let mode = std::fs::metadata(home.socket()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut second = Process::serve(&home.file, &["--upgrade"]);
    second.says("another process waits there already").await;
    assert!(!second.ended().await.success());
    old.signal(Signal::QUIT);
    old.says("another process serves").await;
    first.ready().await;
}

#[tokio::test]
async fn a_supervisor_is_told_which_process_serves() {
    let backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let path = home.file.with_extension("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).expect("a socket");
    let told = async || {
        let mut word = [0; 256];
        let length = support::within("a word to the supervisor", socket.recv(&mut word)).await.expect("a datagram");
        String::from_utf8(word[..length].to_vec()).expect("text")
    };
    let variable = [("NOTIFY_SOCKET", path.as_os_str())];
    let old = Process::serve_in(&home.file, &[], variable);
    assert_eq!(told().await, format!("READY=1\nMAINPID={}", old.id()));
    let new = Process::serve_in(&home.file, &["--upgrade"], variable);
    new.says("waiting at").await;
    old.signal(Signal::QUIT);
    assert_eq!(told().await, format!("READY=1\nMAINPID={}", new.id()));
    new.signal(Signal::TERM);
    assert_eq!(told().await, "STOPPING=1");
}

#[tokio::test]
async fn sigterm_ends_an_attempt_that_nobody_answers() {
    let backend = Backend::start().await;
    let home = Home::of(&[&backend]);
    let mut old = Process::serve(&home.file, &[]);
    old.ready().await;
    old.signal(Signal::QUIT);
    old.says("handing over").await;
    old.signal(Signal::TERM);
    old.says("draining").await;
    assert!(old.ended().await.success());
}
