use super::*;
use crate::config::{Admin, ApiKey, Backend, Pool, Profile, Secret};
use crate::config::{Config, Routing};
use crate::gate::{Arrival, PoolId, Step};
use crate::scheduler::{BackendId, Event, Outcome, ProgramKey, Usage};
use crate::units::Tokens;
use http::HeaderMap;
use serde_json::Value;
use std::time::Duration;

mod doors;
mod ours;
mod thunderagent;

const GPU1: &str = "http://gpu1:8000";
const GPU2: &str = "http://gpu2:8000";

fn config() -> Config {
    let backend = |url| Backend { capacity_tokens: Some(10_000), ..Backend::at(url).unwrap() };
    Config { models: vec![Pool::unnamed(vec![backend(GPU1), backend(GPU2)])], ..Config::default() }
}

/// An app without a network, whose gate takes the backends to be up.
fn app_of(config: Config) -> Arc<App> {
    let app = Arc::new(App::new(Arc::new(config)).unwrap());
    for status in app.fleet.statuses() {
        app.gate.tell(status.backend.pool, Event::BackendUp(status.backend.id));
    }
    app
}

fn app() -> Arc<App> {
    app_of(config())
}

fn key(tenant: &str, id: &str) -> ProgramKey {
    ProgramKey { tenant: tenant.into(), id: id.into() }
}

fn enter(app: &App, key: ProgramKey) -> Step {
    app.gate.enter(PoolId(0), Arrival { program: Some(key), prompt_bytes: 400, ..Arrival::default() })
}

/// A program with a step on a backend.
async fn running(app: &App, key: ProgramKey) -> Step {
    let mut step = enter(app, key);
    step.admitted().await.unwrap();
    step
}

/// A program between two steps.
async fn idle(app: &App, key: ProgramKey) {
    let usage = Usage { prompt: Tokens(100), completion: Tokens(20), cached: Some(Tokens(0)) };
    running(app, key).await.finish(Outcome::Completed(Some(usage)));
}

fn request(method: &str, target: &str) -> ControlRequest {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    ControlRequest {
        method: method.parse().unwrap(),
        path: path.to_owned(),
        query: query.map(str::to_owned),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        listener: Side::Main,
        local: true,
        tenant: None,
    }
}

fn with_body(method: &str, target: &str, body: &str) -> ControlRequest {
    ControlRequest { body: Bytes::copy_from_slice(body.as_bytes()), ..request(method, target) }
}

fn with_header(mut request: ControlRequest, name: &'static str, value: &str) -> ControlRequest {
    request.headers.insert(name, value.parse().unwrap());
    request
}

fn on_admin(request: ControlRequest) -> ControlRequest {
    ControlRequest { listener: Side::Admin, ..request }
}

fn as_tenant(request: ControlRequest, tenant: &str) -> ControlRequest {
    ControlRequest { tenant: Some(tenant.into()), ..request }
}

fn full(response: &ControlResponse) -> &Bytes {
    match &response.body {
        ControlBody::Full(body) => body,
        ControlBody::Stream(_) => panic!("a stream"),
    }
}

fn header<'a>(response: &'a ControlResponse, name: &str) -> Option<&'a str> {
    response.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap())
}

/// The status and the JSON of an answer.
async fn ask(app: &Arc<App>, request: ControlRequest) -> (u16, Value) {
    let response = handle(app, request).await;
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    (response.status.as_u16(), serde_json::from_slice(full(&response)).unwrap())
}

async fn get(app: &Arc<App>, target: &str) -> (u16, Value) {
    ask(app, request("GET", target)).await
}

/// The keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// `words` as a sorted list.
fn sorted(words: &str) -> Vec<&str> {
    let mut words: Vec<_> = words.split_whitespace().collect();
    words.sort_unstable();
    words
}
