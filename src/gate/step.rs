//! The guard of one step, from arrival to end.

use super::{Gate, PoolId, Verdict};
use crate::error::Refusal;
use crate::scheduler::{Arrival, BackendId, DispatchKind, Event, Outcome, PROGRESS, RefuseReason, StepId};
use crate::telemetry::HoldClass;
use crate::units::Tokens;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A step that may be sent to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    pub backend: BackendId,
    pub kind: DispatchKind,
    /// Time from arrival to dispatch.
    pub held: Duration,
}

/// The state of a step: `Waiting ─▶ Running ─▶ Over`, and from `Running` back to `Waiting` when it could not be
/// delivered.
#[derive(Debug)]
enum State {
    Waiting(oneshot::Receiver<Verdict>),
    Running(Admission),
    Refused(RefuseReason),
    Over,
}

/// A guard for one step. If it is dropped before [`Step::finish`], the client counts as gone.
#[derive(Debug)]
pub struct Step {
    gate: Gate,
    pool: PoolId,
    id: StepId,
    entered: Instant,
    /// Whether the step had to wait, if only for a moment.
    waited: bool,
    /// Output tokens of the last progress that the scheduler was told.
    reported: u64,
    state: State,
}

impl Step {
    pub(super) fn enter(gate: Gate, pool: PoolId, arrival: Arrival) -> Self {
        let (entered, id) = (Instant::now(), arrival.step);
        let answer = gate.ask(pool, Event::Arrive(arrival), id);
        let mut step = Self { gate, pool, id, entered, waited: false, reported: 0, state: State::Over };
        step.state = step.answered(answer);
        step
    }

    /// Waits until the step may go, or returns at once if it already may. Cancel-safe: a wait that was given up may be
    /// taken up again.
    ///
    /// # Errors
    /// The reason why the step will never go. It is out of the ledger then.
    pub async fn admitted(&mut self) -> Result<Admission, Refusal> {
        if let State::Waiting(verdict) = &mut self.state {
            // The sender is dropped without a verdict only when its gate goes away.
            let verdict = verdict.await.unwrap_or(Verdict::Refuse(RefuseReason::Draining));
            self.state = self.decided(verdict);
            self.count_hold();
        }
        match self.state {
            State::Running(admission) => Ok(admission),
            State::Refused(reason) => Err(self.refusal(reason)),
            State::Waiting(_) | State::Over => Err(Refusal::Internal),
        }
    }

    /// Tells the scheduler that the first output came.
    pub fn first_token(&mut self) {
        if matches!(self.state, State::Running(_)) {
            self.gate.handle(self.pool, Event::FirstToken(self.id));
        }
    }

    /// Tells the scheduler the count of output tokens so far, once every [`PROGRESS`] tokens.
    pub fn progress(&mut self, output: u64) {
        if output >= self.reported + PROGRESS && matches!(self.state, State::Running(_)) {
            self.reported = output;
            self.gate.handle(self.pool, Event::Progress { step: self.id, output: Tokens(output) });
        }
    }

    /// Takes the dispatch back, because nothing reached the backend. The step goes to another backend (see
    /// [`Step::admitted`]). `false`: there is none now, and the step waits.
    pub fn undelivered(&mut self) -> bool {
        if matches!(self.state, State::Running(_)) {
            let answer = self.gate.ask(self.pool, Event::Undelivered(self.id), self.id);
            self.state = self.answered(answer);
        }
        !matches!(self.state, State::Waiting(_))
    }

    /// Ends the step. A second call changes nothing.
    pub fn finish(&mut self, outcome: Outcome) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Waiting(_) => self.give_up(),
            State::Running(_) => self.gate.tell(self.pool, Event::End { step: self.id, outcome }),
            State::Refused(_) | State::Over => {}
        }
    }

    fn give_up(&mut self) {
        if let Some(pool) = self.gate.0.pools.get(self.pool.0) {
            pool.lock().waiting.remove(&self.id);
        }
        self.gate.handle(self.pool, Event::End { step: self.id, outcome: Outcome::Abandoned });
        self.gate.0.telemetry.metrics.hold_ended(HoldClass::Unserved, self.entered.elapsed());
    }

    fn answered(&mut self, answer: Result<Verdict, oneshot::Receiver<Verdict>>) -> State {
        match answer {
            Ok(verdict) => self.decided(verdict),
            Err(receiver) => {
                self.waited = true;
                State::Waiting(receiver)
            }
        }
    }

    fn decided(&self, verdict: Verdict) -> State {
        match verdict {
            Verdict::Go(backend, kind) => {
                let held = if self.waited { self.entered.elapsed() } else { Duration::ZERO };
                State::Running(Admission { backend, kind, held })
            }
            Verdict::Refuse(reason) => State::Refused(reason),
        }
    }

    fn count_hold(&self) {
        let metrics = &self.gate.0.telemetry.metrics;
        match self.state {
            State::Running(admission) => {
                metrics.resumed(admission.kind);
                metrics.hold_ended(admission.kind.into(), admission.held);
            }
            _ => metrics.hold_ended(HoldClass::Unserved, self.entered.elapsed()),
        }
    }

    fn refusal(&self, reason: RefuseReason) -> Refusal {
        let policy = self.gate.0.policy.load();
        let retry_after = reason.retry_after().unwrap_or_default();
        match reason {
            RefuseReason::QueueFull => Refusal::QueueFull { retry_after },
            RefuseReason::HeldTooLong => Refusal::HeldTooLong { held: self.entered.elapsed(), retry_after },
            RefuseReason::NoBackend => Refusal::NoBackend { waited: policy.no_backend_wait, retry_after },
            RefuseReason::Released => Refusal::ProgramReleased,
            RefuseReason::Draining => Refusal::Draining { retry_after },
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.finish(Outcome::Abandoned);
    }
}
