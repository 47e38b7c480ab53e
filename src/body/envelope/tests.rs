//! Bodies written by hand. Random bodies are in `properties`.

mod properties;

use super::*;

const DEPTH: usize = 128;

fn scan(body: &str) -> Envelope {
    Envelope::scan(Bytes::copy_from_slice(body.as_bytes()), DEPTH).unwrap()
}

fn complaint(body: &[u8], depth: usize) -> String {
    match Envelope::scan(Bytes::copy_from_slice(body), depth) {
        Err(Refusal::InvalidJson(text)) => text,
        other => panic!("{other:?} for {}", String::from_utf8_lossy(body)),
    }
}

fn forwarded(body: &str, usage: AskUsage) -> (String, bool) {
    let edits = Edits { model: None, usage };
    let out = scan(body).forward(&edits);
    (String::from_utf8(out.body.to_vec()).unwrap(), out.usage_added)
}

fn cut(body: &str) -> String {
    forwarded(body, AskUsage::Never).0
}

#[test]
fn fields_are_found_wherever_they_are() {
    let envelope = scan(
        r#"{"metadata": {"x": {"session_id": 1}, "session_id": "s", "user_id": "u"},
            "vllm_xargs": {"agentic_context": {"program_id": "v"}, "program_id": "no"},
            "extra_body": {"program_id": true}, "program_id": 1.50,
            "prompt_cache_key": "p", "model": "glm\u002d4", "stream": true}"#,
    );
    let text = |field| envelope.scalar(field).unwrap().unwrap();
    assert_eq!(text(Field::ProgramId), "1.50");
    assert_eq!(text(Field::ExtraProgramId), "true");
    assert_eq!(text(Field::AgenticProgramId), "v");
    assert_eq!(text(Field::PromptCacheKey), "p");
    assert_eq!(text(Field::SessionId), "s");
    assert_eq!(text(Field::UserId), "u");
    assert_eq!(envelope.model().unwrap(), "glm-4");
    assert!(envelope.stream());
}

#[test]
fn the_same_names_elsewhere_mean_nothing() {
    let envelope = scan(
        r#"{"messages": [{"program_id": "a", "role": "user"}], "tools": [{"docker_ids": 1}],
            "x": {"program_id": "b"}, "vllm_xargs": {"program_id": "c"}, "content": "\"program_id\": 1"}"#,
    );
    assert_eq!(envelope.scalar(Field::ProgramId), Ok(None));
    assert_eq!(envelope.scalar(Field::AgenticProgramId), Ok(None));
    assert!(envelope.outline.cuts.is_empty());
}

#[test]
fn null_and_empty_ids_are_absent_and_compound_ones_are_told_apart() {
    for (value, expected) in [
        ("null", Ok(None)),
        (r#""""#, Ok(None)),
        (r#"" ""#, Ok(Some(" "))),
        ("-0", Ok(Some("-0"))),
        ("false", Ok(Some("false"))),
        (r#""\ud83d\ude00\n\/""#, Ok(Some("😀\n/"))),
        (r#""\ud83d\u0041""#, Ok(Some("\u{fffd}A"))),
        (r#""\ude00""#, Ok(Some("\u{fffd}"))),
        ("[]", Err(NotScalar)),
        (r#"{"a":1}"#, Err(NotScalar)),
    ] {
        let envelope = scan(&format!(r#"{{"program_id":{value}}}"#));
        let found = envelope.scalar(Field::ProgramId);
        assert_eq!(found.as_ref().map(Option::as_deref), expected.as_ref().map(|id| *id));
    }
}

#[test]
fn of_duplicate_keys_the_last_one_counts_and_all_are_cut() {
    let body =
        r#"{"program_id":"a","model":"m","program_id":"b","extra_body":{"program_id":"c"},"extra_body":{"k":1}}"#;
    let envelope = scan(body);
    assert_eq!(envelope.scalar(Field::ProgramId).unwrap().unwrap(), "b");
    assert_eq!(envelope.scalar(Field::ExtraProgramId), Ok(None));
    assert_eq!(cut(body), r#"{"model":"m","extra_body":{"k":1}}"#);
    let stream = scan(r#"{"stream":true,"stream":false}"#);
    assert!(!stream.stream());
}

#[test]
fn any_number_of_ids_is_cut() {
    for ids in [1, 7, 8, 9, 30_000] {
        let body = format!("{{{}\"b\":2}}", r#""program_id":"x","a":1,"#.repeat(ids));
        assert_eq!(cut(&body), format!("{{{}\"b\":2}}", r#""a":1,"#.repeat(ids)), "{ids}");
    }
}

#[test]
fn keys_are_compared_with_their_escapes_resolved() {
    let body = r#"{"program\u005fid":"x","\u0064ocker_ids":[1],"a\\":2}"#;
    assert_eq!(scan(body).scalar(Field::ProgramId).unwrap().unwrap(), "x");
    assert_eq!(cut(body), r#"{"a\\":2}"#);
}

#[test]
fn a_body_without_our_fields_is_forwarded_as_the_same_buffer() {
    let body = Bytes::from_static(b" { \"model\" : \"m\", \"extra_body\": {}, \"n\": 1.0e+05 } ");
    let envelope = Envelope::scan(body.clone(), DEPTH).unwrap();
    let out = envelope.forward(&Edits::default());
    assert_eq!(out.body.as_ptr(), body.as_ptr());
    assert_eq!(out.body, body);
    assert!(!out.usage_added);
}

#[test]
fn members_are_cut_with_one_comma_wherever_they_stand() {
    for (body, expected) in [
        (r#"{"program_id":1}"#, "{}"),
        (r#"{ "program_id" : 1 }"#, "{  }"),
        (r#"{"program_id":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":2,"program_id":1}"#, r#"{"a":2}"#),
        (r#"{"a":2 , "program_id":1 , "b":3}"#, r#"{"a":2 , "b":3}"#),
        (r#"{"program_id":1,"docker_ids":[1,{}],"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":2,"program_id":1,"docker_ids":2}"#, r#"{"a":2}"#),
        (r#"{"program_id":1,"a":2,"docker_ids":3,"b":4}"#, r#"{"a":2,"b":4}"#),
        (r#"{"program_id":1,"docker_ids":2}"#, "{}"),
        (r#"{"extra_body":{"program_id":1},"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":2,"extra_body":{"program_id":1,"docker_ids":2}}"#, r#"{"a":2}"#),
        (
            r#"{"extra_body":{"docker_ids":1,"k":{"program_id":5}, "program_id":1}}"#,
            r#"{"extra_body":{"k":{"program_id":5}}}"#,
        ),
        (r#"{"extra_body":{},"program_id":1}"#, r#"{"extra_body":{}}"#),
        (r#"{"extra_body":"program_id","program_id":1}"#, r#"{"extra_body":"program_id"}"#),
    ] {
        assert_eq!(cut(body), expected, "{body}");
    }
}

#[test]
fn usage_is_asked_for_when_the_client_did_not() {
    use AskUsage::{Openai, Vllm};
    for (options, engines, expected) in [
        ("", &[Vllm, Openai][..], r#","stream_options":{"include_usage":true}"#),
        (r#","stream_options":null"#, &[Vllm, Openai], r#","stream_options":{"include_usage":true}"#),
        (r#","stream_options":{}"#, &[Openai], r#","stream_options":{"include_usage":true}"#),
        (r#","stream_options":{ }"#, &[Openai], r#","stream_options":{"include_usage":true }"#),
        (
            r#","stream_options":{"include_usage":false}"#,
            &[Vllm, Openai],
            r#","stream_options":{"include_usage":true}"#,
        ),
        (
            r#","stream_options":{"include_usage":null,"x":1}"#,
            &[Vllm, Openai],
            r#","stream_options":{"include_usage":true,"x":1}"#,
        ),
        (r#","stream_options":{"include_usage":"No"}"#, &[Vllm], r#","stream_options":{"include_usage":true}"#),
        (r#","stream_options":{"x":1}"#, &[Openai], r#","stream_options":{"include_usage":true,"x":1}"#),
        (
            r#","stream_options":{"include_usage":true},"stream_options":{"include_usage":0}"#,
            &[Vllm, Openai],
            r#","stream_options":{"include_usage":true},"stream_options":{"include_usage":true}"#,
        ),
        (
            r#","stream_options":{"include_usage":true},"stream_options":{}"#,
            &[Openai],
            r#","stream_options":{"include_usage":true},"stream_options":{"include_usage":true}"#,
        ),
    ] {
        for engine in engines {
            let body = format!(r#"{{"stream":true{options}}}"#);
            let expected = format!(r#"{{"stream":true{expected}}}"#);
            assert_eq!(forwarded(&body, *engine), (expected, true), "{body} {engine:?}");
        }
    }
}

#[test]
fn usage_is_left_alone_when_asked_for_not_streamed_or_malformed() {
    for (body, engine) in [
        (r#"{"stream":true,"stream_options":{"include_usage":true}}"#, AskUsage::Vllm),
        (r#"{"stream":true,"stream_options":{"include_usage":"yes"}}"#, AskUsage::Openai),
        (r#"{"stream":true,"stream_options":{"include_usage":[]}}"#, AskUsage::Vllm),
        (r#"{"stream":true,"stream_options":"on"}"#, AskUsage::Openai),
        (r#"{"stream":true,"stream_options":[]}"#, AskUsage::Vllm),
        (r#"{"stream":false}"#, AskUsage::Vllm),
        (r#"{"stream":"off"}"#, AskUsage::Vllm),
        (r#"{"stream":null}"#, AskUsage::Openai),
        (r#"{}"#, AskUsage::Vllm),
        (r#"{"stream":true}"#, AskUsage::Never),
    ] {
        assert_eq!(forwarded(body, engine), (body.to_owned(), false), "{body}");
    }
    for lax in ["1", "1.0", r#""True""#, r#""\u006fn""#] {
        let (_, added) = forwarded(&format!(r#"{{"stream":{lax}}}"#), AskUsage::Vllm);
        assert!(added, "{lax}");
    }
}

#[test]
fn stream_options_that_vllm_takes_for_a_yes_are_left_alone() {
    for body in [
        r#"{"stream":true,"stream_options":{}}"#,
        r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#,
    ] {
        assert_eq!(forwarded(body, AskUsage::Vllm), (body.to_owned(), false));
    }
}

#[test]
fn continuous_usage_that_the_client_would_not_have_got_stays_off() {
    let body = r#"{"stream":true,"stream_options":{"continuous_usage_stats":true,"include_usage":false}}"#;
    assert_eq!(
        forwarded(body, AskUsage::Vllm).0,
        r#"{"stream":true,"stream_options":{"continuous_usage_stats":false,"include_usage":true}}"#
    );
    assert_eq!(
        forwarded(body, AskUsage::Openai).0,
        r#"{"stream":true,"stream_options":{"continuous_usage_stats":true,"include_usage":true}}"#
    );
}

#[test]
fn all_edits_go_together() {
    let body = r#"{"program_id":"p","model":"al\u0069as","stream_options":{"include_usage":null},"extra_body":{"docker_ids":[]},"stream":true,"docker_ids":0}"#;
    let edits = Edits { model: Some("real \"name\""), usage: AskUsage::Vllm };
    let out = scan(body).forward(&edits);
    assert_eq!(out.body, r#"{"model":"real \"name\"","stream_options":{"include_usage":true},"stream":true}"#);
    let no_model = scan(r#"{"a":1}"#).forward(&edits);
    assert_eq!(no_model.body, r#"{"a":1}"#);
}

#[test]
fn broken_bodies_are_refused_with_the_place_and_a_remedy() {
    for (body, start) in [
        ("", "nothing there at byte 0"),
        (" \n", "nothing there at byte 2"),
        ("\u{feff}{}", "a byte order mark at byte 0"),
        ("[1]", "not a JSON object at byte 0"),
        ("\"x\"", "not a JSON object at byte 0"),
        ("[1", "the JSON ends too early at byte 2"),
        ("{} x", "something after the JSON object at byte 3"),
        ("{}{}", "something after the JSON object at byte 2"),
        ("{'a':1}", "expected a key in double quotes at byte 1"),
        ("{\"a\":1,}", "expected a key in double quotes at byte 7"),
        ("{\"a\" 1}", "expected `:` after a key at byte 5"),
        ("{\"a\":}", "expected a JSON value at byte 5"),
        ("{\"a\":[1,]}", "expected a JSON value at byte 8"),
        ("{\"a\":nul}", "expected a JSON value at byte 5"),
        ("{\"a\":1 \"b\":2}", "expected `,` or the end of the object or array at byte 7"),
        ("{\"a\":[1}", "expected `,` or the end of the object or array at byte 7"),
        ("{\"a\":01}", "expected `,` or the end of the object or array at byte 6"),
        ("{\"a\":-}", "expected a digit at byte 6"),
        ("{\"a\":1.}", "expected a digit at byte 7"),
        ("{\"a\":1e+}", "expected a digit at byte 8"),
        ("{\"a\":\"\\x\"}", "unknown escape in a string at byte 6"),
        ("{\"a\":\"\\u12g4\"}", "unknown escape in a string at byte 6"),
        ("{\"a\":\"x\ny\"}", "raw control character in a string at byte 7"),
        ("{\"a\":\"x", "the JSON ends too early at byte 7"),
        ("{\"a\":\"x\\", "the JSON ends too early at byte 8"),
        ("{\"a\":1", "the JSON ends too early at byte 6"),
    ] {
        let text = complaint(body.as_bytes(), DEPTH);
        assert!(text.starts_with(start), "{body:?}: {text}");
        assert!(text.contains("; "), "{text}");
    }
    assert!(complaint(b"{\"a\":\"\xff\"}", DEPTH).starts_with("not UTF-8 at byte 6"));
}

#[test]
fn what_pythons_json_accepts_beyond_the_standard_is_accepted() {
    scan(r#"{"a":NaN,"b":[Infinity,-Infinity],"c":"\ud800","d":1E400,"e":-0.0}"#);
}

#[test]
fn nesting_is_limited_to_json_depth() {
    for depth in [1, 2, 63, 64, 65, 127, 128, 129, 200] {
        let nested = |levels: usize| {
            let open: String = (1..levels).map(|n| if n % 3 == 0 { "{\"k\":" } else { "[" }).collect();
            let close: String = (1..levels).rev().map(|n| if n % 3 == 0 { "}" } else { "]" }).collect();
            format!("{{\"a\":{open}0{close}}}")
        };
        let fits = nested(depth);
        Envelope::scan(Bytes::from(fits), depth).unwrap();
        let text = complaint(nested(depth + 1).as_bytes(), depth);
        assert!(text.starts_with("nested deeper than limits.json_depth"), "{text}");
    }
    let mismatch = format!("{{\"a\":{}{}}}", "[".repeat(70), "]".repeat(69));
    complaint(mismatch.as_bytes(), DEPTH);
}

#[test]
fn the_smallest_limit_on_output_counts() {
    let limit = |body: &str| scan(body).max_output().map(|limit| limit.0);
    assert_eq!(limit(r#"{"max_tokens":100,"max_completion_tokens":50}"#), Some(50));
    assert_eq!(limit(r#"{"max_output_tokens":7.0,"max_tokens":null}"#), Some(7));
    assert_eq!(limit(r#"{"sampling_params":{"max_new_tokens":"12"}}"#), Some(12));
    assert_eq!(limit(r#"{"max_tokens":-1,"max_completion_tokens":{}}"#), None);
    assert_eq!(limit(r#"{"max_tokens":NaN}"#), None);
    assert_eq!(limit("{}"), None);
}

#[test]
fn everything_that_becomes_prompt_is_counted() {
    let body = r#"{"system":"12345","messages":["x"],"tools":{},"instructions":"","temperature":0.1111}"#;
    assert_eq!(scan(body).prompt_bytes(), 7 + 5 + 2 + 2);
    assert_eq!(scan(r#"{"prompt":"abc","prompt":"a"}"#).prompt_bytes(), 3);
    assert_eq!(scan("{}").prompt_bytes(), 0);
}

#[test]
fn token_ids_are_counted_and_not_their_digits() {
    for ids in ["[1,128000,77]", "[ 1, 128000, 77 ]", "[[1,128000],[77]]", "[\n[1,128000], [77]]"] {
        assert_eq!(scan(&format!(r#"{{"input_ids":{ids}}}"#)).prompt_bytes(), 12, "{ids}");
        assert_eq!(scan(&format!(r#"{{"prompt":{ids}}}"#)).prompt_bytes(), 12, "{ids}");
    }
    assert_eq!(scan(r#"{"text":["ab","c"]}"#).prompt_bytes(), 10, "texts");
    assert_eq!(scan(r#"{"input_ids":[]}"#).prompt_bytes(), 2);
}

#[test]
fn a_class_is_the_model_and_the_system_prompt() {
    let class = |body: &str| scan(body).class();
    let base = class(r#"{"model":"m","messages":[{"role":"system","content":"S"},{"role":"user","content":"a"}]}"#);
    let same =
        class(r#"{"messages":[ {"role":"system","content":"S"}, {"role":"user","content":"b"}],"x":1,"model":"m"}"#);
    assert_eq!(base, same);
    let others = [
        class(r#"{"model":"n","messages":[{"role":"system","content":"S"}]}"#),
        class(r#"{"model":"m","messages":[{"role":"system","content":"T"}]}"#),
        class(r#"{"model":"m","messages":[{"content":"S","role":"developer"}]}"#),
        class(r#"{"model":"m","system":"S"}"#),
        class(r#"{"model":"m","instructions":"S"}"#),
        class(r#"{"model":"m"}"#),
    ];
    for (n, other) in others.iter().enumerate() {
        assert_ne!(base, *other, "{n}");
        assert!(others[n + 1..].iter().all(|rest| rest != other), "{n}");
    }
    let user_first = class(r#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#);
    assert_eq!(user_first, class(r#"{"model":"m"}"#));
    let shadowed = class(r#"{"model":"m","messages":[{"role":"system"}],"messages":[]}"#);
    assert_eq!(shadowed, class(r#"{"model":"m"}"#));
}

#[test]
fn a_class_is_the_same_in_every_release() {
    assert_eq!(scan(r#"{"model":"m"}"#).class(), 2_410_504_461_139_729_605);
}

#[test]
fn a_billing_header_that_changes_with_each_request_does_not_change_the_class() {
    let body = |hash: &str| {
        format!(
            r#"{{"model":"m","system":[{{"type":"text","text":"x-anthropic-billing-header: cc_version=2; cch={hash};"}},{{"type":"text","text":"You are"}}]}}"#
        )
    };
    assert_eq!(scan(&body("1f")).class(), scan(&body("2e")).class());
}

#[test]
fn usage_is_not_asked_for_an_answer_of_several_choices() {
    for one in [r#""n":1"#, r#""n": null"#, r#""prompt":[1,2]"#, r#""prompt":["a"]"#] {
        assert!(forwarded(&format!(r#"{{"stream":true,{one}}}"#), AskUsage::Vllm).1, "{one}");
    }
    for several in [r#""n":2"#, r#""prompt": ["a","b"]"#, r#""prompt":[[1],[2]]"#] {
        let body = format!(r#"{{"stream":true,{several}}}"#);
        assert_eq!(forwarded(&body, AskUsage::Vllm), (body, false));
    }
}

#[test]
fn usage_is_asked_for_whatever_the_spelling_of_keys_but_not_beside_an_n_that_is_no_number() {
    assert!(forwarded(r#"{"\u006e":1,"s\u0074ream":true}"#, AskUsage::Vllm).1);
    for strange in [r#"{"n":"","s\u0074ream":true}"#, r#"{"\u006e":2,"stream":true}"#] {
        assert_eq!(forwarded(strange, AskUsage::Vllm), (strange.to_owned(), false));
    }
}
