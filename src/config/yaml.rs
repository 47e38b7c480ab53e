//! The YAML file: how it is read, and what its short forms stand for.

use super::document::{self, MAX_DOCUMENT, Node};
use super::draft::Draft;
use super::expand::Env;
use super::mistake::{Failure, Mark, Mistake};
use super::tree::{Config, Listener, Pool};
use super::typed;
use std::io::Read;
use std::path::Path;

/// Reads a file; its mistakes are in the draft.
///
/// # Errors
/// The file cannot be read.
pub(super) fn open(file: &Path) -> Result<Draft, Failure> {
    let unreadable = |source| Failure::Unreadable { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    let sources = Env { env: &|name| std::env::var(name).ok(), dir: file.parent().unwrap_or(Path::new("")) };
    let mut draft = match String::from_utf8(bytes) {
        Ok(text) => parse(&text, &sources),
        Err(error) => not_utf8(error.as_bytes(), error.utf8_error().valid_up_to()),
    };
    draft.file = Some(file.to_owned());
    Ok(draft)
}

/// Reads a document; its mistakes are in the draft.
pub(super) fn parse(text: &str, sources: &Env<'_>) -> Draft {
    let mut draft = Draft::default();
    match document::parse(text, sources, &mut draft.mistakes) {
        Ok(root) if draft.mistakes.is_empty() => {
            match typed::read(&root) {
                Ok(config) => settle(config, &root, sources.dir, &mut draft),
                Err(mistakes) => draft.mistakes = mistakes,
            }
            draft.tree = Some(root);
        }
        Ok(_) => {}
        Err(mistake) => draft.mistakes.push(mistake),
    }
    draft
}

fn not_utf8(bytes: &[u8], wrong: usize) -> Draft {
    let before = &bytes[..wrong];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n');
    let column = String::from_utf8_lossy(&before[start.map_or(0, |at| at + 1)..]);
    let column = column.chars().count() + 1;
    let mut draft = Draft::default();
    draft.mistakes.push(Mistake::at(Mark { line, column }, "", "not UTF-8"));
    draft
}

/// Puts short forms in their places, and tells the draft how their paths are written in this file.
fn settle(mut config: Config, root: &Node, dir: &Path, draft: &mut Draft) {
    if !root.has("listeners") {
        draft.alias_path("listeners", "listen");
        draft.alias_path("listeners[0].address", "listen");
    }
    if let Some(address) = config.listen.take() {
        if !root.has("listeners") {
            config.listeners.clear();
        }
        config.listeners.insert(0, Listener::plain(address));
        draft.alias_path("listeners[0].address", "listen");
        for index in 1..config.listeners.len() {
            draft.alias_path(&format!("listeners[{index}]"), &format!("listeners[{}]", index - 1));
        }
    }
    if let Some(backends) = config.backends.take() {
        let here = format!("models[{}]", config.models.len());
        draft.alias_path(&format!("{here}.backends"), "backends");
        draft.alias_path(&format!("{here}.name"), "backends");
        config.models.push(Pool::unnamed(backends));
    }
    for tls in config.listeners.iter_mut().filter_map(|listener| listener.tls.as_mut()) {
        tls.cert = dir.join(&tls.cert);
        tls.key = dir.join(&tls.key);
        tls.client_ca = tls.client_ca.take().map(|ca| dir.join(ca));
    }
    config.state.snapshot = config.state.snapshot.take().map(|file| dir.join(file));
    draft.config = Some(config);
}
