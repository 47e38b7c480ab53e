//! TLS of one listener. The files are looked at every few seconds: what is new serves the next connection, and what
//! cannot be used changes nothing.

use crate::config::{Tls, TlsVersion};
use arc_swap::ArcSwap;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::{Stream, l4};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Certificates live for weeks: this is soon enough, and the files are small.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Preferred first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What a listener shows, and asks for.
pub struct Certificates {
    tls: Tls,
    current: ArcSwap<Acceptor>,
    /// Hash of the files that `current` was made of.
    seen: [u8; 32],
}

/// What the files hold.
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

// === impl Certificates ===

impl Certificates {
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn load(tls: &Tls) -> Result<Self, String> {
        let files = Files::read(tls)?;
        let current = ArcSwap::from_pointee(files.acceptor(tls)?);
        Ok(Self { tls: tls.clone(), current, seen: files.hash() })
    }

    /// The connection behind its handshake; `None` when there was none within `limit`.
    pub async fn handshake(&self, connection: Stream, limit: Duration) -> Option<Stream> {
        let plain = connection.into_any().downcast::<l4::stream::Stream>().ok()?;
        let acceptor = self.current.load_full();
        match tokio::time::timeout(limit, acceptor.tls_handshake(*plain)).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            // Whoever scans ports could fill the log with these.
            Ok(Err(e)) => {
                log::debug!("TLS handshake: {e}");
                None
            }
            Err(_) => {
                log::debug!("TLS handshake: not done within {limit:?}");
                None
            }
        }
    }

    /// Takes up changed files, as long as it is polled.
    pub async fn watch(&self) -> Infallible {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut seen = self.seen;
        // What was wrong the last time, and whether that was told.
        let mut wrong = (String::new(), false);
        loop {
            look.tick().await;
            let tls = self.tls.clone();
            let read = tokio::task::spawn_blocking(move || {
                let files = Files::read(&tls)?;
                let hash = files.hash();
                let acceptor = (hash != seen).then(|| files.acceptor(&tls)).transpose()?;
                Ok((hash, acceptor))
            });
            match read.await.map_err(|e| e.to_string()).and_then(|read| read) {
                Ok((hash, acceptor)) => {
                    if let Some(acceptor) = acceptor {
                        self.current.store(Arc::new(acceptor));
                        log::info!("{}: read anew", self.tls.cert.display());
                    }
                    (seen, wrong) = (hash, (String::new(), false));
                }
                // Told once, and not at first sight: several files are not replaced in one moment.
                Err(e) if wrong.0 == e => {
                    if !wrong.1 {
                        log::error!("{e}; the certificates in use stay");
                    }
                    wrong.1 = true;
                }
                Err(e) => wrong = (e, false),
            }
        }
    }
}

// === impl Files ===

impl Files {
    fn read(tls: &Tls) -> Result<Self, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|e: io::Error| format!("{}: {e}", path.display()));
        let client_ca = tls.client_ca.as_deref().map(read).transpose()?;
        Ok(Self { cert: read(&tls.cert)?, key: read(&tls.key)?, client_ca })
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten() {
            hash.update(Sha256::digest(file));
        }
        hash.finalize().into()
    }

    fn acceptor(&self, tls: &Tls) -> Result<Acceptor, String> {
        let config = self.server_config(tls)?;
        Ok(Acceptor::from_server_config(Arc::new(config)))
    }

    fn server_config(&self, tls: &Tls) -> Result<ServerConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let versions: &[&rustls::SupportedProtocolVersion] = match tls.min_version {
            TlsVersion::V1_2 => &[&version::TLS12, &version::TLS13],
            TlsVersion::V1_3 => &[&version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|e| e.to_string())?;
        let builder = match (&tls.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, pem)? {
                    roots.add(authority).map_err(|e| wrong(path, &e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| wrong(path, &e))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let chain = certificates(&tls.cert, &self.cert)?;
        // What the parser says may hold a part of the key.
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| wrong(&tls.key, &"no private key in PEM"))?;
        let both = format!("{} and {}", tls.cert.display(), tls.key.display());
        let mut config = builder.with_single_cert(chain, key).map_err(|e| format!("{both}: {e}"))?;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        Ok(config)
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(wrong(path, &"no certificate in it")),
        Ok(all) => Ok(all),
        Err(e) => Err(wrong(path, &e)),
    }
}

fn wrong(path: &Path, what: &dyn std::fmt::Display) -> String {
    format!("{}: {what}", path.display())
}
