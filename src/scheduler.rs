//! The heart: decides when and where each step runs. Sans I/O: events with a timestamp go in,
//! decisions come out, and the same events always give the same decisions.

pub mod event;

pub use event::*;
