//! The events that the scheduler is told.

use crate::policy::LARGEST;
use crate::units::Tokens;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Output tokens between two [`Event::Progress`] of a step. The charge of a growing step need not be exact to the
/// token, and each event costs the caller a lock.
pub const PROGRESS: u64 = 64;

/// Number of a step, unique for the life of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u64);

/// Index of a model pool in the configuration. Each pool has a scheduler of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub usize);

/// Number of a backend, unique for the life of the process. It is never used again for another URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u32);

/// Name of a program, unique within one model pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProgramKey {
    /// Tenant of the API key that the step came with; empty without authentication.
    pub tenant: Arc<str>,
    /// Name that the client gave the program.
    pub id: Arc<str>,
}

/// Values from a backend's `/metrics` since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BackendReport {
    /// Size of the KV cache, summed over all engines (data-parallel ranks) of the server.
    pub capacity: Option<Tokens>,
    /// Whether the server's process started anew since the last report. Its cache is empty then.
    pub restarted: bool,
    /// Life of the server that the report comes from.
    pub life: Option<Life>,
    /// Prompt tokens computed (not cached) per second over the window since the last report.
    pub prefill_rate: Option<f64>,
    /// Share of the KV cache in use by running requests, 0–1.
    pub kv_usage: Option<f64>,
}

/// Values that tell one life of a server process (and of its cache) from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Start of its process, Unix time in milliseconds.
    pub started_ms: Option<u64>,
    /// Prompt tokens that the server has taken in; the count only grows.
    pub prompt_tokens: u64,
}

/// A step as it arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    pub step: StepId,
    /// Program of the step. `None`: the step is routed by load, and no program is tracked.
    pub program: Option<ProgramKey>,
    /// Hash of model and first system message: programs of one class share a prefix.
    pub class: u64,
    /// Size of the part of the body that becomes the prompt, in bytes.
    pub prompt_bytes: u64,
    /// Limit that the request itself sets on its output.
    pub max_output: Option<Tokens>,
    /// Choice of a consistent hash for a step without a program; it breaks ties between equal loads.
    pub preferred: Option<BackendId>,
    /// Whether the client said that this is the program's last step.
    pub last: bool,
}

/// Tokens as the backend counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: Tokens,
    pub completion: Tokens,
    /// Prompt tokens found in the prefix cache; `None` where the backend does not report them.
    pub cached: Option<Tokens>,
}

impl Usage {
    /// The usage, with counts cut to plausible sizes.
    pub(crate) fn bounded(self) -> Self {
        let Self { prompt, completion, cached } = self;
        let cached = cached.map(|cached| cached.min(LARGEST));
        Self { prompt: prompt.min(LARGEST), completion: completion.min(LARGEST), cached }
    }
}

/// End of a dispatched or held step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer came (a success), with its usage if the backend reported one.
    Completed(Option<Usage>),
    /// The backend refused the step (with a 4xx of its own). Its cache is as before.
    Rejected,
    /// The backend failed or broke off. Nobody knows what its cache still holds of the program.
    Failed,
    /// The client went away, while the step was held or in flight.
    Abandoned,
}

/// Something that happened. The time is passed beside the event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A backend joins, and is down until `BackendUp`; or a known backend gets other settings. A `capacity` given here
    /// overrides every report.
    BackendAdded {
        backend: BackendId,
        weight: u32,
        capacity: Option<Tokens>,
    },
    BackendUp(BackendId),
    BackendDown(BackendId),
    /// New programs no longer go to the backend; its steps in flight go on to their end. `BackendUp` takes this back.
    BackendDraining(BackendId),
    BackendRemoved(BackendId),
    Report {
        backend: BackendId,
        report: BackendReport,
    },
    Arrive(Arrival),
    /// The first output of a dispatched step has come.
    FirstToken(StepId),
    /// A dispatched step has produced this many output tokens so far.
    Progress {
        step: StepId,
        output: Tokens,
    },
    /// A dispatched step could not be sent: nothing reached the backend, and the step may go to another one.
    Undelivered(StepId),
    End {
        step: StepId,
        outcome: Outcome,
    },
    Release(ProgramKey),
    /// Stops (`true`) or restarts all dispatch, for example while a trainer broadcasts weights.
    Freeze(bool),
    /// Refuses held and new steps from now on. Steps in flight go on.
    Drain,
    /// Time has passed. The caller sends this event every [`Settings::tick`](crate::Settings::tick).
    Tick,
}

impl Life {
    /// Whether this is still the same life as `before`. One process always reports the same start; the margin of 10 ms
    /// is for exporters that round. Where no start is reported, the count of prompt tokens decides.
    #[must_use]
    pub fn continues(self, before: Self) -> bool {
        match self.started_ms.zip(before.started_ms) {
            Some((now, before)) => now.abs_diff(before) <= 10,
            None => self.prompt_tokens >= before.prompt_tokens,
        }
    }
}
