use super::*;
use crate::units::Tokens;
use std::fs;

const WAIT: Duration = Duration::from_secs(20);

fn key(id: &str) -> ProgramKey {
    ProgramKey { tenant: "".into(), id: id.into() }
}

fn usage(prompt: u64, cached: Option<u64>) -> Option<Usage> {
    Some(Usage { prompt: Tokens(prompt), completion: Tokens(10), cached: cached.map(Tokens) })
}

fn step(start: Instant, at_ms: u64, usage: Option<Usage>) -> StepTimes {
    let arrived = start + Duration::from_millis(at_ms);
    StepTimes {
        arrived,
        pause: Duration::from_millis(500),
        prefill: Duration::from_millis(250),
        decode: Duration::from_millis(1250),
        ended: arrived + Duration::from_secs(2),
        usage,
    }
}

fn profiles(dir: &Path, max: usize) -> (Profiles, Counter) {
    let dropped = Counter::default();
    let profiles = Profiles::new(dir, max, dropped.clone()).unwrap();
    (profiles, dropped)
}

#[test]
fn rows_and_averages_follow_the_definitions() {
    let dir = tempfile::tempdir().unwrap();
    let (profiles, dropped) = profiles(&dir.path().join("made/for/us"), 10);
    let start = Instant::now();
    profiles.step_finished(&key("a,\"b\"\n"), &step(start, 0, usage(100, Some(0))));
    profiles.step_finished(&key("a,\"b\"\n"), &step(start, 5000, usage(200, Some(150))));
    profiles.step_finished(&key("a,\"b\"\n"), &step(start, 6500, None));
    assert!(profiles.flush(WAIT));

    let summary = profiles.get(&key("a,\"b\"\n")).unwrap();
    let expected = ProfileSummary {
        step_count: 3,
        avg_prefill_s: 0.25,
        avg_decode_s: 1.25,
        avg_pause_s: 0.5,
        // A tool runs for 3 s before the second step; the third step overlaps the second.
        avg_tool_call_s: 1.5,
        avg_kv_hit_rate: Some(0.375),
    };
    assert_eq!(summary, expected);

    let path = dir.path().join("made/for/us/step_profiles.csv");
    let text = fs::read_to_string(path).unwrap();
    assert!(text.starts_with("program_id,step_id,prefill_s,decode_s,pause_s,tool_call_s,kv_hit_rate,completed_at\n"));
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows: Vec<Vec<String>> = reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
    let fields: Vec<_> = rows.iter().map(|row| row[..7].join("|")).collect();
    assert_eq!(
        fields,
        [
            "a,\"b\"\n|1|0.2500|1.2500|0.5000|0.0000|0.0000",
            "a,\"b\"\n|2|0.2500|1.2500|0.5000|3.0000|0.7500",
            "a,\"b\"\n|3|0.2500|1.2500|0.5000|0.0000|",
        ]
    );
    let (_, decimals) = rows[0][7].split_once('.').unwrap();
    assert_eq!(decimals.len(), 4);
    assert_eq!(dropped.get(), 0);
}

#[test]
fn an_existing_file_is_appended_to_without_a_second_header() {
    let dir = tempfile::tempdir().unwrap();
    for run in 0..2 {
        let (profiles, _) = profiles(dir.path(), 10);
        let id = format!("run-{run}");
        profiles.step_finished(&key(&id), &step(Instant::now(), 0, None));
        assert!(profiles.flush(WAIT));
    }
    let text = fs::read_to_string(dir.path().join("step_profiles.csv")).unwrap();
    assert_eq!(text.matches("program_id").count(), 1);
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn a_rotated_file_is_opened_anew_with_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step_profiles.csv");
    let (profiles, _) = profiles(dir.path(), 10);
    profiles.step_finished(&key("before"), &step(Instant::now(), 0, None));
    assert!(profiles.flush(WAIT));
    fs::rename(&path, dir.path().join("old.csv")).unwrap();
    profiles.reopen();
    profiles.step_finished(&key("after"), &step(Instant::now(), 0, None));
    assert!(profiles.flush(WAIT));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("program_id,"));
    assert!(text.contains("\nafter,") && !text.contains("before"));
}

#[test]
fn the_program_idle_longest_is_forgotten_first() {
    let dir = tempfile::tempdir().unwrap();
    let (profiles, _) = profiles(dir.path(), 2);
    for id in ["a", "b", "a", "c"] {
        profiles.step_finished(&key(id), &step(Instant::now(), 0, None));
    }
    assert!(profiles.get(&key("b")).is_none());
    assert_eq!(profiles.get(&key("a")).unwrap().step_count, 2);
    assert_eq!(profiles.all().len(), 2);
    profiles.forget(&key("a"));
    assert!(profiles.get(&key("a")).is_none());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_drops_rows_and_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step_profiles.csv");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let (profiles, dropped) = profiles(dir.path(), 10);
    for _ in 0..5 {
        profiles.step_finished(&key("a"), &step(Instant::now(), 0, None));
    }
    assert!(profiles.flush(WAIT));
    assert_eq!(dropped.get(), 5);
    assert_eq!(profiles.get(&key("a")).unwrap().step_count, 5);

    // The disk has room again.
    fs::remove_file(&path).unwrap();
    profiles.reopen();
    profiles.step_finished(&key("a"), &step(Instant::now(), 0, None));
    assert!(profiles.flush(WAIT));
    assert_eq!(dropped.get(), 5);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[cfg(unix)]
#[test]
fn a_blocked_disk_blocks_no_step_and_counts_what_is_dropped() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step_profiles.csv");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let (profiles, dropped) = profiles(dir.path(), 10);
    // Nobody reads the FIFO: its open blocks, the queue fills, and this loop still ends.
    while dropped.get() < 3 {
        profiles.step_finished(&key("a"), &step(Instant::now(), 0, None));
    }
    assert!(!profiles.flush(Duration::from_millis(20)));

    let mut lines = BufReader::new(fs::File::open(&path).unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("program_id,"));
    assert!(lines.next().unwrap().unwrap().starts_with("a,1,"));
}
