//! Plans of the clients. A plan follows from the seed; the times at which it is carried out do not.

use serde_json::{Value, json};
use std::ops::Range;
use std::time::Duration;
use thundergate_lab::engine::chain::mix;

/// Sizes in tokens: the part that all programs have in common, and the parts that are added. A token of the simulated
/// engine has four bytes. The longest program fits an engine that has half of its cache.
const SYSTEM: u64 = 300;
const TASK: Range<u64> = 200..900;
const OBSERVATION: Range<u64> = 50..500;
const OUTPUT: Range<u64> = 5..60;
const MOST_STEPS: u64 = 8;

/// A reproducible source of choices.
pub struct Random(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1 with one connection for many requests.
    Kept,
    /// HTTP/1.1 with a connection for each request.
    Fresh,
    H2c,
}

#[derive(Clone, Copy, Debug)]
pub enum Api {
    Chat,
    Completions,
    Responses,
    Messages,
}

/// Place where a step names its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    Header,
    Body,
    Extra,
    Nowhere,
}

/// Behaviour of a client while it has a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    Stays,
    /// Waits for this time before each piece of the answer.
    ReadsSlowly(Duration),
    LeavesInItsBody(Duration),
    LeavesAfter(Duration),
    LeavesAfterBytes(usize),
    /// Leaves with the last byte, before the client can know that it was the last.
    LeavesAtTheEnd,
    /// Has its program released while the step is under way, after this time.
    IsReleased(Duration),
}

/// One request of a program, or two at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub stream: bool,
    /// Whether the client asks for usage in a stream.
    pub usage: bool,
    pub output: u64,
    /// Size of the tool's result in tokens, and the time that the tool takes.
    pub observation: u64,
    pub pause: Duration,
    pub conduct: Conduct,
    /// Whether a subagent takes a step of the same program at the same time.
    pub twin: bool,
    /// Whether the step tells the end of the program.
    pub last: bool,
}

/// One program.
pub struct Task {
    pub naming: Naming,
    pub api: Api,
    pub steps: Vec<Step>,
    /// Number of times that the program is released at the end.
    pub releases: usize,
    /// A wrong request before all others, if there is one.
    pub odd: Option<&'static Odd>,
    system: u64,
    own: u64,
    random: Random,
}

/// A request that has to be refused.
pub struct Odd {
    pub path: &'static str,
    pub key: Option<&'static str>,
    pub body: &'static [u8],
    pub status: u16,
    pub code: &'static str,
}

const CHAT: &str = "/v1/chat/completions";

const fn odd(body: &'static [u8], code: &'static str) -> Odd {
    Odd { path: CHAT, key: None, body, status: 400, code }
}

static ODD: [Odd; 7] = [
    odd(b"{\"model\": ", "invalid_json"),
    odd(b"[]", "invalid_json"),
    odd(b"{\"messages\": \"\xff\xfe\"}", "invalid_json"),
    odd(b"{\"messages\": [], \"program_id\": {\"a\": 1}}", "invalid_program_id"),
    odd(&[b'['; 4096], "invalid_json"),
    Odd { path: CHAT, key: Some("nobody's"), body: b"{}", status: 401, code: "invalid_api_key" },
    Odd { path: "/v2/chat", key: None, body: b"{}", status: 404, code: "not_found" },
];

// === impl Random ===

impl Random {
    pub fn new(seed: u64, path: [u64; 2]) -> Self {
        Self(path.into_iter().fold(mix(seed), |state, part| mix(state ^ mix(part))))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = mix(self.0);
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn one_of<T: Copy, const N: usize>(&mut self, from: [T; N]) -> T {
        from[self.below(N as u64) as usize]
    }

    fn text(&mut self, tokens: u64) -> String {
        let word = |random: &mut Self| format!("{:03x} ", random.next() & 0xfff);
        (0..tokens).map(|_| word(self)).collect()
    }
}

// === impl Task ===

impl Task {
    /// Task number `count` of client `client`.
    pub fn new(seed: u64, client: u64, count: u64) -> Self {
        let mut random = Random::new(seed, [client, count]);
        let r = &mut random;
        let naming = r.one_of([Naming::Header, Naming::Body, Naming::Extra, Naming::Nowhere]);
        let api = r.one_of([Api::Chat, Api::Chat, Api::Completions, Api::Responses, Api::Messages]);
        let mut steps: Vec<_> = (0..=r.below(MOST_STEPS)).map(|_| Step::new(r)).collect();
        if let Some(step) = steps.last_mut().filter(|_| naming != Naming::Nowhere && r.one_in(4)) {
            step.last = true;
        }
        let releases = r.one_of([0, 1, 1, 1, 2]);
        let odd = r.one_in(10).then(|| &ODD[r.below(ODD.len() as u64) as usize]);
        let own = r.within(TASK);
        Self { naming, api, steps, releases, odd, system: SYSTEM, own, random }
    }

    /// A task of small steps without end and without pause, for a client that asks for more than its key permits.
    pub fn greedy(seed: u64, client: u64, count: u64) -> Self {
        let mut random = Random::new(seed, [client, count]);
        let step = |random: &mut Random| Step {
            output: random.within(20..80),
            pause: random.millis(20..200),
            conduct: Conduct::Stays,
            twin: false,
            observation: 1,
            ..Step::new(random)
        };
        let steps = (0..20).map(|_| step(&mut random)).collect();
        Self { naming: Naming::Nowhere, api: Api::Chat, steps, releases: 0, odd: None, system: 0, own: 20, random }
    }

    /// The beginning of the conversation: pieces of the system and of the user.
    pub fn opening(&mut self) -> Vec<(&'static str, String)> {
        let everybody = Random::new(0, [0, 0]).text(self.system);
        vec![("system", everybody), ("user", self.random.text(self.own))]
    }

    /// The messages that a step adds to the conversation.
    pub fn more(&mut self, step: &Step) -> [(&'static str, String); 2] {
        [("assistant", self.random.text(step.output)), ("user", self.random.text(step.observation))]
    }
}

// === impl Step ===

impl Step {
    fn new(random: &mut Random) -> Self {
        let stream = !random.one_in(3);
        let conduct = match random.below(30) {
            0 => Conduct::LeavesInItsBody(random.millis(1..100)),
            1 | 2 => Conduct::LeavesAfter(random.millis(0..400)),
            3 => Conduct::LeavesAfterBytes(random.within(0..4000) as usize),
            4 => Conduct::LeavesAtTheEnd,
            5 => Conduct::IsReleased(random.millis(0..200)),
            6 | 7 => Conduct::ReadsSlowly(random.millis(1..60)),
            _ => Conduct::Stays,
        };
        // One tool in ten is slow. No tool is as slow as the time after which a server closes an idle connection.
        let pause = if random.one_in(10) { random.millis(500..3000) } else { random.millis(10..300) };
        Self {
            stream,
            usage: random.one_in(2),
            output: random.within(OUTPUT),
            observation: random.within(OBSERVATION),
            pause,
            conduct,
            twin: random.one_in(12),
            last: false,
        }
    }
}

// === impl Api ===

impl Api {
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => CHAT,
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    /// Text in the last event of a stream.
    pub fn end(self) -> &'static str {
        match self {
            Self::Chat | Self::Completions => "data: [DONE]\n\n",
            Self::Responses => "event: response.completed\n",
            Self::Messages => "event: message_stop\n",
        }
    }

    /// Whether streams tell the usage only when asked to.
    pub fn is_asked_for_usage(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    pub fn body(self, said: &[(&'static str, String)], step: &Step) -> Value {
        let messages = |said: &[(&str, String)]| -> Vec<Value> {
            said.iter().map(|(role, text)| json!({"role": role, "content": text})).collect()
        };
        let mut body = json!({"model": "sim", "stream": step.stream, "ignore_eos": true});
        let limit = if matches!(self, Self::Responses) { "max_output_tokens" } else { "max_tokens" };
        body[limit] = step.output.into();
        match self {
            Self::Chat => body["messages"] = messages(said).into(),
            Self::Completions => {
                body["prompt"] = said.iter().map(|(_, text)| text.as_str()).collect::<String>().into();
            }
            Self::Responses => {
                body["instructions"] = said[0].1.clone().into();
                body["input"] = messages(&said[1..]).into();
            }
            Self::Messages => {
                body["system"] = said[0].1.clone().into();
                body["messages"] = messages(&said[1..]).into();
            }
        }
        if step.stream && step.usage && self.is_asked_for_usage() {
            body["stream_options"] = json!({"include_usage": true});
        }
        body
    }
}
