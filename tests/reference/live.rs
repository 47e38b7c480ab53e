//! Output of a running proxy: its metrics, its access log, its events, its step profiles.

use super::page::{by_name, codes, rows, same, section};
use super::support::backend::Backend;
use super::support::client::Client;
use super::support::proxy::{Proxy, config};
use super::support::within;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use thundergate::config::{Access, Profile};

const CHAT: &str = "/v1/chat/completions";
const METRICS: &str = include_str!("../samples/vllm-0.32-metrics.txt");
const ANSWER: &str = r#"{"usage":{"prompt_tokens":20,"completion_tokens":2}}"#;

/// A metric as the exposition has it: its type, and its labels with their values.
#[derive(Default)]
struct Metric {
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// A proxy with steps that are answered, held and refused, that fail and that end, so that every metric has a series.
async fn busy() -> (Proxy, Backend, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut backend = Backend::start().await;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{METRICS}", METRICS.len());
    *backend.state.metrics.lock() = Some(answer.into());
    let mut config = config(&[&backend]);
    config.logging.access = Some(Access { path: dir.path().join("access.log"), ..Access::default() });
    config.profile = Some(Profile { dir: dir.path().to_owned() });
    let proxy = Proxy::with(config).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", br#"{"model":"tiny","program_id":"p"}"#).await;
    backend.next().await.json(200, ANSWER).await;
    client.response().await;
    client.post(CHAT, "", br#"{"model":"tiny","program_id":"q"}"#).await;
    backend.next().await.json(500, "{}").await;
    client.response().await;
    (proxy, backend, dir)
}

fn metrics(page: &str) -> BTreeMap<String, Metric> {
    let mut found = BTreeMap::<String, Metric>::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            // OpenMetrics names the family of a counter without the suffix.
            let suffix = if kind == "counter" && !name.ends_with("_total") { "_total" } else { "" };
            found.insert(format!("{name}{suffix}"), Metric { kind: kind.to_owned(), ..Metric::default() });
        } else if !line.starts_with('#') && !line.is_empty() {
            let end = line.find(['{', ' ']).expect("a sample");
            let suffixes = ["", "_bucket", "_sum", "_count"];
            let family = suffixes
                .iter()
                .find_map(|suffix| line[..end].strip_suffix(suffix).filter(|name| found.contains_key(*name)));
            let metric = found.get_mut(family.unwrap_or_else(|| panic!("{line} is of no family"))).expect("found");
            let labels =
                line[end..].strip_prefix('{').and_then(|rest| rest.rsplit_once('}')).map_or("", |(labels, _)| labels);
            for (name, value) in
                labels.split("\",").filter_map(|label| label.split_once("=\"")).filter(|(name, _)| *name != "le")
            {
                metric.labels.entry(name.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
            }
        }
    }
    found
}

#[tokio::test]
async fn every_metric_is_on_the_page_with_its_type_its_labels_and_their_values() {
    let (proxy, backend, _dir) = busy().await;
    backend.state.healthy.store(false, std::sync::atomic::Ordering::Relaxed);
    proxy.wait_for("a backend that is down", || !proxy.app.fleet.statuses()[0].healthy).await;
    let found = metrics(&proxy.page().await);
    let page = by_name(rows(section("## Metrics"), "name"));
    same("metrics", found.keys(), page.keys());
    for (name, metric) in &found {
        let row = &page[name];
        assert_eq!(row[1], metric.kind, "{name}");
        let labels = codes(&row[2]).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(labels, metric.labels.keys().cloned().collect(), "{name}");
        let ours = metric
            .labels
            .iter()
            .filter(|(label, _)| !["backend", "model", "code", "source", "version"].contains(&label.as_str()));
        for value in ours.flat_map(|(_, values)| values) {
            assert!(codes(&row[4]).contains(value), "{name}: {value}");
        }
    }
}

#[tokio::test]
async fn every_field_of_the_access_log_and_every_column_of_the_profiles_is_on_the_page() {
    let (proxy, _backend, dir) = busy().await;
    proxy.settled().await;
    let first_line = |file: &Path| std::fs::read_to_string(file).unwrap_or_default().lines().next().map(str::to_owned);
    let (log, profiles) = (dir.path().join("access.log"), dir.path().join("step_profiles.csv"));
    proxy.wait_for("a line in each file", || first_line(&log).is_some() && first_line(&profiles).is_some()).await;
    let record: Value = serde_json::from_str(&first_line(&log).expect("a line")).expect("JSON");
    let fields: Vec<String> = record.as_object().expect("an object").keys().cloned().collect();
    same("fields of the access log", &fields, by_name(rows(section("## Access log"), "field")).keys());
    let columns: Vec<String> = first_line(&profiles).expect("a header").split(',').map(str::to_owned).collect();
    same("columns of step_profiles.csv", &columns, by_name(rows(section("## Step profiles"), "column")).keys());
}

#[tokio::test]
async fn events_have_the_fields_that_the_page_says() {
    let mut backend = Backend::start().await;
    // There is room for one program of a thousand tokens.
    backend.state.blocks.store(100, std::sync::atomic::Ordering::Relaxed);
    let proxy = Proxy::start(&[&backend]).await;
    let mut events = proxy.app.gate.events();
    let step =
        |program: &str| format!(r#"{{"model":"tiny","program_id":"{program}","prompt":"{}"}}"#, "x".repeat(4_000));
    let mut first = proxy.client().await;
    first.post("/v1/completions", "", step("one").as_bytes()).await;
    let running = backend.next().await;
    let mut second = proxy.client().await;
    second.post("/v1/completions", "", step("two").as_bytes()).await;
    proxy.wait_for("a held step", || proxy.app.gate.held_steps() == 1).await;
    release(&proxy, "two").await;
    assert_eq!(second.response().await.status(), 409);
    running.json(500, "{}").await;
    first.response().await;
    proxy.settled().await;
    let page = by_name(rows(section("## Events"), "event"));
    let mut seen = BTreeSet::new();
    while !seen.is_superset(&BTreeSet::from(["dispatch", "hold", "refuse", "end"].map(str::to_owned))) {
        let event = within("an event", events.recv()).await.expect("the gate is there");
        let event: Value = serde_json::from_str(&event).expect("JSON");
        let kind = event["event"].as_str().expect("a kind").to_owned();
        let fields = event
            .as_object()
            .expect("an object")
            .keys()
            .filter(|key| !["event", "time", "pool"].contains(&key.as_str()));
        let mut expected = codes(&page.get(&kind).unwrap_or_else(|| panic!("{kind} is not on the page"))[1]);
        expected.retain(|field| field != "tenant");
        assert_eq!(fields.cloned().collect::<BTreeSet<_>>(), expected.into_iter().collect(), "{kind}");
        seen.insert(kind);
    }
}

async fn release(proxy: &Proxy, program: &str) {
    let mut client: Client = proxy.client().await;
    client.post("/programs/release", "", format!(r#"{{"program_id":"{program}"}}"#).as_bytes()).await;
    assert_eq!(client.response().await.status(), 200);
}
