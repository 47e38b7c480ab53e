//! The surface form of the YAML, and how it becomes a `Config`.

use super::draft::Draft;
use super::expand::Surroundings;
use super::humane;
use super::mistake::Failure;
use super::node::{self, MAX_DOCUMENT};
use super::tree::{
    Admin, Auth, Backend, Config, Identity, Limits, Listener, Logging, Metrics, Pool, Profile, Programs, Retry,
    Scheduler, State, Timeouts, UrlOrBackend,
};
use super::{Mark, Mistake, read};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

/// Thundergate's configuration.
#[derive(Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Thundergate configuration")]
pub(super) struct File {
    /// IP address and port that clients connect to, such as `0.0.0.0:8300`, without TLS.
    #[serde(deserialize_with = "humane::some_address")]
    listen: Option<SocketAddr>,
    /// More addresses that clients connect to.
    listeners: Vec<Listener>,
    /// A listener of its own for the control endpoints.
    admin: Option<Admin>,
    /// Short for one pool without a name, which serves any model that no other pool serves.
    #[schemars(with = "Vec<UrlOrBackend>")]
    backends: Option<Vec<Backend>>,
    /// Pools of backends, one for each model.
    models: Vec<Pool>,
    /// When and where steps run, in pools with `routing: program`.
    scheduler: Scheduler,
    /// What is remembered of programs.
    programs: Programs,
    /// Where a step's program is looked for.
    identity: Identity,
    /// Who may use the proxy.
    auth: Auth,
    /// Bounds on what clients may ask for.
    limits: Limits,
    /// How long each part of a request may take.
    timeouts: Timeouts,
    /// What is tried again.
    retry: Retry,
    /// What outlives the process.
    state: State,
    /// What is logged, and where.
    logging: Logging,
    /// Times of every step, kept and written to `step_profiles.csv`; off when absent.
    profile: Option<Profile>,
    /// How the backends' own `/metrics` are read.
    metrics: Metrics,
}

/// Reads a file; its mistakes are in the draft.
///
/// # Errors
/// The file cannot be read.
pub(super) fn open(file: &Path) -> Result<Draft, Failure> {
    let unreadable = |source| Failure::Unreadable { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    let sources = Surroundings { env: &|name| std::env::var(name).ok(), dir: file.parent().unwrap_or(Path::new("")) };
    let mut draft = match String::from_utf8(bytes) {
        Ok(text) => parse(&text, &sources),
        Err(error) => not_utf8(error.as_bytes(), error.utf8_error().valid_up_to()),
    };
    draft.file = Some(file.to_owned());
    Ok(draft)
}

/// Reads a document; its mistakes are in the draft.
pub(super) fn parse(text: &str, sources: &Surroundings<'_>) -> Draft {
    let mut draft = Draft::default();
    let mut root = match node::parse(text, &mut draft.mistakes) {
        Ok(root) => root,
        Err(mistake) => {
            draft.mistakes.push(mistake);
            return draft.unusable();
        }
    };
    sources.expand(&mut root, &mut draft.mistakes);
    let file = read::read_all::<File>(&mut root, &mut draft.mistakes);
    draft.tree = Some(root);
    match file {
        Some(file) => file.settle(draft, sources.dir),
        None => draft.unusable(),
    }
}

fn not_utf8(bytes: &[u8], wrong: usize) -> Draft {
    let before = &bytes[..wrong];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n');
    let column = String::from_utf8_lossy(&before[start.map_or(0, |at| at + 1)..]);
    let column = column.chars().count() + 1;
    let mut draft = Draft::default();
    draft.mistakes.push(Mistake::at(Mark { line, column }, "", "not UTF-8"));
    draft.unusable()
}

// === impl File ===

impl File {
    /// The config, and how its paths are written in this file.
    fn settle(self, mut draft: Draft, dir: &Path) -> Draft {
        let mut config = Config {
            admin: self.admin,
            models: self.models,
            scheduler: self.scheduler,
            programs: self.programs,
            identity: self.identity,
            auth: self.auth,
            limits: self.limits,
            timeouts: self.timeouts,
            retry: self.retry,
            state: self.state,
            logging: self.logging,
            profile: self.profile,
            metrics: self.metrics,
            ..Config::default()
        };
        let given = |key| draft.tree.as_ref().is_some_and(|root| root.has(key));
        if given("listen") || given("listeners") {
            config.listeners = self.listeners;
        }
        if !given("listeners") {
            draft.shows("listeners", "listen");
            draft.shows("listeners[0].address", "listen");
        }
        if let Some(address) = self.listen {
            config.listeners.insert(0, Listener::plain(address));
            draft.shows("listeners[0].address", "listen");
            for index in 1..config.listeners.len() {
                let (here, there) = (index, index - 1);
                draft.shows(&format!("listeners[{here}]"), &format!("listeners[{there}]"));
            }
        }
        if let Some(backends) = self.backends {
            let here = format!("models[{}]", config.models.len());
            draft.shows(&format!("{here}.backends"), "backends");
            draft.shows(&format!("{here}.name"), "backends");
            config.models.push(Pool::unnamed(backends));
        }
        for key in &mut config.auth.keys {
            if key.tenant.is_empty() {
                key.tenant.clone_from(&key.name);
            }
        }
        for tls in config.listeners.iter_mut().filter_map(|l| l.tls.as_mut()) {
            tls.cert = dir.join(&tls.cert);
            tls.key = dir.join(&tls.key);
            tls.client_ca = tls.client_ca.take().map(|ca| dir.join(ca));
        }
        if let Some(snapshot) = &mut config.state.snapshot {
            *snapshot = dir.join(&snapshot);
        }
        draft.config = Some(config);
        draft
    }
}

// === impl Backend ===

impl<'de> Deserialize<'de> for Backend {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Backend;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an URL such as http://gpu1:8000, or a mapping with the key `url`")
            }

            fn visit_str<E: Error>(self, url: &str) -> Result<Backend, E> {
                Backend::at(url).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Backend, A::Error> {
                // The derived form, which takes a mapping only.
                Backend::deserialize(MapAccessDeserializer::new(map))
            }
        }

        source.deserialize_any(Either)
    }
}
