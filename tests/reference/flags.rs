//! The flags of a command: the page must have all of them, with their defaults.

use super::page::{by_name, code, rows, same, section};
use clap::{Arg, Command};

/// The heading under which the page has the flags of `command`.
pub fn heading(command: &Command) -> String {
    match command.get_name() {
        "thundergate" => "### `thundergate`".to_owned(),
        name => format!("### `thundergate {name}`"),
    }
}

pub fn check(command: &Command) {
    let page = by_name(rows(section(&heading(command)), "flag"));
    let shown = || command.get_arguments().filter(|arg| !arg.is_hide_set());
    let names = |arg: &Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        long.into_iter().chain(arg.get_short().map(|short| format!("-{short}")))
    };
    same(&format!("flags of {}", command.get_name()), &shown().flat_map(names).collect::<Vec<_>>(), page.keys());
    for arg in shown() {
        let flag = format!("--{}", arg.get_long().expect("a long name"));
        if let Some(default) = default(arg) {
            assert_eq!(code(&page[&flag][1]), Some(default.as_str()), "{flag}");
        }
    }
}

/// The default that clap or the help text gives, if it is a value and not a sentence.
fn default(arg: &Arg) -> Option<String> {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let told = help.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
    let told = told.map(|(default, _)| default.to_owned()).filter(|default| !default.contains(' '));
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    told.or_else(|| (!values.is_empty()).then(|| values.join(" "))).filter(|default| default != "false")
}
