//! Finds the fields that matter in a request body, and what of it does not go upstream.

use super::fault::{Complaint, Fault};
use super::scan::{Scanner, Span};

/// A field that matters to Thundergate, by its place in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    ProgramId,
    ExtraProgramId,
    AgenticProgramId,
    PromptCacheKey,
    SessionId,
    UserId,
    Model,
    Stream,
    Choices,
    StreamOptions,
    IncludeUsage,
    ContinuousUsage,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    MaxNewTokens,
    Messages,
    Prompt,
    Input,
    Tools,
    System,
    Instructions,
    Text,
    InputIds,
    PreviousResponse,
    Conversation,
    /// The first element of `messages` or `input`, and its `role`.
    Opening,
    Role,
}

const FIELDS: usize = Field::Role as usize + 1;

/// An object whose members are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Top,
    ExtraBody,
    Xargs,
    Agentic,
    Metadata,
    StreamOptions,
    Sampling,
    Opening,
}

/// Where everything is in one body. Of duplicate keys the last one counts, as in Python.
#[derive(Debug)]
pub(super) struct Outline {
    fields: [Span; FIELDS],
    /// What does not go upstream, commas included; in order, apart from each other.
    pub cuts: Vec<Span>,
    /// Where the body's own closing brace is.
    pub close: usize,
}

/// What became of an object's members.
#[derive(Default)]
struct Walked {
    kept: bool,
    cut: bool,
}

// === impl Outline ===

impl Outline {
    pub fn read(text: &str, depth: usize) -> Result<Self, Fault> {
        let mut outline = Self { fields: [Span::default(); FIELDS], cuts: Vec::new(), close: 0 };
        let mut scanner = Scanner::new(text, depth);
        scanner.blank();
        match scanner.peek() {
            Some(b'{') => {}
            None => return Err(scanner.complain(Complaint::Empty)),
            Some(_) => {
                // Malformed or not an object: two different complaints.
                scanner.skip()?;
                scanner.at = 0;
                return Err(scanner.complain(Complaint::NotAnObject));
            }
        }
        outline.walk(&mut scanner, Scope::Top)?;
        outline.close = scanner.at - 1;
        scanner.end()?;
        Ok(outline)
    }

    pub fn span(&self, field: Field) -> Option<Span> {
        let span = self.fields[field as usize];
        (!span.is_empty()).then_some(span)
    }

    /// Walks one object, notes its fields and cuts its members out. A member is cut with the comma before
    /// it if any member before it stays, else with the comma after it.
    fn walk(&mut self, scanner: &mut Scanner<'_>, scope: Scope) -> Result<Walked, Fault> {
        let mut walked = Walked::default();
        let mut last_end = scanner.at;
        let mut leading: Option<usize> = None;
        scanner.members(|scanner, key| {
            if let Some(cut) = leading.take() {
                self.cuts[cut].end = key.start;
            }
            let inner_cuts = self.cuts.len();
            if self.member(scanner, scope, &key.text)? {
                walked.kept = true;
            } else {
                walked.cut = true;
                self.cuts.truncate(inner_cuts);
                let start = if walked.kept { last_end } else { key.start };
                let end = scanner.at;
                leading = (!walked.kept).then_some(inner_cuts);
                self.cuts.push(Span { start, end });
            }
            last_end = scanner.at;
            Ok(())
        })?;
        Ok(walked)
    }

    /// Goes past one member's value; tells whether the member goes upstream.
    fn member(&mut self, scanner: &mut Scanner<'_>, scope: Scope, key: &str) -> Result<bool, Fault> {
        let start = scanner.at;
        let mut keep = !is_ours(scope, key);
        match inner_scope(scope, key) {
            Some(Scope::Opening) => self.turns(scanner)?,
            Some(inner) => {
                self.forget(inner);
                if scanner.peek() == Some(b'{') {
                    let walked = self.walk(scanner, inner)?;
                    keep = walked.kept || !walked.cut;
                } else {
                    scanner.skip()?;
                }
            }
            None => scanner.skip()?,
        }
        if let Some(field) = field_at(scope, key) {
            self.set(field, start, scanner.at);
        }
        Ok(keep)
    }

    /// Goes past `messages` or `input`, and notes the first message of a conversation.
    fn turns(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        self.forget(Scope::Opening);
        if scanner.peek() != Some(b'[') {
            return scanner.skip();
        }
        scanner.elements(|scanner, index| {
            if index > 0 || scanner.peek() != Some(b'{') {
                return scanner.skip();
            }
            let start = scanner.at;
            self.walk(scanner, Scope::Opening)?;
            self.set(Field::Opening, start, scanner.at);
            Ok(())
        })
    }

    fn set(&mut self, field: Field, start: usize, end: usize) {
        self.fields[field as usize] = Span { start, end };
    }

    /// What an earlier duplicate of this object said does not count.
    fn forget(&mut self, scope: Scope) {
        let fields: &[Field] = match scope {
            Scope::Top => &[],
            Scope::ExtraBody => &[Field::ExtraProgramId],
            Scope::Xargs | Scope::Agentic => &[Field::AgenticProgramId],
            Scope::Metadata => &[Field::SessionId, Field::UserId],
            Scope::StreamOptions => &[Field::IncludeUsage, Field::ContinuousUsage],
            Scope::Sampling => &[Field::MaxNewTokens],
            Scope::Opening => &[Field::Opening, Field::Role],
        };
        for field in fields {
            self.set(*field, 0, 0);
        }
    }
}

/// Written for Thundergate, of no use to an engine.
fn is_ours(scope: Scope, key: &str) -> bool {
    matches!(scope, Scope::Top | Scope::ExtraBody) && matches!(key, "program_id" | "docker_ids")
}

fn inner_scope(scope: Scope, key: &str) -> Option<Scope> {
    Some(match (scope, key) {
        (Scope::Top, "extra_body") => Scope::ExtraBody,
        (Scope::Top, "vllm_xargs") => Scope::Xargs,
        (Scope::Xargs, "agentic_context") => Scope::Agentic,
        (Scope::Top, "metadata") => Scope::Metadata,
        (Scope::Top, "stream_options") => Scope::StreamOptions,
        (Scope::Top, "sampling_params") => Scope::Sampling,
        (Scope::Top, "messages" | "input") => Scope::Opening,
        _ => return None,
    })
}

fn field_at(scope: Scope, key: &str) -> Option<Field> {
    Some(match (scope, key) {
        (Scope::Top, "program_id") => Field::ProgramId,
        (Scope::ExtraBody, "program_id") => Field::ExtraProgramId,
        (Scope::Agentic, "program_id") => Field::AgenticProgramId,
        (Scope::Top, "prompt_cache_key") => Field::PromptCacheKey,
        (Scope::Metadata, "session_id") => Field::SessionId,
        (Scope::Metadata, "user_id") => Field::UserId,
        (Scope::Top, "model") => Field::Model,
        (Scope::Top, "stream") => Field::Stream,
        (Scope::Top, "n") => Field::Choices,
        (Scope::Top, "stream_options") => Field::StreamOptions,
        (Scope::StreamOptions, "include_usage") => Field::IncludeUsage,
        (Scope::StreamOptions, "continuous_usage_stats") => Field::ContinuousUsage,
        (Scope::Top, "max_tokens") => Field::MaxTokens,
        (Scope::Top, "max_completion_tokens") => Field::MaxCompletionTokens,
        (Scope::Top, "max_output_tokens") => Field::MaxOutputTokens,
        (Scope::Sampling, "max_new_tokens") => Field::MaxNewTokens,
        (Scope::Top, "messages") => Field::Messages,
        (Scope::Top, "prompt") => Field::Prompt,
        (Scope::Top, "input") => Field::Input,
        (Scope::Top, "tools") => Field::Tools,
        (Scope::Top, "system") => Field::System,
        (Scope::Top, "instructions") => Field::Instructions,
        (Scope::Top, "text") => Field::Text,
        (Scope::Top, "input_ids") => Field::InputIds,
        (Scope::Top, "previous_response_id") => Field::PreviousResponse,
        (Scope::Top, "conversation") => Field::Conversation,
        (Scope::Opening, "role") => Field::Role,
        _ => return None,
    })
}
