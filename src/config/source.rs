//! Where a step's program is looked for: `body:program_id`, `header:x-program-id`.

use crate::body::envelope::Field;
use http::HeaderName;

/// The default of `identity.sources`: what agent frameworks, routers, Claude Code and Codex send, most explicit
/// first.
pub const DEFAULT: [&str; 17] = [
    "body:program_id",
    "body:extra_body.program_id",
    "header:x-program-id",
    "body:vllm_xargs.agentic_context.program_id",
    "header:x-dynamo-session-id",
    "header:x-claude-code-agent-id",
    "header:x-claude-code-session-id",
    "header:x-session-id",
    "header:x-session-affinity",
    // Codex: subagents have threads of their own in the session of the agent that started them.
    "header:thread-id",
    "header:session-id",
    "header:session_id",
    "header:x-litellm-session-id",
    "header:x-smg-routing-key",
    "body:prompt_cache_key",
    "body:metadata.session_id",
    "body:metadata.user_id",
];

/// Fields of a body that may be named as sources.
const BODY_FIELDS: [(&str, Field); 6] = [
    ("program_id", Field::ProgramId),
    ("extra_body.program_id", Field::ExtraProgramId),
    ("vllm_xargs.agentic_context.program_id", Field::AgenticProgramId),
    ("prompt_cache_key", Field::PromptCacheKey),
    ("metadata.session_id", Field::SessionId),
    ("metadata.user_id", Field::UserId),
];

/// Headers and fields that name something else than a program, and why.
const NEVER: [(&str, &str); 3] = [
    ("x-request-id", "it differs from step to step"),
    ("user", "all programs of a user share it"),
    ("cache_salt", "it is a secret between the client and the engine"),
];

/// One entry of `identity.sources`.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name as configured: the label of the `identity_source_total` metric.
    pub name: String,
    pub place: Place,
}

/// The part of a request that has the program's id.
#[derive(Clone, Debug)]
pub enum Place {
    Body(Field),
    Header(HeaderName),
}

/// A name in `identity.sources` that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("unknown identity source `{name}`; the nearest valid one is `{nearest}`")]
    Unknown { name: String, nearest: String },
    #[error("identity source `{name}` cannot name a program: {why}")]
    Never { name: String, why: &'static str },
    #[error("identity source `{name}`: not a valid header name")]
    BadHeader { name: String },
}

// === impl Source ===

impl Source {
    /// Reads a name such as `body:program_id`. Any header may be named but `x-request-id`.
    ///
    /// # Errors
    /// Why the name cannot be used.
    pub fn parse(name: &str) -> Result<Self, SourceError> {
        let bare = name.split_once(':').map_or(name, |(_, bare)| bare);
        let never = |(word, _): &&(&str, &str)| word.eq_ignore_ascii_case(bare);
        if let Some((_, why)) = NEVER.iter().find(never) {
            let name = name.to_owned();
            return Err(SourceError::Never { name, why });
        }
        let place = match name.split_once(':') {
            Some(("header", header)) => HeaderName::try_from(header)
                .map(Place::Header)
                .map_err(|_| SourceError::BadHeader { name: name.to_owned() })?,
            Some(("body", path)) => {
                let known = BODY_FIELDS.iter().find(|(known, _)| *known == path);
                let (_, field) = known.ok_or_else(|| unknown(name))?;
                Place::Body(*field)
            }
            _ => return Err(unknown(name)),
        };
        Ok(Self { name: name.to_owned(), place })
    }

    /// The name without its kind.
    #[must_use]
    pub fn path(&self) -> &str {
        self.name.split_once(':').map_or("", |(_, path)| path)
    }
}

fn unknown(name: &str) -> SourceError {
    let likeness = |known: &str| {
        let bare = known.split_once(':').map_or(known, |(_, bare)| bare);
        strsim::jaro_winkler(known, name).max(strsim::jaro_winkler(bare, name))
    };
    let nearest = DEFAULT.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    SourceError::Unknown { name: name.to_owned(), nearest: nearest.map_or_else(String::new, ToString::to_string) }
}
