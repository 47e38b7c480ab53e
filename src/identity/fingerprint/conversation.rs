//! The conversation that one step sends, as hashes of its prefixes: by message where there are messages, by blocks of bytes
//! where there is one text.

use super::answer::{Form, ReplyHash};
use super::canon::{self, Turn};
use super::program::{Position, ProgramEntry};
use crate::body::envelope::{Envelope, Field};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a block: prefixes of a text are hashed at multiples of this length.
const BLOCK: usize = 256;

/// A step's conversation, and the hashes of its prefixes.
#[derive(Debug)]
pub struct Conversation<'a> {
    raw: &'a [u8],
    kind: PromptKind,
    /// Hash of the first `n` turns or blocks, at index `n`.
    prefixes: Vec<u64>,
    /// Whether the endpoint names its answers, so that the next step need not repeat them.
    named: bool,
    /// Hash of the scope within which conversations are compared.
    scope: u64,
}

#[derive(Debug)]
enum PromptKind {
    /// `messages`, or a list as `input`. `joined`: the server knows the turns before these.
    Turns { turns: Vec<Turn>, joined: bool },
    /// A text or a list of token ids, as written in the body.
    Text { ids: bool },
    /// A conversation that the client names.
    Kept,
}

/// How well a step fits behind the last step of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The step repeats the answer that the program got.
    Said,
    /// The step may repeat that answer.
    Unknown,
    /// The step repeats another answer, or none: a client may drop an answer that it cannot use.
    Otherwise,
}

// === impl Conversation ===

impl<'a> Conversation<'a> {
    /// Reads the prompt of a step. `None` if the step has no prompt that could grow: several prompts at once, no prompt, or
    /// one of another type. `scope`: hash of the scope within which prompts are compared.
    #[must_use]
    pub fn of(envelope: &'a Envelope, scope: u64) -> Option<Self> {
        let field = |field| envelope.bytes(field);
        let scope = xxh3_64_with_seed(field(Field::Model), scope);
        if let Some(turns) = canon::turns(field(Field::Messages)) {
            return Some(Self::messages(envelope, turns, scope));
        }
        if !field(Field::Input).is_empty() {
            return Self::input(envelope, scope);
        }
        let prompts = [Field::Prompt, Field::Text, Field::InputIds];
        let raw = prompts.into_iter().map(field).find(|raw| !raw.is_empty())?;
        Self::text(raw, scope)
    }

    /// Reads a step of the responses API.
    fn input(envelope: &'a Envelope, scope: u64) -> Option<Self> {
        let raw = envelope.bytes(Field::Input);
        let kept = canon::hash(envelope.bytes(Field::Conversation));
        if kept != 0 {
            let prefixes = vec![0, canon::link(scope, kept)];
            return Some(Self { raw, kind: PromptKind::Kept, prefixes, named: true, scope });
        }
        let turns = match raw.first() {
            Some(b'"') => vec![Turn { hash: canon::hash(raw), start: 0, end: raw.len(), first: true, answer: false }],
            _ => canon::turns(raw)?,
        };
        let before = envelope.scalar(Field::PreviousResponse).ok().flatten();
        let start = match &before {
            Some(name) => place_of_name(scope, xxh3_64(name.as_bytes())),
            None => canon::link(scope, canon::hash(envelope.bytes(Field::Instructions))),
        };
        let prefixes = chain(start, &turns);
        Some(Self { raw, kind: PromptKind::Turns { turns, joined: before.is_some() }, prefixes, named: true, scope })
    }

    /// Reads a step of the chat or the messages API.
    fn messages(envelope: &'a Envelope, turns: Vec<Turn>, scope: u64) -> Self {
        let prefixes = chain(canon::link(scope, canon::hash(envelope.bytes(Field::System))), &turns);
        let raw = envelope.bytes(Field::Messages);
        Self { raw, kind: PromptKind::Turns { turns, joined: false }, prefixes, named: false, scope }
    }

    fn text(raw: &'a [u8], scope: u64) -> Option<Self> {
        let inside = raw.get(1..raw.len() - 1)?;
        let ids = match raw.first()? {
            b'"' => false,
            // A list of texts or lists is several prompts.
            b'[' if !inside.iter().any(|byte| b"\"[{".contains(byte)) => true,
            _ => return None,
        };
        if inside.is_empty() {
            return None;
        }
        let chain = inside.chunks_exact(BLOCK).scan(scope, |chain, block| {
            *chain = xxh3_64_with_seed(block, *chain);
            Some(*chain)
        });
        let prefixes = std::iter::once(scope).chain(chain).collect();
        Some(Self { raw: inside, kind: PromptKind::Text { ids }, prefixes, named: false, scope })
    }

    /// Whether the endpoint's answers have names.
    pub(super) fn is_named(&self) -> bool {
        self.named
    }

    pub(super) fn scope(&self) -> u64 {
        self.scope
    }

    /// The form in which the next step will repeat the answer.
    pub(super) fn form(&self) -> Form {
        match self.kind {
            PromptKind::Turns { .. } | PromptKind::Kept => Form::Turns,
            PromptKind::Text { ids: false } => Form::Text,
            PromptKind::Text { ids: true } => Form::Ids,
        }
    }

    /// The position of the program after this step.
    pub(super) fn whole(&self) -> Position {
        let at = self.prefixes.last().copied().unwrap_or_default();
        let tail = match self.kind {
            PromptKind::Text { .. } => &self.raw[(self.prefixes.len() - 1) * BLOCK..],
            _ => &[],
        };
        Position::new(at, tail)
    }

    /// All prefixes that may be a program's last step, with their hashes, longest first.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (usize, u64)> {
        let last = self.prefixes.len() - 1;
        let known = match self.kind {
            PromptKind::Turns { joined: true, .. } => 0..last,
            PromptKind::Turns { joined: false, .. } => 1..last,
            PromptKind::Text { .. } => 0..last + 1,
            PromptKind::Kept => 0..0,
        };
        known.rev().map(|n| (n, self.prefixes[n]))
    }

    /// How this step fits as the next one of the program in `entry`, whose position is prefix number `n`. `None`: not at
    /// all.
    pub(super) fn fits(&self, n: usize, entry: &ProgramEntry) -> Option<Fit> {
        match &self.kind {
            // The client has named the answer that it continues.
            PromptKind::Turns { joined: true, .. } if n == 0 => Some(Fit::Said),
            PromptKind::Turns { turns, .. } => {
                match (turns.get(n)?.answer, entry.grown, entry.answer) {
                    (true, _, ReplyHash::Unknown) | (false, true, _) => return Some(Fit::Unknown),
                    (false, false, answer) => return (!answer.has_calls()).then_some(Fit::Otherwise),
                    (true, ..) => {}
                }
                let said = turns[n..].iter().take_while(|turn| turn.answer).filter(|turn| turn.first);
                let said = ReplyHash::of_turns(said.map(|turn| &self.raw[turn.start..turn.end]));
                Some(Fit::of(entry.answer.is_repeated_by(said)))
            }
            PromptKind::Text { ids } => {
                let after = entry.place.behind(&self.raw[n * BLOCK..]).filter(|after| !after.is_empty())?;
                Some(match entry.answer {
                    ReplyHash::Unknown => Fit::Unknown,
                    answer => Fit::of(answer.starts(after, *ids)),
                })
            }
            PromptKind::Kept => None,
        }
    }

    /// Whether the client names the conversation.
    pub(super) fn is_kept(&self) -> bool {
        matches!(self.kind, PromptKind::Kept)
    }
}

/// The prefixes of a list of turns, the empty one first.
fn chain(start: u64, turns: &[Turn]) -> Vec<u64> {
    let links = turns.iter().scan(start, |chain, turn| {
        *chain = canon::link(*chain, turn.hash);
        Some(*chain)
    });
    std::iter::once(start).chain(links).collect()
}

/// The position of a program whose last answer has the name with the hash `name`.
pub(super) fn place_of_name(scope: u64, name: u64) -> u64 {
    canon::link(!scope, name)
}

// === impl Fit ===

impl Fit {
    fn of(repeated: bool) -> Self {
        if repeated { Self::Said } else { Self::Otherwise }
    }
}
