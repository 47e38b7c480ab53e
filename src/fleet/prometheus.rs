//! A tolerant reader of the Prometheus text format, and of OpenMetrics, which extends it. The reader borrows from the
//! page and allocates nothing. A line is taken apart only if its metric is wanted.

use std::borrow::Cow;
use std::str;

/// A line that starts like a sample. So far only the name of its metric was looked at.
#[derive(Clone, Copy, Debug)]
pub struct SampleLine<'a> {
    pub name: &'a str,
    rest: &'a [u8],
}

/// One sample of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Text between the braces; empty if there are no braces.
    labels: &'a str,
    /// Value, which may be NaN or infinite.
    pub value: f64,
}

/// The lines of `page` that may be samples: comments, blank lines and lines without a name are left out.
pub fn lines(page: &[u8]) -> impl Iterator<Item = SampleLine<'_>> {
    page.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.trim_ascii();
        let end = line.iter().position(|byte| *byte == b'{' || byte.is_ascii_whitespace())?;
        let (name, rest) = line.split_at(end);
        let named = !name.is_empty() && name[0] != b'#';
        named.then(|| str::from_utf8(name).ok()).flatten().map(|name| SampleLine { name, rest })
    })
}

/// The samples of `page` whose names `named` maps to a metric. Adds the number of lines that are not well formed to
/// `malformed`.
pub(super) fn wanted<'a, M>(
    page: &'a [u8],
    named: impl Fn(&str) -> Option<M> + 'a,
    malformed: &'a mut usize,
) -> impl Iterator<Item = (M, Sample<'a>)> + 'a {
    lines(page).filter_map(move |line| {
        let metric = named(line.name)?;
        let sample = line.sample();
        *malformed += usize::from(sample.is_none());
        Some((metric, sample?))
    })
}

// === impl SampleLine ===

impl<'a> SampleLine<'a> {
    /// The sample, or `None` if the line is not well formed. Timestamp and exemplar are ignored.
    #[must_use]
    pub fn sample(self) -> Option<Sample<'a>> {
        let rest = str::from_utf8(self.rest).ok()?.trim_start();
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(inside) => split_labels(inside)?,
            None => ("", rest),
        };
        let value = rest.split_ascii_whitespace().next()?;
        // Rust reads every spelling of the format: `1e+09`, `NaN`, `+Inf`, `-Inf`.
        Some(Sample { labels, value: value.parse().ok()? })
    }
}

// === impl Sample ===

impl<'a> Sample<'a> {
    /// The value of a label, unescaped.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut rest = self.labels;
        while let Some((label, after)) = next_label(rest) {
            if label.name == name {
                return Some(unescape(label.value));
            }
            rest = after;
        }
        None
    }
}

struct Label<'a> {
    name: &'a str,
    /// Value as written, with its escapes.
    value: &'a str,
}

/// Splits `a="b",c="d"} 1.0` behind its closing brace.
fn split_labels(inside: &str) -> Option<(&str, &str)> {
    let mut rest = inside;
    while let Some((_, after)) = next_label(rest) {
        rest = after;
    }
    let labels = &inside[..inside.len() - rest.len()];
    Some((labels, rest.trim_start().strip_prefix('}')?))
}

/// Takes `name="value"` off the front of the text, and the comma behind it if there is one.
fn next_label(text: &str) -> Option<(Label<'_>, &str)> {
    let (name, rest) = text.split_once('=')?;
    let name = name.trim();
    if name.is_empty() || name.contains(['"', '{', '}', ',']) {
        return None;
    }
    let rest = rest.trim_start().strip_prefix('"')?;
    let end = closing_quote(rest)?;
    let after = rest[end + 1..].trim_start();
    let after = after.strip_prefix(',').unwrap_or(after);
    Some((Label { name, value: &rest[..end] }, after))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// Undoes `\\`, `\"` and `\n`; any other escape stays as it is.
fn unescape(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('\\', Some(next @ ('\\' | '"' | 'n'))) => {
                plain.push(if next == 'n' { '\n' } else { next });
                chars.next();
            }
            _ => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn first(text: &str) -> Option<Sample<'_>> {
        lines(text.as_bytes()).next()?.sample()
    }

    #[test]
    fn a_plain_sample_has_a_name_and_a_value() {
        let line = lines(b"process_start_time_seconds 1.79536767895e+09").next().unwrap();
        assert_eq!(line.name, "process_start_time_seconds");
        assert_eq!(line.sample().unwrap().value, 1_795_367_678.95);
    }

    #[test]
    fn timestamps_and_exemplars_are_ignored() {
        assert_eq!(first(r#"a{b="c"} 3 1700000000000"#).unwrap().value, 3.0);
        let exemplar = r##"a_bucket{le="0.5"} 17 # {trace_id="x} 9"} 0.4 1520879607.789"##;
        assert_eq!(first(exemplar).unwrap().value, 17.0);
    }

    #[test]
    fn special_values_are_read() {
        assert!(first("a NaN").unwrap().value.is_nan());
        assert_eq!(first("a +Inf").unwrap().value, f64::INFINITY);
        assert_eq!(first("a -Inf").unwrap().value, f64::NEG_INFINITY);
    }

    #[test]
    fn braces_commas_and_escaped_quotes_inside_a_value_do_not_end_it() {
        let sample = first(r#"a{x="}{,=\"\\",y="line\nbreak \q", } 1"#).unwrap();
        assert_eq!(sample.label("x").unwrap(), "}{,=\"\\");
        assert_eq!(sample.label("y").unwrap(), "line\nbreak \\q");
        assert_eq!(sample.label("z"), None);
        assert_eq!(sample.value, 1.0);
    }

    #[test]
    fn comments_blanks_and_broken_lines_give_no_sample() {
        for text in ["", "# HELP a b", "# TYPE a gauge", "   ", "lonely", "{} 1"] {
            assert!(lines(text.as_bytes()).next().is_none(), "{text}");
        }
        for text in ["a x", "a{b=c} 1", "a{b=\"c\" 1", "a{b=\"c} 1", "a{=\"c\"} 1", "a{b=\"c\"}", "a{b=\"c\"} # 1"] {
            assert_eq!(first(text), None, "{text}");
        }
    }

    #[test]
    fn bad_utf8_spoils_only_its_own_line() {
        let page = b"a{b=\"\xff\"} 1\nc 2\n";
        let read: Vec<_> = lines(page).map(|l| (l.name, l.sample().map(|s| s.value))).collect();
        assert_eq!(read, [("a", None), ("c", Some(2.0))]);
    }

    fn escape(value: &str) -> String {
        value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
    }

    proptest! {
        #[test]
        fn no_page_makes_it_panic(page in proptest::collection::vec(any::<u8>(), 0..400)) {
            for line in lines(&page) {
                if let Some(sample) = line.sample() {
                    let _ = sample.label("engine");
                }
            }
        }

        #[test]
        fn no_line_of_the_formats_own_signs_makes_it_panic(line in r#"[a\\"{}=, #1.é\n]{0,40}"#) {
            for line in lines(line.as_bytes()) {
                if let Some(sample) = line.sample() {
                    let _ = sample.label("a");
                }
            }
        }

        #[test]
        fn what_was_written_is_read_back(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,12}",
            values in proptest::collection::vec(".{0,20}", 0..5),
            value in any::<f64>(),
            garbage in "[^\n]{0,30}",
        ) {
            let values: Vec<String> = values.iter().map(|v| v.replace('\r', "")).collect();
            let labels: Vec<_> =
                values.iter().enumerate().map(|(i, v)| format!("l{i}=\"{}\"", escape(v))).collect();
            let page = format!("{garbage}\n{name}{{{}}} {value}\n{garbage}", labels.join(","));
            let good = lines(page.as_bytes()).filter(|l| l.name == name).find_map(|l| {
                l.sample().filter(|s| {
                    (s.value == value || s.value.is_nan() && value.is_nan())
                        && values.iter().enumerate().all(|(i, v)| {
                            s.label(&format!("l{i}")).as_deref() == Some(v.as_str())
                        })
                })
            });
            prop_assert!(good.is_some(), "{page}");
        }
    }
}
