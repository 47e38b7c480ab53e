//! A configuration file: every mistake in it has a place, and what has none can be used.
//!
//! `${file:…}` and the paths of certificates are only ever opened for reading, and a relative one leads nowhere here.

use std::path::Path;
use thundergate::config::{self, Env};

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let env = |name: &str| (name.len() == 1).then(|| format!("${{{name}}}: [1"));
    let around = Env { env: &env, dir: Path::new("/nonexistent") };
    match config::from_yaml(text, &around) {
        Ok(config) => assert_eq!(config::validate(&config, false), []),
        Err(mistakes) => {
            assert!(!mistakes.list.is_empty());
            assert!(!mistakes.to_string().is_empty());
            let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
            for mistake in &mistakes.list {
                let at = mistake.at.unwrap_or_else(|| panic!("{mistake} has no place"));
                assert!((1..=lines).contains(&at.line) && at.column >= 1, "{mistake} at {at:?} of {lines} lines");
            }
        }
    }
}
