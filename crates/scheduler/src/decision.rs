//! The decisions of the scheduler, and their reasons.

use crate::event::{BackendId, ProgramKey, StepId};
use crate::units::Tokens;
use std::time::Duration;

/// Why a step goes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DispatchKind {
    /// Its program already held a lease.
    Leased,
    /// Its program has no context yet, and gets a lease.
    New,
    /// Its program has context, and gets a lease again.
    Resumed,
    /// It is let in although it does not fit (see `scheduler.hold.on_timeout`).
    Forced,
    /// It has no program, and goes by load.
    Unlabelled,
}

/// Why a step waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldReason {
    /// Its tokens do not fit on any backend yet.
    NoRoom,
    /// It fits now, but will not once it and the other programs have grown.
    NoRoomAhead,
    /// There is room, but enough prefill is promised already.
    PrefillBusy,
    /// The backends with room for it are reserved for programs that have waited too long.
    Reserved,
    /// Others wait before it.
    Queued,
    /// No backend is usable.
    NoBackend,
    /// Dispatch is frozen: see [`Event::Freeze`](crate::Event::Freeze).
    Frozen,
}

/// Why a program lost its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PauseReason {
    /// It was idle for longer than recomputing it takes, and another program needed the room.
    Evicted,
    /// Its backend would have gone over capacity with the next turn of a program there.
    OverCapacity,
    /// A program that had waited too long needed the room.
    MadeWay,
    /// Its prefix is no longer in the cache.
    CacheLost,
    /// It was idle for so long that it is taken for finished.
    PresumedGone,
    BackendDown,
    /// Its backend is being drained.
    Draining,
    /// Its step failed, so nobody knows what the backend still holds of it.
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
    /// The scheduler drains: see [`Event::Drain`](crate::Event::Drain).
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
    /// It was idle for longer than `programs.idle_ttl`.
    Expired,
    /// It was the longest idle program when a new one would have exceeded `programs.max`.
    Displaced,
}

/// One thing to do or to record. Decisions are to be carried out in their order.
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
    /// For the record: the step waits. Given once for each time that the step is held.
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
    /// For the record: the program was dispatched on another backend than last time. `lost`: the old backend is down,
    /// draining or removed.
    Moved {
        program: ProgramKey,
        from: BackendId,
        to: BackendId,
        lost: bool,
    },
    /// For the record: the tokens that were estimated for a step, and those that its backend counted.
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
