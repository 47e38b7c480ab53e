//! Request bodies: the fields that matter in them, and the bytes that go upstream.

pub mod budget;
pub mod envelope;
pub mod marks;
pub mod quoted;
