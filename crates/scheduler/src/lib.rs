//! Decides when and where the steps of agent programs run on a fleet of LLM servers.
//!
//! A *program* is an agent at work: a conversation that grows by *steps* (requests to a model), with tools that run
//! between them. Its KV cache is worth keeping from one step to the next. A program that is *leased* has its cache on
//! one backend and is charged there with its *footprint*, in tokens; its steps go at once. A program without a lease
//! is *held* until it fits; what fits is computed from what all programs of the backend will grow to. Room is made by
//! taking the leases of idle programs, when keeping them has cost more than computing their context again would.
//!
//! One [`Scheduler`] serves one model pool: backends that serve the same model.
//!
//! # Sans I/O
//!
//! The scheduler reads no clock, opens no socket, starts no task, logs nothing and draws no random number. The caller
//! hands it each [`Event`] with the time at which it happened, and carries out the [`Decision`]s that come back, in
//! their order. The same events at the same times give the same decisions, so a simulator, a test and a proxy all run
//! the same code, and what went wrong once can be replayed.
//!
//! # Calls
//!
//! There are four kinds:
//!
//! 1. **Events in, decisions out**: [`Scheduler::handle`]. Nothing else schedules.
//! 2. **Views**: [`Scheduler::programs`], [`Scheduler::program`], [`Scheduler::loads`], [`Scheduler::open_steps`],
//!    [`Scheduler::held_steps`]: what an operator wants to see.
//! 3. **Settings**: [`Scheduler::new`] and [`Scheduler::set_policy`], with [`Settings`] that can be read from a file.
//! 4. **What outlives a restart**: [`Scheduler::snapshot`], [`Scheduler::snapshot_programs`], [`Scheduler::restore`].
//!
//! # Events
//!
//! - Of a step: [`Event::Arrive`], then, once it was dispatched, [`Event::FirstToken`] and [`Event::Progress`], and in
//!   any case [`Event::End`], also when its client leaves while it is held. [`Event::Undelivered`] puts it back.
//! - Of a program: [`Event::Release`]. Programs that nobody releases expire.
//! - Of a backend: [`Event::BackendAdded`], [`Event::BackendUp`], [`Event::BackendDown`], [`Event::BackendDraining`],
//!   [`Event::BackendRemoved`], and [`Event::Report`] with what its metrics say.
//! - Of the whole: [`Event::Tick`] every [`Settings::tick`], [`Event::Freeze`], [`Event::Drain`].
//!
//! # Decisions
//!
//! Two have to be carried out: [`Decision::Dispatch`] and [`Decision::Refuse`]. All others are for the record.
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
//! After every event, in debug builds and tests ([`Scheduler::check`] tells which one is broken):
//!
//! - A backend's claims are the sum of the charges of the programs leased there, and a charge is its program's
//!   footprint; both are zero when no program is left.
//! - A program has at most one lease, and a leased program never waits for room.
//! - A step is dispatched once for each time that it was held or arrived, and never to a backend that is down.
//! - Each held step is dispatched or refused in the end, or its client leaves.
//!
//! Running steps are never interrupted. Admission alone never takes claims above the capacity; growth may, and so
//! may steps that are forced in after [`settings::Hold::max`].
//!
//! # Formulas
//!
//! - Footprint of a program: max(context, Σ estimates of its steps in flight) − prefix that its class shares.
//! - Room on a backend: capacity · (1 − headroom) · f − KV use that is not ours − Σ shared prefixes − claims. The
//!   factor f falls while prefixes that ought to be cached are not.
//! - Eviction: ski rental. A lease may go once idling has cost more than the stall that recomputing would cause.
//! - Forecast: max over j of Σ footprints and growth of all programs that end no earlier than j; ends come from a
//!   survival estimate (Kaplan and Meier, Nonparametric estimation from incomplete observations, 1958).
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
