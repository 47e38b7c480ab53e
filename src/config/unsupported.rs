//! What the full layout has and this version does not. A version that learns one deletes its row.

/// Values of keys, list indices left out.
const VALUES: &[(&str, &str)] = &[("programs.anonymous", "fingerprint")];

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
