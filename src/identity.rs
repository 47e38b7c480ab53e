//! Which program a step belongs to. Clients write the program's id in one of several headers and body fields; the first
//! valid id in a configured order of these sources wins.

pub mod fingerprint;
#[cfg(test)]
mod tests;

use crate::body::envelope::{Envelope, Field, NotScalar};
pub use crate::config::{DEFAULT_SOURCES, SourceError};
use crate::config::{Place, Source};
use crate::error::Refusal;
use crate::scheduler::ProgramKey;
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::sync::Arc;

/// A list of sources, ready for use.
#[derive(Clone, Debug)]
pub struct Sources {
    sources: Vec<Source>,
    /// Ids longer than this many bytes are hashed.
    max_bytes: usize,
}

/// What newer releases of Claude Code write into `metadata.user_id`, as JSON text.
#[derive(Deserialize)]
struct UserId<'a> {
    #[serde(borrow)]
    session_id: Cow<'a, str>,
}

// === impl Sources ===

impl Sources {
    /// Reads names such as `body:program_id` or `header:x-program-id`. Any header may be named but
    /// `x-request-id`.
    ///
    /// # Errors
    /// The first name that cannot be used.
    pub fn parse<S: AsRef<str>>(names: &[S], max_bytes: usize) -> Result<Self, SourceError> {
        let sources = names.iter().map(|name| Source::parse(name.as_ref()));
        Ok(Self { sources: sources.collect::<Result<_, _>>()?, max_bytes })
    }

    /// The program of a step and the name of the source that named the program; `None` for a step without identity. The id
    /// is the client's own text, control characters included: escape the id before it goes into a header or a log line.
    ///
    /// # Errors
    /// `InvalidProgramId` when a field that holds a program id by its name (`program_id`) is an object or array.
    pub fn find(
        &self,
        headers: &HeaderMap,
        envelope: &Envelope,
        tenant: &Arc<str>,
    ) -> Result<Option<(ProgramKey, &str)>, Refusal> {
        for source in &self.sources {
            let id = match &source.place {
                Place::Header(name) => header_text(headers, name).map(Cow::Borrowed),
                Place::Body(field) => body_text(envelope, *field)
                    .map_err(|NotScalar| Refusal::InvalidProgramId(source.path().to_owned()))?,
            };
            if let Some(id) = id {
                return Ok(Some((self.key(tenant, &id), &source.name)));
            }
        }
        Ok(None)
    }

    /// The key of the program that clients call `id`.
    #[must_use]
    pub fn key(&self, tenant: &Arc<str>, id: &str) -> ProgramKey {
        program_key(tenant, id, self.max_bytes)
    }
}

impl Default for Sources {
    /// The default list, with ids of up to 256 bytes kept as they are.
    fn default() -> Self {
        let sources = DEFAULT_SOURCES.iter().map(|name| Source::parse(name));
        Self { sources: sources.filter_map(Result::ok).collect(), max_bytes: 256 }
    }
}

fn header_text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let texts = headers.get_all(name).iter();
    let mut texts = texts.filter_map(|value| std::str::from_utf8(value.as_bytes()).ok());
    texts.find_map(|text| Some(text.trim()).filter(|text| !text.is_empty()))
}

fn body_text(envelope: &Envelope, field: Field) -> Result<Option<Cow<'_, str>>, NotScalar> {
    match (field, envelope.scalar(field)) {
        (Field::ProgramId | Field::ExtraProgramId | Field::AgenticProgramId, id) => id,
        (Field::UserId, id) => Ok(id.ok().flatten().as_deref().and_then(session_of).map(Cow::Owned)),
        // The other fields mean something else to other servers, so a value of another type is no error here.
        (_, id) => Ok(id.ok().flatten()),
    }
}

/// The session part of Claude Code's `metadata.user_id`: `user_…_account_…_session_SESSION`, or JSON text
/// with a `session_id`.
fn session_of(user_id: &str) -> Option<String> {
    let session = if user_id.starts_with('{') {
        serde_json::from_str::<UserId<'_>>(user_id).ok()?.session_id
    } else {
        Cow::Borrowed(user_id.rsplit_once("_session_")?.1)
    };
    Some(session.into_owned()).filter(|session| !session.is_empty())
}

/// The key of the program that clients call `id`. An id of more than `max_bytes` (`identity.max_bytes`) is hashed to
/// `sha256:` and 64 hex digits.
#[must_use]
pub fn program_key(tenant: &Arc<str>, id: &str, max_bytes: usize) -> ProgramKey {
    let id = if id.len() > max_bytes { format!("sha256:{:x}", Sha256::digest(id)).into() } else { id.into() };
    ProgramKey { tenant: Arc::clone(tenant), id }
}

/// Whether the client says that this is its program's last step.
#[must_use]
pub fn final_step(headers: &HeaderMap) -> bool {
    let yes = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    };
    yes("x-program-final") || yes("x-dynamo-session-final")
}
