//! Classes: programs of one model and system message share the start of their prompts.

use super::snapshot::Experience;
use crate::units::Tokens;
use std::collections::HashMap;

/// Classes remembered; more than that are not worth the memory, and share nothing.
const MOST: usize = 4096;

#[derive(Debug, Default)]
struct Class {
    /// Smallest non-zero `cached_tokens` on the first step of a program, and how many programs told.
    smallest: Tokens,
    told: u32,
}

#[derive(Debug, Default)]
pub struct Classes {
    classes: HashMap<u64, Class>,
}

impl Classes {
    /// Tokens of the prefix that all programs of the class share. One program alone tells nothing: a
    /// conversation that was replayed would make its whole context the shared prefix.
    pub fn shared(&self, class: u64) -> Tokens {
        self.classes.get(&class).filter(|class| class.told >= 2).map_or(Tokens::ZERO, |class| class.smallest)
    }

    pub fn snapshot(&self, into: &mut Experience) {
        into.classes = self.classes.iter().map(|(&id, class)| (id, class.smallest, class.told)).collect();
    }

    pub fn restore(&mut self, from: &Experience) {
        let classes = from.classes.iter().take(MOST);
        self.classes.extend(classes.map(|&(id, smallest, told)| (id, Class { smallest, told })));
    }

    /// The first step of a program of this class found `cached` tokens. True when `shared` changed.
    pub fn saw_first_step(&mut self, class: u64, cached: Tokens) -> bool {
        if cached == Tokens::ZERO || (self.classes.len() >= MOST && !self.classes.contains_key(&class)) {
            return false;
        }
        let before = self.shared(class);
        let entry = self.classes.entry(class).or_default();
        entry.smallest = if entry.told == 0 { cached } else { entry.smallest.min(cached) };
        entry.told = entry.told.saturating_add(1);
        self.shared(class) != before
    }
}
