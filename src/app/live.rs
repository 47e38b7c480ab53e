//! The current configuration, and the tables that are built from it once.

use crate::auth::Keys;
use crate::config::Config;
use crate::identity::{SourceError, Sources};
use std::ops::Deref;
use std::sync::Arc;

/// A configuration and its tables. A reload replaces all of it at once.
pub struct Live {
    config: Arc<Config>,
    pub sources: Sources,
    pub keys: Keys,
}

// === impl Live ===

impl Live {
    /// # Errors
    /// A name in `identity.sources` that cannot be used. Validation refuses such a name earlier.
    pub fn new(config: Arc<Config>) -> Result<Self, SourceError> {
        Ok(Self {
            sources: Sources::parse(&config.identity.sources, config.identity.max_bytes)?,
            keys: Keys::new(&config.auth),
            config,
        })
    }
}

impl Deref for Live {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}
