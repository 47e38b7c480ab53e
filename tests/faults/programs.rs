//! Programs that are ended at the wrong time, more than once, or never.

use crate::support::backend::Backend;
use crate::support::client::Client;
use crate::support::proxy::{Proxy, config};
use crate::{Asked, STEP, WHOLE};
use serde_json::json;
use std::collections::VecDeque;
use std::sync::Arc;
use thundergate::config::Config;
use thundergate::gate::{Arrival, Gate, PoolId, ProgramView, Step};
use thundergate::scheduler::{BackendId, Event, Outcome, ProgramKey, Usage};
use thundergate::telemetry::Telemetry;
use thundergate::units::Tokens;

async fn release(client: &mut Client) -> bool {
    client.post("/programs/release", "", br#"{"program_id":"p1"}"#).await;
    let response = client.response().await;
    assert_eq!((response.status(), &response.json()["program_id"]), (200, &json!("p1")));
    response.json()["released"].as_bool().expect("yes or no")
}

fn p1(proxy: &Proxy) -> Option<ProgramView> {
    let programs = proxy.app.gate.programs();
    programs.into_iter().map(|(_, program)| program).find(|program| &*program.key.id == "p1")
}

#[tokio::test]
async fn a_program_released_in_flight_is_gone_at_once_and_its_step_ends_well() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let asked = Asked::of(&proxy, false, STEP).await;
    let exchange = backend.next().await;
    let mut client = proxy.client().await;
    assert!(release(&mut client).await);
    assert!(p1(&proxy).is_none());
    assert!(!release(&mut client).await, "the second time there is nothing left to release");
    proxy.app.gate.check().expect("a sound ledger");
    exchange.json(200, WHOLE).await;
    let got = asked.got().await;
    assert_eq!((got.status, got.body.as_str()), (200, WHOLE));
    proxy.settled().await;
    assert!(p1(&proxy).is_none(), "its end does not bring it back");
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn an_id_used_again_right_after_its_release_is_a_fresh_program() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let old = Asked::of(&proxy, false, STEP).await;
    let of_old = backend.next().await;
    assert!(release(&mut proxy.client().await).await);
    let new = Asked::of(&proxy, false, STEP).await;
    let of_new = backend.next().await;
    let fresh = p1(&proxy).expect("known anew");
    assert_eq!((fresh.steps, fresh.context, fresh.in_flight), (0, Tokens(0), 1));
    // A step of the old program ends late, with 1,241 tokens that must not count for the new one.
    of_old.json(200, WHOLE).await;
    assert_eq!(old.got().await.status, 200);
    proxy.wait_for("the old step to be settled", || proxy.app.gate.open_steps() == 1).await;
    let fresh = p1(&proxy).expect("it has a step in flight");
    assert_eq!((fresh.steps, fresh.context, fresh.in_flight), (0, Tokens(0), 1));
    proxy.app.gate.check().expect("a sound ledger");
    of_new.json(200, WHOLE).await;
    assert_eq!(new.got().await.status, 200);
    proxy.settled().await;
    assert_eq!(p1(&proxy).map(|program| (program.steps, program.context)), Some((1, Tokens(1241))));
    proxy.unharmed(&mut backend).await;
}

#[tokio::test]
async fn of_many_who_release_a_program_at_once_one_did() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let running = Asked::of(&proxy, false, STEP).await;
    let exchange = backend.next().await;
    proxy.app.gate.freeze(true);
    let held = Asked::of(&proxy, false, STEP).await;
    proxy.wait_for("a held step", || proxy.app.gate.held_steps() == 1).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(proxy.client().await);
    }
    let all = clients.into_iter().map(async |mut client| release(&mut client).await);
    let released = futures_util::future::join_all(all).await;
    assert_eq!(released.iter().filter(|released| **released).count(), 1);
    let got = held.got().await;
    assert_eq!((got.status, got.error.as_str()), (409, "program_released"));
    exchange.json(200, WHOLE).await;
    assert_eq!(running.got().await.status, 200);
    proxy.app.gate.freeze(false);
    assert!(backend.is_quiet());
    proxy.unharmed(&mut backend).await;
}

/// Number of programs that never end. The number is smaller in builds that check the whole ledger after every event.
const NEVER_RELEASED: usize = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
const MAX: usize = 32;

/// One step of a program that never comes back, beside five others that are under way.
fn visit(gate: &Gate, n: usize, under_way: &mut VecDeque<Step>) {
    let key = ProgramKey { tenant: "".into(), id: format!("program-{n}").into() };
    let info = Arrival { program: Some(key), class: n as u64 % 50, prompt_bytes: 8_000, ..Arrival::default() };
    under_way.push_back(gate.enter(PoolId(0), info));
    if under_way.len() > 5 {
        let usage = Usage { prompt: Tokens(2_000), completion: Tokens(100), cached: None };
        under_way.pop_front().expect("there are some").finish(Outcome::Completed(Some(usage)));
    }
}

#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("kilobytes") * 1024
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn programs_that_are_never_released_are_forgotten_beyond_the_most_and_memory_stays_flat() {
    const ALONE: &str = "THUNDERGATE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // The test runs in a process of its own, because other tests allocate in this one.
        let name = "programs::programs_that_are_never_released_are_forgotten_beyond_the_most_and_memory_stays_flat";
        let mut command = std::process::Command::new(std::env::current_exe().expect("a path"));
        let status = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").status().expect("it runs");
        assert!(status.success());
        return;
    }
    let mut config: Config = config(&[]);
    config.programs.max = MAX;
    let telemetry = Telemetry::new(&config).expect("telemetry");
    let gate = Gate::new(&config, Arc::new(telemetry));
    gate.tell(PoolId(0), Event::BackendAdded { backend: BackendId(0), weight: 1, capacity: None });
    gate.tell(PoolId(0), Event::BackendUp(BackendId(0)));
    let mut under_way = VecDeque::new();
    let mut full = 0;
    for n in 0..NEVER_RELEASED {
        visit(&gate, n, &mut under_way);
        if n == NEVER_RELEASED / 10 {
            full = resident();
        }
        if n % 1000 == 0 {
            assert!(gate.programs().len() <= MAX, "{}", gate.programs().len());
        }
    }
    assert_eq!(gate.programs().len(), MAX);
    let grown = resident().saturating_sub(full);
    assert!(grown < 1 << 20, "{grown} bytes more than after a tenth of them");
    // The dropped steps are given back, and the remaining programs are released.
    under_way.clear();
    for (_, program) in gate.programs() {
        assert!(gate.release(&program.key));
    }
    let (_, load) = &gate.loads()[0];
    assert_eq!((load.in_flight, load.charged_idle, load.charged_running), (0, Tokens(0), Tokens(0)));
    assert_eq!(gate.open_steps(), 0);
    gate.check().expect("a sound ledger");
}
