//! The program `thundergate-lab` itself. These tests need `thundergate` beside it: `cargo test` at the root of the
//! repository builds both.

use std::path::Path;
use std::process::{Command, Output};

const LAB: &str = env!("CARGO_BIN_EXE_thundergate-lab");

/// Runs a few virtual minutes of two programs with the settings in `yaml`.
fn simulate(yaml: &str) -> Output {
    let server = Path::new(LAB).with_file_name("thundergate");
    assert!(server.exists(), "{} is not there: run `cargo build`", server.display());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.yaml");
    std::fs::write(&file, yaml).unwrap();
    let mut command = Command::new(LAB);
    command.args(["simulate", "--policies", "ours", "--format", "json", "--quiet"]);
    command.args(["--engines", "1", "--programs", "30", "--minutes", "6", "--warmup", "1", "--config"]).arg(&file);
    command.output().unwrap()
}

#[test]
fn simulate_takes_the_settings_of_a_servers_configuration() {
    let run = |scheduler: &str| {
        let output = simulate(&format!("backends: [http://a]\nscheduler: {scheduler}\n"));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run("{}"), run("{fair: {bound: 10m}}"), "the default is spelled out");
    assert_ne!(run("{}"), run("{headroom: 0.5}"));
}

#[test]
fn a_mistake_in_the_configuration_is_told_as_the_server_tells_it() {
    let output = simulate("backends: [http://a]\nscheduler: {hedroom: 0.5}\n");
    assert!(!output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("settings.yaml:2:13: scheduler.hedroom") && told.contains("headroom"), "{told}");
}

#[test]
fn what_is_wrong_at_the_start_is_told_in_one_line() {
    let output = Command::new(LAB).args(["engine", "--kv-blocks", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, "--kv-blocks: must be at least 2: one block is the null block\n");
}
