//! Finds the fields that matter in a request body, and the members that do not go upstream.

use super::fault::{Complaint, JsonFault};
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
    /// The first element of `messages` or `input`, and the `role` of this element.
    Opening,
    Role,
}

const FIELDS: usize = Field::Role as usize + 1;

/// An object whose members matter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    Top,
    ExtraBody,
    Xargs,
    Agentic,
    Metadata,
    StreamOptions,
    Sampling,
    Opening,
}

/// Positions of the known fields in one body. Among duplicate keys the last one counts, as in Python.
#[derive(Debug)]
pub(super) struct Outline {
    fields: [Span; FIELDS],
    /// Spans that do not go upstream, commas included, in order. No two of them touch.
    pub cuts: Vec<Span>,
    /// Position of the closing brace of the body itself.
    pub close: usize,
}

/// Record of one object: whether any member stays, and whether any was cut.
#[derive(Default)]
struct Walked {
    kept: bool,
    cut: bool,
}

// === impl Outline ===

impl Outline {
    pub fn read(text: &str, depth: usize) -> Result<Self, JsonFault> {
        let mut outline = Self { fields: [Span::default(); FIELDS], cuts: Vec::new(), close: 0 };
        let mut scanner = Scanner::new(text, depth);
        scanner.blank();
        match scanner.peek() {
            Some(b'{') => {}
            None => return Err(scanner.complain(Complaint::Empty)),
            Some(_) => {
                // A malformed value gets another complaint than a value that is no object.
                scanner.skip()?;
                scanner.at = 0;
                return Err(scanner.complain(Complaint::NotAnObject));
            }
        }
        outline.walk(&mut scanner, Container::Top)?;
        outline.close = scanner.at - 1;
        scanner.end()?;
        Ok(outline)
    }

    pub fn span(&self, field: Field) -> Option<Span> {
        let span = self.fields[field as usize];
        (!span.is_empty()).then_some(span)
    }

    /// Walks one object, notes its fields and cuts out the members that are for Thundergate alone. A member is cut with
    /// the comma before it if an earlier member stays, else with the comma after it.
    fn walk(&mut self, scanner: &mut Scanner<'_>, container: Container) -> Result<Walked, JsonFault> {
        let mut walked = Walked::default();
        let mut last_end = scanner.at;
        let mut leading: Option<usize> = None;
        scanner.members(|scanner, key| {
            if let Some(cut) = leading.take() {
                self.cuts[cut].end = key.start;
            }
            let inner_cuts = self.cuts.len();
            if self.member(scanner, container, &key.text)? {
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
    fn member(&mut self, scanner: &mut Scanner<'_>, container: Container, key: &str) -> Result<bool, JsonFault> {
        let start = scanner.at;
        let mut keep = !is_ours(container, key);
        match inner_container(container, key) {
            Some(Container::Opening) => self.turns(scanner)?,
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
        if let Some(field) = field_at(container, key) {
            self.set(field, start, scanner.at);
        }
        Ok(keep)
    }

    /// Goes past `messages` or `input`, and notes the first message of a conversation.
    fn turns(&mut self, scanner: &mut Scanner<'_>) -> Result<(), JsonFault> {
        self.forget(Container::Opening);
        if scanner.peek() != Some(b'[') {
            return scanner.skip();
        }
        scanner.elements(|scanner, index| {
            if index > 0 || scanner.peek() != Some(b'{') {
                return scanner.skip();
            }
            let start = scanner.at;
            self.walk(scanner, Container::Opening)?;
            self.set(Field::Opening, start, scanner.at);
            Ok(())
        })
    }

    fn set(&mut self, field: Field, start: usize, end: usize) {
        self.fields[field as usize] = Span { start, end };
    }

    /// Forgets the fields of an earlier duplicate of this object.
    fn forget(&mut self, container: Container) {
        let fields: &[Field] = match container {
            Container::Top => &[],
            Container::ExtraBody => &[Field::ExtraProgramId],
            Container::Xargs | Container::Agentic => &[Field::AgenticProgramId],
            Container::Metadata => &[Field::SessionId, Field::UserId],
            Container::StreamOptions => &[Field::IncludeUsage, Field::ContinuousUsage],
            Container::Sampling => &[Field::MaxNewTokens],
            Container::Opening => &[Field::Opening, Field::Role],
        };
        for field in fields {
            self.set(*field, 0, 0);
        }
    }
}

/// Whether a member is written for Thundergate and of no use to an engine.
fn is_ours(container: Container, key: &str) -> bool {
    matches!(container, Container::Top | Container::ExtraBody) && matches!(key, "program_id" | "docker_ids")
}

fn inner_container(container: Container, key: &str) -> Option<Container> {
    Some(match (container, key) {
        (Container::Top, "extra_body") => Container::ExtraBody,
        (Container::Top, "vllm_xargs") => Container::Xargs,
        (Container::Xargs, "agentic_context") => Container::Agentic,
        (Container::Top, "metadata") => Container::Metadata,
        (Container::Top, "stream_options") => Container::StreamOptions,
        (Container::Top, "sampling_params") => Container::Sampling,
        (Container::Top, "messages" | "input") => Container::Opening,
        _ => return None,
    })
}

fn field_at(container: Container, key: &str) -> Option<Field> {
    Some(match (container, key) {
        (Container::Top, "program_id") => Field::ProgramId,
        (Container::ExtraBody, "program_id") => Field::ExtraProgramId,
        (Container::Agentic, "program_id") => Field::AgenticProgramId,
        (Container::Top, "prompt_cache_key") => Field::PromptCacheKey,
        (Container::Metadata, "session_id") => Field::SessionId,
        (Container::Metadata, "user_id") => Field::UserId,
        (Container::Top, "model") => Field::Model,
        (Container::Top, "stream") => Field::Stream,
        (Container::Top, "n") => Field::Choices,
        (Container::Top, "stream_options") => Field::StreamOptions,
        (Container::StreamOptions, "include_usage") => Field::IncludeUsage,
        (Container::StreamOptions, "continuous_usage_stats") => Field::ContinuousUsage,
        (Container::Top, "max_tokens") => Field::MaxTokens,
        (Container::Top, "max_completion_tokens") => Field::MaxCompletionTokens,
        (Container::Top, "max_output_tokens") => Field::MaxOutputTokens,
        (Container::Sampling, "max_new_tokens") => Field::MaxNewTokens,
        (Container::Top, "messages") => Field::Messages,
        (Container::Top, "prompt") => Field::Prompt,
        (Container::Top, "input") => Field::Input,
        (Container::Top, "tools") => Field::Tools,
        (Container::Top, "system") => Field::System,
        (Container::Top, "instructions") => Field::Instructions,
        (Container::Top, "text") => Field::Text,
        (Container::Top, "input_ids") => Field::InputIds,
        (Container::Top, "previous_response_id") => Field::PreviousResponse,
        (Container::Top, "conversation") => Field::Conversation,
        (Container::Opening, "role") => Field::Role,
        _ => return None,
    })
}
