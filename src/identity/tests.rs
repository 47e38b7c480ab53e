use super::*;
use bytes::Bytes;
use http::HeaderValue;

fn envelope(body: &str) -> Envelope {
    Envelope::scan(Bytes::copy_from_slice(body.as_bytes()), 128).unwrap()
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn find(sources: &Sources, pairs: &[(&'static str, &str)], body: &str) -> Option<(String, String)> {
    let found = sources.find(&headers(pairs), &envelope(body), &"t".into());
    found.unwrap().map(|(key, source)| {
        assert_eq!(&*key.tenant, "t");
        (key.id.to_string(), source.to_owned())
    })
}

fn id(pairs: &[(&'static str, &str)], body: &str) -> Option<String> {
    find(&Sources::default(), pairs, body).map(|(id, _)| id)
}

#[test]
fn the_default_list_is_the_contracts_order() {
    let body = |n: usize| {
        let members = [
            r#""program_id":"0""#,
            r#""extra_body":{"program_id":"1"}"#,
            r#""vllm_xargs":{"agentic_context":{"program_id":"3"}}"#,
            r#""prompt_cache_key":"14""#,
            r#""metadata":{"session_id":"15","user_id":"x_session_16"}"#,
            r#""metadata":{"user_id":"x_session_16"}"#,
        ];
        let places = [0, 1, 3, 14, 15, 16];
        let left = members.iter().zip(places).filter(|(_, place)| *place >= n);
        // Of duplicate keys the last one counts: the fuller `metadata` goes last.
        let left: Vec<&str> = left.rev().map(|(member, _)| *member).collect();
        format!("{{{}}}", left.join(","))
    };
    let all = [
        ("x-program-id", 2),
        ("x-dynamo-session-id", 4),
        ("x-claude-code-agent-id", 5),
        ("x-claude-code-session-id", 6),
        ("x-session-id", 7),
        ("x-session-affinity", 8),
        ("thread-id", 9),
        ("session-id", 10),
        ("session_id", 11),
        ("x-litellm-session-id", 12),
        ("x-smg-routing-key", 13),
    ];
    for (n, source) in DEFAULT_SOURCES.iter().enumerate() {
        let left = all.iter().filter(|(_, place)| *place >= n);
        let texts: Vec<_> = left.map(|(name, place)| (*name, place.to_string())).collect();
        let pairs: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let expected = Some((n.to_string(), (*source).to_owned()));
        assert_eq!(find(&Sources::default(), &pairs, &body(n)), expected);
    }
    assert_eq!(id(&[("x-request-id", "r")], r#"{"user":"u","cache_salt":"s"}"#), None);
}

#[test]
fn every_default_name_can_be_parsed() {
    let sources = Sources::parse(&DEFAULT_SOURCES, 256).unwrap();
    assert_eq!(sources.sources.len(), DEFAULT_SOURCES.len());
    assert_eq!(Sources::default().sources.len(), DEFAULT_SOURCES.len());
}

#[test]
fn blank_and_unreadable_values_are_passed_over() {
    let body = r#"{"program_id":"","extra_body":{"program_id":null},"prompt_cache_key":[1]}"#;
    assert_eq!(id(&[("x-program-id", "  "), ("x-session-id", " s ")], body).unwrap(), "s");
    assert_eq!(id(&[("x-program-id", ""), ("x-program-id", "second")], "{}").unwrap(), "second");
    assert_eq!(id(&[("x-program-id", "é")], "{}").unwrap(), "é");
    let mut latin1 = HeaderMap::new();
    latin1.insert("x-program-id", HeaderValue::from_bytes(b"caf\xe9").unwrap());
    let sources = Sources::default();
    let found = sources.find(&latin1, &envelope(r#"{"metadata":{"session_id":{}}}"#), &"".into());
    assert_eq!(found, Ok(None));
}

#[test]
fn numbers_and_booleans_become_their_json_text() {
    assert_eq!(id(&[], r#"{"program_id": 7.50}"#).unwrap(), "7.50");
    assert_eq!(id(&[], r#"{"program_id": false}"#).unwrap(), "false");
    assert_eq!(id(&[], r#"{"program_id": 0}"#).unwrap(), "0");
}

#[test]
fn a_program_id_that_is_no_single_value_is_refused_with_its_place() {
    for (body, place) in [
        (r#"{"program_id":{}}"#, "program_id"),
        (r#"{"extra_body":{"program_id":[]}}"#, "extra_body.program_id"),
        (r#"{"vllm_xargs":{"agentic_context":{"program_id":[1]}}}"#, "vllm_xargs.agentic_context.program_id"),
    ] {
        let sources = Sources::default();
        let found = sources.find(&HeaderMap::new(), &envelope(body), &"".into());
        assert_eq!(found, Err(Refusal::InvalidProgramId(place.to_owned())));
    }
}

#[test]
fn claude_codes_user_id_gives_its_session() {
    let user = |user_id: &str| {
        let text = serde_json::to_string(user_id).unwrap();
        id(&[], &format!(r#"{{"metadata":{{"user_id":{text}}}}}"#))
    };
    assert_eq!(user("user_ab12_account_c-d_session_e-f").unwrap(), "e-f");
    assert_eq!(user("user_ab12_account__session_e-f").unwrap(), "e-f");
    let json = r#"{"device_id":"d","account_uuid":"","session_id":"s\u002d1"}"#;
    assert_eq!(user(json).unwrap(), "s-1");
    for without in [
        "alice",
        "user_1_session_",
        r#"{"device_id":"d"}"#,
        r#"{"session_id":""}"#,
        r#"{"session_id":5}"#,
        r#"{"session_id":"#,
    ] {
        assert_eq!(user(without), None, "{without}");
    }
}

#[test]
fn long_ids_are_hashed_to_a_fixed_key() {
    let sources = Sources::parse(&["header:x-program-id"], 8).unwrap();
    let long = "123456789";
    let (found, _) = find(&sources, &[("x-program-id", long)], "{}").unwrap();
    assert_eq!(found, "sha256:15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225");
    assert_eq!(*sources.key(&"t".into(), long).id, *found);
    assert_eq!(&*sources.key(&"t".into(), "12345678").id, "12345678");
}

#[test]
fn a_configured_list_is_the_only_one_used() {
    let sources = Sources::parse(&["header:X-My-Agent", "body:metadata.session_id"], 256).unwrap();
    let body = r#"{"program_id":"p","metadata":{"session_id":"s"}}"#;
    let expected = ("a".to_owned(), "header:X-My-Agent".to_owned());
    assert_eq!(find(&sources, &[("x-my-agent", "a")], body).unwrap(), expected);
    assert_eq!(find(&sources, &[], body).unwrap().0, "s");
    let none = Sources::parse::<&str>(&[], 256).unwrap();
    assert_eq!(find(&none, &[], body), None);
}

#[test]
fn names_that_cannot_be_used_are_refused_with_the_nearest_valid_one() {
    let error = |name: &str| Sources::parse(&[name], 256).unwrap_err().to_string();
    assert!(error("body:progam_id").ends_with("is `body:program_id`"));
    assert!(error("x-session-id").ends_with("is `header:x-session-id`"));
    assert!(error("body:metadata.user").ends_with("is `body:metadata.user_id`"));
    assert!(error("query:program_id").ends_with("is `body:program_id`"));
    for never in ["header:X-Request-Id", "x-request-id", "body:user", "user", "body:cache_salt"] {
        assert!(error(never).contains("cannot name a program: "), "{never}");
    }
    assert!(error("header:no spaces").ends_with("not a valid header name"));
    assert!(error("header:").ends_with("not a valid header name"));
}

#[test]
fn the_last_step_is_announced_by_a_header() {
    assert!(final_step(&headers(&[("x-program-final", "true")])));
    assert!(final_step(&headers(&[("x-dynamo-session-final", " True ")])));
    assert!(!final_step(&headers(&[("x-program-final", "false")])));
    assert!(!final_step(&headers(&[("x-program-final", "")])));
    assert!(!final_step(&HeaderMap::new()));
}
