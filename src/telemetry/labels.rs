//! Values of metric labels. Those of the scheduler stand beside the scheduler's own enums.

use crate::scheduler::DispatchKind;

/// Kinds of held steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldClass {
    /// The first step of a program.
    New,
    /// A later step of a program.
    Started,
    /// A step without a program.
    Unlabelled,
    /// A step that was never dispatched: it was refused, or its client left.
    Unserved,
}

/// Why a program was dispatched on another backend than last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// The last backend is down, draining or gone.
    BackendDown,
    /// Another backend was cheaper, or the only one with room.
    Room,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// `POST /programs/release` or `DELETE /programs/{id}`.
    Api,
    /// `x-program-final: true` on its last step.
    Final,
    /// `programs.idle_ttl` or `programs.max`.
    Forgotten,
}

/// How a backend failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// Connection refused, unreachable, TLS failure, or a name that does not resolve.
    Connect,
    ConnectTimeout,
    /// The connection broke before the response began.
    NoResponse,
    FirstByteTimeout,
    /// The connection broke within the response.
    Broken,
    /// The response stalled for longer than `timeouts.stream_idle`.
    Stalled,
    /// The backend itself answered with a 5xx.
    Status5xx,
}

// === impl HoldClass ===

impl HoldClass {
    pub(super) const ALL: [Self; 4] = [Self::New, Self::Started, Self::Unlabelled, Self::Unserved];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Started => "started",
            Self::Unlabelled => "unlabelled",
            Self::Unserved => "unserved",
        }
    }
}

impl From<DispatchKind> for HoldClass {
    fn from(kind: DispatchKind) -> Self {
        match kind {
            DispatchKind::New => Self::New,
            DispatchKind::Leased | DispatchKind::Resumed | DispatchKind::Forced => Self::Started,
            DispatchKind::Unlabelled => Self::Unlabelled,
        }
    }
}

// === impl MoveReason ===

impl MoveReason {
    pub(super) const ALL: [Self; 2] = [Self::BackendDown, Self::Room];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::BackendDown => "backend_down",
            Self::Room => "room",
        }
    }
}

// === impl Released ===

impl Released {
    pub(super) const ALL: [Self; 3] = [Self::Api, Self::Final, Self::Forgotten];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Final => "final",
            Self::Forgotten => "forgotten",
        }
    }
}

// === impl UpstreamError ===

impl UpstreamError {
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoResponse => "no_response",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::Broken => "broken",
            Self::Stalled => "stalled",
            Self::Status5xx => "status_5xx",
        }
    }
}
