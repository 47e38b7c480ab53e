//! The memory of a request while it is held, and a check that none of this memory stays in use.

use crate::caller::{Caller, Pending, Wire, body};
use crate::gate::Gate;
use crate::numbers::Report;
use crate::support::backend::{Backend, Exchange};
use crate::support::wire::Message;
use std::path::Path;
use std::sync::atomic::Ordering;
use tokio::task::JoinSet;

pub const HELD: &str = "thundergate_held_steps";

/// Number of KV blocks of 16 tokens.
const BLOCKS: usize = 100;

/// Size in bytes of a body whose estimate is more than `BLOCKS` blocks hold.
const WHOLE_CACHE: usize = 8_000;

/// Answer of a backend to `request`, in one piece. The backend counts four bytes a token, as the proxy does until it
/// has measured.
pub fn answer(request: &Message) -> String {
    let prompt = request.body.len() / 4;
    let (front, middle) = (
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":1795367764,"model":"bench","choices":[{"index":0,"#,
        r#""message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":"#,
    );
    format!(r#"{front}{middle}{prompt},"total_tokens":{},"completion_tokens":1}}}}"#, prompt + 1)
}

pub async fn reply(exchange: Exchange) {
    let answer = answer(&exchange.request);
    exchange.json(200, &answer).await;
}

/// A backend whose cache is full with the step of one program.
pub struct Full {
    pub backend: Backend,
    pub gate: Gate,
    occupier: Pending,
    exchange: Exchange,
}

pub async fn run(report: &mut Report, binary: &Path, wire: Wire, count: usize, size: usize, rounds: usize) {
    report.title(&format!("{count} requests of {} kB held, {}", size / 1000, wire.label()));
    let mut full = Full::start(binary).await;
    let mut resident = vec![full.gate.resident()];
    for round in 0..rounds {
        let before = full.gate.resident();
        let caller = Caller::new(full.gate.address, wire, count).await;
        let waiting = hold(&full, &caller, count, size).await;
        let held = full.gate.resident() - before;
        if round == 0 {
            let each = held as f64 / count as f64 / 1e3;
            report.line("resident memory for each", format!("{each:.1} kB"));
        }
        resident.push(full.gate.resident());
        let early = !full.backend.is_quiet();
        report.check(!early, "a held request reached the backend");
        full = full.release(report, waiting).await;
        resident.push(full.gate.resident());
    }
    full.empty(report).await;
    let mb: Vec<_> = resident.iter().map(|bytes| format!("{:.1}", *bytes as f64 / 1e6)).collect();
    report.line("resident: start, held, released, held, …", format!("{} MB", mb.join(", ")));
}

/// Sends `count` requests, each of a program of its own, and waits until all are held.
async fn hold(full: &Full, caller: &Caller, count: usize, size: usize) -> Vec<Pending> {
    let mut waiting = Vec::with_capacity(count);
    let body = body(size, false, false);
    for n in 0..count {
        let program = format!("held-{n}");
        let headers = [("x-program-id", program.as_str()), ("x-program-final", "true")];
        waiting.push(caller.post(n, &headers, body.clone()).await);
    }
    full.gate.until(HELD, count as f64).await;
    waiting
}

// === impl Full ===

impl Full {
    pub async fn start(binary: &Path) -> Self {
        let mut backend = Backend::start().await;
        backend.state.blocks.store(BLOCKS, Ordering::Relaxed);
        let gate = Gate::start(binary, &backend).await;
        let (occupier, exchange) = Self::occupy(&mut backend, &gate).await;
        Self { backend, gate, occupier, exchange }
    }

    async fn occupy(backend: &mut Backend, gate: &Gate) -> (Pending, Exchange) {
        let caller = Caller::new(gate.address, Wire::H1, 1).await;
        let headers = [("x-program-id", "occupier"), ("x-program-final", "true")];
        let occupier = caller.post(0, &headers, body(WHOLE_CACHE, false, false)).await;
        (occupier, backend.next().await)
    }

    /// Answers the step that fills the cache, then all waiting requests. Then fills the cache again.
    async fn release(mut self, report: &mut Report, waiting: Vec<Pending>) -> Self {
        let count = waiting.len();
        reply(self.exchange).await;
        self.occupier.answer().await.1.rest().await;
        let mut clients = JoinSet::new();
        for pending in waiting {
            clients.spawn(async move {
                let (status, mut answer) = pending.answer().await;
                answer.rest().await;
                status == 200 && answer.complete()
            });
        }
        for _ in 0..count {
            tokio::spawn(reply(self.backend.next().await));
        }
        let served = clients.join_all().await.into_iter().filter(|served| *served).count();
        report.check(served == count, format!("{served} of {count} held requests were answered"));
        self.gate.until("thundergate_inflight_requests", 0.0).await;
        let (held, programs) = (self.gate.gauge(HELD).await, self.gate.programs().await);
        report.check(held == 0.0 && programs == 0, format!("{held} held steps and {programs} programs are left"));
        (self.occupier, self.exchange) = Self::occupy(&mut self.backend, &self.gate).await;
        self
    }

    /// Answers the step that fills the cache, and checks that no other request ever reached the backend.
    pub async fn empty(mut self, report: &mut Report) {
        reply(self.exchange).await;
        self.occupier.answer().await.1.rest().await;
        // A request that was let through would come before this one.
        let (probe, exchange) = Self::occupy(&mut self.backend, &self.gate).await;
        let first = exchange.request.header("x-program-id");
        report.check(first.as_deref() == Some("occupier"), format!("{first:?} reached the backend"));
        reply(exchange).await;
        probe.answer().await.1.rest().await;
        self.gate.until("thundergate_inflight_requests", 0.0).await;
        let programs = self.gate.programs().await;
        report.check(programs == 0, format!("{programs} programs are left"));
        self.gate.stop().await;
    }
}
