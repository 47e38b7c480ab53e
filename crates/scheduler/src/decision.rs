//! What the scheduler answers.

use crate::event::{BackendId, ProgramKey, StepId};
use crate::units::Tokens;
use std::time::Duration;

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
    /// No backend is usable.
    NoBackend,
    /// See [`Event::Freeze`](crate::Event::Freeze).
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
    /// `hold.queue` steps were held already.
    QueueFull,
    /// It was held for `hold.max`.
    HeldTooLong,
    /// No backend was usable for `no_backend_wait`.
    NoBackend,
    /// Its program ended while the step was held.
    Released,
    /// See [`Event::Drain`](crate::Event::Drain).
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
