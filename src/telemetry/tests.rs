use super::access::tests::record;
use super::*;
use crate::scheduler::PoolId;
use crate::scheduler::{DispatchKind, HoldReason, PauseReason, Usage};
use crate::units::Tokens;

fn counted() -> Metrics {
    let metrics = Metrics::new(&["glm".to_owned(), String::new()], &["header:x-program-id".to_owned()]);
    let glm = metrics.model(Some(PoolId(0)));
    glm.request_finished(200, Duration::from_millis(700));
    glm.ttft(Duration::from_millis(300));
    glm.inter_token(Duration::from_millis(20));
    glm.usage(Usage { prompt: Tokens(100), completion: Tokens(7), cached: Some(Tokens(60)) });
    metrics.model(None).request_finished(404, Duration::ZERO);
    metrics.client_disconnected();
    metrics.upstream_error("http://gpu1:8000", UpstreamError::Broken);
    metrics.held(HoldReason::NoRoom);
    metrics.hold_ended(HoldClass::from(DispatchKind::Resumed), Duration::from_secs(3));
    metrics.paused(PauseReason::Evicted);
    metrics.resumed(DispatchKind::Resumed);
    metrics.moved(MoveReason::Room);
    metrics.forced();
    metrics.released(Released::Api);
    metrics.estimate_error(-0.03);
    metrics.identity_source("header:x-program-id");
    metrics.identity_source("header:never-configured");
    metrics
}

fn current() -> CurrentMetrics {
    CurrentMetrics {
        programs: vec![("running", 2), ("held", 1)],
        held_steps: 1,
        backends: vec![BackendMetrics {
            url: "http://gpu1:8000".into(),
            model: "glm \"x\"\n".into(),
            healthy: true,
            downs: vec![("check", 0), ("reset", 3)],
            capacity: Some(1000),
            effective_capacity: Some(980),
            charged_running: 400,
            charged_idle: 300,
            kv_usage: Some(0.5),
            prefix_hit: None,
            scrape_age_seconds: Some(1.5),
        }],
    }
}

/// The value of the sample that starts with `series`.
fn sample<'a>(text: &'a str, series: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
}

#[test]
fn every_event_moves_its_own_series() {
    let metrics = counted();
    let guards = [metrics.in_flight(), metrics.in_flight()];
    let text = metrics.encode(&current(), Exposition::Prometheus);
    let expected = [
        ("requests_total{model=\"glm\",code=\"200\"}", "1"),
        ("requests_total{model=\"\",code=\"404\"}", "1"),
        ("request_duration_seconds_count{model=\"glm\"}", "1"),
        ("ttft_seconds_sum{model=\"glm\"}", "0.3"),
        ("ttft_seconds_bucket{le=\"0.25\",model=\"glm\"}", "0"),
        ("ttft_seconds_bucket{le=\"0.5\",model=\"glm\"}", "1"),
        ("inter_token_seconds_count{model=\"glm\"}", "1"),
        ("prompt_tokens_total{model=\"glm\"}", "100"),
        ("cached_tokens_total{model=\"glm\"}", "60"),
        ("completion_tokens_total{model=\"glm\"}", "7"),
        ("completion_tokens_total{model=\"default\"}", "0"),
        ("inflight_requests", "2"),
        ("client_disconnects_total", "1"),
        ("upstream_errors_total{backend=\"http://gpu1:8000\",kind=\"broken\"}", "1"),
        ("holds_total{reason=\"no_room\"}", "1"),
        ("holds_total{reason=\"frozen\"}", "0"),
        ("hold_seconds_sum{class=\"started\"}", "3.0"),
        ("hold_seconds_count{class=\"new\"}", "0"),
        ("pauses_total{reason=\"evicted\"}", "1"),
        ("resumes_total{kind=\"resumed\"}", "1"),
        ("moves_total{reason=\"room\"}", "1"),
        ("forced_admissions_total", "1"),
        ("released_total{how=\"api\"}", "1"),
        ("estimate_error_ratio_bucket{le=\"-0.02\"}", "1"),
        ("estimate_error_ratio_bucket{le=\"-0.05\"}", "0"),
        ("identity_source_total{source=\"header:x-program-id\"}", "1"),
        ("identity_source_total{source=\"none\"}", "0"),
        ("config_reload_success", "1"),
        ("profile_rows_dropped_total", "0"),
        ("programs{state=\"running\"}", "2"),
        ("held_steps", "1"),
    ];
    for (series, value) in expected {
        let found = sample(&text, &format!("thundergate_{series}"));
        assert_eq!(found, Some(value), "{series}\n{text}");
    }
    drop(guards);
    let text = metrics.encode(&current(), Exposition::Prometheus);
    assert_eq!(sample(&text, "thundergate_inflight_requests"), Some("0"));
}

#[test]
fn backend_gauges_show_what_is_known_and_escape_names() {
    let text = counted().encode(&current(), Exposition::Prometheus);
    let labels = r#"{backend="http://gpu1:8000",model="glm \"x\"\n"}"#;
    for (name, value) in [
        ("backend_capacity_tokens", "1000"),
        ("backend_effective_capacity_tokens", "980"),
        ("backend_healthy", "1"),
        ("backend_kv_usage_ratio", "0.5"),
        ("scrape_age_seconds", "1.5"),
    ] {
        let series = format!("thundergate_{name}{labels}");
        assert_eq!(sample(&text, &series), Some(value), "{series}\n{text}");
    }
    let charged = format!("thundergate_backend_charged_tokens{},state=\"idle\"}}", labels.trim_end_matches('}'));
    assert_eq!(sample(&text, &charged), Some("300"));
    let downs = format!("thundergate_backend_ejections_total{},cause=\"reset\"}}", labels.trim_end_matches('}'));
    assert_eq!(sample(&text, &downs), Some("3"));
    assert!(!text.contains("backend_prefix_hit_ratio{"), "not reported");
}

#[test]
fn prometheus_text_names_every_family_as_its_samples() {
    let text = counted().encode(&current(), Exposition::Prometheus);
    let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(families.contains(&base), "{line}");
    }
    assert!(text.contains("# TYPE thundergate_requests_total counter\n"));
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
}

#[test]
fn open_metrics_text_keeps_its_own_names_and_ends_once() {
    let text = counted().encode(&current(), Exposition::OpenMetrics);
    assert!(text.contains("# TYPE thundergate_requests counter\n"));
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(text.matches("# EOF").count(), 1);
}

#[test]
fn a_scraper_gets_the_format_it_likes_best() {
    use Exposition::{OpenMetrics, Prometheus};
    let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
        application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
        text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, format) in [
        (prometheus_3, Some(OpenMetrics)),
        ("text/plain;version=0.0.4", Some(Prometheus)),
        ("Text/Plain; charset=utf-8", Some(Prometheus)),
        ("application/openmetrics-text;q=0.5, text/plain", Some(Prometheus)),
        ("application/openmetrics-text;q=0", None),
        ("*/*", None),
        ("text/html,application/xhtml+xml,*/*;q=0.8", None),
        ("application/json", None),
        ("", None),
    ] {
        assert_eq!(Exposition::accepted(accept), format, "{accept}");
    }
}

#[test]
fn the_access_log_is_a_file_that_may_be_rotated() {
    use crate::config::{Access, AccessFormat, Logging};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let access = Some(Access { format: AccessFormat::Json, path: path.clone() });
    let telemetry = Telemetry::new(&Config { logging: Logging { access, ..Logging::default() }, ..Config::default() });
    let telemetry = telemetry.unwrap();
    let log = |request_id: &str| telemetry.access(|| AccessRecord { request_id: request_id.into(), ..record() });
    let wait = Duration::from_secs(20);
    log("first");
    log("second");
    assert!(telemetry.flush(wait));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);

    std::fs::rename(&path, dir.path().join("access.log.1")).unwrap();
    telemetry.reopen();
    log("third");
    assert!(telemetry.flush(wait));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"request_id\":\"third\"") && !text.contains("first"), "{text}");
}

#[test]
fn without_an_access_log_no_record_is_made() {
    Telemetry::default().access(|| unreachable!("nobody reads it"));
}
