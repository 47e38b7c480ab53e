//! A unit of its own type for token counts, so that they are not mixed up with other numbers.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// Bytes per token of text or JSON, used until the traffic has shown the real ratio. Four is usual for English and
/// code.
pub const BYTES_PER_TOKEN: u64 = 4;

/// A number of tokens. Subtraction stops at zero: a count of tokens is never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tokens(pub u64);

impl Tokens {
    pub const ZERO: Self = Self(0);

    /// The count as a float, for rates and ratios.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// This count times `factor`, rounded to the nearest token; a negative factor gives zero.
    #[must_use]
    pub fn scale(self, factor: f64) -> Self {
        Self((self.as_f64() * factor).round().max(0.0) as u64)
    }
}

impl Add for Tokens {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Tokens {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl AddAssign for Tokens {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Tokens {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Tokens {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
