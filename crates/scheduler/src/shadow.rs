//! The shadow of a backend's prefix cache: the prefixes that the cache probably still holds of programs that run no
//! step there now.
//!
//! vLLM frees the blocks of a finished request but keeps their content until the space is needed; the oldest content
//! goes first. The shadow follows that: it has one entry per program, in order of last use, and is cut from the old end
//! whenever running steps need the room. A lease makes no difference, because the cache knows no leases.

use crate::program::{ById, Pid};
use crate::units::Tokens;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Shadow {
    /// Entries by time of last use; the number keeps entries of the same instant apart.
    order: BTreeMap<(Duration, u64), (Pid, Tokens)>,
    slots: ById<Pid, (Duration, u64)>,
    next: u64,
    total: Tokens,
}

impl Shadow {
    /// Adds the `tokens` that a program leaves in the cache when it stops running there.
    pub fn leave(&mut self, program: Pid, tokens: Tokens, now: Duration) {
        self.take(program);
        if tokens == Tokens::ZERO {
            return;
        }
        let place = (now, self.next);
        self.next += 1;
        self.order.insert(place, (program, tokens));
        self.slots.insert(program, place);
        self.total += tokens;
    }

    /// All entries, the youngest first: the program, the tokens of its prefix, and the time of last use.
    pub fn entries(&self) -> impl Iterator<Item = (Pid, Tokens, Duration)> {
        self.order.iter().rev().map(|(&(used, _), &(program, tokens))| (program, tokens, used))
    }

    /// Removes the program's entry and gives its tokens. The program runs again, so its blocks are pinned, or it is
    /// forgotten.
    pub fn take(&mut self, program: Pid) -> Tokens {
        let Some(place) = self.slots.remove(&program) else {
            return Tokens::ZERO;
        };
        let tokens = self.order.remove(&place).map_or(Tokens::ZERO, |(_, tokens)| tokens);
        self.total -= tokens;
        tokens
    }

    /// Tokens of the program's prefix that are probably still cached.
    pub fn resident(&self, program: Pid) -> Tokens {
        let place = self.slots.get(&program);
        place.and_then(|place| self.order.get(place)).map_or(Tokens::ZERO, |&(_, tokens)| tokens)
    }

    /// Cuts the shadow to `budget`, the tokens of the cache that running steps leave free. The oldest entry goes first.
    pub fn shrink(&mut self, budget: Tokens) {
        while self.total > budget {
            let Some(mut entry) = self.order.first_entry() else {
                return;
            };
            let excess = self.total - budget;
            let (program, tokens) = *entry.get();
            if tokens > excess {
                entry.get_mut().1 = tokens - excess;
                self.total -= excess;
            } else {
                entry.remove();
                self.slots.remove(&program);
                self.total -= tokens;
            }
        }
    }

    /// Removes all entries: the backend's process started anew, with an empty cache.
    pub fn clear(&mut self) {
        self.order.clear();
        self.slots.clear();
        self.total = Tokens::ZERO;
    }

    /// Sum of tokens over all entries.
    pub fn total(&self) -> Tokens {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn the_oldest_prefix_goes_first_and_only_as_much_as_is_needed() {
        let mut shadow = Shadow::default();
        shadow.leave(Pid(1), Tokens(100), secs(1));
        shadow.leave(Pid(2), Tokens(100), secs(2));
        shadow.shrink(Tokens(150));
        assert_eq!(shadow.resident(Pid(1)), Tokens(50));
        assert_eq!(shadow.resident(Pid(2)), Tokens(100));
        shadow.shrink(Tokens(100));
        assert_eq!(shadow.resident(Pid(1)), Tokens::ZERO);
        assert_eq!(shadow.total(), Tokens(100));
    }

    #[test]
    fn using_a_prefix_again_makes_it_the_youngest() {
        let mut shadow = Shadow::default();
        shadow.leave(Pid(1), Tokens(100), secs(1));
        shadow.leave(Pid(2), Tokens(100), secs(2));
        assert_eq!(shadow.take(Pid(1)), Tokens(100));
        shadow.leave(Pid(1), Tokens(120), secs(3));
        shadow.shrink(Tokens(120));
        assert_eq!(shadow.resident(Pid(2)), Tokens::ZERO);
        assert_eq!(shadow.resident(Pid(1)), Tokens(120));
    }
}
