//! The one validation, for a YAML file, flags and a reload alike: bounds, and what lies between two settings.

use super::mistake::Mistake;
use super::source::Source;
use super::tree::{Admin, Config, Pool};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::Path;

/// Every mistake that the types alone cannot rule out. Paths are those of `Config`, as the YAML spells them.
///
/// `without_backends`: a pool may start empty, to be filled at run time.
#[must_use]
pub fn validate(config: &Config, without_backends: bool) -> Vec<Mistake> {
    let mut check = Check(bounds(config));
    check.listeners(config);
    check.pools(&config.models, without_backends);
    check.identity(config);
    check.keys(config);
    check.limits(config);
    check.state(config);
    check.0
}

/// The values that lie outside the bounds of their `garde` attributes.
fn bounds(config: &Config) -> Vec<Mistake> {
    let report = garde::Validate::validate(config).err();
    let found = report.into_iter().flat_map(garde::Report::into_inner);
    found.map(|(path, error)| Mistake::new(path.to_string(), in_words(error.message()))).collect()
}

fn in_words(message: &str) -> String {
    if message == "length is lower than 1" {
        "must not be empty".to_owned()
    } else if let Some(bound) = message.strip_prefix("lower than ") {
        format!("must be at least {bound}")
    } else if let Some(bound) = message.strip_prefix("greater than ") {
        format!("must be at most {bound}")
    } else {
        message.to_owned()
    }
}

// === impl Check ===

struct Check(Vec<Mistake>);

impl Check {
    fn that(&mut self, good: bool, path: impl Into<String>, message: impl Into<String>) {
        if !good {
            self.0.push(Mistake::new(path, message));
        }
    }

    /// Tells a `value` that was given before.
    fn once<T: Hash + Eq>(&mut self, taken: &mut Once<T>, value: T, path: &str, message: String) {
        match taken.entry(value) {
            Entry::Vacant(free) => {
                free.insert(path.to_owned());
            }
            Entry::Occupied(first) => {
                self.0.push(Mistake { first: Some(first.get().clone()), ..Mistake::new(path, message) })
            }
        }
    }

    fn listeners(&mut self, config: &Config) {
        self.that(!config.listeners.is_empty(), "listeners", "at least one is needed");
        let mut taken: Vec<(SocketAddr, String)> = Vec::new();
        let mut free = |check: &mut Self, address: SocketAddr, path: String| {
            if let Some((_, first)) = taken.iter().find(|(other, _)| collide(*other, address)) {
                check.0.push(Mistake {
                    first: Some(first.clone()),
                    ..Mistake::new(&path, format!("{address} is taken already"))
                });
            }
            taken.push((address, path));
        };
        for (index, listener) in config.listeners.iter().enumerate() {
            let path = format!("listeners[{index}]");
            free(self, listener.address, format!("{path}.address"));
            if let Some(tls) = &listener.tls {
                self.readable(&tls.cert, format!("{path}.tls.cert"));
                self.readable(&tls.key, format!("{path}.tls.key"));
                if let Some(ca) = &tls.client_ca {
                    self.readable(ca, format!("{path}.tls.client_ca"));
                }
            }
        }
        if let Some(Admin { listen, token, .. }) = &config.admin {
            free(self, *listen, "admin.listen".into());
            self.that(
                listen.ip().is_loopback() || token.is_some(),
                "admin.listen",
                format!("{listen} can be reached from outside: set `admin.token`"),
            );
        }
    }

    fn readable(&mut self, file: &Path, path: String) {
        let opened = std::fs::metadata(file).and_then(|found| {
            let opened = std::fs::File::open(file)?;
            Ok((found.is_file(), opened))
        });
        match opened {
            Ok((true, _)) => {}
            Ok((false, _)) => self.that(false, path, format!("{}: not a file", file.display())),
            Err(error) => self.that(false, path, format!("{}: {error}", file.display())),
        }
    }

    fn pools(&mut self, pools: &[Pool], without_backends: bool) {
        self.that(!pools.is_empty() || without_backends, "models", "no backends: give `backends` or `models`");
        let mut names = Once::new();
        let mut urls = Once::new();
        for (index, pool) in pools.iter().enumerate() {
            let path = format!("models[{index}]");
            self.names(pool, &path, &mut names);
            self.that(
                !pool.backends.is_empty() || pool.discovery.is_some() || without_backends,
                format!("{path}.backends"),
                "at least one backend is needed",
            );
            self.backends(pool, &path, &mut urls);
            let health = &pool.health;
            self.that(
                health.path(pool.engine).starts_with('/'),
                format!("{path}.health.path"),
                "expected a path that starts with `/`",
            );
            let eject = &health.eject;
            let ordered = eject.base <= eject.max;
            self.that(ordered, format!("{path}.health.eject.max"), "must not be below `eject.base`");
        }
    }

    fn names(&mut self, pool: &Pool, path: &str, taken: &mut Once<String>) {
        let message = match pool.name.as_str() {
            "" => "only one pool may be without a name".to_owned(),
            name => format!("the name `{name}` is taken already"),
        };
        self.once(taken, pool.name.clone(), &format!("{path}.name"), message);
        for (index, alias) in pool.aliases.iter().enumerate() {
            let path = format!("{path}.aliases[{index}]");
            if alias.is_empty() {
                self.that(false, path, "must not be empty");
            } else if pool.name.is_empty() {
                self.that(false, path, "a pool without a name cannot have aliases");
            } else {
                let message = format!("the name `{alias}` is taken already");
                self.once(taken, alias.clone(), &path, message);
            }
        }
    }

    fn backends(&mut self, pool: &Pool, path: &str, taken: &mut Once<String>) {
        for (index, backend) in pool.backends.iter().enumerate() {
            let path = format!("{path}.backends[{index}]");
            let url = backend.url.as_str().trim_end_matches('/');
            let message =
                format!("{url} is a backend already; for one server with several names, give one pool `aliases`");
            self.once(taken, url.to_owned(), &path, message);
        }
    }

    fn identity(&mut self, config: &Config) {
        let mut seen = Once::new();
        for (index, source) in config.identity.sources.iter().enumerate() {
            let path = format!("identity.sources[{index}]");
            if let Err(error) = Source::parse(source) {
                self.that(false, path, error.to_string());
            } else {
                let message = format!("`{source}` was given already");
                self.once(&mut seen, source.clone(), &path, message);
            }
        }
    }

    fn keys(&mut self, config: &Config) {
        let (mut names, mut values) = (Once::new(), Once::new());
        for (index, key) in config.auth.keys.iter().enumerate() {
            let path = format!("auth.keys[{index}]");
            let name_path = format!("{path}.name");
            let message = format!("the name `{}` is taken already", key.name);
            self.once(&mut names, key.name.clone(), &name_path, message);
            let key_path = format!("{path}.key");
            let message = "the key was given already".to_owned();
            // A key and its hash count as one.
            if let Ok(digest) = key.key.digest() {
                self.once(&mut values, digest, &key_path, message);
            }
        }
    }

    fn limits(&mut self, config: &Config) {
        let limits = &config.limits;
        let message = "must be at least `limits.body`, or a body of that size never gets in";
        self.that(limits.body_total >= limits.body, "limits.body_total", message);
        let per_key = &limits.per_key;
        for (limit, key) in [
            (per_key.requests_per_minute, "requests_per_minute"),
            (per_key.tokens_per_minute, "tokens_per_minute"),
            (per_key.concurrent, "concurrent"),
        ] {
            let path = format!("limits.per_key.{key}");
            self.that(
                limit.is_none() || !config.auth.keys.is_empty(),
                path,
                "there are no keys to limit: set `auth.keys`",
            );
        }
    }

    fn state(&mut self, config: &Config) {
        let Some(file) = &config.state.snapshot else { return };
        let dir = directory(file);
        let path = "state.snapshot";
        if file.is_dir() || file.file_name().is_none() {
            self.that(false, path, format!("{}: expected the name of a file, not of a directory", file.display()));
        } else if !dir.is_dir() {
            let message = format!("the directory {} does not exist: create it for the server's user", dir.display());
            self.that(false, path, message);
        }
    }
}

/// Directory of the file of `state.snapshot`, and of what is written beside it.
pub(crate) fn directory(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether one process cannot listen on both.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    let overlap = a == b || a.is_unspecified() || b.is_unspecified();
    one.port() == other.port() && one.port() != 0 && overlap
}

/// The path at which each value was given first.
type Once<T> = HashMap<T, String>;
