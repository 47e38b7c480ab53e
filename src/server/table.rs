//! The program table on its way from one process to the next.

use crate::app::App;

/// What the next process is to know of the programs.
pub(super) fn capture(_app: &App) -> Vec<u8> {
    Vec::new()
}

/// Takes over what the process before this one knew. All backends are known and none is up; no step has come yet.
pub(super) fn restore(_app: &App, _table: &[u8]) {}
