//! Runs the commands of `thundergate-lab` by replacing this process with that program, as git and cargo do with theirs.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The reason why a command of `thundergate-lab` cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error(
        "thundergate-lab is neither beside this program nor in PATH; to build it: cargo build --release -p thundergate-lab"
    )]
    Missing,
    #[error("cannot run thundergate-lab: {0}")]
    Broken(std::io::Error),
}

/// Runs `thundergate-lab` with `command` and `args`: the program beside this one, or else the one in PATH. Returns only
/// when it cannot be started.
#[must_use]
pub fn run(command: &str, args: &[OsString]) -> LabError {
    const NAME: &str = "thundergate-lab";
    let here = std::env::current_exe().ok().map(|program| program.with_file_name(NAME));
    let program = here.filter(|path| path.exists()).unwrap_or_else(|| NAME.into());
    let error = Command::new(program).arg(command).args(args).exec();
    if error.kind() == ErrorKind::NotFound { LabError::Missing } else { LabError::Broken(error) }
}
