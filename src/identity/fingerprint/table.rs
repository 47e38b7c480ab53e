//! The programs without an id, and where each of them is. Sans I/O: times are given.

use super::answer::{Answer, Echo, Form};
use super::conversation::{Conversation, Fit, place_of_name};
use super::program::{Place, Seat};
use lru::LruCache;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// So many programs at most that have sent the same so far; of more the longest idle is forgotten.
const CROWD: usize = 256;

/// How many programs are remembered, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub max: usize,
    pub idle_ttl: Duration,
}

/// All programs.
#[derive(Debug)]
pub struct Table {
    /// The longest idle is the least recently used.
    seats: LruCache<u64, Seat>,
    /// Who is at a place, in the order in which they came.
    places: HashMap<u64, SmallVec<[u64; 2]>>,
    random: RandomState,
    next: u64,
}

/// One step of a program.
#[derive(Debug)]
pub struct Ticket {
    /// The program.
    pub program: u64,
    /// It was known before.
    pub known: bool,
    step: u32,
    scope: u64,
    form: Form,
    /// What the model says may be needed to tell the program from others.
    watch: bool,
    named: bool,
}

/// How a step ended.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// `name`: hash of the answer's own name.
    Answered {
        answer: Answer,
        name: Option<u64>,
    },
    Broken,
}

/// How sure it is that a step belongs to a program, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    /// It goes on behind a step that is not over yet: its client did not wait for the last bytes.
    Early,
    /// It is the same step again while the other one is in flight.
    Double,
    /// It goes on with another answer than the only program there got, or with none.
    Rewritten,
    /// It is the same step once more.
    Again,
    /// It goes on with an answer.
    Next,
}

/// The likeliest program so far, of equals the first.
struct Best(Option<(Likeness, u64)>);

// === impl Table ===

impl Table {
    /// The program that a step belongs to, and its end to be told later.
    #[must_use]
    pub fn step(&mut self, now: Duration, bounds: Bounds, conversation: &Conversation<'_>) -> Ticket {
        self.expire(now, bounds.idle_ttl);
        let whole = conversation.whole();
        let found = self.find(conversation, whole);
        let program = found.unwrap_or_else(|| self.new_program(now, bounds.max, whole));
        let mut ticket = Ticket {
            program,
            known: found.is_some(),
            step: 0,
            scope: conversation.scope(),
            form: conversation.form(),
            watch: false,
            named: conversation.is_named(),
        };
        if self.seats.peek(&program).is_some_and(|seat| seat.place != whole) {
            self.go_on(program, whole);
        }
        let twins = self.places.get(&whole.at).map_or(0, SmallVec::len);
        if let Some(seat) = self.seats.get_mut(&program) {
            seat.flying += 1;
            seat.used = now;
            ticket.step = seat.step;
            ticket.watch = !seat.grown || twins > 1;
        }
        ticket
    }

    /// A step is over.
    pub fn finish(&mut self, now: Duration, ticket: &Ticket, end: End) {
        let Some(seat) = self.seats.get_mut(&ticket.program).filter(|seat| seat.step == ticket.step) else {
            return;
        };
        seat.flying = seat.flying.saturating_sub(1);
        seat.used = now;
        let End::Answered { answer, name } = end else {
            return;
        };
        // Of several answers to one step the client goes on with any.
        seat.answer = if seat.done && seat.answer != answer { Answer::Unknown } else { answer };
        seat.done = true;
        let old = std::mem::replace(&mut seat.named, name.map_or(0, |name| place_of_name(ticket.scope, name)));
        let new = seat.named;
        self.leave(old, ticket.program);
        if new != 0 {
            self.places.entry(new).or_default().push(ticket.program);
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Places that somebody is at.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    fn find(&self, conversation: &Conversation<'_>, whole: Place) -> Option<u64> {
        let mut best = Best(None);
        for (program, seat) in self.at(whole.at).filter(|(_, seat)| seat.place == whole) {
            match seat.flying {
                // It failed, and is tried again.
                0 if !seat.done => return Some(program),
                0 if seat.grown || conversation.is_kept() => best.offer(Likeness::Again, program),
                1.. if seat.grown || conversation.is_kept() => best.offer(Likeness::Double, program),
                // Another program with the same task.
                _ => {}
            }
        }
        for (n, at) in conversation.prefixes() {
            let mut otherwise = [None; 2];
            for (program, seat) in self.at(at) {
                match conversation.fits(n, seat) {
                    None => {}
                    Some(_) if !seat.done && seat.flying > 0 => best.offer(Likeness::Early, program),
                    Some(Fit::Said) => return Some(program),
                    Some(Fit::Unknown) => best.offer(Likeness::Next, program),
                    Some(Fit::Otherwise) => otherwise = [Some(program), otherwise[0]],
                }
            }
            if let [Some(program), None] = otherwise {
                best.offer(Likeness::Rewritten, program);
            }
            if best.0.is_some_and(|(likeness, _)| likeness == Likeness::Next) {
                break;
            }
        }
        best.0.map(|(_, program)| program)
    }

    fn at(&self, at: u64) -> impl Iterator<Item = (u64, &Seat)> {
        let there = self.places.get(&at).map_or(&[][..], SmallVec::as_slice);
        there.iter().filter_map(|program| Some((*program, self.seats.peek(program)?)))
    }

    fn new_program(&mut self, now: Duration, max: usize, place: Place) -> u64 {
        while self.seats.len() >= max
            && let Some((longest, _)) = self.longest_idle(now)
        {
            self.forget(longest);
        }
        if self.places.get(&place.at).is_some_and(|there| there.len() >= CROWD) {
            let longest = self.at(place.at).min_by_key(|(_, seat)| (seat.flying > 0, seat.used));
            if let Some((longest, _)) = longest {
                self.forget(longest);
            }
        }
        self.next += 1;
        let program = self.random.hash_one(self.next);
        let seat =
            Seat { place, answer: Answer::Unknown, grown: false, named: 0, step: 0, flying: 0, done: false, used: now };
        self.seats.push(program, seat);
        self.places.entry(place.at).or_default().push(program);
        program
    }

    /// Moves a program to where its next step ends.
    fn go_on(&mut self, program: u64, place: Place) {
        let Some(seat) = self.seats.peek_mut(&program) else {
            return;
        };
        let left = [seat.place.at, seat.named];
        seat.place = place;
        seat.answer = Answer::Unknown;
        seat.grown = true;
        seat.named = 0;
        seat.step = seat.step.wrapping_add(1);
        seat.flying = 0;
        seat.done = false;
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
        if let Some(seat) = self.seats.pop(&program) {
            self.leave(seat.place.at, program);
            self.leave(seat.named, program);
        }
    }

    fn expire(&mut self, now: Duration, ttl: Duration) {
        while let Some((longest, _)) = self.longest_idle(now).filter(|(_, used)| now.saturating_sub(*used) > ttl) {
            self.forget(longest);
        }
    }

    /// The longest idle program, and when it was last used. One with a step in flight is in use.
    fn longest_idle(&mut self, now: Duration) -> Option<(u64, Duration)> {
        loop {
            let (&program, seat) = self.seats.peek_lru()?;
            if seat.flying == 0 || seat.used >= now {
                return Some((program, seat.used));
            }
            if let Some(seat) = self.seats.get_mut(&program) {
                seat.used = now;
            }
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { seats: LruCache::unbounded(), places: HashMap::new(), random: RandomState::new(), next: 0 }
    }
}

// === impl Best ===

impl Best {
    fn offer(&mut self, likeness: Likeness, program: u64) {
        if self.0.is_none_or(|(best, _)| likeness > best) {
            self.0 = Some((likeness, program));
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// The program's id.
    #[must_use]
    pub fn id(&self) -> String {
        format!("fp-{:016x}", self.program)
    }

    /// Collects what the table wants to know of the answer.
    #[must_use]
    pub fn echo(&self) -> Echo {
        Echo::new(self.form, self.watch, self.named)
    }
}
