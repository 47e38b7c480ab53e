//! The policies, which decide where a step runs, and when. A policy is told exactly what the proxy's scheduler is told,
//! in the same words, and nothing of the engines' inner state. The type of [`Policy::handle`] makes sure of this.

mod cap;
mod fleet;
mod route;
mod thunderagent;

#[cfg(test)]
mod tests;

use crate::engine::model::Shape;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use thundergate_scheduler::{Decision, Event, Scheduler};

/// A policy under test.
pub trait Policy {
    /// Takes in what happened at `now`, and appends the decisions. Only `Dispatch` and `Refuse` have an effect. Every
    /// step that arrives must get one of these two in the end.
    fn handle(&mut self, now: Duration, event: Event, decisions: &mut Vec<Decision>);
}

impl Policy for Scheduler {
    fn handle(&mut self, now: Duration, event: Event, decisions: &mut Vec<Decision>) {
        Scheduler::handle(self, now, event, decisions);
    }
}

/// The policies that can be named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The scheduler of this proxy.
    Ours,
    /// ThunderAgent's scheduler (arXiv 2602.13692). With `fixed`, marking stops once enough is marked. With `decay`,
    /// the weight of idle programs halves every second.
    ThunderAgent {
        fixed: bool,
        decay: bool,
    },
    RoundRobin,
    LeastConnections,
    /// A hash of the program chooses the backend.
    Sticky,
    /// The backend with the longest known prefix, unless the load is out of balance.
    PrefixAware,
    /// At most this many programs on an engine, first come, first served.
    Cap(usize),
    /// Bound in which nothing is ever evicted.
    InfiniteCache,
    /// Bound in which the cache has its true size, but evicted tokens come back at no cost.
    ZeroRecompute,
}

const NAMES: [(&str, Choice); 11] = [
    ("ours", Choice::Ours),
    ("thunderagent", Choice::ThunderAgent { fixed: false, decay: false }),
    ("thunderagent-fixed", Choice::ThunderAgent { fixed: true, decay: false }),
    ("thunderagent-decay", Choice::ThunderAgent { fixed: false, decay: true }),
    ("thunderagent-fixed-decay", Choice::ThunderAgent { fixed: true, decay: true }),
    ("round-robin", Choice::RoundRobin),
    ("least-connections", Choice::LeastConnections),
    ("sticky", Choice::Sticky),
    ("prefix-aware", Choice::PrefixAware),
    ("infinite-cache", Choice::InfiniteCache),
    ("zero-recompute", Choice::ZeroRecompute),
];

/// Number of blocks of an engine that never evicts: more than an hour of any workload fills.
const ENDLESS: u32 = 2 << 20;

// === impl Choice ===

impl Choice {
    /// The policy. `ours` has these settings.
    #[must_use]
    pub fn build(self, ours: &thundergate_scheduler::Policy) -> Box<dyn Policy> {
        match self {
            Self::Ours => Box::new(Scheduler::new(ours.clone())),
            Self::ThunderAgent { fixed, decay } => Box::new(thunderagent::ThunderAgent::new(fixed, decay)),
            Self::RoundRobin => Box::new(route::Router::new(route::RoundRobin::default())),
            Self::LeastConnections | Self::ZeroRecompute => Box::new(route::Router::new(route::LeastConnections)),
            Self::Sticky => Box::new(route::Router::new(route::Sticky)),
            Self::PrefixAware => Box::new(route::Router::new(route::PrefixAware::default())),
            Self::Cap(most) => Box::new(cap::Cap::new(most)),
            Self::InfiniteCache => Box::new(cap::Cap::new(usize::MAX)),
        }
    }

    /// Shape of the engines that the policy runs on.
    #[must_use]
    pub fn shape(self, shape: &Shape) -> Shape {
        let mut shape = shape.clone();
        if self == Self::InfiniteCache {
            shape.kv_blocks = shape.kv_blocks.max(ENDLESS);
        }
        shape
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(most) = name.strip_prefix("cap:") {
            let most = most.parse().ok().filter(|&most| most > 0);
            return most.map(Self::Cap).ok_or_else(|| "cap:K needs a number above 0, as in cap:20".to_owned());
        }
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map(|&(_, choice)| choice).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("expected one of {}, cap:K", names.join(", "))
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cap(most) => write!(f, "cap:{most}"),
            named => f.write_str(NAMES.iter().find(|(_, choice)| choice == named).map_or("", |(name, _)| name)),
        }
    }
}
