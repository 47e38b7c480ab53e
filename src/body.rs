//! Request bodies: what they say, and what of them goes upstream.

pub mod budget;
pub mod envelope;
pub mod marks;
pub mod quoted;
