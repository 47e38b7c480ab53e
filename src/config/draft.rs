//! A configuration that is being put together, with the places of its values and its mistakes.

use super::document::Node;
use super::immutable;
use super::mistake::{Mistake, Mistakes};
use super::tree::{Config, Notes};
use super::validate::validate;
use std::path::PathBuf;

#[derive(Default)]
pub(super) struct Draft {
    /// `None`: nothing could be read.
    pub config: Option<Config>,
    pub file: Option<PathBuf>,
    pub tree: Option<Node>,
    pub mistakes: Vec<Mistake>,
    pub notes: Notes,
    /// Whether the user asked for a start without backends.
    pub without_backends: bool,
    /// Paths of the config tree, and how the user wrote each; the last that fits wins.
    shown: Vec<(String, String)>,
}

impl Draft {
    /// Notes that the user wrote `path` of the config tree as `shown`: another key, or a flag.
    pub fn alias_path(&mut self, path: &str, shown: &str) {
        self.shown.push((path.to_owned(), shown.to_owned()));
    }

    /// The configuration, validated.
    ///
    /// # Errors
    /// Every mistake of reading, or every one of validation.
    pub fn finish(self) -> Result<(Config, Notes), Mistakes> {
        self.settle(None)
    }

    /// The configuration, validated for a server that runs with `running`.
    ///
    /// # Errors
    /// Every mistake, and every change that needs a new process.
    pub fn finish_for(self, running: &Config) -> Result<(Config, Notes), Mistakes> {
        self.settle(Some(running))
    }

    fn settle(mut self, running: Option<&Config>) -> Result<(Config, Notes), Mistakes> {
        let mut found = match &self.config {
            Some(config) => validate(config, self.without_backends),
            None => Vec::new(),
        };
        if let (Some(running), Some(config)) = (running, &self.config) {
            found.extend(immutable::changes(running, config));
        }
        for mistake in found {
            self.place(mistake);
        }
        match self.config {
            Some(config) if self.mistakes.is_empty() => Ok((config, self.notes)),
            _ => {
                self.mistakes.sort_by_key(|mistake| mistake.at);
                Err(Mistakes { file: self.file, list: self.mistakes })
            }
        }
    }

    /// Adds a mistake of validation with its place in the file.
    fn place(&mut self, mut mistake: Mistake) {
        mistake.path = self.shown(&mistake.path);
        mistake.first = mistake.first.map(|first| self.shown(&first));
        if let Some(root) = self.tree.as_ref().filter(|_| !mistake.path.starts_with("--")) {
            mistake.at = Some(root.find(&mistake.path));
        }
        self.mistakes.push(mistake);
    }

    fn shown(&self, path: &str) -> String {
        let fits = |(from, to): &(String, String)| {
            let rest = path.strip_prefix(from.as_str())?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| match to.starts_with("--") {
                true => to.clone(),
                false => format!("{to}{rest}"),
            })
        };
        self.shown.iter().rev().find_map(fits).unwrap_or_else(|| path.to_owned())
    }
}
