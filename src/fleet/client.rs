//! Our own HTTP requests to a backend (health, metrics, models), and the address they go to.

use super::Backend;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use reqwest::{Client, Response, redirect};
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Largest page that we read from a backend. A vLLM server's metrics are about 60 kB an engine.
const MAX_PAGE: usize = 8 << 20;

/// How many addresses of one name are tried in one go.
const MAX_CANDIDATES: usize = 4;

/// What is said of a backend that may not be where it is.
pub(super) const OUT_OF_REACH: &str = "backends may not be added there (admin.allow_backends)";

/// One address of a backend, and a client that goes nowhere else: what is checked is what the proxy will use.
#[derive(Debug)]
pub(super) struct ProbeClient {
    pub(super) address: SocketAddr,
    client: Client,
}

/// Why a request of ours to a backend failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("its name does not resolve ({0})")]
    Unresolved(String),
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

/// Where the backend's name leads now, `current` first if it is still among them.
pub(super) async fn resolve(
    backend: &Backend,
    current: Option<SocketAddr>,
    limit: Duration,
) -> Result<Vec<SocketAddr>, ProbeError> {
    if let Ok(ip) = backend.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, backend.port)]);
    }
    let lookup = tokio::net::lookup_host((backend.host.as_str(), backend.port));
    let found = match tokio::time::timeout(limit, lookup).await {
        Ok(Ok(found)) => candidates(found, current),
        Ok(Err(error)) => return known_or(current, error.to_string()),
        Err(_) => return known_or(current, format!("no answer within {limit:?}")),
    };
    if found.is_empty() { known_or(current, "no address".to_owned()) } else { Ok(found) }
}

/// A name server that fails does not take a known backend away.
fn known_or(current: Option<SocketAddr>, reason: String) -> Result<Vec<SocketAddr>, ProbeError> {
    current.map(|known| vec![known]).ok_or(ProbeError::Unresolved(reason))
}

fn candidates(found: impl Iterator<Item = SocketAddr>, current: Option<SocketAddr>) -> Vec<SocketAddr> {
    let mut list: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !list.contains(&address) {
            list.push(address);
        }
    }
    if let Some(at) = list.iter().position(|address| Some(*address) == current) {
        list[..=at].rotate_right(1);
    }
    list.truncate(MAX_CANDIDATES);
    list
}

// === impl ProbeClient ===

impl ProbeClient {
    pub(super) fn new(backend: &Backend, address: SocketAddr) -> Result<Self, ProbeError> {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .http1_only()
            // Seconds lie between two requests: a kept connection saves nothing, may be closed by the server just
            // as it is used, and would not show that new ones are still accepted.
            .pool_max_idle_per_host(0)
            .resolve(&backend.host, address)
            // The platform's certificates, as the proxy uses them; loading them is slow, so only where needed.
            .tls_built_in_root_certs(backend.tls)
            .build()
            .map_err(|error| ProbeError::Broken(root_cause(&error)))?;
        Ok(Self { address, client })
    }

    /// Asks for the health path: any 2xx is healthy, the body is not read. `lenient`: anything below 500 is.
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
            Err(failure) => Err(failure),
        }
    }

    /// Fetches a page whole, within `limit`.
    pub(super) async fn fetch(&self, backend: &Backend, path: &str, limit: Duration) -> Result<Bytes, ProbeError> {
        let mut response = self.get(backend, path, limit).await?;
        let mut page = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error, limit))? {
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
        let response = request.send().await.map_err(|error| failure(&error, limit))?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(ProbeError::Status { path: path.to_owned(), status }) }
    }
}

fn failure(error: &reqwest::Error, limit: Duration) -> ProbeError {
    if error.is_timeout() {
        ProbeError::Timeout(limit)
    } else if error.is_connect() {
        ProbeError::Connect(root_cause(error))
    } else {
        ProbeError::Broken(root_cause(error))
    }
}

/// The innermost error says it best: "Connection refused (os error 111)".
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

// === impl ProbeError ===

impl ProbeError {
    /// Another address of the same name may do better.
    pub(super) fn is_about_the_address(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Timeout(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_address_in_use_stays_first_while_the_name_still_leads_there() {
        let [a, b, c] = ["10.0.0.1:1", "10.0.0.2:1", "[::1]:1"].map(address);
        let order = |current| candidates([a, b, a, c].into_iter(), current);
        assert_eq!(order(None), [a, b, c]);
        assert_eq!(order(Some(c)), [c, a, b]);
        assert_eq!(order(Some(address("10.9.9.9:1"))), [a, b, c], "it has moved");
    }

    #[test]
    fn a_failing_name_server_takes_no_known_address_away() {
        let known = address("10.0.0.1:1");
        assert_eq!(known_or(Some(known), "broken".into()).unwrap(), [known]);
        assert!(known_or(None, "broken".into()).is_err());
    }

    #[test]
    fn an_https_backend_has_a_link_too() {
        let config = crate::config::Backend {
            url: "https://gpu.example".parse().unwrap(),
            api_key: None,
            weight: 1,
            capacity_tokens: None,
        };
        let backend = Backend::new(
            crate::scheduler::BackendId(1),
            crate::gate::PoolId(0),
            &config,
            None,
            super::super::Origin::File,
        )
        .unwrap();
        assert!(ProbeClient::new(&backend, address("127.0.0.1:443")).is_ok());
    }
}
