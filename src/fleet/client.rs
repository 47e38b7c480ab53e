//! The proxy's own HTTP requests to a backend (health, metrics, models), and the address that they go to.

use super::backend::Backend;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use reqwest::{Client, Response, redirect};
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

/// Size in bytes of the largest page that is read from a backend. A vLLM server's metrics take about 60 kB for each
/// engine.
const MAX_PAGE: usize = 8 << 20;

/// Error text for a backend at an address where it may not be.
pub(super) const OUT_OF_REACH: &str = "backends may not be added there (admin.allow_backends)";

/// One address of a backend, and a client that connects to this address alone: the proxy will use the address that was
/// checked.
#[derive(Debug)]
pub(super) struct ProbeClient {
    pub(super) address: SocketAddr,
    client: Client,
}

/// Why one of the proxy's own requests to a backend failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("its name does not resolve ({0})")]
    Unresolved(std::io::Error),
    #[error("{OUT_OF_REACH}")]
    OutOfReach,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Connect(String),
    #[error("{0}")]
    Broken(String),
    #[error("GET {path} answered 404: name a path that this server answers with 200 as `health.path`")]
    NoHealthPath { path: String },
    #[error("GET {path} answered {status}")]
    Status { path: String, status: StatusCode },
    #[error("GET {path} answered more than {MAX_PAGE} bytes")]
    TooLarge { path: String },
    #[error("GET {path}: {what}")]
    Unintelligible { path: String, what: &'static str },
}

// === impl ProbeClient ===

impl ProbeClient {
    pub(super) fn new(backend: &Backend, address: SocketAddr) -> Result<Self, ProbeError> {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .http1_only()
            // Seconds lie between two requests. A kept connection would save nothing, might be closed by the server
            // just as it is used, and would not show that the server still accepts new ones.
            .pool_max_idle_per_host(0)
            .resolve(&backend.host, address)
            // The certificates are the platform's, as on the proxy's other connections. Loading them is slow, so they
            // are loaded only for TLS.
            .tls_built_in_root_certs(backend.tls)
            .build()
            .map_err(|error| ProbeError::Broken(root_cause(&error)))?;
        Ok(Self { address, client })
    }

    /// Asks for the health path. Any 2xx is healthy, and the body is not read. With `lenient`, any status below 500 is
    /// healthy.
    pub(super) async fn check(
        &self,
        backend: &Backend,
        path: &str,
        lenient: bool,
        limit: Duration,
    ) -> Result<(), ProbeError> {
        match self.get(backend, path, limit).await {
            Ok(_) => Ok(()),
            Err(ProbeError::Status { status, .. }) if lenient && !status.is_server_error() => Ok(()),
            Err(ProbeError::Status { path, status: StatusCode::NOT_FOUND }) => Err(ProbeError::NoHealthPath { path }),
            Err(error) => Err(error),
        }
    }

    /// Fetches a whole page, within `limit`.
    pub(super) async fn fetch(&self, backend: &Backend, path: &str, limit: Duration) -> Result<Bytes, ProbeError> {
        let mut response = self.get(backend, path, limit).await?;
        let mut page = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| probe_error(&error, limit))? {
            if page.len() + chunk.len() > MAX_PAGE {
                return Err(ProbeError::TooLarge { path: path.to_owned() });
            }
            page.extend_from_slice(&chunk);
        }
        Ok(page.freeze())
    }

    async fn get(&self, backend: &Backend, path: &str, limit: Duration) -> Result<Response, ProbeError> {
        let mut request = self.client.get(format!("{}{path}", backend.server())).timeout(limit);
        if let Some(key) = &backend.settings().api_key {
            request = request.bearer_auth(&key.0);
        }
        let response = request.send().await.map_err(|error| probe_error(&error, limit))?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(ProbeError::Status { path: path.to_owned(), status }) }
    }
}

fn probe_error(error: &reqwest::Error, limit: Duration) -> ProbeError {
    if error.is_timeout() {
        ProbeError::Timeout(limit)
    } else if error.is_connect() {
        ProbeError::Connect(root_cause(error))
    } else {
        ProbeError::Broken(root_cause(error))
    }
}

/// The text of the innermost error, which says best what happened: "Connection refused (os error 111)".
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

// === impl ProbeError ===

impl ProbeError {
    /// Whether another address of the same name may do better.
    pub(super) fn is_about_the_address(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Timeout(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Origin;
    use crate::scheduler::{BackendId, PoolId};

    #[test]
    fn an_https_backend_has_a_client_too() {
        let config = crate::config::Backend::at("https://gpu.example").unwrap();
        let backend = Backend::new(BackendId(1), PoolId(0), &config, None, Origin::File).unwrap();
        assert!(ProbeClient::new(&backend, "127.0.0.1:443".parse().unwrap()).is_ok());
    }
}
