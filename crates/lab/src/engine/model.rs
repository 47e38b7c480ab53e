//! The engine in virtual time: prefix cache, continuous batching, preemption. The model does no I/O: every method is
//! given the time, and the same calls always give the same events.
//!
//! The model schedules as vLLM's v1 scheduler does. Each iteration has a budget of tokens. Running sequences come
//! first, in the order of their admission, so decodes come before the one unfinished prefill. When blocks run out, the
//! youngest sequence is preempted and recomputed later. Then sequences are admitted from the queue in order, as long as
//! the whole prompt of the queue's head fits.

use super::blocks::{BlockId, BlockPool};
use super::cost::{Costs, Iteration};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The shape of one engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Number of blocks of KV cache. One of them is the null block and holds nothing.
    pub kv_blocks: u32,
    /// Number of tokens in a block.
    pub block_size: usize,
    /// Number of sequences in one batch, at most.
    pub max_num_seqs: usize,
    /// Number of tokens in one iteration, at most.
    pub max_num_batched_tokens: usize,
    pub costs: Costs,
}

/// Name of a request. The caller must not give the name to another request while this one lives.
pub type RequestId = u64;

/// A request, whose answer is known beforehand.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: RequestId,
    /// Hashes of the full blocks of prompt and output together (see [`super::chain::Chain`]). Blocks past the end of
    /// the chain can never be found again.
    pub chain: Arc<[u64]>,
    pub prompt_tokens: usize,
    /// Length of the answer in tokens, at least 1.
    pub output_tokens: usize,
    /// Number of tokens at the start of the request that need not be computed even if they are not cached: a store
    /// below the cache brings them back at no cost. Plain vLLM has no such store: 0.
    pub recalled: usize,
    pub finish: Finish,
    /// Whether every token is reported, not only the first and the last.
    pub stream: bool,
}

/// Reason why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
}

/// Reason why a request cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("prompt and output must have at least one token each")]
    Empty,
    #[error("prompt and output together are larger than the KV cache")]
    TooLarge,
}

/// An event of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineEvent {
    pub at: Duration,
    pub id: RequestId,
    pub kind: EventKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The first token came. `after` is the time since the submission.
    FirstToken { after: Duration },
    /// A further token came; only for requests with `stream`.
    Token,
    /// The request's blocks were taken away; the request waits to be computed again.
    Preempted,
    /// The request has finished. This event follows that of the last token.
    Finished(Usage),
}

/// Tokens of a finished request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: usize,
    /// Prompt tokens that were in the cache at the first admission.
    pub cached: usize,
    pub output: usize,
}

/// Totals since the start. Tokens are counted as in vLLM.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Number of tokens looked up in the prefix cache, at first admission.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,
    /// Number of prompt tokens of requests whose first token came.
    pub prompt_tokens: u64,
    /// Number of these tokens that were found in the cache.
    pub prompt_cached: u64,
    pub generation_tokens: u64,
    /// Number of tokens prefilled, recomputation after preemption included.
    pub prefilled: u64,
    pub finished_stop: u64,
    pub finished_length: u64,
    pub aborted: u64,
    pub iterations: u64,
    /// Virtual time spent in iterations.
    pub busy: Duration,
}

/// Present state of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    pub running: usize,
    pub waiting: usize,
    /// Share of the usable blocks that running requests hold, from 0 to 1.
    pub kv_usage: f64,
}

/// One engine.
#[derive(Debug)]
pub struct Engine {
    shape: Shape,
    pool: BlockPool,
    /// Sequences in the order of their admission.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    phase: Phase,
    /// Whether something has changed that could let the head of the queue in. Without a change, the head need not be
    /// tried again.
    retry: bool,
    counters: Counters,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// Nothing runs; the next iteration is to be put together at this time.
    Due(Duration),
    /// An iteration runs until this time.
    Busy(Duration),
}

#[derive(Debug)]
struct Sequence {
    request: Request,
    arrived: Duration,
    blocks: Vec<BlockId>,
    /// Number of `blocks` that are full and offered to the cache.
    named: usize,
    /// Number of tokens whose KV is there.
    computed: usize,
    generated: usize,
    /// Number of tokens in the iteration under way.
    scheduled: usize,
    /// Number of prompt tokens found in the cache at first admission.
    cached: Option<usize>,
}

// === impl Engine ===

impl Engine {
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let shape = Shape {
            block_size: shape.block_size.max(1),
            max_num_seqs: shape.max_num_seqs.max(1),
            max_num_batched_tokens: shape.max_num_batched_tokens.max(1),
            ..shape
        };
        Self {
            pool: BlockPool::new(shape.kv_blocks),
            shape,
            running: Vec::new(),
            waiting: VecDeque::new(),
            phase: Phase::Idle,
            retry: false,
            counters: Counters::default(),
        }
    }

    /// Number of tokens that one sequence can have, at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pool.usable() * self.shape.block_size
    }

    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_usage: self.pool.used() as f64 / self.pool.usable() as f64,
        }
    }

    /// Queues a request. `advance(now)` must have been called before.
    pub fn submit(&mut self, now: Duration, request: Request) -> Result<(), Unfit> {
        debug_assert!(self.next_event_at().is_none_or(|next| next >= now));
        if request.prompt_tokens == 0 || request.output_tokens == 0 {
            return Err(Unfit::Empty);
        }
        // The last token is only sampled; its KV is never computed.
        if request.prompt_tokens + request.output_tokens - 1 > self.capacity() {
            return Err(Unfit::TooLarge);
        }
        self.retry |= self.waiting.is_empty();
        self.waiting.push_back(Sequence::new(request, now));
        if matches!(self.phase, Phase::Idle) {
            self.phase = Phase::Due(now);
        }
        Ok(())
    }

    /// Drops a request and frees its blocks. The iteration under way goes on. `false` if there is no such request.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let found = if let Some(at) = self.running.iter().position(|s| s.request.id == id) {
            Some(self.running.remove(at))
        } else {
            let at = self.waiting.iter().position(|s| s.request.id == id);
            at.and_then(|at| self.waiting.remove(at))
        };
        let Some(sequence) = found else { return false };
        self.pool.release(&sequence.blocks);
        self.retry = true;
        self.counters.aborted += 1;
        true
    }

    /// The time at which `advance` will next have something to do.
    #[must_use]
    pub fn next_event_at(&self) -> Option<Duration> {
        match self.phase {
            Phase::Idle => None,
            Phase::Due(at) | Phase::Busy(at) => Some(at),
        }
    }

    /// Runs everything up to `now`, and appends the events to `events`, in order.
    pub fn advance(&mut self, now: Duration, events: &mut Vec<EngineEvent>) {
        while let Some(at) = self.next_event_at().filter(|&at| at <= now) {
            if matches!(self.phase, Phase::Busy(_)) {
                self.complete(at, events);
            }
            self.phase = match self.schedule(at, events) {
                Some(duration) => Phase::Busy(at + duration),
                None => Phase::Idle,
            };
        }
    }

    /// Puts an iteration together. Returns the time that it takes, or `None` if there is nothing to do.
    fn schedule(&mut self, now: Duration, events: &mut Vec<EngineEvent>) -> Option<Duration> {
        let costs = self.shape.costs;
        let mut time = costs.iteration();
        let mut budget = self.shape.max_num_batched_tokens;
        let preempted_before = self.counters.preemptions;
        let mut at = 0;
        while at < self.running.len() && budget > 0 {
            let tokens = self.running[at].outstanding().min(budget);
            if !self.make_room(at, tokens, now, events) {
                break;
            }
            let sequence = &mut self.running[at];
            self.retry |= sequence.grow(tokens, self.shape.block_size, &mut self.pool);
            self.counters.prefilled += sequence.charge(&mut time);
            budget -= tokens;
            at += 1;
        }
        if self.counters.preemptions == preempted_before {
            self.admit(&mut budget, &mut time);
        }
        if budget == self.shape.max_num_batched_tokens {
            return None;
        }
        let duration = time.duration();
        self.counters.iterations += 1;
        self.counters.busy += duration;
        Some(duration)
    }

    /// Preempts the youngest sequences until the one at `at` can grow by `tokens`. `false` if this one was preempted
    /// too.
    fn make_room(&mut self, at: usize, tokens: usize, now: Duration, events: &mut Vec<EngineEvent>) -> bool {
        let need = self.running[at].blocks_missing(tokens, self.shape.block_size);
        while self.pool.free() < need {
            let Some(mut victim) = self.running.pop() else {
                return false;
            };
            self.pool.release(&victim.blocks);
            victim.forget();
            events.push(EngineEvent { at: now, id: victim.request.id, kind: EventKind::Preempted });
            self.waiting.push_front(victim);
            self.counters.preemptions += 1;
            self.retry = true;
            if self.running.len() == at {
                return false;
            }
        }
        true
    }

    /// Admits sequences from the queue while there is budget, a place in the batch, and room for the whole prompt.
    fn admit(&mut self, budget: &mut usize, time: &mut Iteration<'_>) {
        let size = self.shape.block_size;
        while self.retry && *budget > 0 && self.running.len() < self.shape.max_num_seqs {
            let Some(head) = self.waiting.front() else {
                break;
            };
            // At least the last token is computed anew, because its logits are needed.
            let findable = ((head.total() - 1) / size).min(head.request.chain.len());
            let hit = self.pool.lookup(&head.request.chain[..findable]);
            if head.total().div_ceil(size) - hit.shared > self.pool.free() {
                self.retry = false;
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else {
                break;
            };
            let chain = Arc::clone(&sequence.request.chain);
            let found = chain[..hit.blocks].iter();
            let found = found.map_while(|&hash| self.pool.touch(hash));
            sequence.blocks.extend(found);
            sequence.named = sequence.blocks.len();
            sequence.computed = sequence.blocks.len() * size;
            if sequence.cached.is_none() {
                sequence.cached = Some(sequence.computed);
                self.counters.prefix_queries += sequence.total() as u64;
                self.counters.prefix_hits += sequence.computed as u64;
            }
            sequence.recall(size, &mut self.pool);
            let tokens = sequence.outstanding().min(*budget);
            sequence.grow(tokens, size, &mut self.pool);
            self.counters.prefilled += sequence.charge(time);
            *budget -= tokens;
            self.running.push(sequence);
        }
    }

    /// Ends the iteration. Sequences whose tokens are all computed get their next token.
    fn complete(&mut self, now: Duration, events: &mut Vec<EngineEvent>) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            let worked = sequence.scheduled > 0;
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            if !worked || sequence.outstanding() > 0 {
                at += 1;
                continue;
            }
            sequence.generated += 1;
            self.counters.generation_tokens += 1;
            let mut tell = |id, kind| events.push(EngineEvent { at: now, id, kind });
            let id = sequence.request.id;
            if sequence.generated == 1 {
                self.counters.prompt_tokens += sequence.request.prompt_tokens as u64;
                self.counters.prompt_cached += sequence.cached.unwrap_or(0) as u64;
                let after = now - sequence.arrived;
                tell(id, EventKind::FirstToken { after });
            } else if sequence.request.stream {
                tell(id, EventKind::Token);
            }
            if sequence.generated < sequence.request.output_tokens {
                at += 1;
                continue;
            }
            tell(id, EventKind::Finished(sequence.usage()));
            match sequence.request.finish {
                Finish::Stop => self.counters.finished_stop += 1,
                Finish::Length => self.counters.finished_length += 1,
            }
            let done = self.running.remove(at);
            self.pool.release(&done.blocks);
            self.retry = true;
        }
    }

    /// Recounts every block, and compares.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let held = self.running.iter().chain(&self.waiting);
        self.pool.check(held.flat_map(|s| s.blocks.iter().copied()));
        assert!(self.waiting.iter().all(|s| s.blocks.is_empty()));
        let size = self.shape.block_size;
        for sequence in &self.running {
            assert!(sequence.computed + sequence.scheduled <= sequence.total());
            let held = (sequence.computed + sequence.scheduled).div_ceil(size);
            assert_eq!(sequence.blocks.len(), held);
        }
    }
}

// === impl Sequence ===

impl Sequence {
    fn new(request: Request, arrived: Duration) -> Self {
        Self { request, arrived, blocks: Vec::new(), named: 0, computed: 0, generated: 0, scheduled: 0, cached: None }
    }

    /// Number of tokens known so far: the prompt and the generated tokens.
    fn total(&self) -> usize {
        self.request.prompt_tokens + self.generated
    }

    /// Number of tokens still to be computed before the next can be sampled.
    fn outstanding(&self) -> usize {
        self.total() - self.computed
    }

    /// Whether only the last generated token is left to compute.
    fn decodes(&self) -> bool {
        self.generated > 0 && self.outstanding() == 1
    }

    fn blocks_missing(&self, tokens: usize, block_size: usize) -> usize {
        (self.computed + tokens).div_ceil(block_size) - self.blocks.len()
    }

    /// Schedules the next `tokens` tokens: takes blocks for them, and offers blocks that become full to the cache.
    /// `true` if a prefix was offered that other requests may share; a decoded text belongs to this request alone.
    fn grow(&mut self, tokens: usize, block_size: usize, pool: &mut BlockPool) -> bool {
        for _ in 0..self.blocks_missing(tokens, block_size) {
            let block = pool.allocate();
            debug_assert!(block.is_some(), "room was made before");
            self.blocks.extend(block);
        }
        self.scheduled = tokens;
        let full = (self.computed + tokens) / block_size;
        let offers = self.named < full && !self.decodes();
        for at in self.named..full {
            if let Some(&hash) = self.request.chain.get(at) {
                pool.name(self.blocks[at], hash);
            }
        }
        self.named = full;
        offers
    }

    /// Adds the scheduled tokens to the iteration's time. Returns the number of prefilled tokens among them.
    fn charge(&self, time: &mut Iteration<'_>) -> u64 {
        if self.decodes() {
            time.decode(self.computed);
            return 0;
        }
        time.prefill(self.scheduled, self.computed);
        self.scheduled as u64
    }

    /// Takes blocks for tokens that are recalled and not cached.
    fn recall(&mut self, block_size: usize, pool: &mut BlockPool) {
        let known = self.request.recalled.min(self.total() - 1) / block_size * block_size;
        if known > self.computed {
            self.grow(known - self.computed, block_size, pool);
            self.computed = known;
        }
    }

    /// Forgets all computed KV. The generated tokens stay known.
    fn forget(&mut self) {
        if self.request.recalled > 0 {
            self.request.recalled = self.computed;
        }
        self.blocks.clear();
        (self.named, self.computed, self.scheduled) = (0, 0, 0);
    }

    fn usage(&self) -> Usage {
        Usage { prompt: self.request.prompt_tokens, cached: self.cached.unwrap_or(0), output: self.generated }
    }
}

#[cfg(test)]
mod tests;
