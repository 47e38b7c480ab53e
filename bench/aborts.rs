//! Time until the backend of a client that has left is free of the client.

use crate::caller::{Caller, Wire, body};
use crate::gate::Gate;
use crate::held::{Full, HELD};
use crate::numbers::{Durations, Report};
use crate::support::backend::Backend;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

#[derive(Clone, Copy, Debug)]
enum When {
    /// Before the backend has sent any of a stream.
    BeforeTheFirstByte,
    MidStream,
    /// Before the backend has sent any of an answer in one piece.
    WholeAnswer,
    /// After the backend has sent a part of an answer in one piece.
    MidAnswer,
}

pub async fn run(report: &mut Report, binary: &Path, wire: Wire, count: usize) {
    report.title(&format!("{count} clients leave, {}: until the backend's connection is closed", wire.label()));
    let mut backend = Backend::start().await;
    backend.state.blocks.store(10_000_000, Ordering::Relaxed);
    let gate = Gate::start(binary, &backend).await;
    let caller = Caller::new(gate.address, wire, 1).await;
    for when in [When::BeforeTheFirstByte, When::MidStream, When::WholeAnswer, When::MidAnswer] {
        let mut times = Durations::default();
        for n in 0..count {
            times.push(leave(&mut backend, &caller, n, when).await);
        }
        report.line(when.label(), times.summary());
    }
    gate.until("thundergate_inflight_requests", 0.0).await;
    let programs = gate.programs().await;
    report.check(programs == 0, format!("{programs} programs are left of clients that have gone"));
    gate.stop().await;
    held(report, binary, wire, count).await;
}

/// Time from the client's departure until the backend's connection is closed. The function waits for the closing, which
/// checks that it comes.
async fn leave(backend: &mut Backend, caller: &Caller, n: usize, when: When) -> std::time::Duration {
    let stream = matches!(when, When::BeforeTheFirstByte | When::MidStream);
    let program = format!("leaver-{n}");
    let pending = caller.post(n, &[("x-program-id", &program)], body(2_000, stream, false)).await;
    let mut exchange = backend.next().await;
    match when {
        When::BeforeTheFirstByte | When::WholeAnswer => {
            let left = Instant::now();
            drop(pending);
            exchange.abandoned().await;
            left.elapsed()
        }
        When::MidStream => {
            let mut answer = exchange.events().await;
            answer.event(r#"{"choices":[{"delta":{"content":"a"}}]}"#).await;
            let (_, mut client) = pending.answer().await;
            client.piece().await.expect("the first event");
            let left = Instant::now();
            drop(client);
            answer.abandoned().await;
            left.elapsed()
        }
        When::MidAnswer => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{\"id\":";
            // These are more bytes than Pingora keeps back of an answer whose length is known.
            exchange.raw(format!("{head}\"{:9000}", "").as_bytes()).await;
            let (_, mut client) = pending.answer().await;
            client.piece().await.expect("the first bytes");
            let left = Instant::now();
            drop(client);
            exchange.abandoned().await;
            left.elapsed()
        }
    }
}

/// Measures clients that leave while they are held.
async fn held(report: &mut Report, binary: &Path, wire: Wire, count: usize) {
    let full = Full::start(binary).await;
    let caller = Caller::new(full.gate.address, wire, 1).await;
    let mut times = Durations::default();
    for n in 0..count {
        let program = format!("held-{n}");
        let pending = caller.post(n, &[("x-program-id", &program)], body(2_000, true, false)).await;
        full.gate.until(HELD, 1.0).await;
        let left = Instant::now();
        drop(pending);
        full.gate.until(HELD, 0.0).await;
        times.push(left.elapsed());
    }
    report.line("while held, until its place is free", times.summary());
    full.empty(report).await;
}

// === impl When ===

impl When {
    fn label(self) -> &'static str {
        match self {
            Self::BeforeTheFirstByte => "before the first byte of a stream",
            Self::MidStream => "in the middle of a stream",
            Self::WholeAnswer => "before the first byte of a whole answer",
            Self::MidAnswer => "in the middle of a whole answer",
        }
    }
}
