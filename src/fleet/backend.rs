//! A backend as configured: its URL, and settings that may change.

use super::outlier::OutlierState;
use crate::config::{self, Secret};
use crate::scheduler::{BackendId, PoolId};
use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;

/// One server, or one data-parallel rank of a server.
#[derive(Debug)]
pub struct Backend {
    pub id: BackendId,
    pub pool: PoolId,
    /// URL as the user wrote it, without a trailing slash: the key in ThunderAgent's JSON. For a rank, `#rank=N`
    /// follows.
    pub url: String,
    /// Number of the data-parallel rank among those of its server; `None` for a whole server.
    pub rank: Option<u32>,
    /// Value of `Host` in upstream requests: the host (an IPv6 address in brackets), and the port unless it is the
    /// scheme's own.
    pub authority: String,
    /// Bare host, for DNS and TLS (SNI). An IPv6 address has no brackets here.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// Path in front of every request (`http://gpu/prefix`), empty or without a trailing slash.
    pub prefix: String,
    /// State of the outlier detection: the health of the backend as its requests show it.
    pub outlier: Arc<OutlierState>,
    settings: ArcSwap<BackendSettings>,
}

/// Settings that may change while the backend is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    pub api_key: Option<Secret>,
    pub weight: u32,
    /// KV cache size in tokens as the user gave it. The size overrides the one that the engine tells.
    pub capacity_tokens: Option<u64>,
    pub origin: Origin,
}

/// Source that named a backend, and that may therefore take it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration.
    File,
    /// `POST /backends`.
    Api,
    /// `models[].discovery`.
    Dns,
}

// === impl Backend ===

impl Backend {
    /// # Errors
    /// A text that says what is wrong with the URL.
    pub(super) fn new(
        id: BackendId,
        pool: PoolId,
        config: &config::Backend,
        rank: Option<u32>,
        origin: Origin,
    ) -> Result<Self, String> {
        let url = config::parse_url(config.url.as_str())?;
        let bracketed = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().ok_or_else(|| format!("{url}: no port"))?;
        Ok(Self {
            id,
            pool,
            url: rank.map_or_else(|| name(config).to_owned(), |rank| format!("{}{RANK}{rank}", name(config))),
            rank,
            authority: url.port().map_or_else(|| bracketed.to_owned(), |port| format!("{bracketed}:{port}")),
            host: bracketed.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            tls: url.scheme() == "https",
            prefix: url.path().trim_end_matches('/').to_owned(),
            outlier: Arc::new(OutlierState::new()),
            settings: ArcSwap::from_pointee(BackendSettings::new(config, origin)),
        })
    }

    /// URL of the server, without the mark of a rank.
    #[must_use]
    pub fn server(&self) -> &str {
        server(&self.url)
    }

    /// Settings at the present time.
    #[must_use]
    pub fn settings(&self) -> Guard<Arc<BackendSettings>> {
        self.settings.load()
    }

    pub(super) fn configure(&self, settings: BackendSettings) {
        self.settings.store(Arc::new(settings));
    }
}

// === impl BackendSettings ===

impl BackendSettings {
    pub(super) fn new(config: &config::Backend, origin: Origin) -> Self {
        let config::Backend { api_key, weight, capacity_tokens, .. } = config.clone();
        Self { api_key, weight, capacity_tokens, origin }
    }
}

/// Mark between a server's URL and the rank. No URL of a server has a fragment.
const RANK: &str = "#rank=";

/// URL of the server, from the URL of a backend. The backend may be one rank of the server.
pub(crate) fn server(url: &str) -> &str {
    url.split_once(RANK).map_or(url, |(server, _)| server)
}

/// The name by which a server is known: its URL without a trailing slash.
pub(super) fn name(config: &config::Backend) -> &str {
    config.url.as_str().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Backend, String> {
        let url = url.parse().unwrap();
        let config = config::Backend { url, api_key: None, weight: 1, capacity_tokens: None };
        Backend::new(BackendId(1), PoolId(0), &config, None, Origin::File)
    }

    #[test]
    fn a_url_is_taken_apart() {
        let plain = parse("http://gpu1:8000/").unwrap();
        assert_eq!((plain.url.as_str(), plain.authority.as_str()), ("http://gpu1:8000", "gpu1:8000"));
        assert_eq!((plain.tls, plain.prefix.as_str()), (false, ""));

        let deep = parse("https://gpu.example/a/b/").unwrap();
        assert_eq!((deep.url.as_str(), deep.prefix.as_str()), ("https://gpu.example/a/b", "/a/b"));
        assert_eq!((deep.authority.as_str(), deep.port, deep.tls), ("gpu.example", 443, true));

        let v6 = parse("http://[::1]:8000").unwrap();
        assert_eq!((v6.authority.as_str(), v6.host.as_str(), v6.port), ("[::1]:8000", "::1", 8000));
    }

    #[test]
    fn a_rank_is_known_by_its_server_and_its_number() {
        let config = config::Backend::at("http://gpu1:8000/").unwrap();
        let rank = Backend::new(BackendId(1), PoolId(0), &config, Some(3), Origin::File).unwrap();
        assert_eq!((rank.url.as_str(), rank.server()), ("http://gpu1:8000#rank=3", "http://gpu1:8000"));
        assert_eq!((rank.authority.as_str(), rank.prefix.as_str()), ("gpu1:8000", ""));
    }

    #[test]
    fn a_url_that_cannot_be_a_backend_is_refused() {
        for url in ["ftp://gpu", "http://user:pw@gpu", "http://gpu/?a=b", "http://gpu/#x"] {
            assert!(parse(url).is_err(), "{url}");
        }
        assert!(!parse("http://user:pw@gpu").unwrap_err().contains("pw@"), "the secret is not shown");
    }
}
