//! The configuration: one tree of types and one validation, for a YAML file, for flags and for a reload.
//!
//! A file goes through `document.rs` (YAML to a tree with places), `expand.rs` (`${…}`), `typed.rs` (the tree to types),
//! `yaml.rs` (short forms), `flags.rs` and `validate.rs`. To add a setting: a field with a doc comment in `tree.rs` or
//! `pool.rs`, its default in `defaults.rs`, and a line in `conf/full.yaml`.

mod defaults;
mod document;
mod draft;
mod expand;
pub mod flags;
mod immutable;
pub mod mistake;
mod pool;
pub mod reach;
pub mod schema;
mod secret;
mod source;
mod text;
pub mod tree;
mod typed;
pub mod validate;
mod yaml;

pub use expand::Env;
pub use flags::Flags;
pub use mistake::{Failure, Mark, Mistake, Mistakes};
pub use reach::{HostPattern, Reach};
pub use schema::schema;
pub use source::{DEFAULT as DEFAULT_SOURCES, Place, Source, SourceError};
pub use text::{HostPort, parse_url};
pub use tree::*;
pub(crate) use validate::directory;
pub use validate::validate;

use std::path::Path;

/// Reads and validates a YAML document.
///
/// # Errors
/// Every mistake.
pub fn from_yaml(text: &str, sources: &Env<'_>) -> Result<Config, Mistakes> {
    let (config, _) = yaml::parse(text, sources).finish()?;
    Ok(config)
}

/// Reads and validates a YAML file.
///
/// # Errors
/// A file that cannot be read, or every mistake.
pub fn from_file(file: &Path) -> Result<Config, Failure> {
    let (config, _) = yaml::open(file)?.finish()?;
    Ok(config)
}
