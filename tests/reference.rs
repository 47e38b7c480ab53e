//! docs/reference.md against the program. The tests fail for anything that the page does not name, and for anything on
//! the page that is gone.

mod support;

#[path = "reference/flags.rs"]
mod flags;
#[path = "reference/keys.rs"]
mod keys;
#[path = "reference/live.rs"]
mod live;
#[path = "reference/page.rs"]
mod page;

use clap::{Command, CommandFactory};
use http::Method;
use page::{by_name, codes, headings, rows, same, section};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;
use thundergate::cli::Cli;
use thundergate::config::{Admin, ApiKey, Config, Secret};
use thundergate::control::{self, Side};
use thundergate::error::Refusal;
use thundergate::proxy::{INFERENCE, PASSED};

#[test]
fn every_flag_is_on_the_page_with_its_default() {
    let cli = Cli::command();
    // The laboratory's commands go to a program that has a command line of its own.
    let lab = thundergate_lab::Cli::command();
    let passed_on = |command| lab.get_subcommands().find(|other| other.get_name() == Command::get_name(command));
    let subcommands = cli.get_subcommands().map(|command| passed_on(command).unwrap_or(command));
    let commands: Vec<&Command> = std::iter::once(&cli).chain(subcommands).collect();
    let expected: Vec<String> = commands.iter().map(|command| flags::heading(command)).collect();
    same("commands", &expected, &headings("### `thundergate").into_iter().map(str::to_owned).collect::<Vec<_>>());
    commands.into_iter().for_each(flags::check);
}

#[test]
fn every_endpoint_is_on_the_page_with_its_methods_and_who_may() {
    let rows = rows(section("### Control endpoints"), "method");
    let page: Vec<String> =
        rows.iter().map(|row| format!("{} {}", codes(&row[0]).join(" "), codes(&row[1]).join(" "))).collect();
    let methods = |allow: &'static str| allow.split(", ").filter(|method| *method != "HEAD");
    let program: Vec<String> = control::paths()
        .flat_map(|(path, allow)| methods(allow).map(move |method| format!("{method} {path}")))
        .collect();
    same("endpoints", &program, &page);
    let keys = vec![ApiKey { name: "a".into(), key: Secret("k".into()), tenant: String::new() }];
    let with_keys = Config { auth: thundergate::config::Auth { keys }, ..Config::default() };
    let with_admin = Config { admin: Some(Admin::default()), ..Config::default() };
    for row in rows {
        let method: Method = codes(&row[0])[0].parse().expect("a method");
        let path = codes(&row[1])[0].replace("{id}", "x");
        let route = control::route(&method, &path).expect("a path of ours");
        let on_main = |config| route.answers_on(Side::Main, config);
        let who = match (route.needs_key(), on_main(&with_keys), on_main(&with_admin)) {
            (false, true, true) => "all",
            (true, true, true) => "client",
            (true, true, false) => "tenant",
            (true, false, false) => "operator",
            other => panic!("{path}: the page has no word for {other:?}"),
        };
        assert_eq!(row[2].trim_end_matches("\\*"), who, "{method} {path}");
    }
}

#[test]
fn every_path_that_goes_to_backends_is_on_the_page() {
    let named = |heading, first| by_name(rows(section(heading), first)).into_keys().collect::<Vec<_>>();
    let owned = |paths: Vec<&str>| paths.into_iter().map(str::to_owned).collect::<Vec<_>>();
    same(
        "inference endpoints",
        &owned(INFERENCE.iter().map(|(path, _)| *path).collect()),
        &named("### Inference", "path"),
    );
    let passed = PASSED.into_iter().chain(["/v1/…"]).collect();
    same("paths passed through", &owned(passed), &named("### Passed through", "path"));
}

/// The refusal after `last`. A new kind of refusal does not compile until it has its place here.
fn after(last: Option<&Refusal>) -> Option<Refusal> {
    use Refusal::*;
    let retry_after = Duration::from_secs(1);
    Some(match last {
        None => InvalidJson(String::new()),
        Some(InvalidJson(_)) => InvalidProgramId(String::new()),
        Some(InvalidProgramId(_)) => BodyTooLarge { limit: 1 },
        Some(BodyTooLarge { .. }) => Overloaded { retry_after },
        Some(Overloaded { .. }) => InvalidRequest(""),
        Some(InvalidRequest(_)) => HeadTooLarge { limit: 1 },
        Some(HeadTooLarge { .. }) => InvalidPath,
        Some(InvalidPath) => RequestTimeout { what: "", limit: retry_after },
        Some(RequestTimeout { .. }) => Unauthorized,
        Some(Unauthorized) => AdminUnauthorized,
        Some(AdminUnauthorized) => NotFound(String::new()),
        Some(NotFound(_)) => MethodNotAllowed,
        Some(MethodNotAllowed) => UnknownModel(String::new()),
        Some(UnknownModel(_)) => RateLimited { what: String::new(), retry_after },
        Some(RateLimited { .. }) => QueueFull { retry_after },
        Some(QueueFull { .. }) => HeldTooLong { held: retry_after, retry_after },
        Some(HeldTooLong { .. }) => NoBackend { waited: retry_after, retry_after },
        Some(NoBackend { .. }) => RetryBudget { retry_after },
        Some(RetryBudget { .. }) => ProgramReleased,
        Some(ProgramReleased) => UpstreamFailed(String::new()),
        Some(UpstreamFailed(_)) => Draining { retry_after },
        Some(Draining { .. }) => Internal,
        Some(Internal) => return None,
    })
}

#[test]
fn every_error_is_on_the_page_with_its_status() {
    let all = std::iter::successors(after(None), |last| after(Some(last)));
    let told = |refusal: Refusal| {
        let waits = if refusal.retry_after().is_some() { "waits" } else { "" };
        (format!("{} {}", refusal.status().as_u16(), refusal.code()), waits)
    };
    let program: BTreeSet<(String, &str)> = all.map(told).collect();
    let rows = rows(section("## Errors"), "status");
    let page: Vec<String> = rows.iter().map(|row| format!("{} {}", row[0], codes(&row[1]).join(" "))).collect();
    same("errors", program.iter().map(|(error, _)| error), &page);
    for (row, error) in rows.iter().zip(&page) {
        let waits = program.contains(&(error.clone(), "waits"));
        assert_eq!(row[3].contains("`Retry-After`"), waits, "{error}: what to do");
    }
}

/// Header names in lower case that the sources spell out. Tests and simulated engines are left out.
fn headers(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !["tests", "engine", "demo", "simulate"].contains(&name) {
            headers(&path, found);
        } else if name.ends_with(".rs") && !["tests.rs", "engine.rs", "demo.rs"].contains(&name) {
            let source = fs::read_to_string(&path).expect("a source");
            let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let words = source.split('"').filter_map(|word| {
                let word = word.strip_prefix("header:").unwrap_or(word);
                let plain = |c: char| c.is_ascii_lowercase() || c == '-';
                (word.starts_with("x-") && word.chars().all(plain)).then(|| word.to_owned())
            });
            found.extend(words);
        }
    }
}

#[test]
fn every_header_with_a_name_of_its_own_is_on_the_page() {
    let mut program = BTreeSet::new();
    headers(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut program);
    let listed = rows(section("## Headers"), "header").into_iter().flat_map(|row| codes(&row[0]));
    let page: BTreeSet<String> = listed.filter(|name| name.starts_with("x-")).collect();
    // The first two headers are refused where `Connection` names them, and otherwise pass. The third name is text in a
    // system prompt.
    let others = ["x-forwarded-host", "x-forwarded-proto", "x-anthropic-billing-header"];
    program.retain(|name| !others.contains(&name.as_str()));
    same("headers", &program, &page);
}
