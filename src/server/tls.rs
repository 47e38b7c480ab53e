//! TLS of one listener. The files are looked at every few seconds: new certificates serve the next connection, and files
//! that cannot be used change nothing.

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
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks at the files. Certificates live for weeks, and the files are small.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The protocols that clients are offered, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The certificates that a listener shows, and those that it asks for.
pub struct Certificates {
    tls: Tls,
    current: ArcSwap<Acceptor>,
    /// Hash of the files that `current` was made of.
    seen: [u8; 32],
}

/// Looks whether the files have changed.
struct Watch {
    certificates: Arc<Certificates>,
    /// Hash of the files in use.
    seen: [u8; 32],
    /// The fault of the files that are there now, and whether the log has told it.
    wrong: Option<String>,
    told: bool,
}

/// The content of the files.
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

// === impl Certificates ===

impl Certificates {
    /// # Errors
    /// A file cannot be read, or holds something else than it should.
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
            // Port scans would fill the log.
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
    pub async fn watch(self: Arc<Self>) {
        let mut watch = Watch { seen: self.seen, wrong: None, told: false, certificates: self };
        let mut clock = tokio::time::interval(LOOK_EVERY);
        loop {
            clock.tick().await;
            // Files may lie on a disk that hangs.
            let looked = tokio::task::spawn_blocking(move || {
                watch.look();
                watch
            });
            let Ok(looked) = looked.await else { return };
            watch = looked;
        }
    }
}

// === impl Watch ===

impl Watch {
    fn look(&mut self) {
        match self.changed() {
            Ok(None) => (self.wrong, self.told) = (None, false),
            Ok(Some(acceptor)) => {
                self.certificates.current.store(Arc::new(acceptor));
                (self.wrong, self.told) = (None, false);
                log::info!("{}: read anew", self.certificates.tls.cert.display());
            }
            // Told once, at the second look: several files are not replaced in one moment.
            Err(e) if self.wrong.as_ref() == Some(&e) => {
                if !self.told {
                    log::error!("{e}; the certificates in use stay");
                }
                self.told = true;
            }
            Err(e) => (self.wrong, self.told) = (Some(e), false),
        }
    }

    /// What to use from now on, if that is something else.
    fn changed(&mut self) -> Result<Option<Acceptor>, String> {
        let tls = &self.certificates.tls;
        let files = Files::read(tls)?;
        let hash = files.hash();
        if hash == self.seen {
            return Ok(None);
        }
        let acceptor = files.acceptor(tls)?;
        self.seen = hash;
        Ok(Some(acceptor))
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
        // The parser's own message may hold a part of the key.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn certified() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_cannot_be_used_changes_nothing_and_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let write = |(pem, private): &(String, String)| {
            std::fs::write(&cert, pem).unwrap();
            std::fs::write(&key, private).unwrap();
        };
        let (first, second) = (certified(), certified());
        write(&first);
        let tls = Tls { cert: cert.clone(), key: key.clone(), client_ca: None, min_version: TlsVersion::V1_2 };
        let certificates = Arc::new(Certificates::load(&tls).unwrap());
        let mut watch =
            Watch { seen: certificates.seen, wrong: None, told: false, certificates: Arc::clone(&certificates) };
        let mut look = || {
            let before = certificates.current.load_full();
            watch.look();
            (!Arc::ptr_eq(&before, &certificates.current.load_full()), watch.told)
        };
        assert_eq!(look(), (false, false));
        // A new certificate whose key is not there yet.
        std::fs::write(&cert, &second.0).unwrap();
        assert_eq!(look(), (false, false));
        write(&second);
        assert_eq!(look(), (true, false));
        for broken in ["", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&cert, broken).unwrap();
            assert_eq!((look(), look(), look()), ((false, false), (false, true), (false, true)));
        }
        std::fs::remove_file(&key).unwrap();
        assert_eq!((look(), look()), ((false, false), (false, true)));
        write(&second);
        assert_eq!(look(), (false, false), "as before");
        write(&first);
        assert_eq!(look(), (true, false));
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, certified().0).unwrap();
        std::fs::write(&key, "-----BEGIN PRIVATE KEY s3cret\n").unwrap();
        let tls = Tls { cert, key, client_ca: None, min_version: TlsVersion::V1_2 };
        let wrong = Certificates::load(&tls).err().unwrap();
        assert!(wrong.ends_with("key.pem: no private key in PEM"), "{wrong}");
    }
}
