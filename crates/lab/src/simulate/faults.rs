//! Faults that are injected into a run.

use std::str::FromStr;
use std::time::Duration;

/// One fault, under its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Period after which an engine restarts, each engine in its turn. Steps there fail, the cache is lost, and the
    /// engine is away for 30 s.
    Restart(Duration),
    /// Factor on the bytes that a program adds after its first prompt.
    Estimate(f64),
    /// Answers without usage.
    NoUsage,
    /// Programs that are never released.
    NoRelease,
    /// Factor on the capacity that engines report.
    Capacity(f64),
    /// Size in tokens of the first prompt of one further program, which starts at the end of the warm-up.
    Giant(usize),
    /// Number of further programs that all start at the end of the warm-up.
    Burst(u64),
}

/// All faults of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    pub restart: Option<Duration>,
    pub estimate: f64,
    pub no_usage: bool,
    pub no_release: bool,
    pub capacity: f64,
    pub giant: Option<usize>,
    pub burst: u64,
}

// === impl Faults ===

impl Faults {
    #[must_use]
    pub fn new(list: &[Fault]) -> Self {
        let mut faults = Self {
            restart: None,
            estimate: 1.0,
            no_usage: false,
            no_release: false,
            capacity: 1.0,
            giant: None,
            burst: 0,
        };
        for fault in list {
            match *fault {
                Fault::Restart(every) => faults.restart = Some(every),
                Fault::Estimate(factor) => faults.estimate = factor,
                Fault::NoUsage => faults.no_usage = true,
                Fault::NoRelease => faults.no_release = true,
                Fault::Capacity(factor) => faults.capacity = factor,
                Fault::Giant(tokens) => faults.giant = Some(tokens),
                Fault::Burst(programs) => faults.burst = programs,
            }
        }
        faults
    }
}

// === impl Fault ===

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
        let wrong = |example: &str| format!("{name} needs a value above 0, as in {example}");
        let fault = match (name, value) {
            ("restart", Some(value)) => {
                let seconds = positive(value.strip_suffix('s').unwrap_or(value)).filter(|s| *s <= 1e6);
                Self::Restart(Duration::from_secs_f64(seconds.ok_or_else(|| wrong("restart:300s"))?))
            }
            ("estimate", Some(value)) => Self::Estimate(positive(value).ok_or_else(|| wrong("estimate:0.7"))?),
            ("capacity", Some(value)) => Self::Capacity(positive(value).ok_or_else(|| wrong("capacity:1.3"))?),
            ("giant", Some(value)) => Self::Giant(count(value).ok_or_else(|| wrong("giant:450k"))?),
            ("burst", Some(value)) => Self::Burst(count(value).ok_or_else(|| wrong("burst:1000"))? as u64),
            ("no-usage", None) => Self::NoUsage,
            ("no-release", None) => Self::NoRelease,
            _ => {
                let known = "restart:300s, estimate:0.7, no-usage, no-release, capacity:1.3, giant:450k, burst:1000";
                return Err(format!("expected one of {known}"));
            }
        };
        Ok(fault)
    }
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0)
}

/// A whole number up to a hundred million; `k` stands for thousands.
fn count(text: &str) -> Option<usize> {
    let (digits, unit) = text.strip_suffix(['k', 'K']).map_or((text, 1.0), |digits| (digits, 1e3));
    positive(digits).map(|value| value * unit).filter(|value| (1.0..=1e8).contains(value)).map(|value| value as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_read_and_a_wrong_one_is_answered_with_what_is_right() {
        let read = |text: &str| text.parse::<Fault>();
        assert_eq!(read("restart:300s"), Ok(Fault::Restart(Duration::from_secs(300))));
        assert_eq!(read("giant:450k"), Ok(Fault::Giant(450_000)));
        assert_eq!(read("burst:1000"), Ok(Fault::Burst(1000)));
        assert_eq!(read("no-usage"), Ok(Fault::NoUsage));
        assert!(read("burst:0").unwrap_err().contains("burst:1000"));
        assert!(read("no-usage:1").unwrap_err().contains("giant:450k"));
        assert!(read("restart:nan").is_err());
    }
}
