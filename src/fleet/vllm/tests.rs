use super::*;
use crate::fleet::reading::Tracker;
use crate::scheduler::Life;
use std::time::{Duration, Instant};

const REAL: &[u8] = include_bytes!("../../../tests/samples/vllm-0.32-metrics.txt");

fn capacity_of(page: &str) -> Option<Tokens> {
    read(page.as_bytes(), None).unwrap().gauges.capacity()
}

fn cache(labels: &str) -> String {
    format!("vllm:cache_config_info{{{labels}}} 1.0\n")
}

#[test]
fn a_page_of_a_real_server_is_read_whole() {
    let reading = read(REAL, None).unwrap();
    assert_eq!(reading.malformed, 0);
    assert_eq!(reading.gauges.capacity(), Some(Tokens(24_000 - 32)));
    assert_eq!(reading.kv_usage, Some(0.0));
    assert_eq!(reading.started, Some(1_795_367_678.95));
    assert_eq!(reading.computed, Some(2_721.0));
    let gauges = reading.gauges;
    assert_eq!((gauges.block_size, gauges.num_gpu_blocks), (32, 750));
    assert_eq!((gauges.prefix_queries, gauges.prefix_hits), (24_609.0, 21_888.0));
    assert_eq!((gauges.prompt_tokens, gauges.generation_tokens), (24_609.0, 218.0));
    assert_eq!((gauges.requests_completed, gauges.preemptions), (23.0, 0.0));
}

#[test]
fn without_its_size_in_tokens_the_capacity_is_blocks_times_block_size() {
    for tokens in ["", ",kv_cache_size_tokens=\"None\"", ",kv_cache_size_tokens=\"NaN\""] {
        let page = cache(&format!("block_size=\"16\",num_gpu_blocks=\"101\"{tokens}"));
        assert_eq!(capacity_of(&page), Some(Tokens(1_600)), "{tokens}");
    }
}

#[test]
fn nonsense_is_no_capacity() {
    for labels in [
        "block_size=\"16\",num_gpu_blocks=\"None\"",
        "block_size=\"x\",num_gpu_blocks=\"-3\",kv_cache_size_tokens=\"1e300\"",
        "block_size=\"16\",num_gpu_blocks=\"1\"",
        "block_size=\"16\",kv_cache_size_tokens=\"inf\"",
    ] {
        assert_eq!(capacity_of(&cache(labels)), None, "{labels}");
    }
}

#[test]
fn engines_of_one_server_add_up_each_once() {
    let one =
        |engine, tokens| cache(&format!("engine=\"{engine}\",block_size=\"10\",kv_cache_size_tokens=\"{tokens}\""));
    let page = one(0, 1_010)
        + &one(1, 3_010)
        + &one(1, 3_010)
        + "vllm:num_requests_running{engine=\"0\"} 2\nvllm:num_requests_running{engine=\"1\"} 3\n\
           vllm:kv_cache_usage_perc{engine=\"0\"} 1.0\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.2\n\
           vllm:prompt_tokens_by_source_total{engine=\"0\",source=\"local_compute\"} 5\n\
           vllm:prompt_tokens_by_source_total{engine=\"1\",source=\"local_compute\"} 6\n\
           vllm:prompt_tokens_by_source_total{engine=\"1\",source=\"local_cache_hit\"} 700\n";
    let reading = read(page.as_bytes(), None).unwrap();
    assert_eq!(reading.gauges.capacity(), Some(Tokens(4_000)));
    assert_eq!(reading.gauges.running, 5.0);
    assert_eq!(reading.computed, Some(11.0));
    assert!((reading.kv_usage.unwrap() - 0.4).abs() < 1e-9, "weighted by capacity");
}

#[test]
fn blocks_are_counted_of_all_engines_on_the_line_of_each() {
    // The page is that of real vLLM 0.32 with two ranks of 100 blocks. Older versions do not tell the tokens.
    for (tokens, expected) in [("", 990 + 990), (",kv_cache_size_tokens=\"1000\"", 990 + 990)] {
        let one = |engine| cache(&format!("engine=\"{engine}\",block_size=\"10\",num_gpu_blocks=\"200\"{tokens}"));
        let reading = read((one(0) + &one(1)).as_bytes(), None).unwrap();
        assert_eq!((reading.gauges.capacity(), reading.gauges.num_gpu_blocks), (Some(Tokens(expected)), 200));
    }
}

#[test]
fn one_rank_is_read_alone_by_its_place_among_the_labels() {
    // The page is that of the second of two nodes with two ranks each.
    let one = |engine: u32, tokens: u32| {
        cache(&format!(
            "engine=\"{engine}\",block_size=\"10\",num_gpu_blocks=\"200\",kv_cache_size_tokens=\"{tokens}\""
        )) + &format!("vllm:num_requests_running{{engine=\"{engine}\"}} {engine}\n")
            + &format!("vllm:kv_cache_usage_perc{{engine=\"{engine}\"}} 0.{engine}\n")
            + &format!("vllm:prompt_tokens_by_source_total{{engine=\"{engine}\",source=\"local_compute\"}} {engine}0\n")
    };
    let page = one(3, 3_010) + &one(2, 2_010) + "process_start_time_seconds 5\n";
    let of = |rank| read(page.as_bytes(), rank).unwrap();
    let (all, first, second) = (of(None), of(Some(0)), of(Some(1)));
    assert_eq!([&all, &first, &second].map(|reading| reading.gauges.capacity().unwrap().0), [5_000, 2_000, 3_000]);
    assert_eq!([&all, &first, &second].map(|reading| reading.gauges.running), [5.0, 2.0, 3.0]);
    assert_eq!([&all, &first, &second].map(|reading| reading.computed), [Some(50.0), Some(20.0), Some(30.0)]);
    assert_eq!((first.kv_usage, second.kv_usage, second.started), (Some(0.2), Some(0.3), Some(5.0)));
    assert_eq!([&all, &first].map(|reading| reading.gauges.num_gpu_blocks), [200, 100]);
    assert_eq!([&all, &first, &of(Some(2))].map(|reading| reading.ranks), [2, 2, 2]);
    assert_eq!(of(Some(2)).gauges.capacity(), None, "there is none");
}

#[test]
fn an_engine_of_unknown_size_makes_the_capacity_unknown() {
    let page = cache("engine=\"0\",block_size=\"10\",num_gpu_blocks=\"100\"")
        + &cache("engine=\"1\",block_size=\"10\",num_gpu_blocks=\"None\"");
    assert_eq!(capacity_of(&page), None);
}

#[test]
fn the_cache_may_be_described_without_an_engine_label() {
    let page = cache("block_size=\"10\",num_gpu_blocks=\"100\"") + "vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n";
    let reading = read(page.as_bytes(), None).unwrap();
    assert_eq!((reading.gauges.capacity(), reading.kv_usage), (Some(Tokens(990)), Some(0.5)));
}

#[test]
fn another_programs_page_is_not_taken_for_vllm() {
    assert!(read(b"process_start_time_seconds 5\ngo_goroutines 7\n", None).is_none());
    assert!(read(b"<html>not found</html>", None).is_none());
    assert!(read(b"", None).is_none());
}

#[test]
fn garbage_lines_and_numbers_are_skipped_and_counted() {
    let page = "vllm:num_requests_running{engine=\"0\"} NaN\n\
                vllm:num_requests_waiting{engine=\"0\" 3\n\
                vllm:prompt_tokens_total 12\n";
    let reading = read(page.as_bytes(), None).unwrap();
    assert_eq!(reading.malformed, 1);
    assert_eq!((reading.gauges.running, reading.gauges.waiting), (0.0, 0.0));
    assert_eq!(reading.gauges.prompt_tokens, 12.0);
}

// --- Tracker ---

fn page(started: f64, prompt: f64, computed: Option<f64>, tokens: &str) -> Reading {
    let mut page = format!("process_start_time_seconds {started}\nvllm:prompt_tokens_total {prompt}\n")
        + &cache(&format!("block_size=\"16\",kv_cache_size_tokens=\"{tokens}\""));
    if let Some(computed) = computed {
        page += &format!("vllm:prompt_tokens_by_source_total{{source=\"local_compute\"}} {computed}\n");
    }
    read(page.as_bytes(), None).unwrap()
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn a_changed_start_time_is_a_restart_told_once() {
    let mut tracker = Tracker::default();
    let t = Instant::now();
    assert!(!tracker.observe(t, page(100.0, 5.0, None, "1616")).1.restarted);
    let (gauges, report) = tracker.observe(t, page(160.0, 5.0, None, "816"));
    assert!(report.restarted);
    assert_eq!(report.capacity, Some(Tokens(800)), "the capacity is read anew");
    assert_eq!(gauges.capacity_tokens, 800);
    assert_eq!(report.life, Some(Life { started_ms: Some(160_000), prompt_tokens: 5 }));
    assert!(!tracker.observe(t, page(160.0, 5.0, None, "816")).1.restarted);
}

#[test]
fn a_counter_that_fell_is_a_restart() {
    let mut tracker = Tracker::default();
    let t = Instant::now();
    tracker.observe(t, page(100.0, 50.0, None, "1616"));
    assert!(!tracker.observe(t, page(100.0, 60.0, None, "1616")).1.restarted);
    assert!(tracker.observe(t, page(100.0, 59.0, None, "1616")).1.restarted);
}

#[test]
fn the_last_good_capacity_stays_when_a_page_does_not_tell() {
    let mut tracker = Tracker::default();
    let t = Instant::now();
    tracker.observe(t, page(100.0, 5.0, None, "1616"));
    let (gauges, report) = tracker.observe(t, page(100.0, 5.0, None, "None"));
    assert_eq!(report.capacity, None);
    assert_eq!(gauges.capacity_tokens, 1_600);
    let (gauges, _) = tracker.observe(t, page(100.0, 5.0, None, "None"));
    assert_eq!(gauges.capacity_tokens, 1_600);
}

#[test]
fn the_prefill_rate_is_taken_over_windows_of_five_seconds() {
    let mut tracker = Tracker::default();
    let t = Instant::now();
    let mut rate = |after: f64, computed| {
        tracker.observe(t + seconds(after), page(1.0, 1.0, Some(computed), "1616")).1.prefill_rate
    };
    assert_eq!(rate(0.0, 1_000.0), None, "the first scrape has nothing to compare with");
    assert_eq!(rate(1.0, 9_000.0), None);
    assert_eq!(rate(4.0, 9_000.0), None);
    assert_eq!(rate(5.0, 11_000.0), Some(2_000.0));
    assert_eq!(rate(6.0, 11_000.0), None, "a new window has begun");
    assert_eq!(rate(15.0, 12_000.0), Some(100.0));
}

#[test]
fn no_prefill_rate_spans_a_restart_or_a_missing_series() {
    let mut tracker = Tracker::default();
    let t = Instant::now();
    let mut rate = |after: f64, started, computed| {
        let page = page(started, 1.0, computed, "1616");
        tracker.observe(t + seconds(after), page).1.prefill_rate
    };
    rate(0.0, 1.0, Some(100.0));
    assert_eq!(rate(5.0, 2.0, Some(9_100.0)), None, "restarted");
    assert_eq!(rate(10.0, 2.0, Some(9_600.0)), Some(100.0));
    assert_eq!(rate(15.0, 2.0, None), None);
    assert_eq!(rate(20.0, 2.0, Some(9_900.0)), None);
}
