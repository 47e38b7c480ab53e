//! Clients that send requests all the time and count every failure. A reload or an upgrade must cause none.

use super::backend::{Backend, Exchange};
use super::client::Client;
use super::wire::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = include_str!("../samples/vllm-0.32-chat.json");

/// Time between two events of a stream. A stream takes this time for each of its events.
const PACE: Duration = Duration::from_millis(20);
pub const EVENTS: usize = 60;

/// Counts of the requests and failures that the clients have seen.
#[derive(Default)]
pub struct Seen {
    pub requests: AtomicUsize,
    pub lost: AtomicUsize,
    pub streams: AtomicUsize,
    pub cut: AtomicUsize,
    stop: AtomicBool,
}

/// Clients that run until they are stopped.
pub struct Load {
    pub seen: Arc<Seen>,
    clients: JoinSet<()>,
}

/// Answers every request: in one piece, or in events at a steady pace.
pub fn answer(mut backend: Backend) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(exchange) = backend.recv().await {
            tokio::spawn(answer_one(exchange));
        }
    })
}

async fn answer_one(exchange: Exchange) {
    if !exchange.request.text().contains("\"stream\":true") {
        return exchange.json(200, WHOLE).await;
    }
    let mut answer = exchange.events().await;
    for n in 0..EVENTS {
        answer.event(&format!("{{\"n\":{n}}}")).await;
        tokio::time::sleep(PACE).await;
    }
    answer.event("[DONE]").await;
    answer.finish().await;
}

// === impl Load ===

impl Load {
    /// Starts the clients. `kept` clients keep their connection for as long as the server lets them; `fresh` clients
    /// make a connection for each request; `streaming` clients have answers streamed all the time. One more client
    /// speaks HTTP/2.
    pub fn start(address: SocketAddr, kept: usize, fresh: usize, streaming: usize) -> Self {
        let (seen, mut clients) = (Arc::<Seen>::default(), JoinSet::new());
        for n in 0..kept + fresh {
            clients.spawn(steps(address, Arc::clone(&seen), n, n < kept));
        }
        for n in 0..streaming {
            clients.spawn(streams(address, Arc::clone(&seen), n));
        }
        clients.spawn(http2(address, Arc::clone(&seen)));
        Self { seen, clients }
    }

    /// Waits until more requests of each kind have ended, well or not.
    pub async fn goes_on(&self) {
        let count = || (self.seen.requests.load(SeqCst), self.seen.streams.load(SeqCst));
        let (requests, streams) = count();
        let more = async {
            while count().0 < requests + 50 || count().1 <= streams {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        super::within("more requests", more).await;
    }

    /// Stops the clients, each after the request that it has begun.
    pub async fn stop(mut self) -> Arc<Seen> {
        self.seen.stop.store(true, SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client panics");
        }
        self.seen
    }
}

// === impl Seen ===

impl Seen {
    fn count(&self, all: &AtomicUsize, wrong: &AtomicUsize, fault: Option<String>) {
        all.fetch_add(1, SeqCst);
        if let Some(fault) = fault {
            wrong.fetch_add(1, SeqCst);
            eprintln!("lost: {fault}");
        }
    }
}

fn body(program: &str, stream: bool) -> Vec<u8> {
    format!(r#"{{"model":"tiny","messages":[],"program_id":"{program}","stream":{stream}}}"#).into_bytes()
}

/// Connects, or gives the reason for the failure in words.
async fn connect(address: SocketAddr) -> Result<Client, String> {
    Client::try_connect(address).await.map_err(|e| format!("connect: {e}"))
}

async fn steps(address: SocketAddr, seen: Arc<Seen>, n: usize, keep: bool) {
    let body = body(&format!("step-{n}"), false);
    let mut kept: Option<Client> = None;
    while !seen.stop.load(SeqCst) {
        let turn = async {
            let mut client = match kept.take() {
                Some(client) => client,
                None => connect(address).await?,
            };
            let response = client.exchange(CHAT, &body).await.map_err(|e| format!("a step: {e}"))?;
            if response.status() != 200 || response.text() != WHOLE {
                return Err(format!("{}: {}", response.status(), response.text()));
            }
            let closes = response.header("connection").as_deref() == Some("close");
            Ok((keep && !closes).then_some(client))
        };
        let fault = match turn.await {
            Ok(client) => {
                kept = client;
                None
            }
            Err(fault) => Some(fault),
        };
        seen.count(&seen.requests, &seen.lost, fault);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn streams(address: SocketAddr, seen: Arc<Seen>, n: usize) {
    let body = body(&format!("stream-{n}"), true);
    while !seen.stop.load(SeqCst) {
        let fault = match connect(address).await {
            Ok(mut client) => whole_stream(client.exchange(CHAT, &body).await).err(),
            Err(fault) => Some(fault),
        };
        seen.count(&seen.streams, &seen.cut, fault);
    }
}

fn whole_stream(answer: std::io::Result<Message>) -> Result<(), String> {
    let answer = answer.map_err(|e| format!("a stream: {e}"))?;
    let events = answer.text().matches("data: {\"n\":").count();
    let whole = answer.status() == 200 && events == EVENTS && answer.text().ends_with("data: [DONE]\n\n");
    whole.then_some(()).ok_or_else(|| format!("a stream: {} with {events} events", answer.status()))
}

/// A client that keeps one connection, and makes another when the server tells it to go, as HTTP/2 clients do.
async fn http2(address: SocketAddr, seen: Arc<Seen>) {
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().expect("a client");
    while !seen.stop.load(SeqCst) {
        let turn = async {
            let request = client.post(format!("http://{address}{CHAT}")).body(body("h2", false));
            let response = request.send().await.map_err(|e| format!("{e:?}"))?;
            let status = response.status().as_u16();
            let text = response.text().await.map_err(|e| format!("{e:?}"))?;
            if status == 200 && text == WHOLE { Ok(()) } else { Err(format!("{status}: {text}")) }
        };
        let fault: Result<(), String> = turn.await;
        seen.count(&seen.requests, &seen.lost, fault.err().map(|fault| format!("over HTTP/2: {fault}")));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
