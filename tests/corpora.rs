//! Inputs that the fuzzers of `fuzz/` found to be worth keeping, as ordinary tests: the same checks on the same inputs.

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets/envelope.rs"]
mod envelope;
#[path = "../fuzz/targets/prometheus.rs"]
mod prometheus;
#[path = "../fuzz/targets/snapshot.rs"]
mod snapshot;
#[path = "../fuzz/targets/sse.rs"]
mod sse;
#[path = "../fuzz/targets/yaml.rs"]
mod yaml;

fn replay(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(dir).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() > 4, "{target} has lost its corpus");
    for file in files {
        // The test's output names the file when the check fails.
        eprintln!("{}", file.display());
        check(&fs::read(&file).expect("an input"));
    }
}

#[test]
fn bodies() {
    replay("envelope", envelope::check);
}

#[test]
fn metrics_pages() {
    replay("prometheus", prometheus::check);
}

#[test]
fn states() {
    replay("snapshot", snapshot::check);
}

#[test]
fn streams() {
    replay("sse", sse::check);
}

#[test]
fn configurations() {
    replay("yaml", yaml::check);
}
