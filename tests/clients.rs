//! Requests that real agents sent, as recorded (`samples/clients`). Each test checks which program each step belongs
//! to, what of the step reaches the backend, and what comes back.

mod support;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use support::backend::Backend;
use support::client::Client;
use support::proxy::Proxy;
use thundergate::body::envelope::Envelope;
use thundergate::identity::Sources;

/// Recorded requests of one client. Prompts are shortened and meaningless headers are left out; the rest is as it came.
#[derive(Deserialize)]
struct Sample {
    client: String,
    requests: Vec<Request>,
}

#[derive(Deserialize)]
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
    /// Body that the backend has to see, if it differs from `body`.
    forwarded: Option<String>,
    /// Id of the program. Without one, the request passes untracked.
    program: Option<String>,
    source: Option<String>,
    /// Answer that the backend gave.
    answer: Option<String>,
    /// Answer that the client has to see, if it differs from `answer`.
    received: Option<String>,
    /// Context of the program after the request, in tokens.
    tokens: Option<u64>,
}

/// Sends the recorded requests through a proxy with nothing configured.
async fn replay(sample: &str) {
    let sample: Sample = serde_json::from_str(sample).expect("a sample");
    let mut backend = Backend::start().await;
    let proxy = Proxy::start(&[&backend]).await;
    let mut client = proxy.client().await;
    for request in &sample.requests {
        assert_eq!(identity(request), request.program.clone().zip(request.source.clone()), "{}", sample.client);
        exchange(&mut backend, &mut client, request).await;
        proxy.settled().await;
        let programs = proxy.app.gate.programs();
        let Some((_, program)) =
            programs.iter().find(|(_, program)| Some(&*program.key.id) == request.program.as_deref())
        else {
            assert_eq!(request.program, None, "{}: no such program", sample.client);
            continue;
        };
        if let Some(tokens) = request.tokens {
            assert_eq!(program.context.0, tokens, "{}: its usage was read", sample.client);
        }
    }
    let programs: BTreeSet<_> = sample.requests.iter().filter_map(|request| request.program.clone()).collect();
    let seen: BTreeSet<_> = proxy.app.gate.programs().iter().map(|(_, program)| program.key.id.to_string()).collect();
    assert_eq!(seen, programs, "{}", sample.client);
}

/// The program that a request names, and where, by the default list; `None` for a request that names none.
fn identity(request: &Request) -> Option<(String, String)> {
    request.program.as_ref()?;
    let header = |(name, value): (&String, &String)| Some((name.parse().ok()?, value.parse().ok()?));
    let headers: HeaderMap =
        request.headers.iter().filter_map(header).collect::<Vec<(HeaderName, HeaderValue)>>().into_iter().collect();
    let envelope = Envelope::scan(Bytes::copy_from_slice(request.body.as_bytes()), 128).expect("JSON");
    let sources = Sources::default();
    let found = sources.find(&headers, &envelope, &"".into()).expect("a usable id");
    found.map(|(key, source)| (key.id.to_string(), source.to_owned()))
}

async fn exchange(backend: &mut Backend, client: &mut Client, request: &Request) {
    let (path, length) = (&request.path, request.body.len());
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: proxy\r\ncontent-length: {length}\r\n");
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    client.send(format!("{head}\r\n{}", request.body).as_bytes()).await;

    let exchange = backend.next().await;
    assert_eq!(exchange.request.path(), path);
    assert_eq!(exchange.request.text(), request.forwarded.as_ref().unwrap_or(&request.body));
    for (name, value) in &request.headers {
        assert_eq!(exchange.request.header(name).as_ref(), Some(value), "{name}");
    }

    let answer = request.answer.as_deref().unwrap_or("{}");
    if answer.starts_with('{') {
        exchange.json(200, answer).await;
    } else {
        let mut events = exchange.events().await;
        for piece in answer.as_bytes().chunks(67) {
            events.send(piece).await;
        }
        events.finish().await;
    }
    let response = client.response().await;
    assert_eq!((response.status(), response.text()), (200, request.received.as_deref().unwrap_or(answer)));
    assert!(response.complete);
}

macro_rules! clients {
    ($($name:ident: $file:literal,)*) => {$(
        #[tokio::test]
        async fn $name() {
            replay(include_str!(concat!("samples/clients/", $file, ".json"))).await;
        }
    )*};
}

clients! {
    claude_codes_subagents_are_programs_of_their_own_and_counting_tokens_is_nobodys: "claude-code",
    codexs_subagents_are_programs_of_their_own_though_they_share_its_session: "codex",
    the_openai_package_for_node_names_a_program_in_three_ways: "openai-node",
    the_openai_package_for_python_names_a_program_in_two_ways: "openai-python",
    litellm_passes_names_on_whatever_provider_it_speaks: "litellm",
    the_proxy_of_litellm_passes_names_on_in_bodies_and_headers: "litellm-proxy",
    mini_swe_agent_is_a_program: "mini-swe-agent",
    an_openhands_conversation_is_a_program_by_itself_or_by_its_extra_body: "openhands",
}
