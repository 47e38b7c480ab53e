//! The pages against the repository: each link, path, command and test that a page names must exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` whose name ends in `end`.
fn files(dir: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !["target", ".git", "corpus"].contains(&name) {
            files(&path, end, found);
        } else if name.ends_with(end) {
            found.push(path);
        }
    }
}

/// Every page with its text, without code blocks.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    files(root(), ".md", &mut paths);
    let text = |path: &PathBuf| fs::read_to_string(path).expect("a page");
    let prose = |text: String| text.split("```").step_by(2).collect::<String>();
    paths.into_iter().map(|path| (path.clone(), prose(text(&path)))).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The targets of `[…](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// The anchors that GitHub gives the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || "-_ ".contains(*c);
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// Text in single backticks.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut checked = 0;
    for (page, text) in pages() {
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().expect("a directory").join(file) };
            assert!(target.exists(), "{}: {link}", shown(&page));
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&target).expect("a page"));
                assert!(there.contains(anchor), "{}: {link}: {there:?}", shown(&page));
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} links");
}

#[test]
fn every_path_that_a_page_names_is_there() {
    let mut checked = 0;
    let mut sources = Vec::new();
    files(root(), ".rs", &mut sources);
    for (page, text) in pages() {
        for file in codes(&text).filter(|code| code.ends_with(".rs") && !code.contains(['/', '*'])) {
            assert!(sources.iter().any(|source| source.ends_with(file)), "{}: {file}", shown(&page));
        }
        let tops = ["src/", "crates/", "tests/", "bench/", "docs/", "conf/", "fuzz/", "examples/", ".ci/"];
        for path in codes(&text).filter(|code| tops.iter().any(|top| code.starts_with(top)) && !code.contains(' ')) {
            for one in expanded(path) {
                assert!(root().join(&one).exists(), "{}: {one}", shown(&page));
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "{checked} paths");
}

/// The paths in `path`: `a/{b,c}.rs` stands for two. The part behind a `*` is left out.
fn expanded(path: &str) -> Vec<String> {
    let path = path.split('*').next().unwrap_or_default();
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (names, after) = rest.split_once('}').expect("a closing brace");
    names.split(',').map(|name| format!("{before}{name}{after}")).collect()
}

#[test]
fn every_command_that_a_page_names_is_there() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("a makefile");
    let mut manifests = Vec::new();
    files(root(), "Cargo.toml", &mut manifests);
    let manifests: String = manifests.iter().map(|file| fs::read_to_string(file).expect("a manifest")).collect();
    for (page, _) in pages() {
        // Code blocks are read too, since most commands stand there.
        let text = fs::read_to_string(&page).expect("a page");
        let after = |start: &str| {
            let word = |rest: &str| {
                rest.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c))).next().map(str::to_owned)
            };
            text.split(start).skip(1).filter_map(word).filter(|word| !word.is_empty()).collect::<Vec<_>>()
        };
        for target in after("`make ").into_iter().chain(after("\nmake ")) {
            assert!(makefile.contains(&format!("\n{target}:")), "{}: make {target}", shown(&page));
        }
        for bench in after("--bench ") {
            assert!(manifests.contains(&format!("name = \"{bench}\"")), "{}: --bench {bench}", shown(&page));
        }
        for test in after("--test ").into_iter().filter(|test| test != "FILE" && test != "NAME") {
            assert!(root().join(format!("tests/{test}.rs")).exists(), "{}: --test {test}", shown(&page));
        }
    }
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let mut sources = Vec::new();
    for dir in ["src", "crates", "tests"] {
        files(&root().join(dir), ".rs", &mut sources);
    }
    let sources: String = sources.iter().map(|file| fs::read_to_string(file).expect("a source")).collect();
    let mut checked = 0;
    for (page, text) in pages() {
        let metric = |code: &str| code.starts_with("thundergate_");
        let named =
            codes(&text).filter(|code| !metric(code) && code.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        for test in named.filter(|name| name.matches('_').count() >= 4) {
            // A filter may be only the start of a test's name.
            assert!(sources.contains(&format!("fn {test}")), "{}: {test}", shown(&page));
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked} tests");
}

#[test]
fn every_room_is_in_the_architecture() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("a page");
    let named: BTreeSet<&str> = codes(&page).collect();
    for entry in fs::read_dir(root().join("src")).expect("a directory") {
        let path = entry.expect("an entry").path();
        let room = path.file_stem().and_then(|room| room.to_str()).expect("a name");
        assert!(room == "lib" || named.contains(room), "{room}");
    }
}
