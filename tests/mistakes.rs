//! Answers of `thundergate check` to broken files, word for word: `mistakes.txt` has each file with its answer.
//!
//! A change of a message is an edit of that table. `UPDATE_MISTAKES=1 cargo test --test mistakes` writes the table
//! anew. Its diff then shows each change, and each change has to be intended.

use std::fmt::Write;
use std::path::Path;
use thundergate::config::{self, Env};

const TABLE: &str = "tests/mistakes.txt";

/// One case of the table.
struct Case<'t> {
    name: &'t str,
    yaml: &'t str,
    told: &'t str,
}

fn env(name: &str) -> Option<String> {
    let value = match name {
        "PORT" => "8301",
        "ZERO" => "0",
        "LIST" => "[http://a]",
        "TRICKY" => "a:}{],#'\"",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

/// The output of `check` for a file named `f`.
fn tell(yaml: &str) -> String {
    let sources = Env { env: &env, dir: Path::new(".") };
    match config::from_yaml(yaml, &sources) {
        Ok(_) => "ok\n".to_owned(),
        Err(mut mistakes) => {
            mistakes.file = Some("f".into());
            format!("{mistakes}\n")
        }
    }
}

/// Reads the table. A case is `=== name`, the YAML, `--->`, and the answer.
fn cases(table: &str) -> Vec<Case<'_>> {
    let block = |block| {
        let (name, rest) = str::split_once(block, '\n')?;
        let (yaml, told) = rest.split_once("--->\n")?;
        Some(Case { name, yaml, told })
    };
    table.split("=== ").skip(1).map(|text| block(text).expect("a whole block")).collect()
}

#[test]
fn every_mistake_is_told_with_its_place_and_its_remedy_as_the_table_says() {
    let table = std::fs::read_to_string(TABLE).expect("the table");
    let cases = cases(&table);
    assert!(cases.len() > 250, "{}", cases.len());
    let mut actual = String::new();
    let mut changed = Vec::new();
    for Case { name, yaml, told } in cases {
        let now = tell(yaml);
        if now != told {
            changed.push(format!("{name}\n{yaml}  before:\n{told}  now:\n{now}"));
        }
        write!(actual, "=== {name}\n{yaml}--->\n{now}").expect("a string");
    }
    if std::env::var_os("UPDATE_MISTAKES").is_some() {
        std::fs::write(TABLE, actual).expect("the table can be written");
    } else {
        assert!(changed.is_empty(), "{} changed:\n{}", changed.len(), changed.join("\n"));
    }
}
