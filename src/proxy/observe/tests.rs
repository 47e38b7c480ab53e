//! Answers written by hand. Random answers are in `properties`.

mod properties;

use super::*;
use crate::units::Tokens;

const STREAM: &str = include_str!("../../../tests/samples/vllm-0.32-chat-stream.txt");
const ANSWER: &str = include_str!("../../../tests/samples/vllm-0.32-chat.json");

fn usage(prompt: u64, completion: u64, cached: Option<u64>) -> Option<Usage> {
    Some(Usage { prompt: Tokens(prompt), completion: Tokens(completion), cached: cached.map(Tokens) })
}

fn feed(observer: &mut Observer, text: &str) -> String {
    let out = observer.feed(Bytes::copy_from_slice(text.as_bytes()));
    String::from_utf8(out.to_vec()).unwrap()
}

/// The whole answer as the client gets it, fed in pieces of `size` bytes.
fn pass(observer: &mut Observer, text: &str, size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in text.as_bytes().chunks(size) {
        out.extend_from_slice(&observer.feed(Bytes::copy_from_slice(piece)));
    }
    out.extend_from_slice(&observer.finish());
    out
}

#[test]
fn vllms_stream_loses_nothing_but_the_usage_event() {
    let is_usage = |event: &&str| event.contains("\"choices\":[]");
    assert_eq!(STREAM.split_inclusive("\n\n").filter(is_usage).count(), 1);
    // When nobody asks for usage, vLLM writes its fingerprint at the end of the event that ends the choice.
    let without: String = STREAM.split_inclusive("\n\n").filter(|event| !is_usage(event)).collect();
    let fingerprint = ",\"system_fingerprint\":\"vllm-0.32.0-f3ed83a6\"}\n\ndata: [DONE]";
    let without = without.replace("}\n\ndata: [DONE]", fingerprint);
    for size in [1, 7, 64, 1000, STREAM.len()] {
        let mut observer = Observer::sse(true);
        assert_eq!(pass(&mut observer, STREAM, size), without.as_bytes());
        assert_eq!(observer.usage(), usage(1229, 12, Some(1216)));
        assert_eq!(observer.output(), 13);
        assert!(observer.started() && observer.ended());

        let mut observer = Observer::sse(false);
        assert_eq!(pass(&mut observer, STREAM, size), STREAM.as_bytes());
        assert_eq!(observer.usage(), usage(1229, 12, Some(1216)));
    }
}

#[test]
fn vllms_json_answer_tells_its_usage() {
    for size in [1, 13, ANSWER.len()] {
        let mut observer = Observer::json();
        assert!(!observer.started());
        assert_eq!(pass(&mut observer, ANSWER, size), ANSWER.as_bytes());
        assert_eq!(observer.usage(), usage(1229, 12, Some(1216)));
        assert!(observer.started() && observer.ended());
        assert_eq!(observer.output(), 12);
    }
}

#[test]
fn chunks_pass_as_they_are_when_nothing_is_taken_out() {
    for mut observer in [Observer::sse(false), Observer::sse(true), Observer::json()] {
        let token = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{}}]}\n\n");
        assert_eq!(observer.feed(token.clone()).as_ptr(), token.as_ptr());
    }
    let mut observer = Observer::sse(false);
    for part in [&b"data: {\"choi"[..], b"ces\":[]", b",\"usage\":{}}\r", b"\n", b""] {
        let part = Bytes::from_static(part);
        let out = observer.feed(part.clone());
        assert_eq!((out.as_ptr(), out.len()), (part.as_ptr(), part.len()));
    }
}

#[test]
fn an_event_is_held_back_only_while_it_may_be_the_usage_event() {
    let mut observer = Observer::sse(true);
    assert_eq!(feed(&mut observer, "data: {\"id\":\"x\","), "");
    assert_eq!(feed(&mut observer, "\"choices\":["), "");
    assert_eq!(feed(&mut observer, "{"), "data: {\"id\":\"x\",\"choices\":[{");
    assert_eq!(feed(&mut observer, "}]}\n\ndata: ["), "}]}\n\ndata: [");
    assert_eq!(feed(&mut observer, "DONE]\n\n"), "DONE]\n\n");
    assert_eq!(feed(&mut observer, ": comm"), ": comm");
    assert_eq!(feed(&mut observer, "ent\ndata: {}\n\nda"), "ent\ndata: {}\n\n");
    assert_eq!(observer.finish(), "da");
    assert_eq!(observer.output(), 1);
}

#[test]
fn an_event_of_more_than_64_kib_is_released_and_still_read() {
    let start = "data: {\"object\":\"chat.completion.chunk\",\"x\":\"";
    let mut observer = Observer::sse(true);
    assert_eq!(feed(&mut observer, start), "");
    let filler = "y".repeat(64 * 1024);
    assert_eq!(feed(&mut observer, &filler), format!("{start}{filler}"));
    let end = "\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n";
    for piece in [&end[..20], &end[20..]] {
        assert_eq!(feed(&mut observer, piece), piece);
    }
    assert_eq!(observer.usage(), usage(3, 2, None));
    // The next usage event is held back and taken out as usual.
    let next = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4}}\n\n";
    assert_eq!(feed(&mut observer, &next[..9]), "");
    assert_eq!(feed(&mut observer, &next[9..]), "");
    assert_eq!(observer.finish(), "");
    assert_eq!(observer.usage(), usage(4, 2, None));
}

#[test]
fn what_is_held_back_at_the_end_is_released() {
    let mut observer = Observer::sse(true);
    let cut_off = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"total_tokens\":10}}\n";
    assert_eq!(feed(&mut observer, cut_off), "");
    assert_eq!(observer.finish(), cut_off);
    assert_eq!(observer.usage(), usage(9, 1, None));
    assert!(!observer.ended());
    assert_eq!(observer.finish(), "");
}

#[test]
fn a_crlf_split_between_chunks_goes_with_the_event_it_ends() {
    let event = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9}}\r\n\r";
    let mut observer = Observer::sse(true);
    assert_eq!(feed(&mut observer, event), "");
    assert_eq!(feed(&mut observer, "\ndata: [DONE]\r\n\r"), "data: [DONE]\r\n\r");
    assert_eq!(feed(&mut observer, "\n"), "\n");
    assert!(observer.ended());
}

#[test]
fn only_a_usage_report_without_choices_is_taken_out() {
    for event in [
        "data: {\"choices\":[]}\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{}}\n\n",
        "data: {\"choices\":[],\"x\":{\"usage\":{\"prompt_tokens\":1}}}\n\n",
        "data: {\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[{\"text\":\"\\\"choices\\\":[]\"}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":\"1\"}}\n\n",
        "event: x\ndata\n\n",
        "data: \"choices\":[],\"usage\":{\"prompt_tokens\":1}\n\n",
    ] {
        let mut observer = Observer::sse(true);
        assert_eq!(pass(&mut observer, event, 5), event.as_bytes(), "{event}");
    }
}

#[test]
fn the_responses_api_is_understood() {
    let stream = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n",
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
        "data: {\"type\":\"response.output_text.delta\",\"delta\":\"usage\"}\n\n",
        "event: response.output_text.done\ndata: {\"text\":\"ab\"}\n\n",
    );
    let last = concat!(
        "event: response.completed\ndata: {\"response\":{\"output\":[{\"usage\":{\"input_tokens\":1}}],",
        "\"usage\":{\"input_tokens\":50,\"input_tokens_details\":{\"cached_tokens\":32},\"output_tokens\":2,",
        "\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":52}}}\n\n",
    );
    let mut observer = Observer::sse(false);
    assert_eq!(pass(&mut observer, stream, 10), stream.as_bytes());
    assert_eq!((observer.output(), observer.usage()), (2, None));
    assert!(!observer.ended());
    pass(&mut observer, last, 10);
    assert_eq!(observer.usage(), usage(50, 2, Some(32)));
    assert!(observer.ended());
}

#[test]
fn the_messages_api_is_understood() {
    let start = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[],",
        "\"usage\":{\"input_tokens\":100,\"output_tokens\":0}}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n",
    );
    // Once the server knows what the cache held, `input_tokens` leaves out the tokens found there.
    let end = concat!(
        "event: message_delta\ndata: {\"delta\":{},\"usage\":{\"input_tokens\":20,\"output_tokens\":7,",
        "\"cache_read_input_tokens\":80,\"cache_creation_input_tokens\":0}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );
    let mut observer = Observer::sse(false);
    pass(&mut observer, start, 40);
    assert_eq!(observer.usage(), usage(100, 0, None));
    assert_eq!(observer.output(), 1);
    pass(&mut observer, end, 40);
    assert_eq!(observer.usage(), usage(100, 7, Some(80)));
    assert!(observer.ended());
}

#[test]
fn of_continuous_usage_the_last_one_counts() {
    let mut observer = Observer::sse(false);
    for n in 1..=3 {
        let event = format!(
            "data: {{\"choices\":[{{}}],\"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":{}}}}}\n\n",
            n * 4
        );
        assert_eq!(feed(&mut observer, &event), event);
        assert_eq!(observer.usage(), usage(10, n * 4, None));
    }
    assert_eq!(observer.output(), 12);
}

#[test]
fn usage_behind_a_huge_answer_is_found_and_nothing_is_kept() {
    let mut observer = Observer::json();
    feed(&mut observer, "{\"choices\":[{\"message\":{\"content\":\"");
    let piece = Bytes::from("usage \\\" { ".repeat(8 * 1024));
    for _ in 0..(20 << 20) / piece.len() {
        let out = observer.feed(piece.clone());
        assert_eq!(out.as_ptr(), piece.as_ptr());
    }
    assert!(!observer.ended());
    let Observer(Kind::Json(scan)) = &observer else {
        panic!("a JSON observer");
    };
    assert_eq!(scan.kept(), 0);
    feed(&mut observer, "\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":5}}");
    assert_eq!(observer.usage(), usage(1, 5, None));
    assert!(observer.ended());
}

#[test]
fn answers_without_usage_have_none() {
    for answer in [
        "",
        "{}",
        "[]",
        "null",
        "not json \" { : usage",
        "{\"usage\":null}",
        "{\"usage\":[{\"prompt_tokens\":1}]}",
        "{\"x\":{\"usage\":{\"prompt_tokens\":1}}}",
        "{\"choices\":[{\"usage\":{\"prompt_tokens\":1}}]}",
        "{\"usage\":{\"prompt_tokens\":-1}}",
        "{\"x\":\"usage\",\"y\":{\"prompt_tokens\":1}}",
        "{\"us\\u0061ge\":1,\"usage\":5}",
        "}}}]{\"usage\"",
        "{\"\\\"usage\":{\"prompt_tokens\":1}}",
        "{\"response\":{\"usage\":1},\"message\":[{\"prompt_tokens\":1}]}",
    ] {
        let mut observer = Observer::json();
        pass(&mut observer, answer, 3);
        assert_eq!(observer.usage(), None, "{answer}");
    }
    let oversized = format!("{{\"usage\":{{\"x\":\"{}\",\"prompt_tokens\":1}}}}", "y".repeat(20_000));
    let mut observer = Observer::json();
    pass(&mut observer, &oversized, 1000);
    assert_eq!(observer.usage(), None);
    assert!(observer.ended());
}

#[test]
fn tokens_are_read_from_every_spelling() {
    for (object, expected) in [
        ("{\"prompt_tokens\":7,\"total_tokens\":9}", usage(7, 2, None)),
        ("{\"prompt_tokens\":7,\"completion_tokens\":null,\"total_tokens\":7}", usage(7, 0, None)),
        ("{\"prompt_tokens\":7,\"completion_tokens\":1,\"prompt_tokens_details\":null}", usage(7, 1, None)),
        ("{\"prompt_tokens\":7,\"completion_tokens\":1,\"input_tokens\":7,\"output_tokens\":1}", usage(7, 1, None)),
        (
            "{\"input_tokens\":2,\"output_tokens\":3,\"cache_read_input_tokens\":5,\"cache_creation_input_tokens\":1}",
            usage(8, 3, Some(5)),
        ),
        ("{ \"input_tokens\" : 2 , \"a\":{\"b\":[{}]}}", usage(2, 0, None)),
    ] {
        let mut observer = Observer::json();
        pass(&mut observer, &format!("{{\"a\":1,\"usage\":{object},\"b\":{{}}}}"), 4);
        assert_eq!(observer.usage(), expected, "{object}");
    }
}

#[test]
fn the_end_of_a_choice_waits_for_the_fingerprint_and_for_nothing_else() {
    let end = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\r\n\r\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1},\"system_fingerprint\":\"a\\\"b\"}\r\n\r\n";
    let whole = end.replace("]}", "],\"system_fingerprint\":\"a\\\"b\"}");
    for size in 1..(end.len() + usage.len() + 16) {
        let mut observer = Observer::sse(true);
        let stream = [end, usage, "data: [DONE]\r\n\r\n"].concat();
        let out = pass(&mut observer, &stream, size);
        assert_eq!(String::from_utf8(out).unwrap(), [&whole, "data: [DONE]\r\n\r\n"].concat(), "pieces of {size}");
    }
    let mut observer = Observer::sse(true);
    assert_eq!(feed(&mut observer, end), "");
    assert_eq!(feed(&mut observer, ": comment\n"), [end, ": comment\n"].concat());
    assert_eq!(feed(&mut observer, end), "");
    assert_eq!(feed(&mut observer, "data: [DO"), [end, "data: [DO"].concat());
    let mut observer = Observer::sse(true);
    assert_eq!(feed(&mut observer, end), "");
    assert_eq!(observer.finish(), end, "the stream broke off");
    let own = end.replace("]}", "],\"system_fingerprint\":\"own\"}");
    assert_eq!(feed(&mut observer, &own), own, "nothing is missing there");
}

// --- SGLang's /generate ---

const GENERATED: &str = include_str!("../../../tests/samples/sglang-generate-stream.txt");

#[test]
fn of_a_streamed_generation_the_last_events_counts_are_taken() {
    for size in [1, 7, 64, GENERATED.len()] {
        let mut observer = Observer::sse(false);
        assert_eq!(pass(&mut observer, GENERATED, size), GENERATED.as_bytes());
        assert_eq!(observer.usage(), usage(1229, 4, Some(1216)));
        assert_eq!(observer.output(), 4);
        assert!(observer.started() && observer.ended());
    }
    let (first, _) = GENERATED.split_once("\n\n").unwrap();
    let mut observer = Observer::sse(false);
    feed(&mut observer, &format!("{first}\n\n"));
    assert_eq!((observer.started(), observer.output(), observer.usage()), (true, 1, None));
}

#[test]
fn a_batchs_answers_add_up_however_they_come() {
    let meta = |prompt: u32, completion: u32, end: &str| {
        let counts = format!("\"prompt_tokens\":{prompt}, \"completion_tokens\" : {completion},\"cached_tokens\":10");
        format!("{{\"text\":\"x\",\"meta_info\":{{\"finish_reason\":{end},{counts},\"e2e_latency\":1.25}}}}")
    };
    let stop = "{\"type\":\"length\",\"length\":5}";
    let events = [meta(100, 1, "null"), meta(200, 1, "null"), meta(200, 2, stop), meta(100, 5, stop)];
    let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let whole = format!("[{},\n {}]", meta(100, 5, stop), meta(200, 2, stop));
    for size in [1, 5, 1000] {
        let mut observer = Observer::sse(false);
        pass(&mut observer, &stream, size);
        assert_eq!(observer.usage(), usage(300, 7, Some(20)));
        let mut observer = Observer::json();
        pass(&mut observer, &whole, size);
        assert_eq!(observer.usage(), usage(300, 7, Some(20)));
        assert!(observer.ended());
    }
}

#[test]
fn counts_beside_megabytes_of_log_probabilities_are_found() {
    let logprobs = "[-0.25,1234,null],".repeat(100_000);
    let inner = format!("\"output_token_logprobs\":[{logprobs}[0,1,\"prompt_tokens\"]],\"completion_tokens\":3");
    let answer =
        format!("{{\"text\":\"\\\"meta_info\\\":7\",\"meta_info\":{{\"prompt_tokens\":12,{inner},\"n\":9}},\"k\":1}}");
    let mut observer = Observer::json();
    pass(&mut observer, &answer, 4096);
    assert_eq!(observer.usage(), usage(12, 3, None), "what is not told of the cache is not zero");
}
