//! One client, which does as planned and notes of each request how it ended.

use crate::journal::{Ending, Journal};
use crate::plan::{Api, Conduct, Naming, Odd, Step, Task, Wire};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::{Body, RequestBuilder, Response};
use serde_json::json;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Time limit beyond what any request takes, held or not.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Agent {
    number: u64,
    http: reqwest::Client,
    wire: Wire,
    at: String,
    /// API key of the client.
    key: String,
    /// Whether the client asks for more than its key permits.
    greedy: bool,
    requests: AtomicU64,
    journal: Arc<Journal>,
}

/// One request, with the outcome that it must have.
struct Ask<'a> {
    path: &'a str,
    key: &'a str,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    conduct: Conduct,
    expect: Expect,
}

#[derive(Clone, Copy)]
enum Expect {
    Answer { api: Api, step: Step },
    Refusal(&'static Odd),
}

/// Parts of an answer that the client received.
struct Got {
    status: u16,
    /// Value of `x-thundergate-error`.
    code: String,
    told_to_wait: bool,
    text: String,
    /// Whether the answer broke off.
    cut: bool,
}

/// The client's departure, with the status if the client had already received it.
struct Left(Option<u16>);

// === impl Agent ===

impl Agent {
    pub fn new(number: u64, at: SocketAddr, key: String, greedy: bool, journal: &Arc<Journal>) -> Self {
        let wire = [Wire::Kept, Wire::Fresh, Wire::H2c][(number % 3) as usize];
        let builder = reqwest::Client::builder().no_proxy().tcp_nodelay(true);
        let builder = match wire {
            Wire::Kept => builder,
            Wire::Fresh => builder.pool_max_idle_per_host(0),
            Wire::H2c => builder.http2_prior_knowledge(),
        };
        let http = builder.build().expect("a client");
        let (at, journal) = (format!("http://{at}"), Arc::clone(journal));
        Self { number, http, wire, at, key, greedy, requests: AtomicU64::new(0), journal }
    }

    pub async fn work(self, seed: u64) {
        let plan = if self.greedy { Task::greedy } else { Task::new };
        for count in 0.. {
            if self.journal.is_over() {
                return;
            }
            self.run(plan(seed, self.number, count), count).await;
        }
    }

    async fn run(&self, mut task: Task, count: u64) {
        let program = format!("program-{}-{count}", self.number);
        if let Some(odd) = task.odd {
            self.odd(odd).await;
        }
        let mut said = task.opening();
        for step in std::mem::take(&mut task.steps) {
            let steps = if step.twin { 2 } else { 1 };
            let turn = (0..steps).map(|_| self.step(&task, &step, &said, &program));
            let release = async {
                if let Conduct::IsReleased(after) = step.conduct {
                    sleep(after).await;
                    self.release(&program).await;
                }
            };
            tokio::join!(futures_util::future::join_all(turn), release);
            said.extend(task.more(&step));
            sleep(step.pause).await;
            // The loop may end here: the program is released below all the same.
            if self.journal.is_over() {
                break;
            }
        }
        for _ in 0..task.releases {
            self.release(&program).await;
        }
    }

    async fn step(&self, task: &Task, step: &Step, said: &[(&'static str, String)], program: &str) {
        let mut body = task.api.body(said, step);
        let mut headers = Vec::new();
        match task.naming {
            Naming::Header => headers.push(("x-program-id", program.to_owned())),
            Naming::Body => body["program_id"] = program.into(),
            Naming::Extra => body["extra_body"] = json!({"program_id": program}),
            Naming::Nowhere => {}
        }
        if step.last {
            headers.push(("x-program-final", "true".to_owned()));
        }
        let expect = Expect::Answer { api: task.api, step: *step };
        let body = Bytes::from(body.to_string());
        let path = task.api.path();
        self.ask(Ask { path, key: &self.key, headers, body, conduct: step.conduct, expect }).await;
    }

    async fn odd(&self, odd: &'static Odd) {
        let (key, body) = (odd.key.unwrap_or(&self.key), Bytes::from_static(odd.body));
        let (conduct, expect) = (Conduct::Stays, Expect::Refusal(odd));
        self.ask(Ask { path: odd.path, key, headers: Vec::new(), body, conduct, expect }).await;
    }

    /// Releases a program. Either answer is right: whether the program was known depends on the requests before.
    async fn release(&self, program: &str) {
        let request = self.http.post(format!("{}/programs/release", self.at)).bearer_auth(&self.key);
        let answer = request.json(&json!({"program_id": program})).send();
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) if answer.status() == 200 => {}
            other => self.journal.wrong(format!("release of {program}: {other:?}")),
        }
    }

    async fn ask(&self, ask: Ask<'_>) {
        let id = format!("{}-{}", self.number, self.requests.fetch_add(1, Ordering::Relaxed));
        let began = Instant::now();
        let request = self.request(&ask, &id);
        let done = async { timeout(PATIENCE, exchange(request, &ask, &id)).await };
        let done = match ask.conduct {
            Conduct::LeavesAfter(after) | Conduct::LeavesInItsBody(after) => match timeout(after, done).await {
                Ok(done) => done,
                Err(_) => Ok(Ok(Err(Left(None)))),
            },
            _ => done.await,
        };
        let (status, ending) = match done {
            Err(_) => (None, Ending::Wrong(format!("no end within {PATIENCE:?}"))),
            Ok(Err(what)) => (None, Ending::Wrong(what)),
            Ok(Ok(Err(Left(status)))) => (status, Ending::Good("left by their client")),
            Ok(Ok(Ok(got))) => (Some(got.status), self.judge(&ask, &got)),
        };
        let ending = match ending {
            Ending::Wrong(what) => Ending::Wrong(format!("{} {:?} {:?}: {what}", ask.path, self.wire, ask.conduct)),
            other => other,
        };
        self.journal.ended(id, began, status, ending);
    }

    fn request(&self, ask: &Ask<'_>, id: &str) -> RequestBuilder {
        let mut request = self.http.post(format!("{}{}", self.at, ask.path));
        request = request.bearer_auth(ask.key).header("x-request-id", id).header("content-type", "application/json");
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if self.wire == Wire::Fresh {
            request = request.header("connection", "close");
        }
        if let Conduct::LeavesInItsBody(_) = ask.conduct {
            let half = ask.body.slice(..ask.body.len() / 2);
            let body = stream::once(async { Ok::<_, io::Error>(half) }).chain(stream::pending());
            return request.header("content-length", ask.body.len()).body(Body::wrap_stream(body));
        }
        request.body(ask.body.clone())
    }

    fn judge(&self, ask: &Ask<'_>, got: &Got) -> Ending {
        let wrong = || Ending::Wrong(format!("{} {}: {}", got.status, got.code, tail(&got.text)));
        match (ask.expect, got.status, got.code.as_str()) {
            (Expect::Refusal(odd), status, code) if (status, code) == (odd.status, odd.code) => {
                Ending::Good("refused: malformed, or with a wrong key")
            }
            (Expect::Refusal(_), ..) => wrong(),
            (_, 429, "rate_limited") if self.greedy && got.told_to_wait => Ending::Good("429, over their limit"),
            (_, 409, "program_released") if matches!(ask.conduct, Conduct::IsReleased(_)) => {
                Ending::Good("409, released while held")
            }
            (_, 502, "upstream_failed") => Ending::Lost("502".to_owned()),
            (Expect::Answer { api, step }, 200, "") => match is_whole(api, &step, &got.text) {
                Ok(()) if step.stream => Ending::Good("streamed whole"),
                Ok(()) => Ending::Good("answered whole"),
                Err(_) if step.stream && got.text.contains("\"upstream_failed\"") => {
                    Ending::Lost("an error event".to_owned())
                }
                // Only a stream can tell the reason in its body.
                Err(_) if !step.stream && got.cut => Ending::Lost("cut".to_owned()),
                Err(what) => Ending::Wrong(what),
            },
            _ => wrong(),
        }
    }
}

/// Reads as much of the answer as the client wants: the answer, or the client's departure. An error tells what went
/// wrong.
async fn exchange(request: RequestBuilder, ask: &Ask<'_>, id: &str) -> Result<Result<Got, Left>, String> {
    let response = request.send().await.map_err(|e| format!("no answer: {e:?}"))?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header("x-request-id") != id {
        return Err(format!("{}: the answer to request `{}`", response.status(), header("x-request-id")));
    }
    let (status, code) = (response.status().as_u16(), header("x-thundergate-error").to_owned());
    let told_to_wait = !header("retry-after").is_empty();
    let mut body = Vec::new();
    let cut = match read(response, ask, &mut body).await {
        None => return Ok(Err(Left(Some(status)))),
        Some(ended) => ended.is_err(),
    };
    Ok(Ok(Got { status, code, told_to_wait, text: String::from_utf8_lossy(&body).into_owned(), cut }))
}

/// Reads the body, up to its end or to where it broke off. `None` if the client left before that.
async fn read(mut response: Response, ask: &Ask<'_>, body: &mut Vec<u8>) -> Option<reqwest::Result<()>> {
    let end = match ask.expect {
        Expect::Answer { api, step } if step.stream => api.end().as_bytes(),
        _ => b"}",
    };
    loop {
        if let Conduct::ReadsSlowly(pause) = ask.conduct {
            sleep(pause).await;
        }
        match response.chunk().await {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return Some(Ok(())),
            Err(e) => return Some(Err(e)),
        }
        let leaves = match ask.conduct {
            Conduct::LeavesAfterBytes(limit) => body.len() > limit,
            Conduct::LeavesAtTheEnd => memchr::memmem::find(body, end).is_some(),
            _ => false,
        };
        if leaves {
            return None;
        }
    }
}

/// Checks that the answer is that to this very request, from its first byte to its last.
fn is_whole(api: Api, step: &Step, text: &str) -> Result<(), String> {
    let ended = if step.stream { text.contains(api.end()) && text.ends_with("\n\n") } else { text.ends_with('}') };
    if !ended {
        return Err(format!("ends with {}", tail(text)));
    }
    let reported = ["\"completion_tokens\":", "\"output_tokens\":"].iter().find_map(|name| {
        let rest = &text[text.rfind(name)? + name.len()..];
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    });
    let asked = !step.stream || step.usage || !api.is_asked_for_usage();
    match reported {
        Some(tokens) if asked && tokens == step.output => Ok(()),
        None if !asked => Ok(()),
        other => Err(format!("{other:?} tokens of {} (asked for usage: {asked}): {}", step.output, tail(text))),
    }
}

fn tail(text: &str) -> String {
    let start = text.char_indices().rev().nth(300).map_or(0, |(at, _)| at);
    format!("{:?}", &text[start..])
}
