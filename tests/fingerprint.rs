//! Tests how well conversations without an id are told apart: thousands of made-up agents at once, and recorded ones.
//!
//! *Recall* is the share, among pairs of consecutive steps of an agent, of those that were given the same program.
//! *Precision* is the share, among pairs of consecutive steps of a program, of those that came from the same agent.
//! For more agents, and the table of bench/REPORT.md:
//! `FINGERPRINT_AGENTS=5000 cargo test --release --test fingerprint -- --nocapture`.

use bytes::Bytes;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};
use thundergate::body::envelope::Envelope;
use thundergate::identity::fingerprint::{Conversation, End, Retention, StepHandle, Table};

const RECORDED: &str = include_str!("samples/mini-swe-agent.jsonl");
const RETENTION: Retention = Retention { max: 200_000, idle_ttl: Duration::from_secs(1800) };

/// Record of which program was given to which agent.
#[derive(Default)]
struct Score {
    table: Table,
    steps: u64,
    /// The last program of each agent, and the last agent of each program.
    programs: HashMap<u64, u64>,
    agents: HashMap<u64, u64>,
    /// Number of pairs of consecutive steps, of an agent and of a program; and how many of these were told apart
    /// rightly.
    wanted: (u64, u64),
    given: (u64, u64),
    spent: Duration,
}

impl Score {
    fn start(&mut self, now: Duration, agent: u64, body: String) -> StepHandle {
        let envelope = Envelope::scan(Bytes::from(body), 128).expect("JSON");
        let began = Instant::now();
        let conversation = Conversation::of(&envelope, 1).expect("a conversation");
        let handle = self.table.step(now, RETENTION, &conversation);
        self.spent += began.elapsed();
        self.steps += 1;
        let count = |(all, right): &mut (u64, u64), same: bool| {
            *all += 1;
            *right += u64::from(same);
        };
        if let Some(program) = self.programs.insert(agent, handle.program) {
            count(&mut self.wanted, program == handle.program);
        }
        if let Some(before) = self.agents.insert(handle.program, agent) {
            assert!(handle.known);
            count(&mut self.given, before == agent);
        }
        handle
    }

    fn end(&mut self, now: Duration, handle: &StepHandle, answer: &str) {
        let mut digest = handle.digest();
        digest.feed(answer.as_bytes());
        let (answer, name) = digest.read();
        self.table.finish(now, handle, End::Answered { answer, name });
    }

    fn recall(&self) -> f64 {
        self.wanted.1 as f64 / self.wanted.0 as f64
    }

    fn precision(&self) -> f64 {
        self.given.1 as f64 / self.given.0 as f64
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn chance(&mut self, percent: f64) -> bool {
        (self.below(1_000_000) as f64) < percent * 10_000.0
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len() as u64) as usize]
    }
}

#[derive(Clone, Debug)]
enum Turn {
    System(String),
    User(String),
    Call { thought: String, id: String, command: String },
    Tool { id: String, output: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Chat,
    Messages,
    Responses,
    Text,
    Ids,
}

#[derive(Clone, Copy)]
struct Habits {
    name: &'static str,
    format: Format,
    /// Number of agents that start with the same request at about the same time.
    group: u64,
    /// Number of tasks that all agents draw from; 0 gives each agent its own.
    tasks: u64,
    /// Whether every call has an id of its own.
    unique_ids: bool,
    /// Shares in percent of the steps, in this order: tried again after an error; asked again after an answer that
    /// could not be used; such an answer dropped with a complaint; compacted; edited; branched; a subagent started.
    fails: f64,
    again: f64,
    dropped: f64,
    compacts: f64,
    edits: f64,
    branches: f64,
    subagents: f64,
}

const PLAIN: Habits = Habits {
    name: "one system prompt, own tasks",
    format: Format::Chat,
    group: 1,
    tasks: 0,
    unique_ids: true,
    fails: 0.5,
    again: 0.0,
    dropped: 0.5,
    compacts: 0.0,
    edits: 0.0,
    branches: 0.0,
    subagents: 0.0,
};

const ALL: [Habits; 11] = [
    PLAIN,
    Habits { name: "the same 50 tasks over and over", tasks: 50, ..PLAIN },
    Habits { name: "RL, groups of 8", group: 8, ..PLAIN },
    Habits { name: "RL, groups of 16, ids of calls repeat", group: 16, unique_ids: false, ..PLAIN },
    Habits { name: "subagents, branches", subagents: 5.0, branches: 3.0, ..PLAIN },
    Habits { name: "compaction, edits, retries", compacts: 3.0, edits: 3.0, fails: 5.0, again: 2.0, ..PLAIN },
    Habits { name: "messages, groups of 8", format: Format::Messages, group: 8, ..PLAIN },
    Habits { name: "responses, groups of 8", format: Format::Responses, group: 8, ..PLAIN },
    Habits { name: "text completions, groups of 8", format: Format::Text, group: 8, ..PLAIN },
    Habits { name: "token ids, groups of 8", format: Format::Ids, group: 8, ..PLAIN },
    Habits {
        name: "all at once",
        group: 4,
        tasks: 200,
        subagents: 2.0,
        branches: 1.0,
        compacts: 1.0,
        edits: 1.0,
        ..PLAIN
    },
];

struct Agent {
    truth: u64,
    turns: Vec<Turn>,
    left: u64,
    /// Whether this is a subagent, which starts no subagents.
    child: bool,
    handle: Option<StepHandle>,
}

struct World {
    habits: Habits,
    dice: Dice,
    score: Score,
    agents: Vec<Agent>,
    due: BinaryHeap<Reverse<(Duration, usize)>>,
    truths: u64,
}

const COMMANDS: [&str; 6] = ["ls", "ls -la", "cat setup.py", "grep -rn parse .", "pytest -x", "git diff"];
const THOUGHTS: [&str; 5] = ["I look at what is here.", "Let me see.", "", "Run it again.", "“Next”, 🦀:"];

impl World {
    fn run(habits: Habits, agents: u64) -> Score {
        let mut world = Self {
            habits,
            dice: Dice(agents ^ habits.name.len() as u64),
            score: Score::default(),
            agents: Vec::new(),
            due: BinaryHeap::new(),
            truths: 0,
        };
        for group in 0..agents.div_ceil(habits.group) {
            let task = if habits.tasks == 0 { group } else { world.dice.below(habits.tasks) };
            let start = Duration::from_millis(world.dice.below(agents * 400));
            for _ in 0..habits.group {
                let turns = vec![Turn::System("You are an agent.".into()), Turn::User(format!("Fix issue {task}."))];
                let jitter = Duration::from_millis(world.dice.below(15_000));
                world.spawn(turns, start + jitter, false);
            }
        }
        while let Some(Reverse((now, agent))) = world.due.pop() {
            match world.agents[agent].handle.take() {
                None => world.ask(now, agent),
                Some(handle) => world.hear(now, agent, &handle),
            }
        }
        world.score
    }

    fn truth(&mut self) -> u64 {
        self.truths += 1;
        self.truths
    }

    fn spawn(&mut self, turns: Vec<Turn>, at: Duration, child: bool) {
        let (truth, left) = (self.truth(), 10 + self.dice.below(30));
        self.due.push(Reverse((at, self.agents.len())));
        self.agents.push(Agent { truth, turns, left, child, handle: None });
    }

    fn ask(&mut self, now: Duration, agent: usize) {
        let one = &self.agents[agent];
        let body = request(self.habits.format, &one.turns);
        let handle = self.score.start(now, one.truth, body);
        self.agents[agent].handle = Some(handle);
        self.due.push(Reverse((now + Duration::from_millis(1_000 + self.dice.below(9_000)), agent)));
    }

    fn hear(&mut self, now: Duration, agent: usize, handle: &StepHandle) {
        let habits = self.habits;
        let tool = Duration::from_millis(50 + self.dice.below(20_000));
        if self.dice.chance(habits.fails) {
            self.score.table.finish(now, handle, End::Broken);
            self.due.push(Reverse((now + Duration::from_secs(1), agent)));
            return;
        }
        let number = self.agents[agent].turns.len() as u64;
        let id = if habits.unique_ids { self.dice.below(u64::MAX) } else { number };
        let id = format!("chatcmpl-tool-{id:x}");
        let (mut thought, mut command) = (self.dice.of(&THOUGHTS).to_owned(), self.dice.of(&COMMANDS).to_owned());
        if matches!(habits.format, Format::Text | Format::Ids) || !habits.unique_ids {
            // Longer sampled answers are hardly ever the same, so a number makes them differ.
            thought = format!("{thought} {:x}", self.dice.below(1 << 20));
            command = format!("{command} {:x}", self.dice.below(1 << 20));
        }
        let call = Turn::Call { thought, id: id.clone(), command };
        self.score.end(now, handle, &answer(habits.format, &call, number.is_multiple_of(2)));
        let next = now + tool;
        let opening = number <= 2;
        if !opening && self.dice.chance(habits.again) {
            self.due.push(Reverse((next, agent)));
            return;
        }
        if !opening && self.dice.chance(habits.dropped) {
            self.agents[agent].turns.push(Turn::User("No call was found.".into()));
            self.due.push(Reverse((next, agent)));
            return;
        }
        let output = format!("exit {}", self.dice.below(3));
        let before = self.agents[agent].turns.clone();
        self.agents[agent].turns.extend([call.clone(), Turn::Tool { id: id.clone(), output }]);
        let parent = !self.agents[agent].child;
        if parent && self.dice.chance(habits.subagents) {
            let task = Turn::User(format!("Find what {} does.", self.dice.below(20)));
            self.spawn(vec![Turn::System("You are a subagent.".into()), task], next, true);
        }
        if parent && !opening && self.dice.chance(habits.branches) {
            // The branch that continues first is the old program. The other branches are new ones.
            for branch in 0..3 {
                let output = format!("branch {branch}");
                let mut turns = before.clone();
                turns.extend([call.clone(), Turn::Tool { id: id.clone(), output }]);
                self.spawn(turns, next + Duration::from_secs(1 + branch), true);
            }
        }
        if !opening && self.dice.chance(habits.compacts) {
            let summary = Turn::User(format!("So far: {:x}", self.dice.below(u64::MAX)));
            self.agents[agent].turns.truncate(2);
            self.agents[agent].turns.push(summary);
            self.agents[agent].truth = self.truth();
        } else if !opening && self.dice.chance(habits.edits) {
            let at = 3.min(self.agents[agent].turns.len() - 1);
            let text = format!("Edited: {:x}", self.dice.below(u64::MAX));
            self.agents[agent].turns[at] = Turn::User(text);
            self.agents[agent].truth = self.truth();
        }
        self.agents[agent].left -= 1;
        if self.agents[agent].left > 0 {
            self.due.push(Reverse((next, agent)));
        }
    }
}

/// The conversation as a client of this endpoint sends it.
fn request(format: Format, turns: &[Turn]) -> String {
    let chat = |turn: &Turn| match turn {
        Turn::System(text) => json!({"role": "system", "content": text}),
        Turn::User(text) => json!({"role": "user", "content": text}),
        Turn::Call { thought, id, command } => {
            let function = json!({"arguments": json!({"command": command}).to_string(), "name": "bash"});
            let content = if thought.is_empty() { Value::Null } else { json!(thought) };
            let call = json!({"id": id, "type": "function", "function": function});
            json!({"content": content, "role": "assistant", "tool_calls": [call]})
        }
        Turn::Tool { id, output } => json!({"role": "tool", "tool_call_id": id, "content": output}),
    };
    match format {
        Format::Chat => json!({"messages": turns.iter().map(chat).collect::<Vec<_>>(), "model": "m"}).to_string(),
        Format::Messages => messages(turns).to_string(),
        Format::Responses => {
            let input: Vec<Value> = turns.iter().flat_map(items).collect();
            json!({"model": "m", "input": input, "store": false}).to_string()
        }
        Format::Text => json!({"model": "m", "prompt": text(turns)}).to_string(),
        Format::Ids => json!({"model": "m", "prompt": text(turns).as_bytes()}).to_string(),
    }
}

/// The conversation in the form of Anthropic's API, with a mark for the prompt cache on the last message.
fn messages(turns: &[Turn]) -> Value {
    let mut system = "";
    let mut messages = Vec::new();
    for turn in turns {
        messages.push(match turn {
            Turn::System(text) => {
                system = text;
                continue;
            }
            Turn::User(text) => json!({"role": "user", "content": text}),
            Turn::Call { thought, id, command } => {
                let call = json!({"type": "tool_use", "id": id, "name": "bash", "input": {"command": command}});
                let text = (!thought.is_empty()).then(|| json!({"type": "text", "text": thought}));
                json!({"role": "assistant", "content": text.into_iter().chain([call]).collect::<Vec<_>>()})
            }
            Turn::Tool { id, output } => {
                json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": output}]})
            }
        });
    }
    let last = messages.last_mut().expect("a message");
    if let Some(text) = last["content"].as_str() {
        last["content"] = json!([{"type": "text", "text": text}]);
    }
    last["content"][0]["cache_control"] = json!({"type": "ephemeral"});
    json!({"system": [{"type": "text", "text": system}], "messages": messages, "model": "m", "max_tokens": 99})
}

fn items(turn: &Turn) -> Vec<Value> {
    match turn {
        Turn::System(text) => vec![json!({"role": "developer", "content": text})],
        Turn::User(text) => vec![json!({"role": "user", "content": text})],
        Turn::Call { thought, id, command } => output(thought, id, command),
        Turn::Tool { id, output } => vec![json!({"type": "function_call_output", "call_id": id, "output": output})],
    }
}

fn output(thought: &str, id: &str, command: &str) -> Vec<Value> {
    let part = json!({"type": "output_text", "text": thought, "annotations": []});
    let message = json!({"type": "message", "role": "assistant", "content": [part]});
    let arguments = json!({"command": command}).to_string();
    let call = json!({"type": "function_call", "call_id": id, "name": "bash", "arguments": arguments});
    vec![message, call]
}

fn text(turns: &[Turn]) -> String {
    let one = |turn: &Turn| match turn {
        Turn::System(text) | Turn::User(text) => format!("<|user|>\n{text}\n<|assistant|>\n"),
        Turn::Call { thought, command, .. } => format!("{thought} ```{command}```\n"),
        Turn::Tool { output, .. } => format!("<|tool|>\n{output}\n<|assistant|>\n"),
    };
    turns.iter().map(one).collect()
}

/// The engine's answer, in one piece or as events.
fn answer(format: Format, call: &Turn, streamed: bool) -> String {
    let Turn::Call { thought, id, command } = call else {
        unreachable!("only calls are answers");
    };
    let arguments = json!({"command": command}).to_string();
    match format {
        Format::Chat if streamed => {
            let (front, back) = arguments.split_at(5);
            let start = json!([{"index": 0, "id": id, "function": {"name": "bash", "arguments": front}}]);
            let deltas = [
                json!({"role": "assistant", "content": ""}),
                json!({"content": thought}),
                json!({"tool_calls": start}),
                json!({"tool_calls": [{"index": 0, "function": {"arguments": back}}]}),
            ];
            let event = |delta| format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta}]}));
            deltas.map(event).concat() + "data: [DONE]\n\n"
        }
        Format::Chat => {
            let calls = json!([{"id": id, "type": "function", "function": {"name": "bash", "arguments": arguments}}]);
            let message = json!({"role": "assistant", "content": thought, "tool_calls": calls});
            json!({"choices": [{"index": 0, "message": message}]}).to_string()
        }
        Format::Messages => {
            let call = json!({"type": "tool_use", "id": id, "name": "bash", "input": {"command": command}});
            json!({"type": "message", "content": [{"type": "text", "text": thought}, call]}).to_string()
        }
        Format::Responses => json!({"id": "resp_1", "output": output(thought, id, command)}).to_string(),
        Format::Text => json!({"choices": [{"index": 0, "text": text(std::slice::from_ref(call))}]}).to_string(),
        Format::Ids => json!({"output_ids": text(std::slice::from_ref(call)).as_bytes()}).to_string(),
    }
}

#[test]
fn thousands_of_agents_are_told_apart() {
    let agents = std::env::var("FINGERPRINT_AGENTS").map_or(48, |count| count.parse().expect("a number"));
    println!("| workload | agents | steps | precision | recall | µs a step |\n|---|--:|--:|--:|--:|--:|");
    for habits in ALL {
        let score = World::run(habits, agents);
        let (precision, recall) = (score.precision(), score.recall());
        let micros = score.spent.as_micros() as f64 / score.steps as f64;
        let name = habits.name;
        println!("| {name} | {agents} | {} | {precision:.4} | {recall:.4} | {micros:.1} |", score.steps);
        assert!(precision >= 0.99 && recall >= 0.99, "{name}: precision {precision}, recall {recall}");
    }
}

/// Steps that `tests/real/record_mini.py` recorded, in the order of their answers. In that order, steps of different
/// agents are interleaved as they were.
#[test]
fn agents_of_mini_swe_agent_are_told_apart() {
    let mut score = Score::default();
    let mut bodies: HashMap<String, (u64, String)> = HashMap::new();
    let mut flights: Vec<(u64, String, String)> = Vec::new();
    for line in RECORDED.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| line[key].as_str().expect("a text").to_owned();
        let bytes = |key: &str| line[key].as_u64().expect("a number") as usize;
        let number = bodies.len() as u64;
        let (agent, before) = bodies.entry(text("agent")).or_insert((number, String::new()));
        let back = &before[before.len() - bytes("back")..];
        let body = format!("{}{}{back}", &before[..bytes("front")], text("middle"));
        before.clone_from(&body);
        flights.push((*agent, body, line["answer"].to_string()));
    }
    assert!(bodies.len() >= 18 && flights.len() >= 100);
    // A step starts as soon as the agent's last step has ended, so that as many steps as possible are in flight at
    // once.
    let mut next: HashMap<u64, usize> = HashMap::new();
    let mut handles: Vec<Option<StepHandle>> = flights.iter().map(|_| None).collect();
    let follower = |at: usize| (at + 1..flights.len()).find(|later| flights[*later].0 == flights[at].0);
    for (at, (agent, ..)) in flights.iter().enumerate() {
        next.entry(*agent).or_insert(at);
    }
    let mut firsts: Vec<usize> = next.into_values().collect();
    firsts.sort_unstable();
    for at in firsts {
        handles[at] = Some(score.start(Duration::ZERO, flights[at].0, flights[at].1.clone()));
    }
    for at in 0..flights.len() {
        let now = Duration::from_millis(at as u64);
        let handle = handles[at].take().expect("it has started");
        score.end(now, &handle, &flights[at].2);
        if let Some(later) = follower(at) {
            handles[later] = Some(score.start(now, flights[later].0, flights[later].1.clone()));
        }
    }
    let (precision, recall) = (score.precision(), score.recall());
    println!("recorded: {} steps, precision {precision:.4}, recall {recall:.4}", score.steps);
    assert!(precision >= 0.99 && recall >= 0.99, "precision {precision}, recall {recall}");
}
