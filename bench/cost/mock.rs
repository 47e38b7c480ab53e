//! A mock vLLM that answers at once, and streams at a given pace. It is cheap, so that the proxy is what is measured.

use memchr::memmem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

const ANSWER: &str = include_str!("../../tests/samples/vllm-0.32-chat.json");
const MODELS: &str = r#"{"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"vllm"}]}"#;
/// Metrics that tell a cache of 160 million tokens, so that no request has to wait.
const METRICS: &str = "# TYPE vllm:cache_config_info gauge\n\
    vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"10000000\"} 1.0\n\
    # TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"bench\"} 0.0\n\
    # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"bench\"} 0.0\n";
const EVENT: &str = r#"data: {"id":"chatcmpl-b16a8fe810b53f28","object":"chat.completion.chunk","created":1795367764,"model":"bench","choices":[{"index":0,"delta":{"content":" quiet"},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#;
const LAST: &str = r#"data: {"id":"chatcmpl-b16a8fe810b53f28","object":"chat.completion.chunk","created":1795367764,"model":"bench","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","token_ids":null}]}"#;
const USAGE: &str = r#"data: {"id":"chatcmpl-b16a8fe810b53f28","object":"chat.completion.chunk","created":1795367764,"model":"bench","choices":[],"usage":{"prompt_tokens":1229,"total_tokens":1429,"completion_tokens":200}}"#;

/// Size in bytes beyond which a body is taken for one that asks for no stream.
const STREAMED: usize = 64 * 1024;

/// Pace of a stream: the number of events in all, the number in one write, and the time from one write to the next.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub events: usize,
    pub burst: usize,
    pub gap: Duration,
}

pub struct Mock {
    pub address: SocketAddr,
    pace: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    events: AtomicUsize,
    burst: AtomicUsize,
    gap_us: AtomicUsize,
    streams: AtomicUsize,
}

// === impl Mock ===

impl Mock {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let pace = Arc::<Shared>::default();
        let shared = Arc::clone(&pace);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("a socket option");
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, pace }
    }

    pub fn set(&self, pace: Pace) {
        self.pace.events.store(pace.events, Relaxed);
        self.pace.burst.store(pace.burst, Relaxed);
        self.pace.gap_us.store(pace.gap.as_micros() as usize, Relaxed);
    }
}

/// Serves one connection until the proxy closes or breaks it.
async fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 16);
    loop {
        buffer.clear();
        let head = loop {
            if let Some(end) = memmem::find(&buffer, b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let length = length(&buffer[..head]);
        let mut here = buffer.len() - head;
        let streamed = length <= STREAMED;
        while here < length {
            if !streamed {
                buffer.truncate(head);
            }
            here += stream.read_buf(&mut buffer).await?;
        }
        let (line, body) = (&buffer[..head], &buffer[head..]);
        if streamed && memmem::find(body, b"\"stream\":true").is_some() {
            let usage = memmem::find(body, b"\"include_usage\":true").is_some();
            events(&mut stream, &shared, usage).await?;
        } else {
            let (kind, body) = match line {
                _ if line.starts_with(b"POST") => ("application/json", ANSWER),
                _ if line.starts_with(b"GET /metrics") => ("text/plain; version=0.0.4", METRICS),
                _ if line.starts_with(b"GET /v1/models") => ("application/json", MODELS),
                _ => ("application/json", "{}"),
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 20:16:04 GMT\r\nserver: uvicorn\r\ncontent-length: {}\r\n\
                 content-type: {kind}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

/// Sends a stream. The streams of one load start apart by parts of the gap, as those of several engines would.
async fn events(stream: &mut TcpStream, shared: &Shared, usage: bool) -> std::io::Result<()> {
    let (events, burst) = (shared.events.load(Relaxed), shared.burst.load(Relaxed));
    let gap = Duration::from_micros(shared.gap_us.load(Relaxed) as u64);
    let number = shared.streams.fetch_add(1, Relaxed) % 50;
    let mut next = Instant::now() + gap * number as u32 / 50;
    let head = "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 20:16:04 GMT\r\nserver: uvicorn\r\n\
                content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    // Each event is a chunk, as in uvicorn's answers.
    let chunk = |event: &str| format!("{:x}\r\n{event}\n\n\r\n", event.len() + 2);
    let write = chunk(EVENT).repeat(burst);
    for _ in 0..events / burst {
        sleep_until(next).await;
        next += gap;
        stream.write_all(write.as_bytes()).await?;
    }
    let mut end = chunk(LAST);
    if usage {
        end.push_str(&chunk(USAGE));
    }
    end.push_str(&chunk("data: [DONE]"));
    end.push_str("0\r\n\r\n");
    stream.write_all(end.as_bytes()).await
}

/// Length of the body by its head; 0 if the head has no length.
pub fn length(head: &[u8]) -> usize {
    let mut lines = head.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| {
        let (name, value) = line.split_at_checked("content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    value.and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok()).unwrap_or(0)
}
