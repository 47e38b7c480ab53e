//! A `/metrics` page of a backend, of each kind of engine: whatever it says, the numbers made of it are numbers.

use std::time::{Duration, Instant};
use thundergate::fleet::reading::{Reading, Tracker};
use thundergate::fleet::{prometheus, sglang, skyrl, vllm};

/// The longest name of a label that is looked up here.
const LABELS: [&str; 3] = ["engine", "le", "block_size"];

pub fn check(data: &[u8]) {
    for line in prometheus::lines(data) {
        assert!(!line.name.is_empty());
        let Some(sample) = line.sample() else { continue };
        for label in LABELS.iter().filter_map(|label| sample.label(label)) {
            assert!(label.len() <= data.len());
        }
    }
    // The second half is what a later page says.
    let (before, after) = data.split_at(data.len() / 2);
    let whole: fn(&[u8]) -> Option<Reading> = |page| vllm::read(page, None);
    for read in [whole, |page| vllm::read(page, Some(1)), sglang::read, skyrl::read] {
        numbers(read, &[data, before, after, data]);
    }
    assert!(sglang::capacity(data).is_none_or(|capacity| capacity.0 > 0));
}

/// Pages of one server, read one after the other.
fn numbers(read: fn(&[u8]) -> Option<Reading>, pages: &[&[u8]]) {
    let mut tracker = Tracker::default();
    let start = Instant::now();
    for (second, page) in pages.iter().enumerate() {
        let Some(reading) = read(page) else { continue };
        assert!(reading.malformed <= page.len());
        let (gauges, report) = tracker.observe(start + Duration::from_secs(5 * second as u64), reading);
        for value in [
            gauges.running,
            gauges.waiting,
            gauges.prefix_queries,
            gauges.prefix_hits,
            gauges.prompt_tokens,
            gauges.generation_tokens,
            gauges.preemptions,
            gauges.requests_completed,
        ] {
            assert!(value.is_finite(), "{gauges:?}");
        }
        assert!((0.0..=1.0).contains(&gauges.kv_usage), "{gauges:?}");
        assert!(report.kv_usage.is_none_or(|usage| (0.0..=1.0).contains(&usage)), "{report:?}");
        assert!(report.prefill_rate.is_none_or(|rate| rate.is_finite() && rate >= 0.0), "{report:?}");
        assert!(report.capacity.is_none_or(|capacity| capacity.0 > 0), "{report:?}");
    }
}
