//! The process's own log, on standard error.

use super::access::is_unsafe_to_show;
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

/// Below warnings the libraries under us log headers and bodies as they pass: keys and prompts. Of theirs, nothing
/// more detailed than this is ever written, whatever the filter says.
const OTHERS: LevelFilter = LevelFilter::Info;

/// Starts the log. `filter` is `logging.level`; `RUST_LOG` wins over it.
pub fn start_log(filter: &str) {
    let env = env_logger::Env::default().default_filter_or(filter);
    let logger = env_logger::Builder::from_env(env).format(line).build();
    let most = logger.filter();
    if log::set_boxed_logger(Box::new(Discreet(logger))).is_ok() {
        log::set_max_level(most);
    }
}

struct Discreet(env_logger::Logger);

// === impl Discreet ===

impl Log for Discreet {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        may_tell(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if may_tell(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn may_tell(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    metadata.level() <= OTHERS || target == "thundergate" || target.starts_with("thundergate::")
}

/// `[time level module] message`, on one line whatever a client has put into it.
fn line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let level: Level = record.level();
    let mut text = Escaped(String::new());
    // A `String` takes all.
    let _ = write!(text, "{}", record.args());
    writeln!(out, "[{} {level:<5} {}] {}", out.timestamp(), record.target(), text.0)
}

/// Text that a terminal or a reader of lines takes for nothing but text.
struct Escaped(String);

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

#[cfg(test)]
mod tests {
    use super::*;

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
