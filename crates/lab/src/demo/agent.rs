//! Agents in a closed loop. An agent thinks (a step of inference), acts (a tool runs) and thinks again, over a context
//! that grows. At the end of a task its program is released and the next one begins.

use crate::engine::chain::mix;
use parking_lot::{Mutex, MutexGuard};
use reqwest::Client;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Number of tokens that the prompts of all programs have in common.
const SYSTEM: u64 = 300;
/// Length of a task's own first message, in tokens.
const TASK: std::ops::Range<u64> = 400..1000;
/// Length of the context at which a task ends, in tokens.
const FINAL: std::ops::Range<u64> = 6000..9000;
/// Length of the text that one tool call adds, in tokens.
const OBSERVATION: std::ops::Range<u64> = 100..300;
const OUTPUT: std::ops::Range<u64> = 30..70;
/// Mean length of a context over a task, in tokens: about halfway from its first step to its last.
pub(super) const MEAN_CONTEXT: u64 = 4250;
/// Length of one token of the simulated engine, in bytes.
const TOKEN_BYTES: u64 = 4;

/// Counts of all agents together.
#[derive(Default)]
pub(super) struct Record(Mutex<Counts>);

#[derive(Clone, Default)]
pub(super) struct Counts {
    since: Option<Instant>,
    /// Time of each answered step, from request to last byte.
    pub steps: Vec<Duration>,
    /// Numbers of the agents that had at least one step answered.
    pub served: BTreeSet<u64>,
    /// Start of the step that each agent waits for.
    open: BTreeMap<u64, Instant>,
    /// Number of programs that came to their end.
    pub programs: u64,
    pub errors: u64,
    pub last_error: String,
}

/// One agent.
pub(super) struct Agent {
    number: u64,
    random: Random,
    proxy: String,
    http: Client,
    record: Arc<Record>,
}

/// A reproducible source of choices.
struct Random(u64);

/// One task's conversation.
struct Conversation {
    id: String,
    messages: Vec<Value>,
    tokens: u64,
    /// Context at which the task ends, in tokens.
    last: u64,
}

// === impl Record ===

impl Record {
    /// Sets all counts to zero. Steps under way keep their start.
    pub(super) fn restart(&self) {
        let mut counts = self.counts();
        let open = std::mem::take(&mut counts.open);
        *counts = Counts { since: Some(Instant::now()), open, ..Counts::default() };
    }

    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock()
    }
}

// === impl Counts ===

impl Counts {
    /// Number of steps answered per minute since the count began.
    pub(super) fn steps_per_minute(&self) -> f64 {
        let minutes = self.since.map_or(f64::INFINITY, |since| since.elapsed().as_secs_f64() / 60.0);
        self.steps.len() as f64 / minutes.max(1e-3)
    }

    /// The longest time that a step took, or has taken so far without an answer.
    pub(super) fn longest(&self) -> Duration {
        let open = self.open.values().map(Instant::elapsed);
        self.steps.iter().copied().chain(open).max().unwrap_or_default()
    }

    fn failed(&mut self, error: String) {
        self.errors += 1;
        self.last_error = error;
    }
}

// === impl Agent ===

impl Agent {
    pub(super) fn new(seed: u64, number: u64, proxy: &str, http: &Client, record: &Arc<Record>) -> Self {
        let random = Random(mix(seed ^ mix(number)));
        Self { number, random, proxy: proxy.to_owned(), http: http.clone(), record: Arc::clone(record) }
    }

    /// Works for ever. The first program starts somewhere in its middle, so that the agents' contexts do not all grow
    /// in step.
    pub(super) async fn work(mut self) {
        let mut grown = self.random.below(FINAL.start - TASK.end);
        for count in 0_u64.. {
            let mut program = self.begin(count, std::mem::take(&mut grown));
            while program.tokens < program.last {
                let began = Instant::now();
                self.record.counts().open.insert(self.number, began);
                let answered = self.step(&mut program).await;
                self.settle(answered, began);
                let pause = self.random.tool_time();
                sleep(pause).await;
            }
            self.release(&program).await;
            self.record.counts().programs += 1;
        }
    }

    fn begin(&mut self, count: u64, grown: u64) -> Conversation {
        let task = self.random.within(TASK) + grown;
        let mut everybody = Random(0);
        let messages = vec![
            json!({"role": "system", "content": everybody.text(SYSTEM)}),
            json!({"role": "user", "content": self.random.text(task)}),
        ];
        let last = self.random.within(FINAL);
        Conversation { id: format!("agent-{}-task-{count}", self.number), messages, tokens: SYSTEM + task, last }
    }

    /// Sends one step, and adds the observation of the tool call that follows.
    async fn step(&mut self, program: &mut Conversation) -> Result<(), String> {
        let output = self.random.within(OUTPUT);
        let body = json!({
            "model": "sim",
            "messages": program.messages,
            "program_id": program.id,
            "max_tokens": output,
            "ignore_eos": true,
            "stream": true,
        });
        let url = format!("{}/v1/chat/completions", self.proxy);
        let answer = self.http.post(url).json(&body).send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("{status}: {text}"));
        }
        let reply = spoken(&text).ok_or("the stream broke off")?;
        let observed = self.random.within(OBSERVATION);
        program.messages.push(json!({"role": "assistant", "content": reply}));
        program.messages.push(json!({"role": "tool", "content": self.random.text(observed)}));
        program.tokens += output + observed;
        Ok(())
    }

    async fn release(&self, program: &Conversation) {
        let url = format!("{}/programs/release", self.proxy);
        let released = self.http.post(url).json(&json!({"program_id": program.id})).send().await;
        if let Err(error) = released {
            self.record.counts().failed(error.to_string());
        }
    }

    fn settle(&self, answered: Result<(), String>, began: Instant) {
        let mut counts = self.record.counts();
        counts.open.remove(&self.number);
        match answered {
            Ok(()) => {
                counts.steps.push(began.elapsed());
                counts.served.insert(self.number);
            }
            Err(error) => counts.failed(error),
        }
    }
}

/// The text of a streamed answer, if the answer came to its end.
fn spoken(stream: &str) -> Option<String> {
    let mut text = String::new();
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            return Some(text);
        }
        let event: Value = serde_json::from_str(data).ok()?;
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or(""));
    }
    None
}

// === impl Random ===

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = mix(self.0);
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// Time of a tool call. Most tools take 30–150 ms; one in ten takes ten times as long.
    fn tool_time(&mut self) -> Duration {
        let quick = self.within(30..150);
        let factor = if self.below(10) == 0 { 10 } else { 1 };
        Duration::from_millis(quick * factor)
    }

    /// Text of `tokens` tokens of the simulated engine.
    fn text(&mut self, tokens: u64) -> String {
        let mut text = String::with_capacity((tokens * TOKEN_BYTES) as usize);
        for _ in 0..tokens {
            let word = self.next();
            text.extend((0..3).map(|at| char::from(b'a' + (word >> (8 * at)) as u8 % 26)));
            text.push(' ');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EngineConfig, Server};

    #[test]
    fn the_same_seed_gives_the_same_work() {
        let (mut one, mut two, mut other) = (Random(1), Random(1), Random(2));
        let text = one.text(50);
        assert_eq!(text.len() as u64, 50 * TOKEN_BYTES);
        assert_eq!(text, two.text(50));
        assert_ne!(text, other.text(50));
    }

    #[test]
    fn a_stream_without_its_end_is_no_answer() {
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"ash \"}}]}\n\n";
        assert_eq!(spoken(event), None);
        assert_eq!(spoken(&format!("{event}{event}data: [DONE]\n\n")), Some("ash ash ".to_owned()));
    }

    #[tokio::test]
    async fn an_agent_straight_on_an_engine_takes_steps_whose_context_is_found_again() {
        let engine = Server::start(EngineConfig::default()).await.unwrap();
        let record = Arc::new(Record::default());
        record.restart();
        let client = Client::builder().no_proxy().build().unwrap();
        let agent = Agent::new(1, 0, &engine.url(), &client, &record);
        let worker = tokio::spawn(agent.work());
        let limit = Instant::now() + Duration::from_secs(20);
        while record.counts().steps.len() < 4 {
            assert!(Instant::now() < limit, "{}", record.counts().last_error);
            sleep(Duration::from_millis(10)).await;
        }
        worker.abort();
        assert_eq!(record.counts().errors, 0);
        let counters = engine.counters();
        assert!(counters.prefix_hits * 2 > counters.prefix_queries, "{counters:?}");
    }
}
