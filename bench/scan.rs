//! The time that the proxy's own code spends on the bytes of a request: reading its body, watching its answer, writing
//! its log line.
//!
//! `cargo bench --bench scan` prints criterion's figures, compared with those of the last run. Nothing here fails a
//! build.

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use thundergate::body::envelope::{AskUsage, Edits, Envelope};
use thundergate::config::{Access, AccessFormat, Config};
use thundergate::identity::Sources;
use thundergate::identity::fingerprint::Conversation;
use thundergate::proxy::observe::Observer;
use thundergate::scheduler::Usage;
use thundergate::telemetry::{AccessRecord, Telemetry};
use thundergate::units::Tokens;

const ANSWER: &str = include_str!("../tests/samples/vllm-0.32-chat.json");
const STREAM: &str = include_str!("../tests/samples/vllm-0.32-chat-stream.txt");

const SIZES: [(&str, usize); 3] = [("2 kB", 2_000), ("100 kB", 100_000), ("1 MB", 1_000_000)];
const DEPTH: usize = 128;
/// Number of lines that the queue of the log is sure to take.
const LINES: u64 = 2000;

/// Text as in the messages of a body, by the way in which the text is written in JSON.
const TEXTS: [(&str, &str); 4] = [
    ("plain", "The form takes its value from the widget, and it is cleaned before it is shown; "),
    (
        "code",
        r#"    def clean(self, value):\n        \"\"\"Its \"cleaned\" value.\"\"\"\n\tif value is None:\n        "#,
    ),
    ("utf-8", "字段从控件取值，显示前先清理。"),
    ("ascii only", r"\u5b57\u6bb5\u4ece\u63a7\u4ef6\u53d6\u503c\uff0c\u663e\u793a\u524d\u5148\u6e05\u7406\u3002"),
];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    for (text, words) in TEXTS {
        let mut group = criterion.benchmark_group(format!("body of {text}"));
        for (size, bytes) in SIZES {
            body(&mut group, size, &Bytes::from(request(words, bytes)));
        }
    }
    answers(&mut criterion.benchmark_group("answer"));
    criterion.bench_function("log line", |bencher| bencher.iter_custom(log));
    criterion.final_summary();
}

fn request(words: &str, bytes: usize) -> String {
    let content = words.repeat(1 + 600 / words.len());
    let turn = format!(r#",{{"role":"assistant","content":"Go on."}},{{"role":"user","content":"{content}"}}"#);
    let turns = turn.repeat(bytes / turn.len());
    format!(
        r#"{{"model":"m","stream":true,"max_tokens":1024,"temperature":0.0,"messages":[{{"role":"system","content":"{words}"}}{turns}],"program_id":"agent-17"}}"#
    )
}

fn body(group: &mut BenchmarkGroup<'_, WallTime>, size: &str, body: &Bytes) {
    let scan = |body: Bytes| Envelope::scan(body, DEPTH).expect("valid");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function(format!("{size}, scan"), |bencher| bencher.iter(|| scan(body.clone())));
    let (sources, tenant, headers) = (Sources::default(), Arc::from(""), http::HeaderMap::new());
    let envelope = scan(body.clone());
    group.bench_function(format!("{size}, questions"), |bencher| {
        bencher.iter(|| {
            let _ = black_box(sources.find(&headers, &envelope, &tenant));
            black_box((envelope.model(), envelope.class(), envelope.prompt_bytes(), envelope.max_output()));
        });
    });
    group.bench_function(format!("{size}, conversation"), |bencher| {
        bencher.iter(|| Conversation::of(&envelope, 1));
    });
    let edits = Edits { model: None, usage: AskUsage::Vllm };
    group.bench_function(format!("{size}, forward"), |bencher| {
        let own = || scan(Bytes::from(body.to_vec()));
        bencher.iter_batched(own, |envelope| envelope.forward(&edits), BatchSize::LargeInput);
    });
}

fn answers(group: &mut BenchmarkGroup<'_, WallTime>) {
    let long = ANSWER.replace("quiet;", &TEXTS[1].1.repeat(40));
    for (name, answer) in [("JSON", Bytes::from(ANSWER)), ("JSON of 20 kB", Bytes::from(long))] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut observer = Observer::json();
                black_box(observer.feed(answer.clone()));
                observer.usage()
            });
        });
    }
    let event = STREAM.split_inclusive("\n\n").nth(1).unwrap_or_default();
    for (name, count) in [("event", 1), ("burst of 32 events", 32)] {
        let burst = Bytes::from(event.repeat(count));
        for strip in [false, true] {
            let mut observer = Observer::sse(strip);
            let name = if strip { format!("{name}, usage to be taken out") } else { name.to_owned() };
            group.bench_function(name, |bencher| bencher.iter(|| observer.feed(burst.clone())));
        }
    }
    let stream = Bytes::from(STREAM);
    group.bench_function("stream in one piece", |bencher| {
        bencher.iter(|| Observer::sse(true).feed(stream.clone()));
    });
}

/// Time for `lines` lines, from the end of the request until they are written.
fn log(lines: u64) -> Duration {
    let mut config = Config::default();
    config.logging.access = Some(Access { path: "/dev/null".into(), format: AccessFormat::Json });
    let telemetry = Telemetry::new(&config).expect("a thread");
    let mut spent = Duration::ZERO;
    for from in (0..lines).step_by(LINES as usize) {
        let begun = Instant::now();
        for _ in from..lines.min(from + LINES) {
            telemetry.access(record);
        }
        telemetry.flush(Duration::from_secs(1));
        spent += begun.elapsed();
    }
    spent
}

fn record() -> AccessRecord {
    AccessRecord {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_770_532_800_123),
        request_id: "01hk153x00-7f3a".into(),
        client: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 55_555))),
        method: http::Method::POST,
        path: "/v1/chat/completions".into(),
        status: 200,
        model: Some("glm".into()),
        program: Some("agent-1".into()),
        backend: Some("http://gpu1:8000".into()),
        held: Duration::from_millis(1500),
        ttft: Some(Duration::from_millis(1700)),
        duration: Duration::from_millis(4200),
        usage: Some(Usage { prompt: Tokens(1200), completion: Tokens(300), cached: Some(Tokens(960)) }),
        bytes_in: 2000,
        bytes_out: 900,
        error: None,
    }
}
