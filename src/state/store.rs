//! The file: replaced whole or not at all, and set aside when it is damaged.

use super::now_ms;
use crate::config::directory;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes that are read: more than ten times what the most programs take.
const LARGEST: u64 = 1 << 30;

/// Why there is no state to keep.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{} cannot be read ({cause}): give it to the user that runs the server, or name another file", .file.display())]
    Read { file: PathBuf, cause: io::Error },
    #[error("nothing can be written in {} ({cause}): give it to the user that runs the server, or name a file elsewhere", .dir.display())]
    Write { dir: PathBuf, cause: io::Error },
}

/// The file of the state, and another beside it while the file is replaced.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) file: PathBuf,
    fresh: PathBuf,
}

// === impl Store ===

impl Store {
    /// Makes sure that the state can be read and written.
    pub(super) fn open(file: &Path) -> Result<Self, StoreError> {
        let store = Self { file: file.to_owned(), fresh: beside(file, ".new") };
        if let Err(cause) = File::open(file)
            && cause.kind() != io::ErrorKind::NotFound
        {
            return Err(StoreError::Read { file: file.to_owned(), cause });
        }
        // Not `fresh`: in an upgrade the process before this one still writes.
        let probe = beside(file, ".probe");
        let probe = create(&probe).and_then(|_| fs::remove_file(&probe));
        probe.map_err(|cause| StoreError::Write { dir: directory(file).to_owned(), cause })?;
        Ok(store)
    }

    /// The bytes of the file; `None` if there is no such file yet.
    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Replaces the file: after a crash at any moment it is the old one or the new one.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut fresh = create(&self.fresh)?;
        fresh.write_all(bytes)?;
        fresh.sync_all()?;
        fs::rename(&self.fresh, &self.file)?;
        File::open(directory(&self.file))?.sync_all()
    }

    /// Renames the file, which cannot be used, for somebody to look at. Gives the new name.
    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = beside(&self.file, &format!(".damaged-{}", now_ms() / 1000));
        fs::rename(&self.file, &aside)?;
        Ok(aside)
    }
}

/// Makes a file anew, so that neither its owner nor its mode is somebody else's.
fn create(file: &Path) -> io::Result<File> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
