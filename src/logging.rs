//! The process's log: `env_logger`, whose level may change while it runs.

use arc_swap::ArcSwapOption;
use env_logger::{Builder, Env, Logger};
use log::{Log, Metadata, Record};
use std::sync::Arc;

struct Swappable(ArcSwapOption<Logger>);

static LOG: Swappable = Swappable(ArcSwapOption::const_empty());

/// Logs to stderr from now on. `level` is as in `logging.level`; `RUST_LOG` wins over it.
pub fn init(level: &str) {
    if log::set_logger(&LOG).is_ok() {
        put(level);
    }
}

/// Another level. Without [`init`], as in tests, nothing happens.
pub fn set_level(level: &str) {
    if LOG.0.load().is_some() {
        put(level);
    }
}

fn put(level: &str) {
    let logger = Builder::from_env(Env::default().default_filter_or(level)).build();
    log::set_max_level(logger.filter());
    LOG.0.store(Some(Arc::new(logger)));
}

// === impl Swappable ===

impl Log for Swappable {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.load().as_ref().is_some_and(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(logger) = &*self.0.load() {
            logger.log(record);
        }
    }

    fn flush(&self) {
        if let Some(logger) = &*self.0.load() {
            logger.flush();
        }
    }
}
