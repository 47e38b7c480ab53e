//! The observations of the run, with their times; and at the end, those that nobody can explain.

use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time for which an engine may still take in requests after it was told to die.
const SLACK: Duration = Duration::from_millis(250);

/// The signal that makes a stopped engine go on. The engine then closes connections that were idle for too long
/// meanwhile, even those with unread requests. Streams that had begun are not affected.
pub const CONT: &str = "SIGCONT";

/// Time within which a fault is printed with a failure.
const NEAR: Duration = Duration::from_secs(3);

pub struct Journal {
    pub began: Instant,
    stop: AtomicBool,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    /// Status that the client of each request saw; `None` if the client left before.
    seen: HashMap<String, Option<u16>>,
    endings: BTreeMap<String, usize>,
    faults: Vec<Fault>,
    losses: Vec<Loss>,
    wrong: Vec<String>,
}

struct Fault {
    kind: &'static str,
    at: Instant,
    what: String,
    /// URL of the engine, if the fault makes it break connections.
    breaks: Option<String>,
}

/// A request that a backend failed. The loss is explained if this backend broke connections meanwhile.
struct Loss {
    id: String,
    began: Instant,
    ended: Instant,
    what: String,
}

/// Ending of a request, with its name or with what is wrong.
pub enum Ending {
    Good(&'static str),
    /// An ending as it comes when a backend fails.
    Lost(String),
    Wrong(String),
}

/// A line of the access log.
#[derive(Deserialize)]
struct Line {
    request_id: String,
    status: u16,
    backend: Option<String>,
}

// === impl Journal ===

impl Journal {
    pub fn new() -> Self {
        Self { began: Instant::now(), stop: AtomicBool::new(false), notes: Mutex::default() }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Notes the end of request `id`, and the status that the client saw.
    pub fn ended(&self, id: String, began: Instant, status: Option<u16>, ending: Ending) {
        let ended = Instant::now();
        let mut notes = self.notes.lock();
        let kind = match ending {
            Ending::Good(kind) => kind,
            Ending::Lost(what) => {
                notes.losses.push(Loss { id: id.clone(), began, ended, what });
                "failed by a backend"
            }
            Ending::Wrong(what) => {
                let what = format!("request {id}, {:.2} s: {what}", (ended - began).as_secs_f64());
                self.is_wrong(&mut notes, ended, what);
                "wrong"
            }
        };
        *notes.endings.entry(kind.to_owned()).or_default() += 1;
        if notes.seen.insert(id.clone(), status).is_some() {
            panic!("two requests are called {id}");
        }
    }

    /// Notes something that must not be.
    pub fn wrong(&self, what: String) {
        self.is_wrong(&mut self.notes.lock(), Instant::now(), what);
    }

    fn is_wrong(&self, notes: &mut Notes, at: Instant, what: String) {
        let near = notes.faults.iter().filter(|fault| fault.at + NEAR > at && fault.at < at + SLACK);
        let near: Vec<_> = near.map(|fault| format!("{:.2} s {}", self.time(fault.at), fault.what)).collect();
        let line = format!("{:.2} s: {what} [{}]", self.time(at), near.join("; "));
        eprintln!("UNEXPLAINED {line}");
        notes.wrong.push(line);
    }

    pub fn fault(&self, kind: &'static str, what: &str) {
        self.note(kind, what.to_owned(), None);
    }

    /// Notes that an engine breaks connections. To be called before the engine does so, since clients are quick to see
    /// it.
    pub fn breaks(&self, kind: &'static str, url: &str) {
        self.note(kind, format!("{kind} {url}"), Some(url.to_owned()));
    }

    fn note(&self, kind: &'static str, what: String, breaks: Option<String>) {
        eprintln!("{:.2} s: {what}", self.time(Instant::now()));
        self.notes.lock().faults.push(Fault { kind, at: Instant::now(), what, breaks });
    }

    fn time(&self, at: Instant) -> f64 {
        (at - self.began).as_secs_f64()
    }

    /// Compares the clients' observations with the access logs of all processes together.
    pub fn audit(&self, directory: &Path) {
        let mut logged: HashMap<String, Vec<Line>> = HashMap::new();
        for file in std::fs::read_dir(directory).expect("a directory").flatten() {
            if file.path().extension().is_some_and(|end| end == "jsonl") {
                let text = std::fs::read_to_string(file.path()).expect("an access log");
                for line in text.lines() {
                    let line: Line = serde_json::from_str(line).expect("a line of the access log");
                    logged.entry(line.request_id.clone()).or_default().push(line);
                }
            }
        }
        let notes = &mut *self.notes.lock();
        for loss in std::mem::take(&mut notes.losses) {
            let line = logged.get(&loss.id).and_then(|lines| lines.first());
            let backend = line.and_then(|line| line.backend.as_deref());
            let explains = |fault: &Fault| {
                let at = fault.at;
                backend.is_some()
                    && fault.breaks.as_deref() == backend
                    && loss.began < at + SLACK
                    && at < loss.ended
                    && (fault.kind != CONT || loss.what == "502")
            };
            if !notes.faults.iter().any(explains) {
                let what = format!("request {}, backend {backend:?}: {}", loss.id, loss.what);
                self.is_wrong(notes, loss.ended, what);
            }
        }
        let seen = std::mem::take(&mut notes.seen);
        for (id, status) in &seen {
            let lines = logged.get(id).map_or(&[][..], Vec::as_slice);
            let agree = match (lines, status) {
                ([], None) => true,
                ([line], Some(status)) => line.status == *status,
                ([_], None) => true,
                _ => false,
            };
            if !agree {
                let lines: Vec<_> = lines.iter().map(|line| line.status).collect();
                self.is_wrong(notes, Instant::now(), format!("request {id}: saw {status:?}, logged {lines:?}"));
            }
        }
        if let Some(id) = logged.keys().find(|id| !seen.contains_key(*id)) {
            self.is_wrong(notes, Instant::now(), format!("request {id} is logged, and nobody sent it"));
        }
        println!("{} requests sent, {} in the access log", seen.len(), logged.len());
    }

    /// Prints the journal. Returns whether all is well.
    pub fn verdict(&self) -> bool {
        let notes = self.notes.lock();
        for (kind, count) in &notes.endings {
            println!("  {count:>8} {kind}");
        }
        let mut faults = BTreeMap::<_, usize>::new();
        for fault in &notes.faults {
            *faults.entry(fault.kind).or_default() += 1;
        }
        println!("{} faults: {faults:?}", notes.faults.len());
        println!("{} unexplained", notes.wrong.len());
        for line in &notes.wrong {
            println!("  {line}");
        }
        notes.wrong.is_empty()
    }
}
