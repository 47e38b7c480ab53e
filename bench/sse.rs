//! Many streams at the same time. Each client must see exactly the bytes that the backend wrote for it, in order. The
//! usage event is left out if the client did not ask for it.

use crate::caller::{Caller, Wire, body};
use crate::gate::Gate;
use crate::held::{HELD, reply};
use crate::numbers::{Durations, Report};
use crate::support::backend::{Backend, Exchange};
use bytes::BytesMut;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub streams: usize,
    /// Number of events of each stream.
    pub events: usize,
    pub gap: Duration,
}

/// Time when each event of each stream was written, in nanoseconds after `start`.
struct Clock {
    start: Instant,
    written: Vec<Vec<AtomicU64>>,
}

/// Counts of one client's observations.
#[derive(Default)]
struct Seen {
    events: usize,
    lost: usize,
    reordered: usize,
    /// Number of events that no backend wrote in this form, and of those behind the last one.
    garbled: usize,
    latency: Durations,
}

/// Reader of one stream's events, which compares them with those that were written.
struct Reader {
    stream: usize,
    usage: bool,
    total: usize,
    pending: BytesMut,
    seen: Seen,
}

const NUMBER: &str = "x-bench-stream";

/// Runs the same load without the proxy, for comparison.
pub async fn direct(report: &mut Report, load: Load) {
    report.title(&format!("{} streams, straight to the backend", load.streams));
    let mut backend = Backend::start().await;
    let address = backend.address;
    let clock = Arc::new(Clock::new(load));
    let server = tokio::spawn({
        let clock = Arc::clone(&clock);
        async move { serve(&mut backend, &clock, load).await }
    });
    let seen = all(address, Wire::H1, load, &clock).await;
    tell(report, load, seen);
    server.abort();
}

pub async fn through(report: &mut Report, binary: &Path, load: Load, wire: Wire) {
    report.title(&format!("{} streams, {} ms a token, {}", load.streams, load.gap.as_millis(), wire.label()));
    let mut backend = Backend::start().await;
    backend.state.blocks.store(10_000_000, Ordering::Relaxed);
    let gate = Gate::start(binary, &backend).await;
    warm_up(&mut backend, &gate).await;
    let clock = Arc::new(Clock::new(load));
    let server = tokio::spawn({
        let clock = Arc::clone(&clock);
        async move { serve(&mut backend, &clock, load).await }
    });
    let (rest, cpu) = (gate.resident(), gate.cpu());
    let half = load.gap * load.events as u32 / 2;
    let run = all(gate.address, wire, load, &clock);
    let middle = async {
        tokio::time::sleep(half).await;
        (gate.resident(), gate.gauge(HELD).await)
    };
    let (seen, (resident, held)) = tokio::join!(run, middle);
    report.check(held == 0.0, format!("{held} streams were held"));
    let cpu = gate.cpu() - cpu;
    let events = tell(report, load, seen);
    report.line("CPU of the proxy for each event", format!("{:.1} µs", cpu.as_secs_f64() * 1e6 / events as f64));
    report.line("CPU of the proxy, in all", format!("{:.2} s", cpu.as_secs_f64()));
    report.line("resident memory at rest", format!("{} kB", rest / 1000));
    let each = (resident - rest) / load.streams as i64;
    report.line("resident memory for each open stream", format!("{:.1} kB", each as f64 / 1e3));
    gate.until("thundergate_inflight_requests", 0.0).await;
    let idle = gate.programs().await;
    report.check(idle == 0, format!("{idle} programs are left after their last step"));
    server.abort();
    gate.stop().await;
}

/// Runs a few programs from start to end. Before a scheduler has seen how large programs become, it admits few at the
/// same time.
async fn warm_up(backend: &mut Backend, gate: &Gate) {
    let caller = Caller::new(gate.address, Wire::H1, 1).await;
    for n in 0..20 {
        let program = format!("warm-{n}");
        let headers = [("x-program-id", program.as_str()), ("x-program-final", "true")];
        let pending = caller.post(n, &headers, body(2_000, false, false)).await;
        reply(backend.next().await).await;
        pending.answer().await.1.rest().await;
    }
}

/// Runs all clients to the end of their streams.
async fn all(address: SocketAddr, wire: Wire, load: Load, clock: &Arc<Clock>) -> Vec<Option<Seen>> {
    let caller = Arc::new(Caller::new(address, wire, load.streams).await);
    let mut clients = JoinSet::new();
    // The streams start one after another, as the steps of programs do.
    let mut next = tokio::time::interval(Duration::from_millis(1));
    for stream in 0..load.streams {
        next.tick().await;
        clients.spawn(client(Arc::clone(&caller), stream, load, Arc::clone(clock)));
    }
    let mut all = Vec::new();
    while let Some(seen) = clients.join_next().await {
        all.push(seen.ok());
    }
    all
}

async fn client(caller: Arc<Caller>, stream: usize, load: Load, clock: Arc<Clock>) -> Seen {
    let usage = stream.is_multiple_of(2);
    let number = stream.to_string();
    let program = format!("program-{stream}");
    let headers = [(NUMBER, number.as_str()), ("x-program-id", program.as_str()), ("x-program-final", "true")];
    let pending = caller.post(stream, &headers, body(2_000, true, usage)).await;
    let (status, mut answer) = pending.answer().await;
    assert_eq!(status, 200);
    let mut reader = Reader::new(stream, usage, load.events);
    while let Some(piece) = answer.piece().await {
        reader.feed(&piece, &clock);
    }
    reader.finish(answer.complete())
}

async fn serve(backend: &mut Backend, clock: &Arc<Clock>, load: Load) {
    while let Some(exchange) = backend.recv().await {
        tokio::spawn(answer(exchange, Arc::clone(clock), load));
    }
}

async fn answer(exchange: Exchange, clock: Arc<Clock>, load: Load) {
    let stream: usize = exchange.request.header(NUMBER).and_then(|n| n.parse().ok()).expect("a numbered stream");
    let usage = exchange.request.text().contains("include_usage");
    let mut answer = exchange.events().await;
    let mut next = tokio::time::interval(load.gap);
    for n in 0..load.events {
        next.tick().await;
        let event = event(stream, n);
        clock.wrote(stream, n);
        answer.send(event.as_bytes()).await;
    }
    if usage {
        answer.send(usage_event(stream, load.events).as_bytes()).await;
    }
    answer.send(DONE.as_bytes()).await;
    answer.finish().await;
}

/// Prints the counts of the clients. Returns the number of events.
fn tell(report: &mut Report, load: Load, all: Vec<Option<Seen>>) -> usize {
    let failed = all.iter().filter(|seen| seen.is_none()).count();
    let mut sum = Seen::default();
    for seen in all.into_iter().flatten() {
        sum.events += seen.events;
        sum.lost += seen.lost;
        sum.reordered += seen.reordered;
        sum.garbled += seen.garbled;
        sum.latency.extend(seen.latency);
    }
    let expected = load.streams * load.events;
    report.line("events", format!("{} of {expected}", sum.events));
    report.line("lost, reordered, changed", format!("{}, {}, {}", sum.lost, sum.reordered, sum.garbled));
    report.line("from backend to client", sum.latency.summary());
    report.check(failed == 0, format!("{failed} streams broke"));
    report.check(sum.events == expected, format!("{} events of {expected}", sum.events));
    let wrong = sum.lost + sum.reordered + sum.garbled;
    report.check(wrong == 0, format!("{wrong} events lost, reordered or changed"));
    sum.events.max(1)
}

const DONE: &str = "data: [DONE]\n\n";

fn event(stream: usize, n: usize) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-{stream:016x}\",\"object\":\"chat.completion.chunk\",\"created\":1795367764,\
         \"model\":\"bench\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" {n}\"}},\"logprobs\":null,\
         \"finish_reason\":null,\"token_ids\":null}}]}}\n\n"
    )
}

fn usage_event(stream: usize, events: usize) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-{stream:016x}\",\"object\":\"chat.completion.chunk\",\"created\":1795367764,\
         \"model\":\"bench\",\"choices\":[],\"usage\":{{\"prompt_tokens\":500,\"total_tokens\":{},\
         \"completion_tokens\":{events}}}}}\n\n",
        500 + events
    )
}

/// The number of an event, as `event` wrote it.
fn number(event: &str) -> Option<usize> {
    let (_, rest) = event.split_once("\"content\":\" ")?;
    rest.split_once('"')?.0.parse().ok()
}

// === impl Clock ===

impl Clock {
    fn new(load: Load) -> Self {
        let stream = || (0..load.events).map(|_| AtomicU64::new(0)).collect();
        Self { start: Instant::now(), written: (0..load.streams).map(|_| stream()).collect() }
    }

    fn wrote(&self, stream: usize, n: usize) {
        let nanos = self.start.elapsed().as_nanos() as u64;
        self.written[stream][n].store(nanos, Ordering::Relaxed);
    }

    /// Time since event `n` was written.
    fn age(&self, stream: usize, n: usize) -> Duration {
        let written = Duration::from_nanos(self.written[stream][n].load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(written)
    }
}

// === impl Reader ===

impl Reader {
    fn new(stream: usize, usage: bool, total: usize) -> Self {
        Self { stream, usage, total, pending: BytesMut::new(), seen: Seen::default() }
    }

    fn feed(&mut self, piece: &[u8], clock: &Clock) {
        self.pending.extend_from_slice(piece);
        while self.seen.events + self.seen.lost < self.total {
            let Some(end) = memchr::memmem::find(&self.pending, b"\n\n") else {
                return;
            };
            let event = self.pending.split_to(end + 2);
            self.compare(&event, clock);
        }
    }

    fn compare(&mut self, event: &[u8], clock: &Clock) {
        let next = self.seen.events + self.seen.lost;
        if event == self::event(self.stream, next).as_bytes() {
            self.seen.latency.push(clock.age(self.stream, next));
            self.seen.events += 1;
            return;
        }
        match std::str::from_utf8(event).ok().and_then(number) {
            Some(n) if n > next && event == self::event(self.stream, n).as_bytes() => {
                self.seen.lost += n - next;
                self.seen.events += 1;
            }
            Some(n) if n < next => self.seen.reordered += 1,
            _ => self.seen.garbled += 1,
        }
    }

    /// Ends the reading. Only the usage event, if it was asked for, and the end may be left.
    fn finish(mut self, complete: bool) -> Seen {
        let usage = if self.usage { usage_event(self.stream, self.total) } else { String::new() };
        let whole = complete && self.pending == format!("{usage}{DONE}").as_bytes();
        self.seen.garbled += usize::from(!whole);
        self.seen
    }
}
