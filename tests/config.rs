//! The configuration as its users meet it: YAML, flags, `check`, `schema`.

use clap::Parser;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use thundergate::cli::Cli;
use thundergate::config::{self, Anonymous, Config, Engine, Env, Failure, Notes, OnTimeout, Routing, Secret};

const MINIMAL: &str = include_str!("../conf/minimal.yaml");
const FULL: &str = include_str!("../conf/full.yaml");
const BACKENDS: &str = "backends: [http://a:1]\n";

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("8301".into()),
        "WEIGHT" => Some("7".into()),
        "TRICKY" => Some("a:}{],#'\"".into()),
        "NUMBER" => Some("0123".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn load(text: &str) -> Result<Config, Vec<String>> {
    load_in(text, Path::new("."))
}

fn load_in(text: &str, dir: &Path) -> Result<Config, Vec<String>> {
    let around = Env { env: &env, dir };
    config::from_yaml(text, &around).map_err(|mistakes| {
        let line = |mistake: &config::Mistake| match mistake.at {
            Some(at) => format!("{}:{}: {mistake}", at.line, at.column),
            None => mistake.to_string(),
        };
        mistakes.list.iter().map(line).collect()
    })
}

/// The single mistake in `text`.
fn mistake(text: &str) -> String {
    let mut found = load(text).expect_err("a mistake");
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// The single mistake in `text`, with good backends added.
fn mistake_beside(text: &str) -> String {
    mistake(&format!("{BACKENDS}{text}"))
}

fn start(line: &str) -> Result<(Config, Notes), Failure> {
    let words = line.split_whitespace().map(|word| word.trim_matches('"'));
    Cli::try_parse_from(std::iter::once("thundergate").chain(words)).expect("a valid command line").flags.load()
}

fn binary(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thundergate")).args(args).output().unwrap()
}

fn urls(config: &Config) -> Vec<Vec<&str>> {
    let of = |pool: &'_ config::Pool| pool.backends.len();
    assert!(config.models.iter().all(|pool| of(pool) > 0));
    let pools = config.models.iter();
    pools.map(|pool| pool.backends.iter().map(|b| b.url.as_str()).collect()).collect()
}

// === the examples ===

/// The full example with the settings that need files, and those files.
fn whole_example() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tls")).unwrap();
    for file in ["tls/cert.pem", "tls/key.pem", "tls/clients.pem"] {
        std::fs::write(dir.path().join(file), "").unwrap();
    }
    let text = FULL.replace("#: ", "").replace("/var/lib/thundergate/state", "./thundergate.state");
    (dir, text)
}

#[test]
fn the_minimal_example_serves_any_model() {
    let config = load(MINIMAL).unwrap();
    assert_eq!(urls(&config), [["http://gpu1:8000/", "http://gpu2:8000/"]]);
    assert_eq!(config.models[0].name, "");
    assert_eq!(config.models[0].routing, Routing::Program);
    assert_eq!(config.listeners[0].address, "0.0.0.0:8300".parse().unwrap());
    assert_eq!(config.programs.anonymous, Anonymous::Passthrough);
}

#[test]
fn the_full_example_is_valid_with_and_without_tls() {
    load(FULL).unwrap();
    let (dir, text) = whole_example();
    let config = load_in(&text, dir.path()).unwrap();
    assert_eq!(config.listeners.len(), 2);
    let tls = config.listeners[1].tls.as_ref().unwrap();
    assert_eq!(tls.cert, dir.path().join("tls/cert.pem"));
    assert_eq!(config.state.snapshot, Some(dir.path().join("./thundergate.state")));
    assert_eq!(tls.client_ca, Some(dir.path().join("tls/clients.pem")));
    assert_eq!(tls.min_version, config::TlsVersion::V1_2);
    assert_eq!(config.models.len(), 2);
    assert_eq!(config.models[0].backends[0].capacity_tokens, Some(436_528));
    assert_eq!(config.models[0].aliases, ["glm", "glm-latest"]);
    assert_eq!(config.models[1].name, "");
    assert_eq!(config.limits.body, 64 << 20);
    assert_eq!(config.auth.keys[0].tenant, "a");
}

#[test]
fn the_full_example_shows_the_defaults() {
    let full = load(FULL).unwrap();
    let defaults = Config::default();
    let same = |a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    };
    same(&full.listeners, &defaults.listeners);
    same(&full.scheduler, &defaults.scheduler);
    same(&full.programs, &defaults.programs);
    same(&full.identity, &defaults.identity);
    same(&full.timeouts, &defaults.timeouts);
    same(&full.retry, &defaults.retry);
    same(&full.metrics, &defaults.metrics);
    let shown = &full.models[0];
    let (health, default) = (&shown.health, config::Health::default());
    assert_eq!(health.path(shown.engine), default.path(shown.engine));
    assert_eq!(health.timeout(shown.engine), default.timeout(shown.engine));
    same(&config::Health { path: None, timeout: None, ..health.clone() }, &default);
    same(&full.limits.body, &defaults.limits.body);
    same(&full.limits.body_total, &defaults.limits.body_total);
}

// === the schema ===

fn json(yaml: &str) -> Value {
    serde_yaml_ng::from_str(yaml).unwrap()
}

/// Every key that the schema allows, as `a.b.c`; list items have their list's path.
fn schema_keys(root: &Value, schema: &Value, path: &str, keys: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let target = root.pointer(name.trim_start_matches('#')).unwrap();
        schema_keys(root, target, path, keys);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for inner in schema[key].as_array().into_iter().flatten() {
            schema_keys(root, inner, path, keys);
        }
    }
    if schema["items"].is_object() {
        schema_keys(root, &schema["items"], path, keys);
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        assert!(inner["description"].is_string() || inner["$ref"].is_string(), "{path} is not described");
        keys.insert(path.clone());
        schema_keys(root, inner, &path, keys);
    }
}

fn document_keys(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| document_keys(item, path, keys)),
        Value::Object(map) => {
            for (key, inner) in map {
                let path = format!("{path}.{key}");
                document_keys(inner, &path, keys);
                keys.insert(path);
            }
        }
        _ => {}
    }
}

#[test]
fn every_key_of_the_schema_is_in_the_full_example_and_the_reverse() {
    let (schema, full) = (config::schema(), json(&whole_example().1));
    let (mut allowed, mut shown) = (BTreeSet::new(), BTreeSet::new());
    schema_keys(&schema, &schema, "", &mut allowed);
    document_keys(&full, "", &mut shown);
    // The short form is a further pool: its backends are described under `models`.
    allowed.retain(|key| !key.starts_with(".backends."));
    assert!(allowed.len() > 60, "{allowed:?}");
    assert_eq!(allowed, shown);
}

#[test]
fn the_schema_accepts_the_examples_and_nothing_unknown() {
    let schema = jsonschema::validator_for(&config::schema()).unwrap();
    for good in [MINIMAL, FULL, &whole_example().1] {
        let errors: Vec<_> = schema.iter_errors(&json(good)).map(|e| e.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new());
    }
    assert!(schema.is_valid(&json("backends: [{url: 'http://a', weight: '${WEIGHT}'}]")));
    for bad in [
        "lisen: 0.0.0.0:8300",
        "limits: {json_depth: deep}",
        "timeouts: {connect: 5}",
        "scheduler: {headroom: 0.9}",
        "backends: [{url: 'http://a', weight: 0}]",
        "models: [{routing: programm}]",
        "models: [{engine: ollama}]",
        "state: {snapshot: 7}",
    ] {
        assert!(!schema.is_valid(&json(bad)), "{bad}");
    }
}

#[test]
fn the_schema_shows_the_defaults_as_people_write_them() {
    let schema = config::schema();
    let default = |key: &str| schema.pointer(&format!("/$defs/{key}/default")).cloned();
    assert_eq!(default("Timeouts/properties/first_byte"), Some("30m".into()));
    assert_eq!(default("Limits/properties/body"), Some("64MiB".into()));
    assert_eq!(default("Scheduler/properties/headroom"), Some(0.02.into()));
}

// === mistakes and their places ===

#[test]
fn an_unknown_key_names_the_nearest_one() {
    assert_eq!(
        mistake("listne: 0.0.0.0:8300\nbackends: [http://a:1]\n"),
        "1:1: listne: unknown key; did you mean `listen`?"
    );
    assert_eq!(
        mistake_beside("scheduler:\n  hold:\n    on-timeout: admit\n"),
        "4:5: scheduler.hold.on-timeout: unknown key; did you mean `on_timeout`?"
    );
    assert_eq!(
        mistake("backends:\n  - {url: http://a, wieght: 2}\n"),
        "2:21: backends[0].wieght: unknown key; did you mean `weight`?"
    );
}

#[test]
fn an_unknown_key_far_from_all_names_those_that_exist() {
    assert_eq!(
        mistake_beside("retry: {frobnicate: 1}\n"),
        "2:9: retry.frobnicate: unknown key; known here: `connect_attempts`, `budget`"
    );
}

#[test]
fn what_stands_below_a_misspelt_key_is_read_too() {
    let found = load("backend:\n  - gpu1:8000\n").unwrap_err();
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!(found[0], "1:1: backend: unknown key; did you mean `backends`?");
    assert!(found[1].starts_with("2:5: backends[0]: expected an http"), "{}", found[1]);
}

#[test]
fn a_wrong_type_says_what_was_expected_and_found() {
    for (text, expected) in [
        ("limits: [1]\n", "2:9: limits: expected a mapping, found a list"),
        ("models: {a: 1}\n", "2:9: models: expected a list, found a mapping"),
        ("limits: {json_depth: deep}\n", "2:22: limits.json_depth: expected a whole number, found `deep`"),
        ("limits: {json_depth: \"7\"}\n", "2:22: limits.json_depth: expected a whole number, found the text `7`"),
        ("scheduler: {acting_decay: yes}\n", "2:27: scheduler.acting_decay: expected true or false, found `yes`"),
        ("scheduler: {headroom: [0]}\n", "2:23: scheduler.headroom: expected a number, found a list"),
        ("listen: 8300\n", "2:9: listen: expected an IP address and port such as 0.0.0.0:8300, found `8300`"),
        (
            "timeouts: {connect: 5}\n",
            "2:21: timeouts.connect: expected a duration above zero such as 250ms, 1.5s, 30s, 5m or 1h, found `5`",
        ),
        (
            "limits: {body: 64M}\n",
            "2:16: limits.body: expected a size above zero such as 64MiB, 1GB or 4096 (bytes), found `64M`",
        ),
        (
            "scheduler: {hold: {on_timeout: admitt}}\n",
            "2:32: scheduler.hold.on_timeout: expected `admit`, `reject`, found `admitt`; did you mean `admit`?",
        ),
        ("auth: {keys: [{key: s3cret}]}\n", "2:15: auth.keys[0]: the key `name` is missing"),
        ("auth: {keys: [{name: a, key: }]}\n", "2:25: auth.keys[0].key: expected a text, found nothing"),
    ] {
        assert_eq!(mistake_beside(text), expected);
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    for text in [
        "admin: s3cret\n",
        "admin: {listen: s3cret}\n",
        "auth: s3cret\n",
        "auth: {keys: [s3cret]}\n",
        "auth: {keys: [{name: a, key: sha256:s3cret}]}\n",
        "auth: {keys: [{name: a, key: \"s3cret s3cret\"}]}\n",
        "models: [{name: m, backends: [{url: \"http://u:s3cret@gpu\"}]}]\n",
    ] {
        let found = load(&format!("backends: [http://a]\n{text}")).unwrap_err();
        assert!(!found.is_empty() && !found.concat().contains("s3cret"), "{found:?}");
    }
    let config = load(
        "backends: [{url: http://a, api_key: s3cret1}]\nadmin: {token: s3cret2}\nauth: {keys: [{name: a, key: s3cret3}]}\n",
    );
    assert!(!format!("{:?}", config.unwrap()).contains("s3cret"));
}

#[test]
fn the_admin_listener_is_on_loopback_unless_told_otherwise() {
    let config = load("backends: [http://a]\nadmin: {token: x}\n").unwrap();
    assert_eq!(config.admin.unwrap().listen, "127.0.0.1:9300".parse().unwrap());
}

#[test]
fn a_key_and_its_hash_are_one_key() {
    // The hash is that of `printf %s secret | sha256sum`.
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let keys = |second: &str| {
        load(&format!(
            "backends: [http://a]\nauth: {{keys: [{{name: a, key: secret}}, {{name: b, key: \"{second}\"}}]}}\n"
        ))
    };
    let found = keys(&format!("sha256:{}", hash.to_uppercase())).unwrap_err();
    assert_eq!(found, ["2:54: auth.keys[1].key: the key was given already (see auth.keys[0].key)"]);
    assert!(keys(&format!("sha256:{}0", &hash[1..])).is_ok(), "another hash");
    for wrong in ["sha256:", "sha256:abc", &format!("sha256:{}g", &hash[1..]), &format!("sha256:{hash}0")] {
        assert_eq!(
            keys(wrong).unwrap_err(),
            ["2:54: auth.keys[1].key: expected 64 hex digits after `sha256:`"],
            "{wrong}"
        );
    }
}

#[test]
fn mistakes_of_one_kind_are_told_in_one_run_in_the_order_of_the_file() {
    let told = |text: &str, expected: &[&str]| {
        let found = load(text).unwrap_err();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}\n{expected}");
        }
    };
    let names = "frobnicate: 1
models:
  - name: a
    bakends: [http://a:1, {url: http://b, wieght: 2}]
    health: {interval: 5, path: /health}
";
    told(
        names,
        &[
            "1:1: frobnicate: unknown key",
            "4:5: models[0].bakends: unknown key; did you mean `backends`?",
            "4:43: models[0].backends[1].wieght: unknown key; did you mean `weight`?",
            "5:24: models[0].health.interval: expected a duration",
        ],
    );
    let expansions = "listen: 127.0.0.1:${NOPE}
limits: {body: ${file:/nowhere}, json_depth: 1, json_depth: 2}
";
    told(
        expansions,
        &[
            "1:9: listen: the environment variable `NOPE` is not set",
            "2:16: limits.body: `${file:/nowhere}`",
            "2:49: limits.json_depth: the key was given already",
        ],
    );
    let bounds = "admin: {listen: 0.0.0.0:9300}
models:
  - name: a
    backends: [http://a:1, {url: http://b, weight: 2000}]
    health: {path: health}
  - name: a
    backends: []
scheduler: {headroom: 0.9}
";
    told(
        bounds,
        &[
            "1:17: admin.listen: 0.0.0.0:9300 can be reached from outside",
            "4:52: models[0].backends[1].weight: must be at most 1000",
            "5:20: models[0].health.path: expected a path",
            "6:11: models[1].name: the name `a` is taken already (see models[0].name)",
            "7:15: models[1].backends: at least one backend is needed",
            "8:23: scheduler.headroom: must be at most 0.5",
        ],
    );
}

#[test]
fn validation_knows_the_place_too() {
    for (text, expected) in [
        ("listen: 0.0.0.0:8300\n", "1:1: models: no backends: give `backends` or `models`"),
        ("", "1:1: models: no backends: give `backends` or `models`"),
        ("backends: []\n", "1:11: backends: at least one backend is needed"),
        (
            "backends: [http://a, http://a/]\n",
            "1:22: backends[1]: http://a is a backend already; for one server with several names, give one pool `aliases` (see backends[0])",
        ),
        ("backends: [{url: http://a, weight: 0}]\n", "1:36: backends[0].weight: must be at least 1"),
        ("backends: [{url: http://a, capacity_tokens: 0}]\n", "1:45: backends[0].capacity_tokens: must be at least 1"),
        ("backends: [{url: http://a, api_key: ''}]\n", "1:37: backends[0].api_key: must not be empty"),
        ("backends: [{url: http://a, api_key: 'a b'}]\n", "1:37: backends[0].api_key: expected printable"),
        ("backends: [http://u:p@a]\n", "1:12: backends[0]: expected a URL without user"),
        (
            "models: [{name: m, backends: [http://a]}, {name: n, aliases: [m], backends: [http://b]}]\n",
            "1:63: models[1].aliases[0]: the name `m` is taken already (see models[0].name)",
        ),
        (
            "models: [{name: m, backends: [http://a]}]\nbackends: [http://a]\n",
            "2:12: backends[0]: http://a is a backend already; for one server with several names, give one pool `aliases` (see models[0].backends[0])",
        ),
        (
            "models: [{backends: [http://a]}]\nbackends: [http://b]\n",
            "2:11: backends: only one pool may be without a name (see models[0].name)",
        ),
        (
            "models: [{aliases: [m], backends: [http://a]}]\n",
            "1:21: models[0].aliases[0]: a pool without a name cannot have aliases",
        ),
    ] {
        let found = mistake(text);
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
    for (text, expected) in [
        ("admin: {listen: 0.0.0.0:1, token: ''}\n", "2:35: admin.token: must not be empty"),
        ("admin: {listen: '127.0.0.1:8300'}\n", "2:17: admin.listen: 127.0.0.1:8300 is taken already (see listen)"),
        (
            "listen: 127.0.0.1:1\nlisteners: [{address: 127.0.0.1:1}]\n",
            "3:23: listeners[0].address: 127.0.0.1:1 is taken already (see listen)",
        ),
        ("listeners: []\n", "2:12: listeners: at least one is needed"),
        (
            "auth: {keys: [{name: a, key: x}, {name: b, key: x}]}\n",
            "2:49: auth.keys[1].key: the key was given already (see auth.keys[0].key)",
        ),
        (
            "auth: {keys: [{name: a, key: x}, {name: a, key: y}]}\n",
            "2:41: auth.keys[1].name: the name `a` is taken already (see auth.keys[0].name)",
        ),
        ("auth: {keys: [{name: a, key: ''}]}\n", "2:30: auth.keys[0].key: must not be empty"),
        ("limits: {per_key: {concurrent: 1}}\n", "2:32: limits.per_key.concurrent: there are no keys to limit"),
        ("limits: {connections: 0}\n", "2:23: limits.connections: must be at least 1"),
        ("retry: {connect_attempts: 16}\n", "2:27: retry.connect_attempts: must be at most 15"),
        (
            "models: [{name: a, backends: [http://a], health: {eject: {share: 1.5}}}]\n",
            "2:66: models[0].health.eject.share: must be at most 1",
        ),
        (
            "models: [{name: a, backends: [http://a], health: {eject: {resets: 0}}}]\n",
            "2:67: models[0].health.eject.resets: must be at least 1",
        ),
        (
            "models: [{name: a, backends: [http://a], health: {eject: {base: 10m}}}]\n",
            "2:58: models[0].health.eject.max: must not be below `eject.base`",
        ),
        ("retry: {budget: 20}\n", "2:17: retry.budget: must be at most 1"),
        ("programs: {max: 0}\n", "2:17: programs.max: must be at least 1"),
        ("scheduler: {acting_weight: 2}\n", "2:28: scheduler.acting_weight: must be at most 1"),
        ("scheduler: {evict: {idle_factor: -1}}\n", "2:34: scheduler.evict.idle_factor: must be at least 0"),
        ("identity: {sources: [header:x-a, session]}\n", "2:34: identity.sources[1]: "),
        ("logging: {level: loud}\n", "2:18: logging.level: expected off"),
        ("timeouts: {grace: 0s}\n", "2:19: timeouts.grace: expected a duration above zero"),
        ("state: {snapshot: /}\n", "2:19: state.snapshot: /: expected the name of a file, not of a directory"),
        (
            "state: {snapshot: /nowhere/at/all}\n",
            "2:19: state.snapshot: the directory /nowhere/at does not exist: create it for the server's user",
        ),
        (
            "listeners: [{address: 127.0.0.1:1, tls: {cert: nope.pem, key: /}}]\n",
            "2:48: listeners[0].tls.cert: ./nope.pem: No such file",
        ),
    ] {
        let found = load(&format!("{BACKENDS}{text}")).unwrap_err();
        assert!(found[0].starts_with(expected), "{found:#?}\n{expected}");
    }
}

#[test]
fn ports_do_not_collide_on_different_addresses_or_when_the_system_chooses() {
    load("backends: [http://a]\nlisten: 127.0.0.1:1\nadmin: {listen: 127.0.0.2:1}\n").unwrap();
    load("backends: [http://a]\nlisten: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\n").unwrap();
}

#[test]
fn broken_yaml_has_a_place() {
    let found = mistake("listen: 0.0.0.0:8300\nbackends: [http://a\nlimits: {}\n");
    assert!(found.starts_with("3:"), "{found}");
    let found = mistake("listen: 0.0.0.0:8300\n\tbackends: []\n");
    assert_eq!(found, "1:9: while scanning a plain scalar, found a tab");
}

#[test]
fn duplicate_keys_are_mistakes_at_any_level() {
    assert_eq!(
        mistake_beside("limits:\n  body: 1GB\n  body: 2GB\n"),
        "4:3: limits.body: the key was given already, in line 3"
    );
    assert_eq!(
        mistake("backends: [{url: http://a, url: http://b}]\n"),
        "1:28: backends[0].url: the key was given already, in line 1"
    );
}

#[test]
fn a_document_that_is_more_than_a_configuration_is_refused() {
    assert_eq!(mistake("a: 1\n---\nb: 2\n"), "3:1: more than one document in the file");
    assert_eq!(mistake(&"#".repeat((1 << 20) + 1)), "larger than 1048576 bytes");
    assert!(mistake(&"[".repeat(100_000)).ends_with("recursion limit exceeded"));
    assert_eq!(mistake(&("[".repeat(40) + &"]".repeat(40))), "1:33: nested deeper than 32 levels");
    let deep = |name: &str, inner: &str| format!("{name}: &{name} {}{inner}{}\n", "[".repeat(30), "]".repeat(30));
    assert!(mistake(&(deep("a", "x") + &deep("b", "*a"))).ends_with("nested deeper than 32 levels"));
    assert_eq!(mistake("listen: !x x\n"), "1:12: tags (`!…`) are not supported");
    assert!(mistake("a: &x [*x]\n").contains("alias"));
    assert!(mistake("a: *x\n").contains("anchor"));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", "));
    }
    assert!(mistake(&bomb).ends_with("too large once its aliases are expanded"));
    let large = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), ["*a"; 10_000].join(", "));
    assert!(mistake(&large).ends_with("too large once its aliases are expanded"));
}

#[test]
fn aliases_are_read() {
    let config = load(
        "models:
  - {name: a, backends: [http://a], health: &health {path: /ping, interval: 1s}}
  - {name: b, backends: [http://b], health: *health}
",
    )
    .unwrap();
    assert_eq!(config.models[1].health.path.as_deref(), Some("/ping"));
}

#[test]
fn a_key_whose_children_are_all_commented_out_stands_for_the_defaults() {
    let config = load(&format!("{BACKENDS}limits:\n  # body: 1GB\nadmin:\n")).unwrap();
    assert_eq!(config.limits.body, 64 << 20);
    assert!(config.admin.is_none());
}

proptest::proptest! {
    #[test]
    fn no_document_makes_the_reader_panic_or_hang(parts in proptest::collection::vec(
        proptest::sample::select(vec![
            "listen", "models", "backends", "scheduler", "hold", "health", "name", "url", "limts", "interval",
            ": ", ":", "\n", "\n  ", "\n    ", "- ", "[", "]", "{", "}", ", ", "\"", "'", "#", "&a ", "*a", "!t ", "|", "---",
            "${PORT}", "${NOPE}", "${", "$${", "}", "${a:-b}", "${file:x}", "http://a", "5s", "-1", "1e9", "null", "~", "é", "\t",
        ]),
        0..40,
    )) {
        if let Err(found) = load(&parts.concat()) {
            proptest::prop_assert!(!found.is_empty());
        }
    }
}

// === expansion ===

#[test]
fn variables_expand_and_the_types_come_out_right() {
    let config = load(
        "listen: 127.0.0.1:${PORT}
models:
  - {name: 'm-${PORT}', backends: [{url: 'http://gpu:${PORT}', weight: ${WEIGHT}}, 'http://${HOST:-fallback}:1']}
  - {name: \"${EMPTY:-other}\", backends: [{url: http://b, weight: \"${WEIGHT}\", api_key: ${NUMBER}}]}
admin: {listen: 127.0.0.1:9300, token: ${TRICKY}}
auth: {keys: [{name: $${PORT}, key: pre-${TRICKY}-post}]}
",
    )
    .unwrap();
    assert_eq!(config.listeners[0].address.port(), 8301);
    assert_eq!(config.models[0].name, "m-8301");
    assert_eq!(config.models[0].backends[0].weight, 7);
    assert_eq!(config.models[0].backends[1].url.as_str(), "http://fallback:1/");
    assert_eq!(config.models[1].name, "other");
    assert_eq!(config.models[1].backends[0].weight, 7);
    assert_eq!(config.models[1].backends[0].api_key, Some(Secret("0123".into())));
    assert_eq!(config.admin.unwrap().token, Some(Secret("a:}{],#'\"".into())));
    assert_eq!(config.auth.keys[0].name, "${PORT}");
    assert_eq!(config.auth.keys[0].key.0, "pre-a:}{],#'\"-post");
}

#[test]
fn a_file_expands_without_its_last_line_end() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "s3cret\r\n").unwrap();
    let text = format!("{BACKENDS}admin: {{listen: 127.0.0.1:1, token: ${{file:secret}}}}\n");
    let config = load_in(&text, dir.path()).unwrap();
    assert_eq!(config.admin.unwrap().token, Some(Secret("s3cret".into())));
    let found = mistake_beside("admin: {listen: 127.0.0.1:1, token: ${file:/nowhere/x}}\n");
    assert!(found.starts_with("2:37: admin.token: `${file:/nowhere/x}`: No such file"), "{found}");
}

#[test]
fn what_does_not_expand_has_a_place() {
    for (text, expected) in [
        ("limits: {body: ${NOPE}}\n", "2:16: limits.body: the environment variable `NOPE` is not set"),
        ("limits:\n  body: ${NOPE\n", "3:9: limits.body: `${` without `}` (write `$${` for a plain `${`)"),
        ("limits: {body: ${a b}}\n", "2:16: limits.body: `${a b}`: not the name of a variable"),
        ("admin: {listen: 127.0.0.1:1, token: ${EMPTY}}\n", "2:37: admin.token: must not be empty"),
    ] {
        assert_eq!(mistake_beside(text), expected);
    }
}

#[test]
fn the_value_of_a_variable_is_shown_neither_in_mistakes_nor_in_debug() {
    let found = mistake_beside("limits: {json_depth: ${TRICKY}}\n");
    assert!(found.ends_with("expected a whole number, found `${TRICKY}`"), "{found}");
    let config = load(
        "backends: [{url: http://a, api_key: hush-1}]
admin: {listen: 127.0.0.1:1, token: hush-2}
auth: {keys: [{name: a, key: hush-3}]}
",
    )
    .unwrap();
    let shown = format!("{config:?} {config:#?}");
    assert!(shown.contains("***") && !shown.contains("hush"), "{shown}");
}

// === flags ===

#[test]
fn no_flag_at_all_is_thunderagents_default() {
    let (config, notes) = start("").unwrap();
    assert_eq!(config.listeners[0].address, "0.0.0.0:8300".parse().unwrap());
    assert_eq!(urls(&config), [["http://localhost:8000/"]]);
    assert_eq!(config.models[0].engine, Engine::Vllm);
    assert_eq!(config.models[0].routing, Routing::Program);
    assert_eq!(config.programs.anonymous, Anonymous::Default);
    assert_eq!(config.logging.level, "info");
    assert!(config.profile.is_none() && !config.metrics.enabled);
    assert_eq!(config.metrics.interval, Duration::from_secs(5));
    assert_eq!(config.scheduler.acting_weight, 1.0);
    assert!(!config.scheduler.acting_decay);
    assert_eq!(notes, Notes::new());
}

#[test]
fn thunderagents_command_lines_work_as_they_are() {
    let (config, notes) = start(
        "--backend-type vllm --backends http://localhost:8000,http://localhost:8001 --port 9000 --metrics --profile",
    )
    .unwrap();
    assert_eq!(urls(&config), [["http://localhost:8000/", "http://localhost:8001/"]]);
    assert_eq!(config.listeners[0].address, "0.0.0.0:9000".parse().unwrap());
    assert!(config.metrics.enabled);
    assert_eq!(config.profile.unwrap().dir, PathBuf::from("/tmp/thunderagent_profiles"));
    assert_eq!(notes, Notes::new());

    let (config, notes) = start(
        "--host localhost --port 8300 --log-level warning --backends http://a:1 --router default
         --profile --profile-dir /tmp/p --metrics --metrics-interval 2.5 --scheduler-interval 5.0
         --acting-token-weight 0.5 --use-acting-token-decay",
    )
    .unwrap();
    assert_eq!(config.listeners[0].address, "127.0.0.1:8300".parse().unwrap());
    assert_eq!(config.logging.level, "warn");
    assert_eq!(config.models[0].routing, Routing::RoundRobin);
    assert_eq!(config.profile.unwrap().dir, PathBuf::from("/tmp/p"));
    assert_eq!(config.metrics.interval, Duration::from_millis(2500));
    assert_eq!(config.scheduler.acting_weight, 0.5);
    assert!(config.scheduler.acting_decay);
    assert_eq!(notes.keys().collect::<Vec<_>>(), ["--scheduler-interval"]);
}

#[test]
fn an_empty_list_of_backends_starts_without_any() {
    let (config, _) = start("--backends \"\"").unwrap();
    assert_eq!(config.models.len(), 1);
    assert!(config.models[0].backends.is_empty());
}

#[test]
fn each_engine_has_its_own_way_to_be_checked() {
    let told = |engine: &str, health: &str| {
        let text = format!("models: [{{name: m, backends: [http://b], engine: {engine}, health: {{{health}}}}}]\n");
        let pool = load(&text).unwrap().models.remove(0);
        let health = &pool.health;
        (health.path(pool.engine).to_owned(), health.timeout(pool.engine).as_secs(), health.is_lenient(pool.engine))
    };
    for engine in ["vllm", "skyrl"] {
        assert_eq!(told(engine, ""), ("/health".to_owned(), 2, false));
    }
    assert_eq!(told("sglang", ""), ("/health".to_owned(), 10, false), "its check waits for a token");
    assert_eq!(told("openai", ""), ("/v1/models".to_owned(), 2, true));
    assert_eq!(told("openai", "path: /ping, timeout: 3s"), ("/ping".to_owned(), 3, false));
    for (kind, engine) in [("sglang", Engine::Sglang), ("skyrl", Engine::Skyrl), ("openai", Engine::Openai)] {
        let (config, _) = start(&format!("--backend-type {kind} --backends http://a")).unwrap();
        assert_eq!(config.models[0].engine, engine);
    }
}

#[test]
fn a_mistake_in_a_flag_names_the_flag() {
    let told = |line: &str| start(line).unwrap_err().to_string();
    assert_eq!(
        told("--backends localhost:8000"),
        "--backends: expected an http:// or https:// URL such as http://gpu1:8000, found `localhost:8000`"
    );
    assert!(told("--backends http://a,http://a").starts_with("--backends: http://a is a backend already"));
    assert_eq!(told("--acting-token-weight 3"), "--acting-token-weight: must be at most 1");
    assert_eq!(told("--acting-token-weight nan"), "--acting-token-weight: expected a number");
    assert!(told("--metrics-interval 0").starts_with("--metrics-interval: expected seconds"));
    assert!(told("--log-level loud").starts_with("--log-level: expected off"));
}

#[test]
fn a_pool_may_have_a_name_to_look_up_in_place_of_backends() {
    let text = "listen: 127.0.0.1:1\nmodels: [{name: m, discovery: {dns: 'vllm.default.svc:8000', interval: 2s}}]\n";
    let config = config::from_yaml(text, &Env { env: &env, dir: Path::new(".") }).unwrap();
    let discovery = config.models[0].discovery.as_ref().unwrap();
    assert_eq!((discovery.dns.host.as_str(), discovery.dns.port), ("vllm.default.svc", 8000));
    assert_eq!(discovery.interval, Duration::from_secs(2));
    for dns in ["vllm", "'a b:1'", "'vllm:0'", "http://vllm:1"] {
        let text = format!("backends: [http://b]\nmodels: [{{name: m, discovery: {{dns: {dns}}}}}]\n");
        let found = config::from_yaml(&text, &Env { env: &env, dir: Path::new(".") }).unwrap_err().to_string();
        assert!(found.contains("models[0].discovery.dns: expected a name and port"), "{found}");
    }
}

#[test]
fn a_flag_wins_over_the_yaml_and_only_if_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let yaml = "listen: 127.0.0.1:1000
models: [{name: m, routing: least-load, backends: [http://m]}]
scheduler: {acting_weight: 0.3, acting_decay: true, hold: {on_timeout: reject}}
metrics: {enabled: true, interval: 9s}
profile: {dir: /p}
logging: {level: debug}
";
    std::fs::write(&file, yaml).unwrap();
    let config = |flags: &str| start(&format!("--config {} {flags}", file.display())).unwrap().0;

    let plain = config("");
    assert_eq!(plain.listeners[0].address, "127.0.0.1:1000".parse().unwrap());
    assert_eq!(plain.models[0].routing, Routing::LeastLoad);
    assert_eq!(plain.scheduler.acting_weight, 0.3);
    assert_eq!(plain.scheduler.hold.on_timeout, OnTimeout::Reject);
    assert!(plain.scheduler.acting_decay && plain.metrics.enabled);
    assert_eq!(plain.metrics.interval, Duration::from_secs(9));
    assert_eq!(plain.profile.unwrap().dir, PathBuf::from("/p"));
    assert_eq!(plain.logging.level, "debug");
    assert_eq!(plain.programs.anonymous, Anonymous::Passthrough);

    let over = config(
        "--port 2000 --backends http://x --router tr --acting-token-weight 0.5
         --metrics-interval 1 --profile-dir /q --log-level info",
    );
    assert_eq!(over.listeners[0].address, "127.0.0.1:2000".parse().unwrap());
    assert_eq!(urls(&over), [["http://x/"]]);
    assert_eq!((over.models.len(), over.models[0].name.as_str()), (1, ""));
    assert_eq!(over.models[0].routing, Routing::Program);
    assert_eq!(over.scheduler.acting_weight, 0.5);
    assert_eq!(over.metrics.interval, Duration::from_secs(1));
    assert_eq!(over.profile.unwrap().dir, PathBuf::from("/q"));
    assert_eq!(over.logging.level, "info");

    let only_router = config("--router default");
    assert_eq!(only_router.models[0].name, "m");
    assert_eq!(only_router.models[0].routing, Routing::RoundRobin);
}

#[test]
fn backends_given_as_a_flag_mend_a_yaml_without_any() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "listen: 127.0.0.1:1000\n").unwrap();
    let (config, _) = start(&format!("-c {} --backends http://x", file.display())).unwrap();
    assert_eq!(urls(&config), [["http://x/"]]);
}

// === the program ===

#[test]
fn check_is_silent_about_nothing_and_exits_as_nginx_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let name = file.to_str().unwrap();

    std::fs::write(&file, MINIMAL).unwrap();
    let good = binary(&["check", "-c", name]);
    assert_eq!(String::from_utf8_lossy(&good.stdout), format!("{name}: ok\n"));
    assert_eq!(good.status.code(), Some(0));

    std::fs::write(&file, "backnds: [http://a]\nlimits: {bod: 1}\n").unwrap();
    let expected = format!(
        "{name}:1:1: backnds: unknown key; did you mean `backends`?\n\
         {name}:2:10: limits.bod: unknown key; did you mean `body`?\n"
    );
    for args in [&["check", "-c", name][..], &["--config", name]] {
        let bad = binary(args);
        assert_eq!(String::from_utf8_lossy(&bad.stderr), expected);
        assert_eq!(bad.status.code(), Some(1));
    }

    std::fs::write(&file, b"listen: \xff\n").unwrap();
    let bad = binary(&["check", "-c", name]);
    assert_eq!(String::from_utf8_lossy(&bad.stderr), format!("{name}:1:9: not UTF-8\n"));

    assert_eq!(binary(&["check", "-c", "/nowhere/x"]).status.code(), Some(2));
    assert_eq!(binary(&["check"]).status.code(), Some(2));
    assert_eq!(binary(&["--prot", "1"]).status.code(), Some(2));
}

#[test]
fn schema_prints_the_schema() {
    let output = binary(&["schema"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, config::schema());
}
