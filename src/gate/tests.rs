use super::*;
use crate::error::Refusal;
use crate::scheduler::{Outcome, Usage};
use crate::units::Tokens;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const POOL: PoolId = PoolId(0);
const BACKEND: BackendId = BackendId(1);

/// A configuration whose forecast never holds a program back.
fn config() -> Config {
    let mut config = Config { models: vec![config::Pool::unnamed(Vec::new())], ..Config::default() };
    config.scheduler.forecast.slack = 9.0;
    config
}

/// One pool with one backend of 10,000 tokens.
fn gate() -> Gate {
    let config = config();
    let telemetry = Arc::new(Telemetry::new(&config).unwrap());
    let gate = Gate::new(&config, telemetry);
    gate.tell(POOL, Event::BackendAdded { backend: BACKEND, weight: 1, capacity: Some(Tokens(10_000)) });
    gate.tell(POOL, Event::BackendUp(BACKEND));
    gate
}

fn key(id: &str) -> ProgramKey {
    ProgramKey { tenant: "".into(), id: id.into() }
}

fn step(gate: &Gate, program: &str, tokens: u64) -> Step {
    gate.enter(POOL, Arrival { program: Some(key(program)), prompt_bytes: tokens * 4, ..Arrival::default() })
}

/// Polls the future once; `None`: it is not ready.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn done(tokens: u64) -> Outcome {
    Outcome::Completed(Some(Usage { prompt: Tokens(tokens), completion: Tokens(10), cached: None }))
}

#[tokio::test]
async fn a_step_that_fits_goes_at_once_and_settles_when_it_is_finished() {
    let gate = gate();
    let mut a = step(&gate, "a", 1_000);
    let admission = a.admitted().await.unwrap();
    assert_eq!((admission.backend, admission.held), (BACKEND, Duration::ZERO));
    a.finish(done(1_000));
    drop(a);
    assert_eq!(gate.open_steps(), 0);
    assert_eq!(gate.program(&key("a"))[0].1.context, Tokens(1_010));
    assert_eq!(gate.check(), Ok(()));
}

#[tokio::test]
async fn a_held_step_is_woken_when_another_makes_room() {
    let gate = gate();
    let mut a = step(&gate, "a", 8_000);
    a.admitted().await.unwrap();
    let mut b = step(&gate, "b", 8_000);
    assert!(now(b.admitted()).is_none());
    assert_eq!(gate.held_steps(), 1);
    drop(a);
    assert!(now(b.admitted()).unwrap().is_ok(), "nobody polled it in between");
}

#[tokio::test]
async fn a_client_that_leaves_while_held_frees_its_place() {
    let gate = gate();
    let mut a = step(&gate, "a", 8_000);
    a.admitted().await.unwrap();
    let mut b = step(&gate, "b", 8_000);
    let c = step(&gate, "c", 500);
    assert!(now(b.admitted()).is_none());
    drop(b);
    assert!(gate.program(&key("b")).is_empty());
    assert_eq!(gate.held_steps(), 0, "the small one behind it went");
    drop((a, c));
    assert_eq!(gate.open_steps(), 0);
    assert!(gate.programs().is_empty());
    assert_eq!(gate.check(), Ok(()));
}

#[tokio::test]
async fn a_guard_dropped_between_verdict_and_wake_gives_its_charge_back() {
    let gate = gate();
    let a = step(&gate, "a", 8_000);
    let b = step(&gate, "b", 8_000);
    drop(a);
    assert_eq!(gate.held_steps(), 0, "b was dispatched, though its task has not run yet");
    drop(b);
    assert_eq!(gate.open_steps(), 0);
    let load = &gate.loads()[0].1;
    assert_eq!((load.in_flight, load.charged_running), (0, Tokens::ZERO));
}

#[tokio::test]
async fn a_release_refuses_the_held_step() {
    let gate = gate();
    let mut a = step(&gate, "a", 8_000);
    a.admitted().await.unwrap();
    let mut b = step(&gate, "b", 8_000);
    assert!(gate.release(&key("b")));
    assert_eq!(b.admitted().await, Err(Refusal::ProgramReleased));
    assert!(!gate.release(&key("b")));
}

#[tokio::test]
async fn an_undelivered_step_waits_for_another_backend() {
    let gate = gate();
    let mut a = step(&gate, "a", 1_000);
    a.admitted().await.unwrap();
    gate.tell(POOL, Event::BackendDown(BACKEND));
    assert!(!a.undelivered());
    assert!(now(a.admitted()).is_none());
    gate.tell(POOL, Event::BackendUp(BACKEND));
    assert!(now(a.admitted()).unwrap().is_ok());
}

#[tokio::test]
async fn draining_refuses_held_and_new_steps_in_every_pool() {
    let gate = gate();
    let mut a = step(&gate, "a", 8_000);
    a.admitted().await.unwrap();
    let mut b = step(&gate, "b", 8_000);
    gate.drain();
    assert!(matches!(b.admitted().await, Err(Refusal::Draining { .. })));
    assert!(matches!(step(&gate, "c", 10).admitted().await, Err(Refusal::Draining { .. })));
    assert_eq!(gate.open_steps(), 1);
}

#[tokio::test]
async fn decisions_are_told_to_those_who_listen() {
    let gate = gate();
    let mut events = gate.events();
    let mut a = step(&gate, "a\n\"", 1_000);
    a.admitted().await.unwrap();
    let event: serde_json::Value = serde_json::from_str(&events.recv().await.unwrap()).unwrap();
    assert_eq!((event["event"].as_str(), event["kind"].as_str()), (Some("dispatch"), Some("new")));
}

#[tokio::test]
async fn a_reload_that_makes_room_lets_a_held_step_in() {
    let gate = gate();
    let mut config = config();
    config.scheduler.headroom = 0.5;
    config.scheduler.hold.queue = 1;
    gate.reload(&config);
    let mut a = step(&gate, "a", 4_000);
    assert!(now(a.admitted()).unwrap().is_ok());
    let mut b = step(&gate, "b", 4_000);
    assert!(now(b.admitted()).is_none());
    let mut c = step(&gate, "c", 4_000);
    assert!(matches!(now(c.admitted()), Some(Err(Refusal::QueueFull { .. }))));

    gate.reload(&self::config());
    assert!(now(b.admitted()).unwrap().is_ok());
    // A backend that is given another size lets a held step in too.
    let mut d = step(&gate, "d", 8_000);
    assert!(now(d.admitted()).is_none());
    gate.tell(POOL, Event::BackendAdded { backend: BACKEND, weight: 2, capacity: Some(Tokens(40_000)) });
    assert!(now(d.admitted()).unwrap().is_ok());
    gate.tell(POOL, Event::BackendAdded { backend: BACKEND, weight: 2, capacity: Some(Tokens(100)) });
    assert_eq!(gate.check(), Ok(()), "smaller than what runs there");
}
