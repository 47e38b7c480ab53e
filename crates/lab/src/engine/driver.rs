//! Runs the model in real time, and passes each request its tokens.

use super::model::{Counters, Engine, EngineEvent, EventKind, Gauges, Request, RequestId, Unfit, Usage};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Upper bounds of the time-to-first-token histogram, in seconds. They are vLLM's.
pub(super) const BOUNDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// Histogram of the times to first token.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstTokens {
    /// Counts by bucket, not cumulative. Times above the last bound count in `count` alone.
    pub buckets: [u64; BOUNDS.len()],
    pub count: u64,
    pub sum: f64,
}

/// An engine that runs in real time. A clone is cheap and stands for the same engine.
#[derive(Clone)]
pub(super) struct Driver(Arc<Shared>);

struct Shared {
    began: Instant,
    state: Mutex<State>,
    /// Signal that the time of the model's next event may have changed.
    changed: Notify,
}

struct State {
    engine: Engine,
    events: Vec<EngineEvent>,
    listeners: HashMap<RequestId, mpsc::UnboundedSender<Signal>>,
    first_tokens: FirstTokens,
    next_id: RequestId,
}

/// An event of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// One more token has come.
    Token,
    Done(Usage),
}

/// A request under way. Dropping the guard before the request's end aborts the request at once.
pub(super) struct Generation {
    pub id: RequestId,
    driver: Driver,
    signals: mpsc::UnboundedReceiver<Signal>,
}

/// State of the engine that `/metrics` tells.
pub(super) struct Snapshot {
    pub counters: Counters,
    pub gauges: Gauges,
    pub first_tokens: FirstTokens,
}

// === impl Driver ===

impl Driver {
    pub(super) fn new(engine: Engine) -> Self {
        Self(Arc::new(Shared {
            began: Instant::now(),
            state: Mutex::new(State {
                engine,
                events: Vec::new(),
                listeners: HashMap::new(),
                first_tokens: FirstTokens::default(),
                next_id: 0,
            }),
            changed: Notify::new(),
        }))
    }

    /// Runs the model in real time, for ever.
    pub(super) async fn run(self) {
        loop {
            let next = {
                let mut state = self.0.state.lock();
                state.catch_up(self.now());
                state.engine.next_event_at()
            };
            let changed = self.0.changed.notified();
            match next {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(self.0.began + at) => {}
                    () = changed => {}
                },
            }
        }
    }

    /// Starts a request, which gets its `id` here.
    pub(super) fn submit(&self, mut request: Request) -> Result<Generation, Unfit> {
        let (sender, signals) = mpsc::unbounded_channel();
        let mut state = self.0.state.lock();
        let now = self.now();
        state.catch_up(now);
        request.id = state.next_id;
        let id = request.id;
        state.engine.submit(now, request)?;
        state.next_id += 1;
        state.listeners.insert(id, sender);
        drop(state);
        self.0.changed.notify_one();
        Ok(Generation { id, driver: self.clone(), signals })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut state = self.0.state.lock();
        state.catch_up(self.now());
        Snapshot {
            counters: *state.engine.counters(),
            gauges: state.engine.gauges(),
            first_tokens: state.first_tokens.clone(),
        }
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }
}

// === impl State ===

impl State {
    fn catch_up(&mut self, now: Duration) {
        self.engine.advance(now, &mut self.events);
        for event in self.events.drain(..) {
            let signal = match event.kind {
                EventKind::Preempted => continue,
                EventKind::Token => Signal::Token,
                EventKind::FirstToken { after } => {
                    self.first_tokens.record(after);
                    Signal::Token
                }
                EventKind::Finished(usage) => Signal::Done(usage),
            };
            let listener = match signal {
                Signal::Done(_) => self.listeners.remove(&event.id),
                Signal::Token => self.listeners.get(&event.id).cloned(),
            };
            // Sending may fail: a listener that has gone aborts its request by itself.
            let _ = listener.map(|listener| listener.send(signal));
        }
    }
}

// === impl FirstTokens ===

impl FirstTokens {
    fn record(&mut self, after: Duration) {
        let seconds = after.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        if let Some(at) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.buckets[at] += 1;
        }
    }
}

// === impl Generation ===

impl Generation {
    pub(super) async fn next(&mut self) -> Option<Signal> {
        self.signals.recv().await
    }

    /// Waits for the end of the request.
    pub(super) async fn finished(&mut self) -> Option<Usage> {
        loop {
            if let Signal::Done(usage) = self.next().await? {
                return Some(usage);
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let mut state = self.driver.0.state.lock();
        state.catch_up(self.driver.now());
        if state.listeners.remove(&self.id).is_some() {
            state.engine.abort(self.id);
        }
        drop(state);
        self.driver.0.changed.notify_one();
    }
}
