//! The commands of the laboratory, which `thundergate` passes on to the program `thundergate-lab`.

use std::path::Path;
use std::process::Command;
use thundergate::config::{Config, Pool};
use thundergate::scheduler::Policy;

const PROXY: &str = env!("CARGO_BIN_EXE_thundergate");

#[test]
fn the_laboratorys_commands_show_their_own_help() {
    let lab = Path::new(PROXY).with_file_name("thundergate-lab");
    assert!(lab.exists(), "{} is not there: run `cargo build`", lab.display());
    for (command, flag) in [("engine", "--kv-blocks"), ("simulate", "--workload"), ("demo", "--agents")] {
        let output = Command::new(PROXY).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(&format!("Usage: thundergate {command}")) && help.contains(flag), "{help}");
    }
}

#[test]
fn help_lists_the_laboratorys_commands() {
    let output = Command::new(PROXY).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for line in ["demo      Show", "engine    Run", "simulate  Replay"] {
        assert!(help.contains(line), "{help}");
    }
}

#[test]
fn without_thundergate_lab_the_error_tells_how_to_build_it() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("thundergate");
    std::fs::hard_link(PROXY, &alone).or_else(|_| std::fs::copy(PROXY, &alone).map(drop)).unwrap();
    let output = Command::new(&alone).args(["engine", "--port", "0"]).env("PATH", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("cargo build --release -p thundergate-lab"), "{told}");
}

#[test]
fn the_simulator_starts_from_the_servers_defaults() {
    assert_eq!(Config::default().policy(&Pool::default()), Policy::default());
}
