//! What the scheduler is told, and what it answers.

use super::policy::LARGEST;
use crate::units::Tokens;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Output tokens between two [`Event::Progress`] of a step: a step's charge need not be exact to the token while it grows,
/// and each event costs the caller a lock.
pub const PROGRESS: u64 = 64;

/// One step, unique for the life of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u64);

/// One model pool: its index in the configuration. Each pool has a scheduler of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub usize);

/// One backend, unique for the life of the process; never reused for another URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u32);

/// Names a program within one model pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProgramKey {
    /// The tenant of the API key that the step came with; empty without authentication.
    pub tenant: Arc<str>,
    pub id: Arc<str>,
}

/// What a backend's own `/metrics` said since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BackendReport {
    /// KV cache size, all engines (data-parallel ranks) of the server together.
    pub capacity: Option<Tokens>,
    /// The server's process started anew since the last report: its cache is empty.
    pub restarted: bool,
    /// Which life of the server this is.
    pub life: Option<Life>,
    /// Prompt tokens computed (not cached) per second over the window since the last report.
    pub prefill_rate: Option<f64>,
    /// Share of the KV cache in use by running requests, 0–1.
    pub kv_usage: Option<f64>,
}

/// What tells one life of a server (and of its cache) from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// When its process started, Unix time in milliseconds.
    pub started_ms: Option<u64>,
    /// Prompt tokens that it has taken in: they only grow.
    pub prompt_tokens: u64,
}

/// A step as it arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    pub step: StepId,
    /// `None`: routed by load at once, not tracked.
    pub program: Option<ProgramKey>,
    /// Hash of model and first system message: programs of one class share a prefix.
    pub class: u64,
    /// Size of the part of the body that becomes the prompt, in bytes.
    pub prompt_bytes: u64,
    /// The request's own limit on its output.
    pub max_output: Option<Tokens>,
    /// Where a consistent hash would send a step without a program; breaks ties between equal loads.
    pub preferred: Option<BackendId>,
    /// The client said that this is the program's last step.
    pub last: bool,
}

/// Tokens as the backend counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: Tokens,
    pub completion: Tokens,
    /// Prompt tokens found in the prefix cache, when the backend says so.
    pub cached: Option<Tokens>,
}

impl Usage {
    /// The same, if it can be true.
    pub(super) fn bounded(self) -> Self {
        let Self { prompt, completion, cached } = self;
        let cached = cached.map(|cached| cached.min(LARGEST));
        Self { prompt: prompt.min(LARGEST), completion: completion.min(LARGEST), cached }
    }
}

/// How a dispatched or held step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer came whole (a success); usage when it was reported.
    Completed(Option<Usage>),
    /// The backend refused the step (a 4xx of its own): its cache is as before.
    Rejected,
    /// The backend failed, or broke off: what it still holds is not known.
    Failed,
    /// The client went away, while held or in flight.
    Abandoned,
}

/// What happens. Times are given beside the event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A backend joins, down until `BackendUp`; or one that is there gets other settings. A `capacity` given here
    /// overrides every report.
    BackendAdded {
        backend: BackendId,
        weight: u32,
        capacity: Option<Tokens>,
    },
    BackendUp(BackendId),
    BackendDown(BackendId),
    /// Nothing new goes there; steps in flight end in peace. `BackendUp` takes it back.
    BackendDraining(BackendId),
    BackendRemoved(BackendId),
    Report {
        backend: BackendId,
        report: BackendReport,
    },
    Arrive(Arrival),
    /// The first output of a dispatched step came.
    FirstToken(StepId),
    /// A dispatched step has produced this many output tokens so far.
    Progress {
        step: StepId,
        output: Tokens,
    },
    /// A dispatched step could not be sent (nothing reached the backend): it wants another place.
    Undelivered(StepId),
    End {
        step: StepId,
        outcome: Outcome,
    },
    Release(ProgramKey),
    /// Stops (`true`) or restarts all dispatch, as while a trainer broadcasts weights.
    Freeze(bool),
    /// Refuses held and new steps from now on; those in flight go on.
    Drain,
    /// Once a second.
    Tick,
}

/// Why a step goes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DispatchKind {
    /// Its program already held a lease.
    Leased,
    /// First step of a program that had no context yet.
    New,
    /// A started program that had lost its lease.
    Resumed,
    /// Let in although it does not fit (see `scheduler.hold.on_timeout`).
    Forced,
    /// Without a program: by load.
    Unlabelled,
}

/// Why a step waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldReason {
    /// Its tokens do not fit on any backend yet.
    NoRoom,
    /// It fits now, but not what it and the others will grow to.
    NoRoomAhead,
    /// Room is there, but enough prefill is promised already.
    PrefillBusy,
    /// The backends with room for it are kept for programs that have waited too long.
    Reserved,
    /// Others wait before it.
    Queued,
    NoBackend,
    Frozen,
}

/// Why a program lost its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PauseReason {
    /// Idle for longer than it costs to recompute it, and another needed the room.
    Evicted,
    /// Its backend went over capacity.
    OverCapacity,
    /// A program that had waited too long needed the room.
    MadeWay,
    /// Its prefix is no longer in the cache.
    CacheLost,
    /// Idle for so long that it is taken for finished.
    PresumedGone,
    BackendDown,
    /// Its backend is being drained.
    Draining,
    /// Its step failed, so what the backend still holds of it is not known.
    Error,
}

/// Why a step is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefuseReason {
    QueueFull,
    HeldTooLong,
    NoBackend,
    Released,
    Draining,
}

impl RefuseReason {
    /// Time after which a client may ask again; `None`: its program has ended.
    #[must_use]
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Draining => Some(Duration::from_secs(1)),
            Self::QueueFull | Self::NoBackend => Some(Duration::from_secs(5)),
            Self::HeldTooLong => Some(Duration::from_secs(30)),
            Self::Released => None,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndKind {
    /// By `POST /programs/release` or `DELETE /programs/{id}`.
    Released,
    /// Its last step said so (`x-program-final`).
    Final,
    /// Idle longer than `programs.idle_ttl`.
    Expired,
    /// The longest idle one when there were more than `programs.max`.
    Displaced,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Dispatch {
        step: StepId,
        backend: BackendId,
        kind: DispatchKind,
    },
    Refuse {
        step: StepId,
        reason: RefuseReason,
    },
    /// For the record: the step waits. Given once per hold.
    Held {
        step: StepId,
        reason: HoldReason,
    },
    /// For the record: the program lost its lease on `backend`.
    Paused {
        program: ProgramKey,
        backend: BackendId,
        reason: PauseReason,
    },
    /// For the record: the program was dispatched on another backend than last time; `lost`: because that
    /// one is down, draining or gone.
    Moved {
        program: ProgramKey,
        from: BackendId,
        to: BackendId,
        lost: bool,
    },
    /// For the record: what a step was expected to come to, and what the backend counted.
    Measured {
        estimate: Tokens,
        reported: Tokens,
    },
    /// For the record: the program has ended.
    Ended {
        program: ProgramKey,
        how: EndKind,
    },
}

impl Life {
    /// This is still the life that was `before`. One process always tells the same start; the margin is for exporters
    /// that round. Without it the counter has to do.
    #[must_use]
    pub fn continues(self, before: Self) -> bool {
        match self.started_ms.zip(before.started_ms) {
            Some((now, before)) => now.abs_diff(before) <= 10,
            None => self.prompt_tokens >= before.prompt_tokens,
        }
    }
}

impl DispatchKind {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::New => "new",
            Self::Resumed => "resumed",
            Self::Forced => "forced",
            Self::Unlabelled => "unlabelled",
        }
    }
}

impl HoldReason {
    pub const ALL: [Self; 7] = [
        Self::NoRoom,
        Self::NoRoomAhead,
        Self::PrefillBusy,
        Self::Reserved,
        Self::Queued,
        Self::NoBackend,
        Self::Frozen,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoRoom => "no_room",
            Self::NoRoomAhead => "no_room_ahead",
            Self::PrefillBusy => "prefill_busy",
            Self::Reserved => "reserved",
            Self::Queued => "queued",
            Self::NoBackend => "no_backend",
            Self::Frozen => "frozen",
        }
    }
}

impl RefuseReason {
    /// The label in events.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::HeldTooLong => "held_too_long",
            Self::NoBackend => "no_backend",
            Self::Released => "released",
            Self::Draining => "draining",
        }
    }
}

impl EndKind {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Final => "final",
            Self::Expired => "expired",
            Self::Displaced => "displaced",
        }
    }
}

impl PauseReason {
    pub const ALL: [Self; 8] = [
        Self::Evicted,
        Self::OverCapacity,
        Self::MadeWay,
        Self::CacheLost,
        Self::PresumedGone,
        Self::BackendDown,
        Self::Draining,
        Self::Error,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::OverCapacity => "over_capacity",
            Self::MadeWay => "made_way",
            Self::CacheLost => "cache_lost",
            Self::PresumedGone => "presumed_gone",
            Self::BackendDown => "backend_down",
            Self::Draining => "draining",
            Self::Error => "error",
        }
    }
}
