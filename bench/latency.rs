//! The time that the proxy adds to a request, on one connection with one request at a time.

use crate::caller::{CHAT, body};
use crate::gate::Gate;
use crate::held::reply;
use crate::numbers::{Durations, Report};
use crate::support::backend::Backend;
use crate::support::client::Client;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Number of requests that are not measured, until connections, pools and predictions have settled.
const WARM_UP: usize = 300;

pub async fn run(report: &mut Report, binary: &Path, requests: usize, size: usize) {
    report.title(&format!("{requests} requests of {} kB on one connection", size / 1000));
    let mut backend = Backend::start().await;
    let address = backend.address;
    backend.state.blocks.store(10_000_000, Ordering::Relaxed);
    let gate = Gate::start(binary, &backend).await;
    let server = tokio::spawn(async move {
        while let Some(exchange) = backend.recv().await {
            tokio::spawn(reply(exchange));
        }
    });
    let mut direct = time(address, requests, size).await.0;
    let (mut through, cpu) = {
        let mut client = Client::connect(gate.address).await;
        measure(&mut client, WARM_UP, size).await;
        let before = gate.cpu();
        let times = measure(&mut client, requests, size).await;
        (times, gate.cpu() - before)
    };
    report.line("straight to the backend", direct.summary());
    report.line("through the proxy", through.summary());
    let added = (through.percentile(0.5) - direct.percentile(0.5)) * 1e3;
    report.line("added, p50", format!("{added:.0} µs"));
    let each = cpu.as_secs_f64() * 1e6 / through.len() as f64;
    report.line("CPU of the proxy for each", format!("{each:.0} µs"));
    server.abort();
    gate.stop().await;
}

async fn time(address: SocketAddr, requests: usize, size: usize) -> (Durations, Client) {
    let mut client = Client::connect(address).await;
    measure(&mut client, WARM_UP, size).await;
    (measure(&mut client, requests, size).await, client)
}

async fn measure(client: &mut Client, requests: usize, size: usize) -> Durations {
    let body = body(size, false, false);
    let mut times = Durations::default();
    for _ in 0..requests {
        let start = Instant::now();
        client.post(CHAT, "x-program-id: one\r\n", &body).await;
        let response = client.response().await;
        times.push(start.elapsed());
        assert_eq!(response.status(), 200);
    }
    times
}
