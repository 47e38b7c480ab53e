//! What can be set, with its words in a configuration file.

use serde::Deserialize;

/// How a step finds its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "settings", schemars(inline))]
pub enum Routing {
    /// By program: steps stay where their prefix is, and are held while there is no room.
    #[default]
    Program,
    /// To the backend with the fewest tokens in flight; nothing is held for room.
    LeastLoad,
    /// To each backend in turn; nothing is held for room.
    RoundRobin,
}

/// What happens to a step that was held for `scheduler.hold.max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "settings", schemars(inline))]
pub enum OnTimeout {
    /// A started program is let in although it does not fit, one per backend at a time; a new one gets 429.
    Admit,
    /// It gets 429.
    Reject,
}

/// Whether a backend's capacity is corrected by what its answers say of the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "settings", schemars(inline))]
pub enum Feedback {
    /// Where they report `cached_tokens`: prefixes that ought to be there and are not lower it, for a while.
    Auto,
    /// It is taken as reported, or as given.
    Off,
}
