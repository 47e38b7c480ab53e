//! Metrics of a backend that are wrong, late, or far too many.

use crate::support::backend::Backend;
use crate::support::process::Process;
use crate::support::proxy::{Proxy, config, config_of};
use crate::{Asked, STEP, STREAMED};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thundergate::config::Ranks;
use thundergate::units::Tokens;

/// Capacity in tokens of a scripted backend by its good metrics: 10,000 blocks, of which one never holds a token.
const CAPACITY: u64 = 16 * 9_999;

fn page(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn gauges(engine: u32, blocks: &str, value: &str) -> String {
    let of = format!("{{engine=\"{engine}\",model_name=\"tiny\"}}");
    let config =
        format!("vllm:cache_config_info{{block_size=\"16\",engine=\"{engine}\",num_gpu_blocks=\"{blocks}\"}} 1.0\n");
    let names = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total"];
    let more = ["generation_tokens_total", "request_success_total", "prefix_cache_hits_total"];
    let lines = names.into_iter().chain(more).map(|name| format!("vllm:{name}{of} {value}\n"));
    let source =
        format!("vllm:prompt_tokens_by_source_total{{engine=\"{engine}\",source=\"local_compute\"}} {value}\n");
    config + &lines.collect::<String>() + &source + &format!("process_start_time_seconds {value}\n")
}

#[tokio::test]
async fn whatever_metrics_say_a_backend_serves_and_its_ledger_holds() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    config.metrics.interval = Duration::from_millis(10);
    // The values of several engines are added up, and the backend stays a single one.
    config.models[0].ranks = Ranks::Off;
    let proxy = Proxy::with(config).await;
    let noise = crate::support::noise(100_000);
    let headed = |head: &str, body: &[u8]| [head.as_bytes(), b"\r\n\r\n", body].concat();
    let unending = headed("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", b"10\r\nvllm:num_requests\n\r\n");
    let pages: [(&str, Vec<u8>, u64); 21] = [
        ("noise", noise.clone(), CAPACITY),
        ("noise in a page", headed("HTTP/1.1 200 OK\r\ncontent-length: 100000", &noise), CAPACITY),
        ("nothing", page(""), CAPACITY),
        ("a page of another kind", page("<html>vllm:{{{"), CAPACITY),
        ("an error", b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n".to_vec(), CAPACITY),
        ("a redirect", b"HTTP/1.1 302 X\r\nlocation: /v1/models\r\ncontent-length: 0\r\n\r\n".to_vec(), CAPACITY),
        ("9 MB", page(&"vllm:x 1\n".repeat(1 << 20)), CAPACITY),
        ("less than its length", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nvllm".to_vec(), CAPACITY),
        ("NaN", page(&gauges(0, "10000", "NaN")), CAPACITY),
        ("infinity", page(&gauges(0, "10000", "+Inf")), CAPACITY),
        ("minus infinity", page(&gauges(0, "10000", "-Inf")), CAPACITY),
        ("negative", page(&gauges(0, "10000", "-5")), CAPACITY),
        ("next to nothing", page(&gauges(0, "10000", "1e-300")), CAPACITY),
        ("immense", page(&(gauges(0, "10000", "1e308") + &gauges(1, "10000", "-1e308"))), CAPACITY - 16),
        ("two engines", page(&(gauges(0, "10000", "0") + &gauges(1, "5000", "0.2"))), 16 * 7_500 - 32),
        ("one engine said twice", page(&gauges(0, "10000", "0.2").repeat(2)), CAPACITY),
        ("capacity 0", page(&gauges(0, "0", "0.2")), CAPACITY),
        ("capacity NaN", page(&gauges(0, "NaN", "0.2")), CAPACITY),
        (
            "capacity beyond all",
            page(&(gauges(0, "9e15", "0.2") + &gauges(1, "9e15", "0.2"))),
            16 * 9_000_000_000_000_000 - 32,
        ),
        ("a page that never comes", Vec::new(), CAPACITY),
        ("a page that never ends", unending, CAPACITY),
    ];
    let capacity = || proxy.app.fleet.statuses()[0].gauges.as_ref().map_or(0, |gauges| gauges.capacity_tokens);
    let state = Arc::clone(&backend.state);
    let scraped = async |times: usize| {
        let before = state.scrapes.load(Ordering::Relaxed);
        proxy.wait_for("scrapes", || state.scrapes.load(Ordering::Relaxed) >= before + times).await;
    };
    for (what, wrong, expected) in pages {
        // A page that takes long is read only once.
        let times = if what.starts_with("a page that never") || what == "9 MB" { 1 } else { 3 };
        *state.metrics.lock() = Some(wrong.into());
        scraped(times).await;
        if times > 1 {
            assert_eq!(capacity(), expected, "{what}");
        }
        let (_, load) = &proxy.app.gate.loads()[0];
        let claimable = load.effective_capacity.expect("known since the first page");
        assert!(claimable > Tokens(1000), "{what}: {load:?}");
        assert!(proxy.app.fleet.statuses()[0].healthy, "{what}");
        told(&proxy, what).await;
        served(&proxy, &mut backend).await;
        proxy.balanced().await;
        *state.metrics.lock() = None;
        proxy.wait_for("the true capacity", || capacity() == CAPACITY).await;
    }
    proxy.unharmed(&mut backend).await;
}

/// Checks that the pages for operators can be read and that no number on them is absurd.
async fn told(proxy: &Proxy, what: &str) {
    let mut client = proxy.client().await;
    for path in ["/health", "/backends", "/programs", "/metrics"] {
        client.get(path).await;
        let response = client.response().await;
        assert_eq!(response.status(), 200, "{what}: {path}");
        response.json();
    }
    for line in proxy.page().await.lines().filter(|line| line.starts_with("thundergate_backend_")) {
        let value: f64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number");
        assert!(value.is_finite() && value >= 0.0, "{what}: {line}");
    }
}

async fn served(proxy: &Proxy, backend: &mut Backend) {
    let asked = Asked::of(proxy, false, STEP).await;
    backend.next().await.json(200, "{}").await;
    assert_eq!(asked.got().await.status, 200);
}

#[tokio::test]
async fn a_usage_that_cannot_be_is_not_believed() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for count in ["18446744073709551615", "9007199254740993", "1e300", "-5", "\"many\"", "null", "[]"] {
        for stream in [false, true] {
            let usage = format!(r#"{{"choices":[],"usage":{{"prompt_tokens":{count},"completion_tokens":{count}}}}}"#);
            let asked = Asked::of(&proxy, false, if stream { STREAMED } else { STEP }).await;
            let exchange = backend.next().await;
            if stream {
                let mut answer = exchange.events().await;
                answer.event(&usage).await;
                answer.event("[DONE]").await;
                answer.finish().await;
            } else {
                exchange.json(200, &usage).await;
            }
            assert!(asked.got().await.complete);
            proxy.settled().await;
            let (_, program) = &proxy.app.gate.programs()[0];
            assert!(program.context < Tokens(100_000), "{count} {stream}: {program:?}");
            // Another program has a step beside it.
            let next = r#"{"model":"tiny","program_id":"p2","messages":[]}"#;
            let asked = Asked::of(&proxy, false, next.as_bytes()).await;
            proxy.app.gate.check().expect("a sound ledger");
            backend.next().await.json(200, "{}").await;
            assert_eq!(asked.got().await.status, 200);
            proxy.balanced().await;
        }
    }
    proxy.unharmed(&mut backend).await;
}

/// A step of some `tokens` tokens that goes on for `output` tokens.
fn long_step(program: usize, tokens: usize, output: usize) -> Vec<u8> {
    let messages = json!([{"role": "user", "content": "word ".repeat(tokens)}]);
    let id = format!("p{program}");
    let body =
        json!({"model": "sim", "program_id": id, "max_tokens": output, "ignore_eos": true, "messages": messages});
    body.to_string().into_bytes()
}

#[tokio::test]
async fn an_engine_that_comes_back_with_half_its_cache_gets_as_many_programs_as_fit_now() {
    let place = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let engine = |blocks: &str| {
        let port = place.port().to_string();
        let args = ["engine", "--host", "127.0.0.1", "--port", &port, "--decode-ms", "2", "--kv-blocks", blocks];
        Process::start(&args)
    };
    let mut config = config_of([format!("http://{place}")]);
    config.metrics.interval = Duration::from_millis(20);
    config.scheduler.no_backend_wait = Duration::from_secs(30);
    config.scheduler.tick = Duration::from_millis(50);
    let mut first = engine("401");
    let proxy = Proxy::with(config).await;
    let capacity = || proxy.app.gate.loads()[0].1.effective_capacity.map_or(0, |tokens| tokens.0);
    proxy.wait_for("the capacity", || (5_000..=6_400).contains(&capacity())).await;
    // There are sixteen programs. First about five of them fit at once, later about two: some are held all the time.
    let mut asked = Vec::new();
    for program in 0..16 {
        asked.push(Asked::of(&proxy, false, &long_step(program, 1_000, 4_000)).await);
    }
    let gate = &proxy.app.gate;
    proxy
        .wait_for("steps in flight and held", || gate.open_steps() == 16 && (8..16).contains(&gate.held_steps()))
        .await;
    let held = gate.held_steps();
    first.signal(rustix::process::Signal::KILL);
    first.ended().await;
    let _second = engine("201");
    proxy.wait_for("the new capacity", || (2_000..=3_200).contains(&capacity())).await;
    gate.check().expect("a sound ledger");
    proxy.wait_for("no more than fit", || gate.open_steps() <= held && (1..held).contains(&gate.held_steps())).await;
    drop(asked);
    // Every program is served in the end.
    let mut asked = Vec::new();
    for program in 0..16 {
        asked.push(Asked::of(&proxy, false, &long_step(program, 1_000, 5)).await);
    }
    for asked in asked {
        let got = asked.got().await;
        assert_eq!(got.status, 200, "{}", got.body);
        gate.check().expect("a sound ledger");
    }
    proxy.balanced().await;
}

#[tokio::test]
async fn a_name_that_leads_nowhere_keeps_nobody_from_the_others() {
    let mut backend = Backend::start().await;
    let config = config_of([backend.url(), "http://no-such-host.invalid:8000".to_owned()]);
    let proxy = Proxy::unready(config);
    let reason = || proxy.app.fleet.statuses().iter().find_map(|status| status.down_reason.clone());
    proxy.wait_for("a reason", || reason().is_some_and(|reason| reason.contains("does not resolve"))).await;
    proxy.wait_for("the other", || proxy.app.fleet.statuses().iter().any(|status| status.healthy)).await;
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn a_step_too_large_for_any_backend_is_sent_alone_and_the_backend_says_so_itself() {
    let mut backend = Backend::start().await;
    backend.state.blocks.store(100, Ordering::Relaxed);
    let proxy = Proxy::start(&[&backend]).await;
    let giant = Asked::of(&proxy, false, &long_step(0, 10_000, 5)).await;
    let exchange = backend.next().await;
    let small = Asked::of(&proxy, false, &long_step(1, 10, 5)).await;
    proxy.wait_for("the small one to be held", || proxy.app.gate.held_steps() == 1).await;
    let error = r#"{"error":{"message":"maximum context length is 1584 tokens"}}"#;
    exchange.json(400, error).await;
    let got = giant.got().await;
    assert_eq!((got.status, got.body.as_str(), got.error.as_str()), (400, error, ""));
    backend.next().await.json(200, "{}").await;
    assert_eq!(small.got().await.status, 200);
    proxy.unharmed(&mut backend).await;
}
