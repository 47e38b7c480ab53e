//! The programs without an id, and the position of each. Without I/O: times are given by the caller.

use super::answer::{Form, ReplyDigest, ReplyHash};
use super::conversation::{Conversation, Fit, place_of_name};
use super::program::{Position, ProgramEntry};
use lru::LruCache;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Most programs at one position. When another one comes, the longest idle program there is forgotten.
const CROWD: usize = 256;

/// How many programs are remembered, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Most programs: `programs.max`.
    pub max: usize,
    /// Time without a step after which a program is forgotten: `programs.idle_ttl`.
    pub idle_ttl: Duration,
}

/// All programs.
#[derive(Debug)]
pub struct Table {
    /// Programs by number; the least recently used is the longest idle.
    entries: LruCache<u64, ProgramEntry>,
    /// Programs at each position, in the order in which they came.
    places: HashMap<u64, SmallVec<[u64; 2]>>,
    random: RandomState,
    next: u64,
}

/// One step of a program.
#[derive(Debug)]
pub struct StepHandle {
    /// Number of the program.
    pub program: u64,
    /// Whether the program was known before.
    pub known: bool,
    step: u32,
    scope: u64,
    form: Form,
    /// Whether the answer may be needed to tell the program from others.
    watch: bool,
    named: bool,
}

/// How a step ended.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The answer came whole. `name`: hash of the answer's own name.
    Answered { answer: ReplyHash, name: Option<u64> },
    /// The answer did not come, or not whole.
    Broken,
}

/// How likely a step belongs to a program, the least likely first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Similarity {
    /// The step continues a step that is not over yet: the client did not wait for the last bytes.
    Early,
    /// The step repeats a step that is still in flight.
    Double,
    /// The step continues with another answer than the only program at that position got, or with none.
    Rewritten,
    /// The step repeats a step that is over.
    Again,
    /// The step continues with an answer.
    Next,
}

/// The likeliest program so far; of equally likely ones the first.
struct Best(Option<(Similarity, u64)>);

// === impl Table ===

impl Table {
    /// Finds or makes the program that a step belongs to. The step's end is to be told by [`Table::finish`].
    #[must_use]
    pub fn step(&mut self, now: Duration, retention: Retention, conversation: &Conversation<'_>) -> StepHandle {
        self.expire(now, retention.idle_ttl);
        let whole = conversation.whole();
        let found = self.find(conversation, whole);
        let program = found.unwrap_or_else(|| self.new_program(now, retention.max, whole));
        let mut handle = StepHandle {
            program,
            known: found.is_some(),
            step: 0,
            scope: conversation.scope(),
            form: conversation.form(),
            watch: false,
            named: conversation.is_named(),
        };
        if self.entries.peek(&program).is_some_and(|entry| entry.place != whole) {
            self.go_on(program, whole);
        }
        let twins = self.places.get(&whole.at).map_or(0, SmallVec::len);
        if let Some(entry) = self.entries.get_mut(&program) {
            entry.flying += 1;
            entry.used = now;
            handle.step = entry.step;
            handle.watch = !entry.grown || twins > 1;
        }
        handle
    }

    /// Ends a step.
    pub fn finish(&mut self, now: Duration, handle: &StepHandle, end: End) {
        let Some(entry) = self.entries.get_mut(&handle.program).filter(|entry| entry.step == handle.step) else {
            return;
        };
        entry.flying = entry.flying.saturating_sub(1);
        entry.used = now;
        let End::Answered { answer, name } = end else {
            return;
        };
        // A client that got several answers to one step may continue with any of them.
        entry.answer = if entry.done && entry.answer != answer { ReplyHash::Unknown } else { answer };
        entry.done = true;
        let old = std::mem::replace(&mut entry.named, name.map_or(0, |name| place_of_name(handle.scope, name)));
        let new = entry.named;
        self.leave(old, handle.program);
        if new != 0 {
            self.places.entry(new).or_default().push(handle.program);
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Positions that have a program.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    fn find(&self, conversation: &Conversation<'_>, whole: Position) -> Option<u64> {
        let mut best = Best(None);
        for (program, entry) in self.at(whole.at).filter(|(_, entry)| entry.place == whole) {
            match entry.flying {
                // The step failed and is tried again.
                0 if !entry.done => return Some(program),
                0 if entry.grown || conversation.is_kept() => best.offer(Similarity::Again, program),
                1.. if entry.grown || conversation.is_kept() => best.offer(Similarity::Double, program),
                // Another program with the same task.
                _ => {}
            }
        }
        for (n, at) in conversation.prefixes() {
            let mut otherwise = [None; 2];
            for (program, entry) in self.at(at) {
                match conversation.fits(n, entry) {
                    None => {}
                    Some(_) if !entry.done && entry.flying > 0 => best.offer(Similarity::Early, program),
                    Some(Fit::Said) => return Some(program),
                    Some(Fit::Unknown) => best.offer(Similarity::Next, program),
                    Some(Fit::Otherwise) => otherwise = [Some(program), otherwise[0]],
                }
            }
            if let [Some(program), None] = otherwise {
                best.offer(Similarity::Rewritten, program);
            }
            if best.0.is_some_and(|(similarity, _)| similarity == Similarity::Next) {
                break;
            }
        }
        best.0.map(|(_, program)| program)
    }

    fn at(&self, at: u64) -> impl Iterator<Item = (u64, &ProgramEntry)> {
        let there = self.places.get(&at).map_or(&[][..], SmallVec::as_slice);
        there.iter().filter_map(|program| Some((*program, self.entries.peek(program)?)))
    }

    fn new_program(&mut self, now: Duration, max: usize, place: Position) -> u64 {
        while self.entries.len() >= max
            && let Some((longest, _)) = self.longest_idle(now)
        {
            self.forget(longest);
        }
        if self.places.get(&place.at).is_some_and(|there| there.len() >= CROWD) {
            let longest = self.at(place.at).min_by_key(|(_, entry)| (entry.flying > 0, entry.used));
            if let Some((longest, _)) = longest {
                self.forget(longest);
            }
        }
        self.next += 1;
        let program = self.random.hash_one(self.next);
        let entry = ProgramEntry {
            place,
            answer: ReplyHash::Unknown,
            grown: false,
            named: 0,
            step: 0,
            flying: 0,
            done: false,
            used: now,
        };
        self.entries.push(program, entry);
        self.places.entry(place.at).or_default().push(program);
        program
    }

    /// Moves a program to the end of its next step.
    fn go_on(&mut self, program: u64, place: Position) {
        let Some(entry) = self.entries.peek_mut(&program) else {
            return;
        };
        let left = [entry.place.at, entry.named];
        entry.place = place;
        entry.answer = ReplyHash::Unknown;
        entry.grown = true;
        entry.named = 0;
        entry.step = entry.step.wrapping_add(1);
        entry.flying = 0;
        entry.done = false;
        for at in left {
            self.leave(at, program);
        }
        self.places.entry(place.at).or_default().push(program);
    }

    fn leave(&mut self, at: u64, program: u64) {
        if let Some(there) = self.places.get_mut(&at) {
            there.retain(|one| *one != program);
            if there.is_empty() {
                self.places.remove(&at);
            }
        }
    }

    fn forget(&mut self, program: u64) {
        if let Some(entry) = self.entries.pop(&program) {
            self.leave(entry.place.at, program);
            self.leave(entry.named, program);
        }
    }

    fn expire(&mut self, now: Duration, ttl: Duration) {
        while let Some((longest, _)) = self.longest_idle(now).filter(|(_, used)| now.saturating_sub(*used) > ttl) {
            self.forget(longest);
        }
    }

    /// The longest idle program, and the time of its last use. A program with a step in flight is in use now.
    fn longest_idle(&mut self, now: Duration) -> Option<(u64, Duration)> {
        loop {
            let (&program, entry) = self.entries.peek_lru()?;
            if entry.flying == 0 || entry.used >= now {
                return Some((program, entry.used));
            }
            if let Some(entry) = self.entries.get_mut(&program) {
                entry.used = now;
            }
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: LruCache::unbounded(), places: HashMap::new(), random: RandomState::new(), next: 0 }
    }
}

// === impl Best ===

impl Best {
    fn offer(&mut self, similarity: Similarity, program: u64) {
        if self.0.is_none_or(|(best, _)| similarity > best) {
            self.0 = Some((similarity, program));
        }
    }
}

// === impl StepHandle ===

impl StepHandle {
    /// The program's id.
    #[must_use]
    pub fn id(&self) -> String {
        format!("fp-{:016x}", self.program)
    }

    /// A digest that collects what the table needs of the answer.
    #[must_use]
    pub fn digest(&self) -> ReplyDigest {
        ReplyDigest::new(self.form, self.watch, self.named)
    }
}
