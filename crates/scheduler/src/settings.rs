//! What an operator can set, with the names that the settings have in a configuration file. With the feature
//! `settings` they describe themselves as a JSON Schema, and check their bounds (`garde::Validate`).

use crate::duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a step finds its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema), schemars(inline))]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// By program: steps stay where their prefix is, and are held while there is no room.
    #[default]
    Program,
    /// To the backend with the fewest steps in flight for its weight; nothing is held for room.
    LeastLoad,
    /// To each backend in turn; nothing is held for room.
    RoundRobin,
}

/// When and where steps run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema, garde::Validate), garde(allow_unvalidated))]
#[cfg_attr(feature = "settings", schemars(rename = "Scheduler"))]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What happens to a step that has to wait for room.
    pub hold: Hold,
    /// Share of each backend's capacity that is left free: 0 to 0.5.
    #[cfg_attr(feature = "settings", garde(range(min = 0.0, max = 0.5), custom(number)))]
    pub headroom: f64,
    /// How far ahead room is looked for, since programs grow.
    #[cfg_attr(feature = "settings", garde(dive))]
    pub forecast: Forecast,
    /// When an idle program has to make room.
    #[cfg_attr(feature = "settings", garde(dive))]
    pub evict: Evict,
    /// When a program that waits comes before all others.
    pub fair: Fair,
    /// Whether a backend's capacity is corrected by the `cached_tokens` of its answers.
    pub feedback: Feedback,
    /// Time between two looks at what changes by itself, such as programs that have gone idle.
    #[serde(with = "duration")]
    #[cfg_attr(feature = "settings", schemars(with = "duration::Text"))]
    pub tick: Duration,
    /// How long a step waits while no backend is usable before it gets 503.
    #[serde(with = "duration")]
    #[cfg_attr(feature = "settings", schemars(with = "duration::Text"))]
    pub no_backend_wait: Duration,
    /// How much an idle program's tokens count against capacity: 0 to 1.
    #[cfg_attr(feature = "settings", garde(range(min = 0.0, max = 1.0), custom(number)))]
    pub acting_weight: f64,
    /// Let that weight halve with every second that the program is idle.
    pub acting_decay: bool,
}

/// What happens to a step that has to wait for room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Hold {
    /// Longest wait. Must lie below the clients' own timeout.
    #[serde(with = "duration")]
    #[cfg_attr(feature = "settings", schemars(with = "duration::Text"))]
    pub max: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Steps that may wait at once; more get 429.
    pub queue: usize,
}

/// What happens to a step that was held for `hold.max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema), schemars(inline))]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// A started program is let in although it does not fit, one per backend at a time; a new one gets 429.
    Admit,
    /// It gets 429.
    Reject,
}

/// How far ahead room is looked for, since programs grow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema, garde::Validate), garde(allow_unvalidated))]
#[serde(deny_unknown_fields, default)]
pub struct Forecast {
    /// Share of the capacity that the programs of a backend may come to need at their worst moment ahead,
    /// for a new one to be let in.
    #[cfg_attr(feature = "settings", garde(range(min = 0.1, max = 10.0), custom(number)))]
    pub slack: f64,
    /// How far ahead a program that returns must fit.
    #[serde(with = "duration")]
    #[cfg_attr(feature = "settings", schemars(with = "duration::Text"))]
    pub horizon: Duration,
}

/// When an idle program has to make room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema, garde::Validate), garde(allow_unvalidated))]
#[serde(deny_unknown_fields, default)]
pub struct Evict {
    /// Once it was idle for this many times the stall that recomputing it would cause.
    #[cfg_attr(feature = "settings", garde(range(min = 0.0), custom(number)))]
    pub cost_factor: f64,
    /// Or for this many times the 99th percentile of the pauses between two steps.
    #[cfg_attr(feature = "settings", garde(range(min = 0.0), custom(number)))]
    pub idle_factor: f64,
}

/// When a program that waits comes before all others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Fair {
    /// A started program that has waited this long stops all that are younger, until there is room for it.
    #[serde(with = "duration")]
    #[cfg_attr(feature = "settings", schemars(with = "duration::Text"))]
    pub after: Duration,
    /// Most that a started program waits: shortly before, a backend is kept free for it, and programs there make
    /// way as their turns end.
    #[serde(with = "duration")]
    #[cfg_attr(feature = "settings", schemars(with = "duration::Text"))]
    pub bound: Duration,
}

/// Whether a backend's capacity is corrected by what its answers say of the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "settings", derive(schemars::JsonSchema), schemars(inline))]
#[serde(rename_all = "kebab-case")]
pub enum Feedback {
    /// Where they report `cached_tokens`: prefixes that ought to be there and are not lower it, for a while.
    Auto,
    /// It is taken as reported, or as given.
    Off,
}

/// NaN is neither below nor above a bound.
#[cfg(feature = "settings")]
fn number<C>(value: &f64, _: &C) -> garde::Result {
    if value.is_nan() { Err(garde::Error::new("expected a number")) } else { Ok(()) }
}

// === the defaults ===

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hold: Hold::default(),
            headroom: 0.02,
            forecast: Forecast::default(),
            evict: Evict::default(),
            fair: Fair::default(),
            feedback: Feedback::Auto,
            tick: seconds(1),
            no_backend_wait: seconds(30),
            acting_weight: 1.0,
            acting_decay: false,
        }
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self { max: seconds(30 * 60), on_timeout: OnTimeout::Admit, queue: 10_000 }
    }
}

impl Default for Forecast {
    fn default() -> Self {
        Self { slack: 1.1, horizon: seconds(60) }
    }
}

impl Default for Evict {
    fn default() -> Self {
        Self { cost_factor: 1.0, idle_factor: 2.0 }
    }
}

impl Default for Fair {
    fn default() -> Self {
        Self { after: seconds(30), bound: seconds(10 * 60) }
    }
}

#[cfg(all(test, feature = "settings"))]
mod tests {
    use super::*;
    use garde::Validate;

    #[test]
    fn the_defaults_are_within_bounds_and_no_number_beyond_them_is() {
        assert!(Settings::default().validate().is_ok());
        for wrong in [-0.1, 10.1, f64::NAN] {
            let evict = |cost_factor| Evict { cost_factor, ..Evict::default() };
            let settings = Settings {
                headroom: wrong,
                acting_weight: wrong,
                forecast: Forecast { slack: wrong, ..Forecast::default() },
                evict: if wrong > 0.0 { evict(-wrong) } else { evict(wrong) },
                ..Settings::default()
            };
            let report = settings.validate().unwrap_err();
            let places: Vec<_> = report.iter().map(|(path, _)| path.to_string()).collect();
            let wrong = ["acting_weight", "evict.cost_factor", "forecast.slack", "headroom"];
            assert!(wrong.iter().all(|place| places.iter().any(|found| found == place)), "{places:?}");
        }
    }
}
