//! Finds the end of a JSON string 64 bytes at a time, also where there are many escapes.

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, u8x64};

#[cfg(test)]
mod tests;

/// A position up to which a string is known to be well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skimmed {
    /// Position of the closing quote, or of a byte up to which the string is well formed. The search ends before the
    /// quote when fewer than 64 bytes are left or when something is wrong with the next 64. The position is never
    /// within an escape.
    pub at: usize,
    /// Whether an escape was passed on the way.
    pub escaped: bool,
}

/// Goes through the string that contains the byte `at`, which is not within an escape.
#[must_use]
pub fn skim(bytes: &[u8], at: usize) -> Skimmed {
    dispatch!(Level::new(), simd => skim_with(simd, bytes, at))
}

/// The function works with masks. A mask has one bit for each of 64 bytes, the lowest bit for the first byte.
#[inline(always)]
fn skim_with<S: Simd>(simd: S, bytes: &[u8], mut at: usize) -> Skimmed {
    let mut escaped = false;
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk::<64>) {
        let block = u8x64::from_slice(simd, block);
        let (quotes, backslashes) = (block.simd_eq(b'"'), block.simd_eq(b'\\'));
        let controls = block.simd_lt(b' ');
        if (quotes | backslashes | controls).all_false() {
            at += 64;
            continue;
        }
        let (quotes, backslashes, controls) = (quotes.to_bitmask(), backslashes.to_bitmask(), controls.to_bitmask());
        let first = escapes(backslashes);
        let second = first << 1;
        let stops = (quotes & !second) | controls;
        let before = stops.wrapping_sub(1) & !stops;
        let rare = second & before & !(quotes | backslashes | block.simd_eq(b'n').to_bitmask());
        let cut = match rare {
            0 => Some(false),
            rare => check(block, rare),
        };
        let (Some(cut), 0) = (cut, stops & stops.wrapping_neg() & controls) else {
            break;
        };
        escaped |= backslashes & before != 0;
        if stops != 0 {
            at += stops.trailing_zeros() as usize;
            break;
        }
        at += 64;
        if first >> 63 != 0 || cut {
            at = back(at, first);
        }
    }
    Skimmed { at, escaped }
}

/// The backslashes that begin an escape: every other backslash of a run. The first byte must not be within an escape.
#[inline(always)]
pub(super) fn escapes(backslashes: u64) -> u64 {
    /// Mask of every other byte, from the first on.
    const EVEN: u64 = u64::MAX / 3;
    let starts = backslashes & !(backslashes << 1);
    // The carry of the addition clears a whole run.
    let from_even = backslashes & !backslashes.wrapping_add(starts & EVEN);
    (from_even & EVEN) | (backslashes & !from_even & !EVEN)
}

/// Checks escapes that are rare in most texts; `rare` marks their second bytes. `None` when one of them is no valid
/// escape. Otherwise tells whether the digits of the last escape go on behind the block.
#[inline(always)]
fn check<S: Simd>(block: u8x64<S>, rare: u64) -> Option<bool> {
    // `b` and `f` differ in one bit.
    let short = (block & !4).simd_eq(b'b') | block.simd_eq(b'r') | block.simd_eq(b't') | block.simd_eq(b'/');
    let unicode = rare & block.simd_eq(b'u').to_bitmask();
    let digits = (block ^ b'0').simd_lt(10) | ((block | 0x20) - b'a').simd_lt(6);
    let wanted = unicode << 1 | unicode << 2 | unicode << 3 | unicode << 4;
    let wrong = (rare & !unicode & !short.to_bitmask()) | (wanted & !digits.to_bitmask());
    (wrong == 0).then_some(unicode >> 60 != 0)
}

/// The position of the last escape in a block, if the end of the block cuts this escape. A call of its own, so that the
/// processor predicts which block is next and does not wait for the masks of the present one.
#[cold]
#[inline(never)]
fn back(end: usize, escapes: u64) -> usize {
    end - 1 - escapes.leading_zeros() as usize
}
