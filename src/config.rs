//! Configuration: one tree, one validation; YAML, flags and reload all produce it.

pub mod tree;

pub use tree::*;
