//! docs/reference.md as data: its sections and the rows of their tables.

use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;

/// Text of the page, read when the test runs: a change of the page alone needs no build.
static PAGE: LazyLock<String> =
    LazyLock::new(|| fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md")).expect("the page"));

/// Rows of a table without its two heading lines, each cell as written.
pub type Rows = Vec<Vec<String>>;

/// The text below `heading` (as written, with its `#`) until the next heading of its level or a higher one.
pub fn section(heading: &str) -> &'static str {
    let level = |line: &str| line.bytes().take_while(|byte| *byte == b'#').count();
    let mut at = 0;
    let mut start = None;
    for line in PAGE.split_inclusive('\n') {
        let ends = (1..=level(heading)).contains(&level(line));
        match start {
            Some(start) if ends => return &PAGE[start..at],
            None if line.trim_end() == heading => start = Some(at + line.len()),
            _ => {}
        }
        at += line.len();
    }
    &PAGE[start.unwrap_or_else(|| panic!("no section `{heading}` in docs/reference.md"))..]
}

/// Headings that start with `start`.
pub fn headings(start: &str) -> Vec<&'static str> {
    PAGE.lines().filter(|line| line.starts_with(start)).collect()
}

/// The rows of all tables of a section whose first column is `first`.
pub fn rows(section: &str, first: &str) -> Rows {
    let mut found = Rows::new();
    let mut wanted = false;
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        if lines.peek().is_some_and(|next| next.starts_with("|--")) {
            wanted = cells(line)[0] == first;
            lines.next();
        } else if wanted && line.starts_with('|') {
            found.push(cells(line));
        }
    }
    found
}

fn cells(line: &str) -> Vec<String> {
    let line = line.replace("\\|", "\u{0}");
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// All text in backticks.
pub fn codes(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The code that `cell` consists of, if it is nothing but one code in backticks.
pub fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`').filter(|code| !code.contains('`'))
}

/// The rows by the code in their first cell. Each code may appear once.
pub fn by_name(rows: Rows) -> BTreeMap<String, Vec<String>> {
    let mut named = BTreeMap::new();
    for row in rows {
        for name in codes(&row[0]) {
            assert!(named.insert(name.clone(), row.clone()).is_none(), "`{name}` has two rows");
        }
    }
    named
}

/// Checks that program and page name the same things.
pub fn same<'a>(what: &str, program: impl IntoIterator<Item = &'a String>, page: impl IntoIterator<Item = &'a String>) {
    let (program, page) = (Vec::from_iter(program), Vec::from_iter(page));
    let missing: Vec<_> = program.iter().filter(|name| !page.contains(name)).collect();
    let gone: Vec<_> = page.iter().filter(|name| !program.contains(name)).collect();
    assert!(missing.is_empty(), "{what} that docs/reference.md does not name: {missing:?}");
    assert!(gone.is_empty(), "{what} in docs/reference.md that the program does not have: {gone:?}");
}
