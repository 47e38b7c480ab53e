//! The keys of the YAML. The page must have all of them, with the right defaults and bounds, and must say rightly which
//! a reload takes.

use super::page::{by_name, code, rows, same, section};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use thundergate::config::{self, Config, Flags};

struct File {
    dir: tempfile::TempDir,
}

/// The page's rows by key.
fn page() -> BTreeMap<String, Vec<String>> {
    by_name(rows(section("## Configuration"), "key"))
}

/// Every key of the schema by its path, each with whether it holds other keys; and the required keys.
fn keys() -> (BTreeMap<String, bool>, BTreeSet<String>) {
    let schema = config::schema();
    let (mut keys, mut required) = (BTreeMap::new(), BTreeSet::new());
    walk(&schema, &schema, "", &mut keys, &mut required);
    // `backends` at the top level is the `backends` of a pool.
    keys.retain(|key, _| !key.starts_with("backends["));
    required.retain(|key| !key.starts_with("backends["));
    (keys, required)
}

fn walk(root: &Value, node: &Value, path: &str, keys: &mut BTreeMap<String, bool>, required: &mut BTreeSet<String>) {
    let node = match node["$ref"].as_str() {
        Some(name) => root.pointer(name.trim_start_matches('#')).expect("a definition"),
        None => node,
    };
    for form in ["anyOf", "oneOf", "allOf"] {
        for one in node[form].as_array().into_iter().flatten() {
            walk(root, one, path, keys, required);
        }
    }
    if node.get("items").is_some() {
        walk(root, &node["items"], &format!("{path}[]"), keys, required);
    }
    let Some(properties) = node["properties"].as_object() else { return };
    for (name, value) in properties {
        let child = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        keys.insert(child.clone(), false);
        if node["required"].as_array().is_some_and(|all| all.contains(&json!(name))) {
            required.insert(child.clone());
        }
        walk(root, value, &child, keys, required);
    }
    if let Some(parent) = keys.get_mut(path.trim_end_matches("[]")) {
        *parent = true;
    }
}

#[test]
fn every_key_is_on_the_page_and_what_must_be_given_is_marked() {
    let (keys, required) = keys();
    let page = page();
    let leaves: Vec<String> = keys.iter().filter(|(_, parent)| !**parent).map(|(key, _)| key.clone()).collect();
    // For a key that holds other keys, a row is welcome and not needed.
    let rows: Vec<String> = page.keys().filter(|key| keys.get(*key) != Some(&true)).cloned().collect();
    same("keys", &leaves, &rows);
    let marked: BTreeSet<String> =
        page.iter().filter(|(_, row)| row[1] == "required").map(|(key, _)| key.clone()).collect();
    assert_eq!(marked, required);
}

#[test]
fn the_defaults_are_those_of_the_page() {
    let file = File::new();
    let mut written = File::base();
    for (key, row) in page() {
        // `listen` is for a file without listeners; a key of the base file has its own value there.
        let given = key == "listen" || !at(&mut File::base(), &key).is_null();
        if let (Some(default), false) = (code(&row[1]), given) {
            let value = serde_json::from_str(default).unwrap_or_else(|_| json!(default));
            *at(&mut written, &key) = value;
        }
    }
    let shown = |config: &Config| format!("{config:#?}");
    assert_eq!(
        shown(&file.load(&written).expect("a good file")),
        shown(&file.load(&File::base()).expect("a good file"))
    );
    let listen = config::Config::default().listeners[0].address.to_string();
    assert_eq!(code(&page()["listen"][1]), Some(listen.as_str()));
}

#[test]
fn the_bounds_are_those_of_the_page() {
    let file = File::new();
    let mut tried = 0;
    for (key, row) in page() {
        let Some((least, most)) = bounds(&row[2]) else { continue };
        let with = |value: f64| {
            let mut written = File::base();
            let whole = value.fract() == 0.0;
            *at(&mut written, &key) = if whole { json!(value as i64) } else { json!(value) };
            file.load(&written).map(|_| ()).map_err(|error| error.to_string())
        };
        for inside in [Some(least), most].into_iter().flatten() {
            assert_eq!(with(inside), Ok(()), "{key}: {inside}");
        }
        for outside in [Some(least - 1.0), most.map(|most| most + 1.0)].into_iter().flatten() {
            let mistake = with(outside).expect_err(&key);
            let name = key.rsplit('.').next().unwrap_or(&key);
            assert!(mistake.contains(name), "{key}: {outside}: {mistake}");
        }
        tried += 1;
    }
    assert!(tried >= 20, "{tried} keys with bounds");
}

/// The bounds at the start of a cell: `A to B` or `at least A`.
fn bounds(cell: &str) -> Option<(f64, Option<f64>)> {
    let number = |text: &str| text.split([' ', ';']).next()?.parse().ok();
    if let Some(rest) = cell.strip_prefix("at least ") {
        return Some((number(rest)?, None));
    }
    let (least, most) = cell.split_once(" to ")?;
    Some((number(least)?, Some(number(most)?)))
}

#[test]
fn a_reload_refuses_what_the_page_says_that_it_does_not_take() {
    let file = File::new();
    let changes = [
        ("listen", json!("127.0.0.1:1")),
        ("listeners[].address", json!("127.0.0.1:2")),
        ("listeners[].tls", Value::Null),
        ("listeners[].tls.cert", json!("key.pem")),
        ("listeners[].tls.key", json!("cert.pem")),
        ("listeners[].tls.client_ca", json!("cert.pem")),
        ("listeners[].tls.min_version", json!("1.3")),
        ("admin", Value::Null),
        ("admin.listen", json!("127.0.0.1:3")),
        ("models[].name", json!("other")),
        ("models[].engine", json!("sglang")),
        ("models[].routing", json!("least-load")),
        ("models[].ranks", json!("off")),
        ("state.snapshot", json!("state")),
        ("timeouts.client_idle", json!("7s")),
    ];
    let running = file.load(&File::base()).expect("a good file");
    for (key, value) in &changes {
        let mut written = File::base();
        *at(&mut written, key) = value.clone();
        let mistake = file.reload(&written, &running).expect_err(key);
        assert!(mistake.contains("--upgrade"), "{key}: {mistake}");
    }
    let no = page().into_iter().filter(|(_, row)| row[3] == "no").map(|(key, _)| key);
    assert_eq!(no.collect::<BTreeSet<_>>(), changes.iter().map(|(key, _)| (*key).to_owned()).collect());
}

#[test]
fn a_reload_takes_the_rest() {
    let file = File::new();
    let running = file.load(&File::base()).expect("a good file");
    for (key, row) in page() {
        let (Some(default), "yes") = (code(&row[1]), row[3].as_str()) else { continue };
        let value = match (serde_json::from_str(default), bounds(&row[2])) {
            (Ok(Value::Bool(on)), _) => json!(!on),
            (Ok(Value::Number(_)), Some((least, None))) => json!(least as i64 + 1),
            (Ok(Value::Number(number)), Some((least, Some(most)))) if number.is_u64() => {
                json!((least + most) as i64 / 2)
            }
            (Ok(Value::Number(_)), Some((least, Some(most)))) => json!((least + most) / 2.0),
            (Ok(Value::Number(number)), None) => json!(number.as_u64().map(|number| number + 1)),
            (Err(_), _) if row[2].starts_with("duration") => json!("3s"),
            _ => continue,
        };
        let mut written = File::base();
        *at(&mut written, &key) = value.clone();
        assert_eq!(file.reload(&written, &running), Ok(()), "{key}: {value}");
    }
}

/// The value at `path`. In a list on the way, the path goes through the first item.
fn at<'a>(root: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(root, |node, name| match name.strip_suffix("[]") {
        Some(list) => &mut node[list][0],
        None => &mut node[name],
    })
}

// === impl File ===

impl File {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["cert.pem", "key.pem"] {
            std::fs::write(dir.path().join(name), "").expect("a file");
        }
        Self { dir }
    }

    /// A file with every section that may be left out, each with nothing but what it needs.
    fn base() -> Value {
        json!({
            "listeners": [{"address": "127.0.0.1:8443", "tls": {"cert": "cert.pem", "key": "key.pem"}}],
            "admin": {"token": "open"},
            "models": [{
                "backends": [{"url": "http://gpu1:8000"}],
                "discovery": {"dns": "vllm.default.svc:8000"},
            }],
            "auth": {"keys": [{"name": "a", "key": "k"}]},
            "logging": {"access": {}},
            "profile": {},
        })
    }

    fn load(&self, written: &Value) -> Result<Config, String> {
        self.flags(written).load().map(|(config, _)| config).map_err(|error| error.to_string())
    }

    fn reload(&self, written: &Value, running: &Config) -> Result<(), String> {
        self.flags(written).reload(running).map(|_| ()).map_err(|error| error.to_string())
    }

    fn flags(&self, written: &Value) -> Flags {
        // The file is JSON, which is YAML too.
        let file: PathBuf = Path::new(self.dir.path()).join("thundergate.yaml");
        std::fs::write(&file, written.to_string()).expect("a file");
        Flags { config: Some(file), ..Flags::default() }
    }
}
