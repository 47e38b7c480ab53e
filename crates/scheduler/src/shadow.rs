//! What is probably still in a backend's prefix cache of programs that run no step there now.
//!
//! vLLM frees the blocks of a finished request but keeps their content until the space is needed, oldest
//! first. The shadow follows that: one entry a program, in order of last use, cut from the old end
//! whenever running steps need the room. Leased and unleased programs alike: the cache knows no leases.

use crate::program::{ById, Pid};
use crate::units::Tokens;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Shadow {
    /// By time of last use; the number keeps entries of one instant apart.
    order: BTreeMap<(Duration, u64), (Pid, Tokens)>,
    slots: ById<Pid, (Duration, u64)>,
    next: u64,
    total: Tokens,
}

impl Shadow {
    /// The program has just stopped running here and leaves `tokens` behind.
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

    /// Whose prefixes are there, how much of each, and when it was last used; the youngest first.
    pub fn entries(&self) -> impl Iterator<Item = (Pid, Tokens, Duration)> {
        self.order.iter().rev().map(|(&(used, _), &(program, tokens))| (program, tokens, used))
    }

    /// The program runs again (its blocks are pinned) or is forgotten: gives what was still there.
    pub fn take(&mut self, program: Pid) -> Tokens {
        let Some(place) = self.slots.remove(&program) else {
            return Tokens::ZERO;
        };
        let tokens = self.order.remove(&place).map_or(Tokens::ZERO, |(_, tokens)| tokens);
        self.total -= tokens;
        tokens
    }

    /// Tokens of the program that are probably still cached.
    pub fn resident(&self, program: Pid) -> Tokens {
        let place = self.slots.get(&program);
        place.and_then(|place| self.order.get(place)).map_or(Tokens::ZERO, |&(_, tokens)| tokens)
    }

    /// Running steps have left `budget` tokens of the cache to the past: the oldest goes first.
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

    /// The backend started anew: nothing is left.
    pub fn clear(&mut self) {
        self.order.clear();
        self.slots.clear();
        self.total = Tokens::ZERO;
    }

    /// Sum over all entries.
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
