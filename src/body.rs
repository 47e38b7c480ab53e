//! Request bodies: reading them before a backend is chosen, and sending them on.

pub mod replay;
