//! The rooms of this crate stand on floors: a room may use the rooms below it and nothing else. The test reads the
//! sources, since the compiler lets every room of a crate see every other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The rooms (folders or files directly below `src`), the lowest floor first. Rooms on the same floor must not use each
/// other.
const FLOORS: [&[&str]; 12] = [
    &["units", "error"],
    &["body", "logging"],
    &["config"],
    &["telemetry", "identity", "auth"],
    &["gate"],
    &["fleet"],
    &["app", "state", "exchange"],
    &["control"],
    &["proxy"],
    &["server"],
    &["lab"],
    &["cli"],
];

/// Rooms that the executor of `ProxyHttp` must not use, so that it can run any proxy.
const NOT_IN_EXCHANGE: [&str; 6] = ["app", "config", "fleet", "gate", "proxy", "scheduler"];

/// A file of product code: its module path, such as `gate::step`, and its text without comments and tests.
struct Module {
    name: String,
    text: String,
}

#[test]
fn every_room_uses_lower_rooms_only() {
    let mut up = BTreeSet::new();
    for (file, used) in arrows(&modules("src")) {
        let (from, to) = (room(&file).to_owned(), room(&used).to_owned());
        if from != to && floor(&to) >= floor(&from) {
            up.insert((from, to));
        }
    }
    assert!(up.is_empty(), "arrows up or sideways in src: {up:?}");
}

#[test]
fn the_exchange_knows_no_policy() {
    for module in modules("src").iter().filter(|module| room(&module.name) == "exchange") {
        for path in paths(&module.text).iter().map(|path| absolute(&module.name, path)) {
            assert!(!NOT_IN_EXCHANGE.contains(&room(&path)), "{} uses {path}", module.name);
        }
        assert!(!module.text.contains("thundergate_"), "{} uses another crate of ours", module.name);
    }
}

#[test]
fn no_files_of_a_room_stand_in_a_circle() {
    let mut ours = arrows(&modules("src"));
    ours.retain(|(from, to)| room(from) == room(to));
    // Each of the other crates counts as one room.
    let crates = fs::read_dir(root().join("crates")).expect("a folder").map(|entry| entry.expect("an entry").path());
    let theirs = crates.flat_map(|path| circles(arrows(&modules(path.join("src")))));
    let circles: BTreeSet<String> = theirs.chain(circles(ours)).collect();
    assert!(circles.is_empty(), "files that use each other: {circles:?}");
}

/// The files that use each other in a circle.
fn circles(mut arrows: Vec<(String, String)>) -> BTreeSet<String> {
    // A file and the file that declares it count as one.
    let one_thing = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with("::"));
    arrows.retain(|(from, to)| !one_thing(from, to) && !one_thing(to, from));
    // A file that uses no other file that is left, or that none of them uses, stands in no circle.
    loop {
        let before = arrows.len();
        let users: BTreeSet<String> = arrows.iter().map(|(from, _)| from.clone()).collect();
        let used: BTreeSet<String> = arrows.iter().map(|(_, to)| to.clone()).collect();
        arrows.retain(|(from, to)| users.contains(to) && used.contains(from));
        if arrows.len() == before {
            return arrows.into_iter().map(|(from, _)| from).collect();
        }
    }
}

fn root() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it").into()
}

fn room(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

fn floor(room: &str) -> usize {
    let floor = FLOORS.iter().position(|rooms| rooms.contains(&room));
    floor.unwrap_or_else(|| panic!("`{room}` has no floor: add it to FLOORS"))
}

/// All product code below a folder of the repository.
fn modules(source: impl AsRef<Path>) -> Vec<Module> {
    let source = root().join(source);
    let (mut folders, mut found) = (vec![source.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if path.is_dir() && stem != "tests" {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && !["tests", "lib", "main"].contains(&stem) {
                let inside = path.with_extension("").strip_prefix(&source).expect("below it").to_owned();
                let name = inside.to_string_lossy().replace('/', "::");
                found.push(Module { name, text: product_code(&fs::read_to_string(&path).expect("UTF-8")) });
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {}", source.display());
    found
}

fn product_code(text: &str) -> String {
    let product = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let code = product.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// The pairs of files of which the first uses the second.
fn arrows(modules: &[Module]) -> Vec<(String, String)> {
    let names: BTreeSet<&str> = modules.iter().map(|module| &*module.name).collect();
    let mut arrows = Vec::new();
    for module in modules {
        for path in paths(&module.text) {
            let mut used = absolute(&module.name, &path);
            while !used.is_empty() && !names.contains(&*used) {
                used.truncate(used.rfind("::").unwrap_or(0));
            }
            if !used.is_empty() && used != module.name {
                arrows.push((module.name.clone(), used));
            }
        }
    }
    arrows
}

/// A path without `crate` and `super`.
fn absolute(module: &str, path: &str) -> String {
    let mut base: Vec<&str> = module.split("::").collect();
    for part in path.split("::") {
        match part {
            "crate" => base.clear(),
            "super" => _ = base.pop(),
            part => base.push(part),
        }
    }
    base.join("::")
}

/// Every path that begins with `crate` or `super`, groups in braces spelled out.
fn paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            if !text[..at].ends_with(|c: char| c == ':' || c == '_' || c.is_alphanumeric()) {
                spell_out(&text[at..], String::new(), &mut found);
            }
        }
    }
    found
}

/// Reads one path, or a group of paths that begin with `prefix`. Gives the text behind it.
fn spell_out<'t>(text: &'t str, prefix: String, found: &mut Vec<String>) -> &'t str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
            match rest.strip_prefix('}') {
                Some(behind) => return behind,
                None => rest = spell_out(rest, prefix.clone(), found),
            }
        }
    }
    let end = text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    match rest.strip_prefix("::") {
        Some(rest) if rest.starts_with(|c: char| c == '{' || c == '_' || c.is_alphabetic()) => {
            spell_out(rest, path, found)
        }
        _ => {
            found.push(path);
            // An alias (`as another_name`), `*` or generics are skipped up to the end of this item of the group.
            rest.trim_start_matches(|c| !",};".contains(c))
        }
    }
}

#[test]
fn groups_of_paths_are_spelled_out() {
    let text = "use crate::{a::{B, c::D as E}, f::*};\nuse super::g;\nlet x = crate::h::i::<u8>();";
    let spelled = ["crate::a::B", "crate::a::c::D", "crate::f", "crate::h::i", "super::g"];
    assert_eq!(paths(text), spelled);
}
