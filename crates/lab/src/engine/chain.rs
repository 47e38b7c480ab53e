//! Block hashes of a token sequence. The hash of a full block covers everything before the block too, so equal hashes
//! mean equal prefixes. The model sees only these hashes, never tokens.

/// Identity of one token, as far as the cache can tell.
pub type TokenId = u64;

/// Hashes of the full blocks of a sequence that grows.
#[derive(Clone, Debug)]
pub struct Chain {
    block_size: usize,
    hashes: Vec<u64>,
    state: u64,
    tokens: usize,
}

// === impl Chain ===

impl Chain {
    /// An empty sequence in blocks of `block_size` tokens.
    #[must_use]
    pub fn new(block_size: usize) -> Self {
        Self { block_size: block_size.max(1), hashes: Vec::new(), state: 0, tokens: 0 }
    }

    /// Appends one token.
    pub fn push(&mut self, token: TokenId) {
        self.state = mix(self.state ^ mix(token));
        self.tokens += 1;
        if self.tokens.is_multiple_of(self.block_size) {
            self.hashes.push(self.state);
        }
    }

    /// Appends tokens number `start..start + len` of an endless imaginary text `stream`, which a simulation uses in
    /// place of real text.
    pub fn push_stream(&mut self, stream: u64, start: u64, len: u64) {
        let stream = mix(stream);
        for offset in start..start + len {
            self.push(stream.wrapping_add(offset));
        }
    }

    /// Length in tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Hashes of the full blocks so far.
    #[must_use]
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// A hash of the whole sequence, its last partial block included.
    #[must_use]
    pub fn digest(&self) -> u64 {
        mix(self.state ^ self.tokens as u64)
    }
}

impl Extend<TokenId> for Chain {
    fn extend<I: IntoIterator<Item = TokenId>>(&mut self, tokens: I) {
        tokens.into_iter().for_each(|token| self.push(token));
    }
}

/// A bijective scrambler of 64 bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014).
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_have_equal_hashes_and_a_difference_changes_all_that_follows() {
        let (mut a, mut b) = (Chain::new(4), Chain::new(4));
        a.extend([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        b.extend([1, 2, 3, 4, 5, 6, 7, 9, 9, 10, 11, 12]);
        assert_eq!(a.len(), 13);
        assert_eq!(a.hashes().len(), 3);
        assert_eq!(a.hashes()[0], b.hashes()[0]);
        assert_ne!(a.hashes()[1], b.hashes()[1]);
        assert_ne!(a.hashes()[2], b.hashes()[2]);
    }

    #[test]
    fn a_stream_pushed_in_parts_is_the_same_as_pushed_whole() {
        let (mut whole, mut parts) = (Chain::new(16), Chain::new(16));
        assert!(whole.is_empty());
        whole.push_stream(7, 0, 100);
        assert_eq!((whole.len(), whole.is_empty()), (100, false));
        parts.push_stream(7, 0, 33);
        parts.push_stream(7, 33, 67);
        assert_eq!(whole.hashes(), parts.hashes());
        assert_eq!(whole.digest(), parts.digest());
    }
}
