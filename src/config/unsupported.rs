//! What the full layout has and this version does not. A version that learns one deletes its row.

/// Keys, list indices left out.
const KEYS: &[&str] = &["scheduler.feedback"];

/// Values of keys that are themselves supported.
const VALUES: &[(&str, &str)] = &[
    ("models[].engine", "sglang"),
    ("models[].engine", "skyrl"),
    ("models[].engine", "openai"),
    ("programs.anonymous", "fingerprint"),
];

/// The row of a key that this version does not know, such as `models[1].discovery`.
pub fn key(path: &str) -> Option<&'static str> {
    let path = without_indices(path);
    KEYS.iter()
        .copied()
        .find(|row| row.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Whether this version does not support `value` at `path`.
pub fn value(path: &str, value: &str) -> bool {
    VALUES.contains(&(without_indices(path).as_str(), value))
}

pub fn message(what: &str) -> String {
    format!("`{what}` is not supported by this version")
}

fn without_indices(path: &str) -> String {
    path.chars().filter(|c| !c.is_ascii_digit()).collect()
}
