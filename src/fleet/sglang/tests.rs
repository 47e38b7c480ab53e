use super::*;

const PAGE: &[u8] = include_bytes!("../../../tests/samples/sglang-metrics.txt");
const INFO: &[u8] = include_bytes!("../../../tests/samples/sglang-server-info.json");

#[test]
fn the_capacity_is_that_of_all_data_parallel_ranks() {
    assert_eq!(capacity(INFO), Some(Tokens(199_000)));
    let flat = |text: &str| capacity(text.as_bytes()).map(|tokens| tokens.0);
    assert_eq!(flat(r#"{"max_total_num_tokens":5000}"#), Some(5000));
    assert_eq!(flat(r#"{"max_total_num_tokens":5000,"dp_size":4,"internal_states":[{"load":1}]}"#), Some(20_000));
    assert_eq!(flat(r#"{"internal_states":[{"memory_usage":{"token_capacity":7}},{"memory_usage":null}]}"#), Some(7));
    for nothing in ["", "{}", "[]", r#"{"max_total_num_tokens":0}"#, r#"{"max_total_num_tokens":-3}"#, "<html>"] {
        assert_eq!(flat(nothing), None, "{nothing}");
    }
}

#[test]
fn each_data_parallel_rank_counts_once_and_requests_add_up() {
    let reading = read(PAGE).unwrap();
    assert_eq!(reading.malformed, 0);
    assert_eq!(reading.gauges.capacity(), Some(Tokens(200_000)));
    assert!((reading.kv_usage.unwrap() - 0.25).abs() < 1e-9);
    assert_eq!(reading.computed, Some(1_200.0), "not what was found in the cache, and no output");
    let gauges = reading.gauges;
    assert_eq!((gauges.running, gauges.waiting, gauges.engines), (4.0, 2.0, 2));
    assert_eq!((gauges.used_tokens, gauges.preemptions), (50_000.0, 3.0));
    assert!((gauges.cache_hit_rate - 0.7).abs() < 1e-9);
    assert_eq!((gauges.prompt_tokens, gauges.generation_tokens), (11_000.0, 500.0));
    assert_eq!((gauges.prefix_queries, gauges.prefix_hits), (11_000.0, 9_800.0));
    assert_eq!(gauges.requests_completed, 11.0);
}

#[test]
fn what_an_older_server_does_not_tell_is_not_made_up() {
    let page = "sglang:prompt_tokens_total{model_name=\"m\"} 8.128902e+06\n\
                sglang:num_running_reqs{model_name=\"m\"} 162.0\n\
                sglang:num_queue_reqs{model_name=\"m\"} 2826.0\n";
    for page in [page.to_owned(), page.replace("sglang:", "sglang_")] {
        let reading = read(page.as_bytes()).unwrap();
        assert_eq!((reading.gauges.capacity(), reading.kv_usage, reading.computed), (None, None, None));
        let gauges = reading.gauges;
        assert_eq!((gauges.running, gauges.waiting, gauges.prompt_tokens), (162.0, 2826.0, 8_128_902.0));
        assert_eq!((gauges.prefix_queries, gauges.prefix_hits), (0.0, 0.0), "no hits are told: no rate");
    }
}

#[test]
fn another_programs_page_is_not_taken_for_sglang() {
    assert!(read(b"process_start_time_seconds 5\nvllm:num_requests_running 7\n").is_none());
    assert!(read(b"<html>not found</html>").is_none());
    let broken =
        read(b"sglang:token_usage{dp_rank=\"0\"} NaN\nsglang:num_queue_reqs{x 3\nsglang:num_running_reqs 1").unwrap();
    assert_eq!((broken.kv_usage, broken.malformed, broken.gauges.running), (None, 1, 1.0));
}
