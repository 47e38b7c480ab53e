//! Bodies that are no JSON, or strange JSON.

use super::*;
use serde_json::Value;

/// Sends a step over both protocols, one after the other, and checks that status and code are the same. Returns these,
/// and the requests that reached the backend.
async fn step(scene: &mut Scene, body: &[u8]) -> (u16, String, Vec<Message>) {
    let mut client = scene.proxy.client().await;
    client.post(CHAT, "", body).await;
    let response = client.response().await;
    let mut h2 = H2::connect(scene.proxy.address).await;
    let mut request = h2.post(CHAT, Some(body.len())).await;
    request.send(Bytes::copy_from_slice(body), true).await;
    let other = request.response().await;
    assert_eq!(response.status(), other.status().as_u16());
    (response.status(), code(&response), scene.reached())
}

#[tokio::test]
async fn what_is_no_json_object_is_refused_with_its_place() {
    let mut scene = Scene::set().await;
    let at_depth = |open: &str, n: usize, close: &str| format!("{{\"a\":{}{}}}", open.repeat(n), close.repeat(n));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("white space", b" \t\r\n  ".to_vec()),
        ("null", b"null".to_vec()),
        ("a list", b"[]".to_vec()),
        ("a string", b"\"{}\"".to_vec()),
        ("a number", b"1".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec()),
        ("UTF-16", b"\xff\xfe{\0}\0".to_vec()),
        ("UTF-16 without a mark", b"{\0}\0".to_vec()),
        ("two objects", b"{}{}".to_vec()),
        ("an object and more", b"{} x".to_vec()),
        ("NUL behind", b"{}\0".to_vec()),
        ("a trailing comma", br#"{"a":1,}"#.to_vec()),
        ("a comment", b"{/**/}".to_vec()),
        ("single quotes", b"{'a':1}".to_vec()),
        ("no quotes", b"{a:1}".to_vec()),
        ("leading zeros", br#"{"a":01}"#.to_vec()),
        ("a plus sign", br#"{"a":+1}"#.to_vec()),
        ("half a number", br#"{"a":1e}"#.to_vec()),
        ("a raw line break", b"{\"a\":\"b\nc\"}".to_vec()),
        ("a raw NUL", b"{\"a\":\"\0\"}".to_vec()),
        ("an unknown escape", br#"{"a":"\x41"}"#.to_vec()),
        ("half an escape", br#"{"a":"\u12"}"#.to_vec()),
        ("a byte that is no UTF-8", b"{\"a\":\"\xff\"}".to_vec()),
        ("an overlong slash", b"{\"a\":\"\xc0\xaf\"}".to_vec()),
        ("a surrogate in UTF-8", b"{\"a\":\"\xed\xa0\x80\"}".to_vec()),
        ("half a character", b"{\"a\":\"\xf0\x9f\x98\"}".to_vec()),
        ("a character split by an escape", b"{\"a\":\"\xc3\\n\xa9\"}".to_vec()),
        ("no UTF-8 in a key", b"{\"\xfe\":1}".to_vec()),
        ("lists too deep", at_depth("[", 128, "]").into_bytes()),
        ("objects too deep", at_depth("{\"a\":", 127, "}").replace(":}", ":{}}").into_bytes()),
        ("a million brackets", at_depth("[", 1_000_000, "]").into_bytes()),
        ("a million brackets without an end", format!("{{\"a\":{}", "[".repeat(1_000_000)).into_bytes()),
        ("a million objects", format!("{{\"a\":{}", "{\"a\":".repeat(1_000_000)).into_bytes()),
        ("a million brackets in the identity", format!("{{\"program_id\":{}", "[".repeat(1_000_000)).into_bytes()),
    ];
    for (what, body) in cases {
        let (status, code, reached) = step(&mut scene, &body).await;
        assert_eq!((status, code.as_str(), reached.len()), (400, "invalid_json", 0), "{what}");
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn strange_json_is_forwarded_as_it_is() {
    let mut scene = Scene::set().await;
    let deepest = format!("{{\"a\":{}{}}}", "[".repeat(127), "]".repeat(127));
    let long = format!("{{\"a\":\"{}\"}}", "\\\"{[".repeat(100_000));
    for (what, body) in [
        ("at the limit of depth", deepest.as_str()),
        ("brackets in a string", long.as_str()),
        ("a huge number", &format!("{{\"a\":1{}}}", "0".repeat(100_000))),
        ("a huge exponent", r#"{"a":1e999999999,"max_tokens":1e999}"#),
        ("a negative limit", r#"{"max_tokens":-5,"max_completion_tokens":-1e999}"#),
        ("numbers as others write them", r#"{"a":-0,"b":1E+2,"c":0.10}"#),
        ("what Python calls JSON", r#"{"a":NaN,"b":-Infinity}"#),
        ("a lone surrogate", r#"{"a":"\ud800","\udfff":1}"#),
        ("surrogates the wrong way round", r#"{"a":"\udc00\ud800"}"#),
        ("an escaped NUL", "{\"a\":\"\\u0000\"}"),
        ("white space everywhere", " \t\r\n{ \"a\" \n:\t[ 1 ,\r2 ] } \n"),
        ("an empty key", r#"{"":{"":[]}}"#),
        ("a key twice", r#"{"a":1,"a":2,"model":"x","model":"tiny"}"#),
        ("non-characters", "{\"a\":\"\u{fffe}\u{10ffff}\u{202e}\u{feff}\"}"),
        ("ours elsewhere", r#"{"messages":[{"program_id":"x"}],"a":{"program_id":1},"metadata":{"program_id":[]}}"#),
    ] {
        let (status, _, reached) = step(&mut scene, body.as_bytes()).await;
        assert_eq!((status, reached.len()), (200, 2), "{what}");
        for request in reached {
            assert!(request.body == body.as_bytes(), "{what} was changed");
        }
    }
    assert!(scene.proxy.app.gate.programs().is_empty());
    scene.unharmed().await;
}

#[tokio::test]
async fn of_a_program_id_given_twice_the_last_counts_and_none_goes_upstream() {
    let mut scene = Scene::set().await;
    for (body, program) in [
        (r#"{"program_id":"a","program_id":"last1"}"#, Some("last1")),
        (r#"{"program_id":"last2","x":{"program_id":"b"}}"#, Some("last2")),
        (r#"{"program_id":"a","extra_body":{"program_id":"b"},"program_id":"last3"}"#, Some("last3")),
        (r#"{"extra_body":{"program_id":"a"},"extra_body":{"program_id":"last4"}}"#, Some("last4")),
        (r#"{"extra_body":{"program_id":"a","program_id":"last5"}}"#, Some("last5")),
        (r#"{"program_id":"a","program_id":null,"extra_body":{"program_id":"last6"}}"#, Some("last6")),
        ("{\"program_id\":\"a\",\"\\u0070rogram_id\":\"last7\"}", Some("last7")),
        (
            "{\"extra_body\":{\"program_id\":\"a\"},\"extra\\u005fbody\":{\"program\\u005fid\":\"last8\"}}",
            Some("last8"),
        ),
        (r#"{"program_id":["a"],"program_id":"last9"}"#, Some("last9")),
        (r#"{"extra_body":{"program_id":"a"},"extra_body":{}}"#, None),
        (r#"{"extra_body":{"program_id":"a"},"extra_body":[]}"#, None),
        (r#"{"program_id":"a","program_id":""}"#, None),
        (r#"{"program_id":0.10}"#, Some("0.10")),
        (r#"{"program_id":true}"#, Some("true")),
        ("{\"program_id\":\"\\ud800\"}", Some("\u{fffd}")),
    ] {
        let known = || {
            scene
                .proxy
                .app
                .gate
                .programs()
                .into_iter()
                .map(|(_, program)| program.key.id.to_string())
                .collect::<Vec<_>>()
        };
        let before = known();
        let (status, code, reached) = step(&mut scene, body.as_bytes()).await;
        assert_eq!((status, code.as_str(), reached.len()), (200, "", 2), "{body}");
        for request in &reached {
            let sent = request.text();
            let at_top: Value = serde_json::from_str(sent).expect("an object");
            let cut = |object: &Value| ["program_id", "docker_ids"].iter().all(|key| object.get(key).is_none());
            assert!(cut(&at_top) && at_top.get("extra_body").is_none_or(cut), "{sent}");
            assert!(!sent.contains("\"a\""), "a copy went upstream: {sent}");
        }
        scene.proxy.settled().await;
        let after = scene.proxy.app.gate.programs().into_iter().map(|(_, program)| program.key.id.to_string());
        let new: Vec<_> = after.filter(|id| !before.contains(id)).collect();
        assert_eq!(new, program.into_iter().collect::<Vec<_>>(), "{body}");
    }
    for body in
        [r#"{"program_id":"a","program_id":{}}"#, r#"{"extra_body":{"program_id":[1]}}"#, r#"{"program_id":[]}"#]
    {
        let (status, code, reached) = step(&mut scene, body.as_bytes()).await;
        assert_eq!((status, code.as_str(), reached.len()), (400, "invalid_program_id", 0), "{body}");
    }
    scene.unharmed().await;
}
