//! The configuration as it is now, and what is made of it once.

use crate::auth::Keys;
use crate::config::Config;
use crate::identity::{SourceError, Sources};
use std::ops::Deref;
use std::sync::Arc;

/// Replaced as a whole by a reload.
pub struct Live {
    config: Arc<Config>,
    pub sources: Sources,
    pub keys: Keys,
}

// === impl Live ===

impl Live {
    /// # Errors
    /// A name in `identity.sources` cannot be used, which validation refuses.
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
