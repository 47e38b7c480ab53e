//! The process's own log, on standard error. A reload may change its level.

use arc_swap::ArcSwapOption;
use env_logger::fmt::Formatter;
use env_logger::{Builder, Env, Logger};
use log::{LevelFilter, Log, Metadata, Record};
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::Arc;

/// The most detailed level that is written for libraries, whatever the filter says. In more detail they log headers and
/// bodies, that is keys and prompts.
const OTHERS: LevelFilter = LevelFilter::Info;

static LOG: Discreet = Discreet(ArcSwapOption::const_empty());

struct Discreet(ArcSwapOption<Logger>);

/// Text in which every character that a terminal or a log viewer would obey is escaped.
struct Escaped(String);

/// Starts the log. `level` is as in `logging.level`; `RUST_LOG` wins over `level`.
pub fn init(level: &str) {
    if log::set_logger(&LOG).is_ok() {
        put(level);
    }
}

/// Sets another level. Without [`init`], as in tests, nothing happens.
pub fn set_level(level: &str) {
    if LOG.0.load().is_some() {
        put(level);
    }
}

fn put(level: &str) {
    let logger = Builder::from_env(Env::default().default_filter_or(level)).format(line).build();
    log::set_max_level(logger.filter());
    LOG.0.store(Some(Arc::new(logger)));
}

// === impl Discreet ===

impl Log for Discreet {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_tell(metadata) && self.0.load().as_ref().is_some_and(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(logger) = &*self.0.load()
            && may_tell(record.metadata())
        {
            logger.log(record);
        }
    }

    fn flush(&self) {
        if let Some(logger) = &*self.0.load() {
            logger.flush();
        }
    }
}

fn may_tell(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    metadata.level() <= OTHERS || target == "thundergate" || target.starts_with("thundergate::")
}

/// `[time level module] message`, always one line, whatever a client has put into the message.
fn line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let level = record.level();
    let mut text = Escaped(String::new());
    // Writing to a `String` cannot fail.
    let _ = write!(text, "{}", record.args());
    writeln!(out, "[{} {level:<5} {}] {}", out.timestamp(), record.target(), text.0)
}

// === impl Escaped ===

impl fmt::Write for Escaped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match is_unsafe_to_show(c) {
                true => self.0.extend(c.escape_default()),
                false => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// Whether a terminal or a log viewer takes the character for a command: a control character (DEL and C1 included), a
/// Unicode line end, a bidirectional override.
pub(crate) fn is_unsafe_to_show(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    #[test]
    fn what_others_log_in_detail_is_never_written() {
        let tells = |target: &str, level| may_tell(&Metadata::builder().target(target).level(level).build());
        for others in ["pingora_core::protocols::http::v1::client", "h2", "thundergates"] {
            assert!(!tells(others, Level::Debug) && !tells(others, Level::Trace), "{others}");
            assert!(tells(others, Level::Info));
        }
        assert!(tells("thundergate::fleet", Level::Trace) && tells("thundergate", Level::Debug));
    }

    #[test]
    fn a_message_stays_on_its_line() {
        let mut text = Escaped(String::new());
        let id = "a\r\n[2026 INFO x] b\u{1b}[2J\u{85}\u{202e}é`";
        write!(text, "id {id}").unwrap();
        assert_eq!(text.0, "id a\\r\\n[2026 INFO x] b\\u{1b}[2J\\u{85}\\u{202e}é`");
    }
}
