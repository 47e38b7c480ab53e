//! Decides when and where the steps of agent programs run on a fleet of LLM servers.
//!
//! A *program* is an agent at work: a conversation that grows by *steps* (requests to a model), with tools that run
//! between the steps. Its KV cache is worth keeping from one step to the next. A *leased* program has its cache on one
//! backend and is charged there with its *footprint*, in tokens; its steps go at once. A program without a lease is
//! *held* until it fits. Whether it fits is computed from the size that all programs of the backend will grow to. To
//! make room, the scheduler takes the leases of idle programs whose leases have cost more than computing their contexts
//! again would.
//!
//! One [`Scheduler`] serves one model pool: backends that serve the same model.
//!
//! # Sans I/O
//!
//! The scheduler reads no clock, opens no socket, starts no task, logs nothing and draws no random number. The caller
//! hands it each [`Event`] with the time at which the event happened, and carries out the [`Decision`]s that come back,
//! in their order. The same events at the same times give the same decisions. So a simulator, a test and a proxy all
//! run the same code, and a fault can be replayed from its events.
//!
//! # Calls
//!
//! There are four kinds of calls:
//!
//! 1. **Events in, decisions out**: [`Scheduler::handle`]. Nothing else schedules.
//! 2. **Views**: [`Scheduler::programs`], [`Scheduler::program`], [`Scheduler::loads`], [`Scheduler::open_steps`],
//!    [`Scheduler::held_steps`]: the state, for an operator.
//! 3. **Settings**: [`Scheduler::new`] and [`Scheduler::set_policy`], with [`Settings`], which can be read from a file.
//! 4. **Restarts**: [`Scheduler::snapshot`], [`Scheduler::snapshot_programs`], [`Scheduler::restore`].
//!
//! # Events
//!
//! - Of a step: first [`Event::Arrive`]; after its dispatch [`Event::FirstToken`] and [`Event::Progress`]; and always
//!   [`Event::End`], also when its client leaves while the step is held. [`Event::Undelivered`] puts a step back.
//! - Of a program: [`Event::Release`]. A program that nobody releases expires.
//! - Of a backend: [`Event::BackendAdded`], [`Event::BackendUp`], [`Event::BackendDown`], [`Event::BackendDraining`],
//!   [`Event::BackendRemoved`], and [`Event::Report`] with the values of its metrics.
//! - Of the whole: [`Event::Tick`] every [`Settings::tick`], [`Event::Freeze`], [`Event::Drain`].
//!
//! # Decisions
//!
//! Two decisions have to be carried out: [`Decision::Dispatch`] and [`Decision::Refuse`]. All others are for the
//! record.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use thundergate_scheduler::units::Tokens;
//! use thundergate_scheduler::{
//!     Arrival, BackendId, Decision, Event, Outcome, Policy, ProgramKey, Scheduler, StepId, Usage,
//! };
//!
//! let mut scheduler = Scheduler::new(Policy::default());
//! let mut decisions = Vec::new();
//! let backend = BackendId(0);
//! let capacity = Some(Tokens(100_000));
//! scheduler.handle(Duration::ZERO, Event::BackendAdded { backend, weight: 1, capacity }, &mut decisions);
//! scheduler.handle(Duration::ZERO, Event::BackendUp(backend), &mut decisions);
//!
//! let step = StepId(1);
//! let program = ProgramKey { tenant: "".into(), id: "agent-1".into() };
//! let arrival = Arrival { step, program: Some(program.clone()), prompt_bytes: 8_000, ..Arrival::default() };
//! scheduler.handle(Duration::from_secs(1), Event::Arrive(arrival), &mut decisions);
//! assert!(matches!(decisions[..], [Decision::Dispatch { backend: BackendId(0), .. }]));
//!
//! // The answer came, and the backend counted 2,100 tokens: they are charged until the program ends.
//! let usage = Usage { prompt: Tokens(2_000), completion: Tokens(100), cached: None };
//! let outcome = Outcome::Completed(Some(usage));
//! scheduler.handle(Duration::from_secs(5), Event::End { step, outcome }, &mut decisions);
//! assert_eq!(scheduler.loads()[0].charged_idle, Tokens(2_100));
//! scheduler.handle(Duration::from_secs(6), Event::Release(program), &mut decisions);
//! assert_eq!(scheduler.loads()[0].charged_idle, Tokens::ZERO);
//! assert_eq!(scheduler.check(), Ok(()));
//! ```
//!
//! # Invariants
//!
//! These hold after every event. Debug builds and tests check them, and [`Scheduler::check`] names the first one that
//! is broken:
//!
//! - A backend's claims are the sum of the charges of the programs leased there, and a charge is its program's
//!   footprint. Claims are zero when no program is left.
//! - A program has at most one lease, and a leased program never waits for room.
//! - A step is dispatched at most once, and once more each time that it was put back; never to a backend that is down.
//! - Each held step is dispatched or refused in the end, or its client leaves.
//!
//! Running steps are never interrupted. Admission takes claims above the capacity only for a program that alone needs
//! nearly all of it. Growth may take them above it, and so may steps that are forced in after [`settings::Hold::max`].
//!
//! # Formulas
//!
//! - Footprint of a program: max(context, Σ estimates of its steps in flight) − prefix that its class shares.
//! - Room on a backend: capacity · (1 − headroom) · f − KV use of others − Σ shared prefixes − claims. The factor f
//!   falls while prefixes that ought to be cached are not.
//! - Eviction: ski rental. A lease may be taken once its program has idled for longer than the stall that recomputing
//!   the context would cause.
//! - Forecast: max over j of Σ (footprint + growth until j ends) over all programs that end no earlier than j. The ends
//!   come from a survival estimate (Kaplan and Meier, Nonparametric estimation from incomplete observations, 1958).
//!
//! The feature `settings` adds a JSON Schema (`schemars`) and bounds (`garde`) to [`Settings`].

mod backend;
mod check;
mod decision;
mod dispatch;
pub mod duration;
mod estimate;
mod event;
mod expiry;
mod fairness;
mod feedback;
mod fill;
mod forecast;
mod handle;
mod ledger;
mod membership;
mod outcome;
mod policy;
mod program;
mod queue;
mod reclaim;
mod scheduler;
pub mod settings;
mod shadow;
mod snapshot;
mod step;
pub mod units;
mod view;

#[cfg(test)]
mod tests;

pub use decision::{Decision, DispatchKind, EndKind, HoldReason, PauseReason, RefuseReason};
pub use event::{Arrival, BackendId, BackendReport, Event, Life, Outcome, PROGRESS, PoolId, ProgramKey, StepId, Usage};
pub use policy::Policy;
pub use scheduler::Scheduler;
pub use settings::{Feedback, OnTimeout, Routing, Settings};
pub use snapshot::{BackendSnapshot, Experience, ProgramSnapshot, SchedulerSnapshot};
pub use view::{LoadView, ProgramView};
