//! The simulated vLLM: its model in virtual time, and an HTTP face.

mod blocks;
pub mod chain;
pub mod cost;
pub mod model;
