//! Mistakes in a configuration, and their places.

use std::fmt;
use std::path::PathBuf;

/// A place in the YAML; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// A path such as `models[0].backends[1].url`, or a flag; empty for the whole file.
    pub path: String,
    /// Place in the file; `None` for a flag.
    pub at: Option<Mark>,
    pub message: String,
    /// Path of the value that this one clashes with.
    pub first: Option<String>,
}

/// Every mistake of one configuration, one per line when printed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    pub file: Option<PathBuf>,
    /// Mistakes in the order of the file, those of flags first.
    pub list: Vec<Mistake>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{}: {source}", .file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("nothing to read again: the server was started without --config")]
    NoFile,
    #[error("{0}")]
    Invalid(#[from] Mistakes),
}

// === impl Mistake ===

impl Mistake {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), at: None, message: message.into(), first: None }
    }

    pub(super) fn at(mark: Mark, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at: Some(mark), ..Self::new(path, message) }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.first {
            Some(first) => write!(f, " (see {first})"),
            None => Ok(()),
        }
    }
}

// === impl Mistakes ===

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let (Some(file), Some(Mark { line, column })) = (&self.file, mistake.at) {
                write!(f, "{}:{line}:{column}: ", file.display())?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

// === impl Failure ===

impl Failure {
    /// The process's exit code: 1 for mistakes in what was given, 2 for a file that cannot be read.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Invalid(_) => 1,
            Self::Unreadable { .. } | Self::NoFile => 2,
        }
    }
}
