//! TLS: which clients are let in, with which version, and certificates that change under a running server.

mod support;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use support::backend::Backend;
use support::client::Client;
use support::process::Process;
use support::proxy::{Proxy, config};
use support::within;
use thundergate::config::{Config, Tls, TlsVersion};

const CHAT: &str = "/v1/chat/completions";
const STEP: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}]}"#;

/// A certificate authority, with the certificates that it has signed.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Files of a listener.
struct Files {
    dir: tempfile::TempDir,
}

// === impl Authority ===

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A new certificate and its key.
    fn sign(&self) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    fn identity(&self) -> reqwest::Identity {
        let (cert, key) = self.sign();
        reqwest::Identity::from_pem(format!("{cert}{key}").as_bytes()).expect("an identity")
    }

    /// A client that trusts this authority alone.
    fn client(&self) -> reqwest::ClientBuilder {
        let root = reqwest::Certificate::from_pem(self.pem.as_bytes()).expect("a certificate");
        reqwest::Client::builder().tls_built_in_root_certs(false).add_root_certificate(root).no_proxy()
    }
}

// === impl Files ===

impl Files {
    fn new(authority: &Authority) -> Self {
        let files = Self { dir: tempfile::tempdir().expect("a directory") };
        files.write(authority);
        files
    }

    fn write(&self, authority: &Authority) {
        let (cert, key) = authority.sign();
        std::fs::write(self.path("cert.pem"), cert).expect("writable");
        std::fs::write(self.path("key.pem"), key).expect("writable");
        std::fs::write(self.path("ca.pem"), &authority.pem).expect("writable");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tls(&self) -> Tls {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        Tls { cert, key, client_ca: None, min_version: TlsVersion::V1_2 }
    }
}

fn with(backend: &Backend, tls: Tls) -> Config {
    let mut config = config(&[backend]);
    config.listeners[0].tls = Some(tls);
    config
}

fn url(proxy: &Proxy, path: &str) -> String {
    format!("https://localhost:{}{path}", proxy.address.port())
}

async fn is_served(client: reqwest::ClientBuilder, proxy: &Proxy) -> bool {
    let client = client.build().expect("a client");
    let answer = within("an answer", client.get(url(proxy, "/livez")).send()).await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

#[tokio::test]
async fn with_client_ca_only_its_own_clients_are_served() {
    let backend = Backend::start().await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let files = Files::new(&ours);
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let tls = Tls { client_ca: Some(files.path("ca.pem")), min_version: version, ..files.tls() };
        let proxy = Proxy::with(with(&backend, tls)).await;
        assert!(!is_served(ours.client(), &proxy).await, "without a certificate");
        assert!(!is_served(ours.client().identity(theirs.identity()), &proxy).await, "with one of somebody else");
        assert!(is_served(ours.client().identity(ours.identity()), &proxy).await);
        let http1 = ours.client().identity(ours.identity()).http1_only();
        assert!(is_served(http1, &proxy).await);
    }
}

#[tokio::test]
async fn a_version_below_the_least_is_not_spoken() {
    let backend = Backend::start().await;
    let authority = Authority::new();
    let files = Files::new(&authority);
    let old = || authority.client().max_tls_version(reqwest::tls::Version::TLS_1_2);
    let proxy = Proxy::with(with(&backend, files.tls())).await;
    assert!(is_served(old(), &proxy).await && is_served(authority.client(), &proxy).await);
    let tls = Tls { min_version: TlsVersion::V1_3, ..files.tls() };
    let proxy = Proxy::with(with(&backend, tls)).await;
    assert!(!is_served(old(), &proxy).await);
    assert!(is_served(authority.client(), &proxy).await);
}

#[tokio::test]
async fn new_certificates_and_authorities_serve_the_next_connection_while_the_last_goes_on() {
    let mut backend = Backend::start().await;
    let (before, after) = (Authority::new(), Authority::new());
    let files = Files::new(&before);
    let tls = Tls { client_ca: Some(files.path("ca.pem")), ..files.tls() };
    let proxy = Proxy::with(with(&backend, tls)).await;
    let client = before.client().identity(before.identity()).build().expect("a client");
    let streamed = tokio::spawn(client.post(url(&proxy, CHAT)).body(STEP).send());
    let mut answer = backend.next().await.events().await;
    answer.event("1").await;
    let mut response = streamed.await.expect("no panic").expect("an answer");
    assert_eq!(response.chunk().await.expect("an open stream").as_deref(), Some(&b"data: 1\n\n"[..]));

    files.write(&after);
    within("the new certificate", async {
        while !is_served(after.client().identity(after.identity()), &proxy).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(!is_served(before.client().identity(before.identity()), &proxy).await, "the old authority");
    assert!(!is_served(after.client().identity(before.identity()), &proxy).await, "the old clients");

    answer.event("2").await;
    answer.finish().await;
    assert_eq!(response.chunk().await.expect("the same connection").as_deref(), Some(&b"data: 2\n\n"[..]));
    assert_eq!(response.text().await.expect("a whole answer"), "");
    proxy.settled().await;
}

#[tokio::test]
async fn a_process_that_takes_over_does_the_handshakes_with_its_own_files() {
    let backend = Backend::start().await;
    let (before, after) = (Authority::new(), Authority::new());
    let (old_files, new_files) = (Files::new(&before), Files::new(&after));
    let file = old_files.path("thundergate.yaml");
    let write = |files: &Files| {
        let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
        let text = format!(
            "admin: {{listen: 127.0.0.1:0}}\nbackends: ['{}']\n\
             listeners: [{{address: 127.0.0.1:0, tls: {{cert: '{}', key: '{}'}}}}]\n",
            backend.url(),
            cert.display(),
            key.display()
        );
        std::fs::write(&file, text).expect("writable");
    };
    write(&old_files);
    let mut old = Process::serve(&file, &[]);
    let url = format!("https://localhost:{}/livez", old.address(0).await.port());
    let status = async |authority: &Authority| {
        let client = authority.client().build().expect("a client");
        within("an answer", client.get(&url).send()).await.ok().map(|answer| answer.status().as_u16())
    };
    assert_eq!(status(&before).await, Some(200));

    // A reload cannot take up other file names.
    write(&new_files);
    old.signal(Signal::HUP);
    old.says("a change of the listeners needs a new process").await;
    assert_eq!(status(&before).await, Some(200));
    let new = Process::serve(&file, &["--upgrade"]);
    new.says("waiting at").await;
    old.signal(Signal::QUIT);
    assert!(old.ended().await.success());
    assert_eq!((status(&after).await, status(&before).await), (Some(200), None));
    drop(new);
}

#[tokio::test]
async fn a_handshake_that_does_not_end_gives_its_place_back() {
    let backend = Backend::start().await;
    let authority = Authority::new();
    let files = Files::new(&authority);
    let mut config = with(&backend, files.tls());
    config.limits.connections = 1;
    config.timeouts.request_header = Duration::from_secs(1);
    let proxy = Proxy::with(config).await;
    let mut silent = Client::connect(proxy.address).await;
    // The client sends the first bytes of a handshake, and no more.
    silent.send(&[22, 3, 1, 0]).await;
    within("a refusal: the place is taken before the handshake is done", async {
        while is_served(authority.client(), &proxy).await {}
    })
    .await;
    assert!(silent.closed().await);
    within("the place", async { while !is_served(authority.client(), &proxy).await {} }).await;
}

/// Makes the handshake, sends nothing more, and waits until the server closes.
fn silent_after_handshake(authority: &Authority, address: SocketAddr) -> std::io::Result<usize> {
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("a certificate");
    roots.add(root).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = "localhost".try_into().expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut socket = std::net::TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    // Before the end come only the bytes that the server sends by itself, if there are any.
    let mut all = Vec::new();
    stream.read_to_end(&mut all)
}

#[tokio::test]
async fn a_client_that_announces_http2_and_says_nothing_gives_its_place_back() {
    let backend = Backend::start().await;
    let authority = Authority::new();
    let files = Files::new(&authority);
    let mut config = with(&backend, files.tls());
    config.timeouts.request_header = Duration::from_millis(300);
    let proxy = Proxy::with(config).await;
    let address = proxy.address;
    let ended = tokio::task::spawn_blocking(move || silent_after_handshake(&authority, address)).await;
    let timed_out = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
    assert!(!ended.expect("no panic").is_err_and(|e| timed_out(&e)), "it is still open");
}

#[tokio::test]
async fn a_server_does_not_start_with_what_it_cannot_use() {
    let backend = Backend::start().await;
    let files = Files::new(&Authority::new());
    let bind = |tls| thundergate::server::Server::bind(with(&backend, tls)).err().map(|e| e.to_string());
    std::fs::write(files.path("empty.pem"), "").expect("writable");
    for tls in [
        Tls { cert: files.path("empty.pem"), ..files.tls() },
        Tls { key: files.path("cert.pem"), ..files.tls() },
        Tls { client_ca: Some(files.path("empty.pem")), ..files.tls() },
        Tls { client_ca: Some(files.path("missing.pem")), ..files.tls() },
        // The key does not belong to this certificate.
        Tls { cert: files.path("ca.pem"), ..files.tls() },
    ] {
        let wrong = bind(tls).expect("a mistake");
        assert!(wrong.starts_with("TLS of ") && wrong.contains(".pem"), "{wrong}");
    }
    assert_eq!(bind(files.tls()), None);
}

/// Thundergate in front of a backend that speaks TLS: another Thundergate.
fn in_front_of(inner: &Proxy, files: &Files) -> Process {
    let file = files.path("thundergate.yaml");
    let url = format!("https://localhost:{}", inner.address.port());
    let text = format!("listen: 127.0.0.1:0\nmodels: [{{backends: ['{url}'], health: {{interval: 50ms}}}}]\n");
    std::fs::write(&file, text).expect("writable");
    let authorities = files.path("ca.pem");
    Process::serve_in(&file, &[], [("SSL_CERT_FILE", authorities.as_os_str())])
}

#[tokio::test]
async fn a_backend_with_tls_is_checked_and_asked_under_its_name() {
    let mut backend = Backend::start().await;
    let files = Files::new(&Authority::new());
    let inner = Proxy::with(with(&backend, files.tls())).await;
    let outer = in_front_of(&inner, &files);
    let mut client = Client::connect(outer.ready().await).await;
    client.post(CHAT, "", STEP.as_bytes()).await;
    let exchange = backend.next().await;
    let via = exchange.request.header("x-request-id");
    assert_eq!(exchange.request.body, STEP.as_bytes());
    exchange.json(200, "{}").await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.text()), (200, "{}"));
    assert_eq!(answer.header("x-request-id"), via);
    let url = format!("https://localhost:{}", inner.address.port());
    assert_eq!(answer.header("x-thundergate-backend"), Some(url));
    inner.settled().await;
}

#[tokio::test]
async fn a_backend_whose_certificate_nobody_vouches_for_gets_nothing() {
    let backend = Backend::start().await;
    let files = Files::new(&Authority::new());
    let inner = Proxy::with(with(&backend, files.tls())).await;
    let strangers = Files::new(&Authority::new());
    let outer = in_front_of(&inner, &strangers);
    outer.says("certificate").await;
    let mut client = Client::connect(outer.address(0).await).await;
    client.get("/readyz").await;
    assert_eq!(client.response().await.status(), 503);
}
