//! A backend as configured, and the rules for its URL.

use super::outlier::OutlierState;
use crate::config::{self, Secret};
use crate::gate::PoolId;
use crate::scheduler::BackendId;
use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;

/// A backend as configured.
#[derive(Debug)]
pub struct Backend {
    pub id: BackendId,
    pub pool: PoolId,
    /// As the user wrote it, without a trailing slash: the key in ThunderAgent's JSON. Of a rank with `#rank=N`.
    pub url: String,
    /// Which of its server's data-parallel ranks it is.
    pub rank: Option<u32>,
    /// What goes upstream as `Host`: the host (an IPv6 address in brackets) and the port, unless it is the scheme's own.
    pub authority: String,
    /// The bare host, for DNS and TLS (SNI); an IPv6 address has no brackets here.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// Path in front of every request (`http://gpu/prefix`), empty or without a trailing slash.
    pub prefix: String,
    /// What requests tell of it.
    pub outlier: OutlierState,
    settings: ArcSwap<BackendSettings>,
}

/// What may change while the backend is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    pub api_key: Option<Secret>,
    pub weight: u32,
    /// KV cache size given by the user, in tokens; overrides what the engine says.
    pub capacity_tokens: Option<u64>,
    pub origin: Origin,
}

/// Who named a backend, and so may take it away.
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
    /// Says what is wrong with the URL.
    pub(super) fn new(
        id: BackendId,
        pool: PoolId,
        config: &config::Backend,
        rank: Option<u32>,
        origin: Origin,
    ) -> Result<Self, String> {
        let url = &config.url;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(format!("{url}: the scheme is `{other}`, not http or https")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a backend's URL holds no user or password: use `api_key`".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("{url}: a backend's URL has no `?` or `#`"));
        }
        let bracketed = url.host_str().ok_or_else(|| format!("{url}: no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| format!("{url}: no port"))?;
        Ok(Self {
            id,
            pool,
            url: rank.map_or_else(|| name(config).to_owned(), |rank| format!("{}{RANK}{rank}", name(config))),
            rank,
            authority: url.port().map_or_else(|| bracketed.to_owned(), |port| format!("{bracketed}:{port}")),
            host: bracketed.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            tls,
            prefix: url.path().trim_end_matches('/').to_owned(),
            outlier: OutlierState::new(),
            settings: ArcSwap::from_pointee(BackendSettings::new(config, origin)),
        })
    }

    /// The URL of its server.
    #[must_use]
    pub fn server(&self) -> &str {
        server(&self.url)
    }

    /// As they are now.
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

/// Between a server's URL and the rank. No URL of a server has a fragment.
const RANK: &str = "#rank=";

/// The URL of the server in that of a backend, which may be one of its ranks.
pub(crate) fn server(url: &str) -> &str {
    url.split_once(RANK).map_or(url, |(server, _)| server)
}

/// What a backend is known by: its URL without a trailing slash.
pub(super) fn name(config: &config::Backend) -> &str {
    config.url.as_str().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Backend, String> {
        let config = config::Backend { url: url.parse().unwrap(), api_key: None, weight: 1, capacity_tokens: None };
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
