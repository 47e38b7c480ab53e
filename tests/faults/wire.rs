//! Backends that speak HTTP badly, oddly, or not at all.

use crate::support::backend::{Backend, Ending};
use crate::support::client::Client;
use crate::support::process::Process;
use crate::support::proxy::{Proxy, config};
use crate::support::within;
use crate::{Asked, CHAT, SOON, STEP, STREAM, STREAMED, WHOLE};
use std::sync::atomic::Ordering;

const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
const CHUNKED: &str = "transfer-encoding: chunked\r\n\r\n";

/// The stream without the usage that only the proxy asked for: the stream as the client would get it without the proxy.
fn without_usage() -> String {
    let events = STREAM.split_inclusive("\n\n").filter(|event| !event.contains(r#""choices":[],"usage""#));
    let fingerprint = ",\"system_fingerprint\":\"vllm-0.32.0-f3ed83a6\"}\n\ndata: [DONE]";
    events.collect::<String>().replace("}\n\ndata: [DONE]", fingerprint)
}

#[tokio::test]
async fn what_is_no_answer_costs_a_502_and_nothing_else() {
    let mut backend = Backend::start().await;
    let mut config = config(&[&backend]);
    (config.timeouts.first_byte, config.timeouts.stream_idle) = (SOON, SOON);
    let proxy = Proxy::with(config).await;
    let noise = crate::support::noise(4096);
    let head = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}\r\n\r\n").into_bytes();
    let answers: [&[u8]; 10] = [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x03\x00\x02\x02\x16",
        &noise,
        b"HTTP/1.1 99999 Much\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: mud\r\n\r\n",
        &head("no colon"),
        &head("content-length: -1"),
        &head("content-length: 5\r\ncontent-length: 7"),
        &head("content-length: 99999999999999999999"),
        &head(&format!("x-long: {}", "x".repeat(2 << 20))),
    ];
    for answer in answers {
        for http2 in [false, true] {
            let what = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
            let asked = Asked::of(&proxy, http2, STEP).await;
            let mut exchange = backend.next().await;
            exchange.raw(answer).await;
            let closed = exchange.end(Ending::Silence).await;
            let got = asked.got().await;
            assert_eq!((got.status, got.error.as_str()), (502, "upstream_failed"), "{what} HTTP/2: {http2}");
            closed.await.expect("no panic");
            proxy.balanced().await;
        }
    }
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn chunks_that_are_none_break_an_answer_off() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for size in ["", "zz", "-1", "ffffffffffffffffff", "5\r\nabcdefgh"] {
        for http2 in [false, true] {
            let asked = Asked::of(&proxy, http2, STREAMED).await;
            let mut exchange = backend.next().await;
            exchange.raw(format!("{EVENTS}{CHUNKED}{size}\r\n").as_bytes()).await;
            let closed = exchange.end(Ending::Silence).await;
            let got = asked.got().await;
            assert!(got.body.contains("upstream_failed") && got.complete == http2, "{size} {http2}: {}", got.body);
            closed.await.expect("no panic");
            proxy.balanced().await;
        }
    }
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn odd_answers_that_are_whole_reach_the_client_whole() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let json = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", WHOLE.len());
    let large: String = (0..100).map(|n| format!("x-{n}: {}\r\n", "x".repeat(1000))).collect();
    let answers = [
        ("no length, no chunks", STEP, format!("HTTP/1.1 200 OK\r\n\r\n{WHOLE}"), WHOLE.to_owned()),
        ("a stream without chunks", STREAMED, format!("{EVENTS}\r\n{STREAM}"), without_usage()),
        (
            "a stream with a length",
            STREAMED,
            format!("{EVENTS}content-length: {}\r\n\r\n{STREAM}", STREAM.len()),
            without_usage(),
        ),
        ("HTTP/1.0", STEP, format!("HTTP/1.0 200 OK\r\n\r\n{WHOLE}"), WHOLE.to_owned()),
        ("a head of 100 kB", STEP, format!("{json}{large}\r\n{WHOLE}"), WHOLE.to_owned()),
        (
            "behind hints",
            STEP,
            format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{json}\r\n{WHOLE}"),
            WHOLE.to_owned(),
        ),
        // The bytes behind the end belong to no answer.
        (
            "longer than its length",
            STEP,
            format!("{json}\r\n{WHOLE}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"),
            WHOLE.to_owned(),
        ),
    ];
    for (what, body, answer, expected) in answers {
        for http2 in [false, true] {
            let asked = Asked::of(&proxy, http2, body).await;
            let mut exchange = backend.next().await;
            exchange.raw(answer.as_bytes()).await;
            let closed = exchange.end(Ending::HalfClose).await;
            let got = asked.got().await;
            assert!(got.status == 200 && got.complete, "{what}, HTTP/2: {http2}: {}", got.status);
            assert_eq!(got.body, expected, "{what}, HTTP/2: {http2}");
            closed.await.expect("no panic");
            proxy.unharmed(&mut backend).await;
        }
    }
}

#[tokio::test]
async fn an_answer_longer_than_its_length_is_not_taken_for_the_next_one() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    client.post(CHAT, "", STEP).await;
    let mut exchange = backend.next().await;
    exchange
        .raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen")
        .await;
    assert_eq!(client.response().await.text(), "{}");
    // The connection to the client stays.
    proxy.unharmed(&mut backend).await;
    exchange.abandoned().await;
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_was_read_reaches_the_client() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    backend.state.early.store(true, Ordering::Relaxed);
    // The body is larger than all buffers together.
    let body = format!(r#"{{"model":"tiny","prompt":"{}"}}"#, "x".repeat(40 << 20));
    let error = r#"{"error":{"message":"too long"}}"#;
    let cases = [Ending::Close, Ending::HalfClose, Ending::Silence].map(|ending| [(false, ending), (true, ending)]);
    for (http2, ending) in cases.into_iter().flatten() {
        let asked = Asked::of(&proxy, http2, body.as_bytes()).await;
        let mut exchange = backend.next().await;
        let head = format!("HTTP/1.1 400 Bad\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", error.len());
        exchange.raw(format!("{head}{error}").as_bytes()).await;
        let closed = exchange.end(ending).await;
        let got = asked.got().await;
        assert_eq!((got.status, got.body.as_str(), got.complete), (400, error, true), "{ending:?}, HTTP/2: {http2}");
        closed.await.expect("no panic");
        proxy.balanced().await;
    }
    backend.state.early.store(false, Ordering::Relaxed);
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn a_stream_in_chunks_of_one_byte_is_the_same_stream() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    for http2 in [false, true] {
        let asked = Asked::of(&proxy, http2, STREAMED).await;
        let mut answer = backend.next().await.events().await;
        let send = async {
            for byte in STREAM.as_bytes() {
                answer.send(&[*byte]).await;
            }
            answer.finish().await;
        };
        let (got, ()) = tokio::join!(asked.got(), send);
        assert_eq!(got.body, without_usage());
        assert!(got.complete);
        proxy.settled().await;
        assert_eq!(proxy.app.gate.programs()[0].1.context.0, 1241, "the usage was seen");
        proxy.unharmed(&mut backend).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_event_of_20_mb_in_one_line_passes_without_being_kept_and_the_usage_behind_it_is_seen() {
    const PIECES: usize = 320;
    let piece = |n: usize| format!("{n:08}{}", "x".repeat((64 << 10) - 8));
    let mut backend = Backend::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("thundergate.yaml");
    let yaml = format!("listen: 127.0.0.1:0\nbackends: [{}]\n", backend.url());
    std::fs::write(&file, yaml).expect("writable");
    let proxy = Process::serve(&file, &[]);
    let address = proxy.ready().await;
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak").to_owned();
        peak.trim().trim_end_matches(" kB").parse::<usize>().expect("a number")
    };
    let before = peak();
    let mut client = Client::connect(address).await;
    client.post(CHAT, "", STREAMED).await;
    let mut answer = backend.next().await.events().await;
    let sending = tokio::spawn(async move {
        answer.send(b"data: {\"choices\":[{\"text\":\"").await;
        for n in 0..PIECES {
            answer.send(piece(n).as_bytes()).await;
        }
        answer.send(b"\"}]}\n\n").await;
        answer.event(r#"{"choices":[],"usage":{"prompt_tokens":7000,"completion_tokens":12}}"#).await;
        answer.event("[DONE]").await;
        answer.finish().await;
    });
    let response = client.response().await;
    sending.await.expect("no panic");
    let long: String = (0..PIECES).map(piece).collect();
    let expected = format!("data: {{\"choices\":[{{\"text\":\"{long}\"}}]}}\n\ndata: [DONE]\n\n");
    assert!(response.complete && response.text() == expected, "{} of {} bytes", response.body.len(), expected.len());
    let grown = peak() - before;
    assert!(grown < 10 << 10, "{grown} kB more");
    within("the usage in the metrics", async {
        loop {
            client.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: text/plain\r\n\r\n").await;
            let page = client.response().await;
            if page.text().contains("\nthundergate_prompt_tokens_total{model=\"default\"} 7000\n") {
                return;
            }
        }
    })
    .await;
}
