//! The KV cache: reference-counted blocks that are found again by their hash. The least recently used is evicted first.
//!
//! ```text
//!            allocate                    release (ref 0)
//!  blank ───────────────▶ used ──────────────────────────▶ cached (hashed) or blank (not)
//!    ▲                     ▲ touch                              │
//!    │                     └────────────────────────────────────┤
//!    └──────────────────────────────────────────── evicted ─────┘
//! ```
//!
//! Blank and cached blocks stand in one queue and are taken from its front. Blank blocks are put back at the front,
//! cached ones at the back, as in vLLM. Every operation takes constant time per block.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Index of a block. Block 0 is never handed out: it is vLLM's null block, and here also the head of the queue.
pub(super) type BlockId = u32;
const HEAD: BlockId = 0;

/// All blocks of one engine.
#[derive(Debug)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    by_hash: HashMap<u64, BlockId, BuildHasherDefault<AlreadyMixed>>,
    used: usize,
    cached: usize,
    blank: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    hash: Option<u64>,
    refs: u32,
    prev: BlockId,
    next: BlockId,
}

/// Outcome of a lookup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hit {
    /// Number of blocks of the prefix that are in the cache.
    pub blocks: usize,
    /// Number of these blocks that other sequences use already; they take no free block.
    pub shared: usize,
}

/// Hasher for block hashes. They are well mixed, so each is its own hash.
#[derive(Default)]
struct AlreadyMixed(u64);

impl Hasher for AlreadyMixed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

// === impl BlockPool ===

impl BlockPool {
    /// A pool of `total` blocks, one of which is the null block.
    pub(super) fn new(total: u32) -> Self {
        let total = total.max(2);
        let blocks = (0..total)
            .map(|id| Block {
                prev: id.checked_sub(1).unwrap_or(total - 1),
                next: (id + 1) % total,
                ..Block::default()
            })
            .collect();
        Self { blocks, by_hash: HashMap::default(), used: 0, cached: 0, blank: total as usize - 1 }
    }

    /// Number of blocks that can hold tokens.
    pub(super) fn usable(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Number of blocks in use by some sequence.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Number of blocks that can be allocated now. Cached blocks among them are evicted when they are allocated.
    pub(super) fn free(&self) -> usize {
        self.cached + self.blank
    }

    /// The longest prefix of `chain` that is in the cache, in blocks.
    pub(super) fn lookup(&self, chain: &[u64]) -> Hit {
        let mut hit = Hit::default();
        for id in chain.iter().map_while(|hash| self.by_hash.get(hash)) {
            hit.blocks += 1;
            hit.shared += usize::from(self.block(*id).refs > 0);
        }
        hit
    }

    /// Takes the block of `hash` into use; `None` if no such block is cached.
    pub(super) fn touch(&mut self, hash: u64) -> Option<BlockId> {
        let id = *self.by_hash.get(&hash)?;
        if self.block(id).refs == 0 {
            self.unlink(id);
            self.cached -= 1;
            self.used += 1;
        }
        self.block_mut(id).refs += 1;
        Some(id)
    }

    /// Takes the next block to reuse: a blank one, else the least recently used. `None` if all are in use.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let id = self.block(HEAD).next;
        if id == HEAD {
            return None;
        }
        self.unlink(id);
        match self.block_mut(id).hash.take() {
            Some(hash) => {
                self.by_hash.remove(&hash);
                self.cached -= 1;
            }
            None => self.blank -= 1,
        }
        self.block_mut(id).refs = 1;
        self.used += 1;
        Some(id)
    }

    /// Makes a used block findable by `hash`. If a block of the same hash is cached and unused, `id` takes its place.
    /// If that block is in use, it stays and `id` remains unnamed.
    pub(super) fn name(&mut self, id: BlockId, hash: u64) {
        if self.block(id).hash.is_some() {
            return;
        }
        if let Some(&twin) = self.by_hash.get(&hash) {
            if self.block(twin).refs > 0 {
                return;
            }
            self.unlink(twin);
            self.block_mut(twin).hash = None;
            self.link_after(HEAD, twin);
            self.cached -= 1;
            self.blank += 1;
        }
        self.by_hash.insert(hash, id);
        self.block_mut(id).hash = Some(hash);
    }

    /// Gives up one reference to each block of a sequence, the last block first. So the tail is evicted before the
    /// prefix, which others may share.
    pub(super) fn release(&mut self, sequence: &[BlockId]) {
        for &id in sequence.iter().rev() {
            let block = self.block_mut(id);
            block.refs -= 1;
            if block.refs > 0 {
                continue;
            }
            let named = block.hash.is_some();
            self.used -= 1;
            if named {
                self.cached += 1;
                self.link_after(self.block(HEAD).prev, id);
            } else {
                self.blank += 1;
                self.link_after(HEAD, id);
            }
        }
        debug_assert_eq!(self.used + self.cached + self.blank, self.usable());
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    fn unlink(&mut self, id: BlockId) {
        let Block { prev, next, .. } = *self.block(id);
        self.block_mut(prev).next = next;
        self.block_mut(next).prev = prev;
    }

    fn link_after(&mut self, prev: BlockId, id: BlockId) {
        let next = self.block(prev).next;
        self.block_mut(prev).next = id;
        self.block_mut(next).prev = id;
        let block = self.block_mut(id);
        (block.prev, block.next) = (prev, next);
    }

    /// Counts everything anew and compares. `held` has the blocks of all sequences, one entry for each reference.
    #[cfg(test)]
    pub(super) fn check(&self, held: impl Iterator<Item = BlockId>) {
        let mut refs = vec![0; self.blocks.len()];
        held.for_each(|id| refs[id as usize] += 1);
        let (mut used, mut cached, mut blank) = (0, 0, 0);
        for (id, block) in self.blocks.iter().enumerate().skip(1) {
            assert_eq!(block.refs, refs[id], "references of block {id}");
            match (block.refs, block.hash) {
                (0, Some(_)) => cached += 1,
                (0, None) => blank += 1,
                _ => used += 1,
            }
            if let Some(hash) = block.hash {
                assert_eq!(self.by_hash.get(&hash), Some(&(id as BlockId)));
            }
        }
        assert_eq!((used, cached, blank), (self.used, self.cached, self.blank));
        assert_eq!(used + cached + blank, self.usable());
        let mut queued = 0;
        let mut id = self.block(HEAD).next;
        while id != HEAD {
            assert_eq!(self.block(id).refs, 0);
            queued += 1;
            id = self.block(id).next;
        }
        assert_eq!(queued, self.free());
        assert_eq!(self.by_hash.len(), self.blocks.iter().filter(|b| b.hash.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pool: &mut BlockPool, hashes: &[u64]) -> Vec<BlockId> {
        hashes
            .iter()
            .map(|&hash| {
                let id = pool.allocate().unwrap();
                pool.name(id, hash);
                id
            })
            .collect()
    }

    #[test]
    fn the_least_recently_used_sequence_is_evicted_first_and_its_tail_before_its_head() {
        let mut pool = BlockPool::new(7);
        let a = fill(&mut pool, &[1, 2, 3]);
        let b = fill(&mut pool, &[4, 5, 6]);
        pool.release(&a);
        pool.release(&b);
        let again = pool.touch(1).unwrap();
        pool.release(&[again]);
        let mut order = Vec::new();
        let mut left = vec![1, 2, 3, 4, 5, 6];
        while pool.allocate().is_some() {
            left.retain(|&hash| {
                let there = pool.lookup(&[hash]).blocks == 1;
                if !there {
                    order.push(hash);
                }
                there
            });
        }
        assert_eq!(order, [3, 2, 6, 5, 4, 1]);
    }

    #[test]
    fn blank_blocks_are_taken_before_cached_ones() {
        let mut pool = BlockPool::new(4);
        let cached = fill(&mut pool, &[1]);
        let unnamed = pool.allocate().unwrap();
        pool.release(&cached);
        pool.release(&[unnamed]);
        pool.allocate().unwrap();
        pool.allocate().unwrap();
        assert_eq!(pool.lookup(&[1]).blocks, 1);
        pool.allocate().unwrap();
        assert_eq!(pool.lookup(&[1]).blocks, 0);
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn a_block_in_use_is_never_evicted() {
        let mut pool = BlockPool::new(3);
        let first = fill(&mut pool, &[1]);
        let shared = pool.touch(1).unwrap();
        pool.release(&first);
        pool.allocate().unwrap();
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.lookup(&[1]), Hit { blocks: 1, shared: 1 });
        pool.check([shared, 2].into_iter());
    }

    #[test]
    fn a_fresh_copy_takes_the_place_of_a_cached_one() {
        let mut pool = BlockPool::new(5);
        let old = fill(&mut pool, &[1]);
        pool.release(&old);
        let fresh: Vec<_> = std::iter::from_fn(|| pool.allocate()).take(3).collect();
        pool.name(fresh[0], 1);
        pool.check(fresh.iter().copied());
        assert_eq!(pool.touch(1), Some(fresh[0]));
    }
}
