//! Thundergate: a program-aware load balancer for vLLM fleets, on Pingora.
//!
//! A request passes these modules in this order: [`proxy`] reads the request, [`body`] finds the fields that matter,
//! [`identity`] names its program, [`gate`] asks the [`scheduler`] when and where it may run, and [`proxy`] streams the
//! backend's answer back. [`fleet`] knows the state of each backend.

pub mod app;
pub mod auth;
pub mod body;
pub mod cli;
pub mod config;
pub mod control;
pub mod error;
pub mod exchange;
pub mod fleet;
pub mod gate;
pub mod identity;
pub mod lab;
pub mod logging;
pub mod proxy;
pub mod server;
pub mod state;
pub mod telemetry;
pub mod units;

pub use thundergate_scheduler as scheduler;
