//! Backends that come and go: by another configuration, and as a name server tells them.

use super::*;
use crate::config::{Discovery, HostPort};
use futures_util::future::{BoxFuture, FutureExt};
use std::io;

const SECOND: BackendId = BackendId(1);
const METRICS: Metrics = Metrics { enabled: true, interval: Duration::from_millis(20) };

fn urls(fleet: &Fleet) -> Vec<String> {
    let statuses = fleet.statuses();
    statuses.iter().filter(|status| !status.draining).map(|status| status.backend.url.clone()).collect()
}

#[tokio::test]
async fn a_reload_drains_what_is_named_no_more_and_leaves_the_rest_in_peace() {
    let (one, two) = (Engine::start().await, Engine::start().await);
    let run = run(&[pool("", vec![backend(&one.url()), backend(&two.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.heard.until_event(Event::BackendUp(SECOND)).await;
    run.heard.in_flight.store(1, SeqCst);

    let third = backend("http://127.0.0.1:1");
    run.fleet.reload(&[pool("", vec![third, backend(&two.url())])], &METRICS);
    assert_eq!(run.heard.count(&Event::BackendDraining(FIRST)), 1);
    assert!(run.fleet.get(FIRST).is_some(), "its steps in flight end in peace");
    assert_eq!(urls(&run.fleet), [two.url(), "http://127.0.0.1:1".to_owned()]);
    assert_eq!(run.fleet.preferred(POOL, b"x"), Some(SECOND));

    // The backend comes back while its first life still drains, and counts as another backend.
    run.fleet.reload(&[pool("", vec![backend(&one.url()), backend(&two.url())])], &METRICS);
    run.heard.until_event(Event::BackendUp(BackendId(3))).await;
    run.heard.in_flight.store(0, SeqCst);
    run.heard.until_event(Event::BackendRemoved(FIRST)).await;
    let second = Event::BackendAdded { backend: SECOND, weight: 1, capacity: None };
    assert_eq!(run.heard.count(&second), 1, "nothing was told of the one that did not change");
    assert_eq!(run.heard.count(&Event::BackendDown(SECOND)), 0);
}

#[tokio::test]
async fn a_reload_changes_a_backend_in_its_place() {
    let engine = Engine::start().await;
    let run = run(&[pool("m", vec![backend(&engine.url())])]);
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    let mut changed = pool("m", vec![backend(&engine.url())]);
    changed.backends[0].weight = 7;
    changed.backends[0].capacity_tokens = Some(9_000);
    changed.backends[0].api_key = Some(Secret("new".into()));
    changed.aliases = vec!["alias".into()];
    changed.health.path = Some("/v1/models".into());
    run.fleet.reload(&[changed], &METRICS);

    run.heard.until_event(Event::BackendAdded { backend: FIRST, weight: 7, capacity: Some(Tokens(9_000)) }).await;
    assert_eq!(run.fleet.pool_for(Some("alias")), Some(POOL));
    until("the new key is sent", || engine.get(|e| e.keys.iter().any(|key| key == "Bearer new"))).await;
    until("the new path is asked for", || engine.asked("/v1/models") > 1).await;
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 0);
}

#[tokio::test]
async fn a_backend_added_at_run_time_survives_a_reload_until_a_file_has_named_it() {
    let engine = Engine::start().await;
    let run = run(&[pool("", vec![backend(&engine.url())])]);
    let added = "http://127.0.0.1:1".to_owned();
    let id = run.fleet.add(POOL, &backend(&added), Origin::Api).unwrap();
    run.fleet.reload(&[pool("", vec![backend(&engine.url())])], &METRICS);
    assert_eq!(urls(&run.fleet), [engine.url(), added.clone()]);
    // The file names the backend, so the file may take it away.
    run.fleet.reload(&[pool("", vec![backend(&engine.url()), backend(&added)])], &METRICS);
    assert_eq!(run.heard.count(&Event::BackendDraining(id)), 0);
    run.fleet.reload(&[pool("", vec![backend(&engine.url())])], &METRICS);
    assert_eq!(run.heard.count(&Event::BackendDraining(id)), 1);
}

#[tokio::test]
async fn a_narrower_list_takes_out_what_came_at_run_time_and_nothing_that_a_file_names() {
    let (one, two) = (Engine::start().await, Engine::start().await);
    let run = run(&[pool("", vec![backend(&one.url())])]);
    let id = run.fleet.add(POOL, &backend(&two.url()), Origin::Api).unwrap();
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    run.heard.until_event(Event::BackendUp(id)).await;

    let elsewhere = vec!["10.0.0.0/8".parse().unwrap()];
    let admin = config::Admin { allow_backends: Some(elsewhere), ..config::Admin::default() };
    run.fleet.confine(Some(&admin));
    run.heard.until_event(Event::BackendDown(id)).await;
    assert_eq!(run.fleet.address(id), None, "nothing connects there");
    assert!(
        run.fleet.add(POOL, &backend("http://127.0.0.1:1"), Origin::Api).unwrap_err().contains("admin.allow_backends")
    );
    assert_eq!(run.heard.count(&Event::BackendDown(FIRST)), 0);

    run.fleet.reload(&[pool("", vec![backend(&one.url()), backend(&two.url())])], &METRICS);
    run.heard.until_times(Event::BackendUp(id), 2).await;
}

type Answer = Result<Vec<SocketAddr>, io::ErrorKind>;

/// A name server that gives the answer that the test sets.
#[derive(Clone)]
struct NameServer {
    answer: Arc<parking_lot::Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    fn new(answer: Answer) -> Self {
        Self { answer: Arc::new(parking_lot::Mutex::new(answer)), asked: Arc::default() }
    }

    /// Sets another answer, and waits until the fleet has taken it in.
    async fn says(&self, answer: Answer) {
        *self.answer.lock() = answer;
        let heard = self.asked.load(SeqCst) + 2;
        until("the name server is asked", || self.asked.load(SeqCst) >= heard).await;
    }
}

impl Resolve for NameServer {
    fn lookup(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        assert_eq!((host, port), ("vllm", 8000));
        self.asked.fetch_add(1, SeqCst);
        let answer = self.answer.lock().clone();
        async move { answer.map_err(io::Error::from) }.boxed()
    }
}

fn discovering(backends: Vec<config::Backend>) -> Pool {
    let dns = HostPort { host: "vllm".into(), port: 8000 };
    let discovery = Discovery { dns, interval: Duration::from_millis(5), api_key: Some(Secret("k".into())) };
    Pool { discovery: Some(discovery), ..pool("", backends) }
}

#[tokio::test]
async fn every_address_of_a_name_is_a_backend_for_as_long_as_the_name_server_says_so() {
    let (one, two) = (Engine::start().await, Engine::start().await);
    let v6: SocketAddr = "[2001:db8::1]:8000".parse().unwrap();
    let names = NameServer::new(Ok(vec![one.address, one.address, v6]));
    let run = run_resolving(&[discovering(Vec::new())], timing(), names.clone());
    run.heard.until_event(Event::BackendUp(FIRST)).await;
    assert_eq!(urls(&run.fleet), [one.url(), "http://[2001:db8::1]:8000".to_owned()]);
    assert!(one.get(|e| e.keys.iter().all(|key| key == "Bearer k")));

    names.says(Ok(vec![two.address, one.address])).await;
    let here = urls(&run.fleet);
    assert!(here.len() == 2 && here.contains(&one.url()) && here.contains(&two.url()), "{here:?}");
    assert_eq!(run.heard.count(&Event::BackendDraining(SECOND)), 1);
    assert_eq!(run.heard.count(&Event::BackendDraining(FIRST)), 0);

    // When the name server is ill, the known addresses stay.
    for ill in [Err(io::ErrorKind::TimedOut), Ok(Vec::new())] {
        names.says(ill).await;
        assert_eq!(urls(&run.fleet).len(), 2);
    }
    names.says(Ok(vec![two.address])).await;
    assert_eq!(urls(&run.fleet), [two.url()]);
    assert_eq!(run.heard.count(&Event::BackendDraining(FIRST)), 1);
}

#[tokio::test]
async fn discovery_leaves_others_backends_alone_and_ends_with_a_reload() {
    let engine = Engine::start().await;
    let names = NameServer::new(Ok(vec![engine.address, "127.0.0.1:1".parse().unwrap()]));
    let named = || vec![backend(&engine.url())];
    let run = run_resolving(&[discovering(named())], timing(), names.clone());
    timeout(PATIENCE, run.fleet.looked_over()).await.expect("all was looked at");
    assert_eq!(urls(&run.fleet), [engine.url(), "http://127.0.0.1:1".to_owned()]);
    names.says(Ok(vec!["127.0.0.1:1".parse().unwrap()])).await;
    assert_eq!(run.heard.count(&Event::BackendDraining(FIRST)), 0, "the file names it");

    run.fleet.reload(&[pool("", named())], &METRICS);
    run.heard.until_event(Event::BackendDraining(SECOND)).await;
    assert_eq!(urls(&run.fleet), [engine.url()]);
    let asked = names.asked.load(SeqCst);
    run.fleet.reload(&[discovering(named())], &METRICS);
    until("it is asked again", || names.asked.load(SeqCst) > asked).await;
}
