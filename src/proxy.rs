//! (to be built)

pub mod observe;
