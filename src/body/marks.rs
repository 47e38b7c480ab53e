//! Finds the brackets, quotes, colons and commas of a JSON text that comes in pieces, 64 bytes at a time.

use super::quoted::escapes;
use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, u8x64};

#[cfg(test)]
mod tests;

/// Number of bytes in a block.
const BLOCK: usize = 64;
/// Number of blocks that are searched in one call.
const BLOCKS: usize = 16;

/// Marks of one block: one bit for each byte, the lowest bit for the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Quotes that begin or end a string. All other marks are those outside of strings.
    pub quotes: u64,
    /// Brackets `{` and `[`.
    pub opens: u64,
    /// Brackets `}` and `]`.
    pub closes: u64,
    pub colons: u64,
    pub commas: u64,
}

/// State carried from one block to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marker {
    /// Mask with all bits set if the last byte was in a string, else with none.
    quoted: u64,
    /// Number 1 if the last byte was a backslash that begins an escape, else 0.
    escape: u64,
}

/// Marks of a block, those inside of strings still among them.
#[derive(Clone, Copy, Default)]
struct Found {
    backslashes: u64,
    marks: Marks,
}

// === impl Marker ===

impl Marker {
    /// Calls `each` for every block of a piece, with the position of the block in the piece and its marks.
    pub fn feed(&mut self, piece: &[u8], mut each: impl FnMut(usize, Marks)) {
        let mut found = [Found::default(); BLOCKS];
        let mut at = 0;
        for part in piece.chunks(BLOCK * BLOCKS) {
            find(part, &mut found);
            for (block, found) in part.chunks(BLOCK).zip(&found) {
                each(at, self.outside_strings(found, block.len()));
                at += block.len();
            }
        }
    }

    /// The marks of a block of `len` bytes that are outside of strings. The rest of the block is blanks.
    fn outside_strings(&mut self, found: &Found, len: usize) -> Marks {
        let first = escapes(found.backslashes & !self.escape);
        let quotes = found.marks.quotes & !(first << 1 | self.escape);
        let quoted = odd_so_far(quotes) ^ self.quoted;
        self.escape = first >> (len - 1) & 1;
        self.quoted = if quoted >> 63 == 0 { 0 } else { u64::MAX };
        let Marks { opens, closes, colons, commas, .. } = found.marks;
        Marks {
            quotes,
            opens: opens & !quoted,
            closes: closes & !quoted,
            colons: colons & !quoted,
            commas: commas & !quoted,
        }
    }
}

/// Bits of which each is set where the number of set bits in `bits`, up to and including that place, is odd.
fn odd_so_far(bits: u64) -> u64 {
    [1, 2, 4, 8, 16, 32].iter().fold(bits, |bits, shift| bits ^ bits << shift)
}

/// Searches up to [`BLOCKS`] blocks. The last block is filled up with blanks.
fn find(bytes: &[u8], found: &mut [Found; BLOCKS]) {
    dispatch!(Level::new(), simd => find_with(simd, bytes, found));
}

#[inline(always)]
fn find_with<S: Simd>(simd: S, bytes: &[u8], found: &mut [Found; BLOCKS]) {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    for (block, found) in blocks.iter().zip(&mut *found) {
        *found = find_in(simd, block);
    }
    if let (false, Some(found)) = (rest.is_empty(), found.get_mut(blocks.len())) {
        let mut block = [b' '; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        *found = find_in(simd, &block);
    }
}

#[inline(always)]
fn find_in<S: Simd>(simd: S, block: &[u8; BLOCK]) -> Found {
    let block = u8x64::from_slice(simd, block);
    let all = |byte: u8| block.simd_eq(byte).to_bitmask();
    // `{` and `[` differ in one bit; so do `}` and `]`.
    let brackets = block | 0x20;
    let marks = Marks {
        quotes: all(b'"'),
        opens: brackets.simd_eq(b'{').to_bitmask(),
        closes: brackets.simd_eq(b'}').to_bitmask(),
        colons: all(b':'),
        commas: all(b','),
    };
    Found { backslashes: all(b'\\'), marks }
}
