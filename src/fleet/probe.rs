//! For each kind of engine, where its load and its KV cache are read.

use super::backend::Backend;
use super::client::{ProbeClient, ProbeError};
use super::member::FleetMember;
use super::reading::Reading;
use super::{sglang, skyrl, vllm};
use crate::config::Engine;
use crate::units::Tokens;
use bytes::Bytes;
use http::StatusCode;
use std::time::Duration;
use tokio::time::Instant;

const METRICS: &str = "/metrics";

/// Reader of the metrics of one server.
#[derive(Debug)]
pub(super) enum Probe {
    Vllm,
    Sglang(Sglang),
    Skyrl,
}

/// State of a reader that finds capacity and load in two places. The capacity changes only when the process does.
#[derive(Debug, Default)]
pub(super) struct Sglang {
    capacity: Option<Tokens>,
    /// Number of prompt tokens that the server had taken in at the last reading. When the number falls, the server has
    /// restarted.
    seen: f64,
    /// Whether it was logged that the server does not tell its load.
    warned: bool,
}

// === impl Probe ===

impl Probe {
    /// The reader for an engine; `None` for an engine that does not tell its load.
    pub(super) fn of(engine: Engine) -> Option<Self> {
        match engine {
            Engine::Vllm => Some(Self::Vllm),
            Engine::Sglang => Some(Self::Sglang(Sglang::default())),
            Engine::Skyrl => Some(Self::Skyrl),
            Engine::Openai => None,
        }
    }

    /// Notes that the server was away, so that another process may answer now.
    pub(super) fn returned(&mut self) {
        if let Self::Sglang(sglang) = self {
            sglang.capacity = None;
        }
    }

    /// Reads the server's metrics, each page within `limit`. `fresh` is the age up to which a page is used that another
    /// rank of the server has read.
    pub(super) async fn read(
        &mut self,
        client: &ProbeClient,
        member: &FleetMember,
        limit: Duration,
        fresh: Duration,
    ) -> Result<Reading, ProbeError> {
        let of = &member.backend;
        let unlike = |what| ProbeError::Unintelligible { path: METRICS.to_owned(), what };
        match self {
            Self::Vllm => {
                let page = shared(client, member, limit, fresh).await?;
                vllm::read(&page, of.rank).ok_or_else(|| unlike("not the metrics of a vLLM server"))
            }
            Self::Skyrl => {
                let page = client.fetch(of, METRICS, limit).await?;
                skyrl::read(&page).ok_or_else(|| unlike("not the metrics of SkyRL's engines"))
            }
            Self::Sglang(sglang) => {
                let reading = match client.fetch(of, METRICS, limit).await {
                    Ok(page) => sglang::read(&page).ok_or_else(|| unlike("not the metrics of an SGLang server"))?,
                    Err(ProbeError::Status { status: StatusCode::NOT_FOUND, .. }) => sglang.blind(of),
                    Err(failure) => return Err(failure),
                };
                Ok(sglang.sized(reading, client, of, limit).await)
            }
        }
    }
}

/// Reads the metrics page once for all ranks of a server: the page has all of them and may be large.
async fn shared(
    client: &ProbeClient,
    member: &FleetMember,
    limit: Duration,
    fresh: Duration,
) -> Result<Bytes, ProbeError> {
    let mut known = member.page.lock().await;
    if let Some((read, page)) = &*known
        && member.backend.rank.is_some()
        && read.elapsed() < fresh
    {
        return Ok(page.clone());
    }
    let page = client.fetch(&member.backend, METRICS, limit).await?;
    if member.backend.rank.is_some() {
        *known = Some((Instant::now(), page.clone()));
    }
    Ok(page)
}

// === impl Sglang ===

impl Sglang {
    /// The reading that stands for the metrics that the server does not serve.
    fn blind(&mut self, of: &Backend) -> Reading {
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!("backend {} does not tell its load: start SGLang with --enable-metrics", of.url);
        }
        Reading { blind: true, ..Reading::default() }
    }

    /// Adds the capacity, which the server tells elsewhere, if it tells it.
    async fn sized(&mut self, mut reading: Reading, client: &ProbeClient, of: &Backend, limit: Duration) -> Reading {
        if reading.gauges.prompt_tokens < self.seen {
            self.capacity = None;
        }
        self.seen = reading.gauges.prompt_tokens;
        for path in sglang::INFO_PATHS {
            if self.capacity.is_some() {
                break;
            }
            match client.fetch(of, path, limit).await {
                Ok(info) => self.capacity = sglang::capacity(&info),
                Err(failure) => log::debug!("capacity of {}: {failure}", of.url),
            }
        }
        if let Some(tokens) = self.capacity {
            reading.gauges.capacity_tokens = tokens.0;
        }
        reading
    }
}
