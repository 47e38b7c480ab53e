//! One conversation at a time. Thousands at once, and recorded ones, are in `tests/fingerprint.rs`.

use super::*;
use crate::body::envelope::Envelope;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

const RETENTION: Retention = Retention { max: 1000, idle_ttl: Duration::from_secs(60) };

#[derive(Default)]
struct Fixture {
    table: Table,
    now: Duration,
}

impl Fixture {
    fn start(&mut self, body: &Value) -> StepHandle {
        self.start_raw(&body.to_string())
    }

    fn start_raw(&mut self, body: &str) -> StepHandle {
        let envelope = Envelope::scan(Bytes::copy_from_slice(body.as_bytes()), 128).unwrap();
        let conversation = Conversation::of(&envelope, 7).expect("a conversation");
        self.table.step(self.now, RETENTION, &conversation)
    }

    fn end(&mut self, handle: &StepHandle, answer: &str) {
        let mut digest = handle.digest();
        answer.as_bytes().chunks(7).for_each(|piece| digest.feed(piece));
        let (answer, name) = digest.read();
        self.table.finish(self.now, handle, End::Answered { answer, name });
    }

    /// A step with its whole answer.
    fn step(&mut self, body: &Value, answer: &Value) -> u64 {
        let handle = self.start(body);
        self.end(&handle, &answer.to_string());
        handle.program
    }
}

fn chat(messages: &Value) -> Value {
    json!({"model": "m", "messages": messages})
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn said(text: &str) -> Value {
    json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})
}

#[test]
fn a_conversation_that_grows_is_one_program() {
    let mut all = Fixture::default();
    let mut messages = vec![json!({"role": "system", "content": "s"}), user("task")];
    let first = all.step(&chat(&json!(messages)), &said("0"));
    for n in 0..20 {
        messages.extend([assistant(&n.to_string()), user("output")]);
        assert_eq!(all.step(&chat(&json!(messages)), &said(&(n + 1).to_string())), first, "{n}");
    }
    assert_eq!(all.table.len(), 1);
}

#[test]
fn what_many_agents_begin_with_glues_nobody_together() {
    let mut all = Fixture::default();
    let system = json!({"role": "system", "content": "s"});
    let warm_up = all.step(&chat(&json!([system, user("examples")])), &said("ok"));
    let ask = |task: &str| chat(&json!([system, user("examples"), user(task)]));
    let programs: Vec<u64> = (0..10).map(|n| all.step(&ask(&n.to_string()), &said("ok"))).collect();
    for (n, program) in programs.iter().enumerate() {
        assert!(!programs[..n].contains(program) && (n == 0 || *program != warm_up));
        let task = n.to_string();
        let next = chat(&json!([system, user("examples"), user(&task), assistant("ok"), user("go on")]));
        assert_eq!(all.step(&next, &said("done")), *program);
    }
}

#[test]
fn an_edited_or_compacted_history_is_a_new_program() {
    let mut all = Fixture::default();
    let first = all.step(&chat(&json!([user("a")])), &said("b"));
    let whole = json!([user("a"), assistant("b"), user("c")]);
    assert_eq!(all.step(&chat(&whole), &said("d")), first);
    let edited = json!([user("a"), assistant("b"), user("C"), assistant("d"), user("e")]);
    let second = all.step(&chat(&edited), &said("f"));
    assert_ne!(second, first);
    let compacted = json!([user("a"), assistant("summary"), user("go on")]);
    let third = all.step(&chat(&compacted), &said("g"));
    assert!(third != first && third != second);
    let next = json!([user("a"), assistant("b"), user("c"), assistant("d"), user("e")]);
    assert_eq!(all.step(&chat(&next), &said("f")), first, "the old one is still there");
}

#[test]
fn a_branch_of_a_conversation_is_another_program() {
    let mut all = Fixture::default();
    let first = all.step(&chat(&json!([user("a")])), &said("b"));
    let next = |text| chat(&json!([user("a"), assistant("b"), user(text)]));
    let programs: Vec<u64> = ["x", "y", "z"].map(|text| all.step(&next(text), &said(text))).to_vec();
    assert_eq!(programs[0], first);
    assert!(programs[1] != programs[0] && programs[2] != programs[0] && programs[1] != programs[2]);
    for (text, program) in ["x", "y", "z"].iter().zip(programs) {
        let on = chat(&json!([user("a"), assistant("b"), user(text), assistant(text), user("on")]));
        assert_eq!(all.step(&on, &said("end")), program);
    }
}

#[test]
fn samples_of_one_task_are_told_apart_by_their_answers() {
    let mut all = Fixture::default();
    let handles: Vec<StepHandle> = (0..8).map(|_| all.start(&chat(&json!([user("task")])))).collect();
    for (n, handle) in handles.iter().enumerate() {
        // Each answer has the same tool call and is streamed.
        let call = json!({"index": 0, "id": format!("call-{n}"), "function": {"name": "bash", "arguments": "{\"a\""}});
        let more = json!({"index": 0, "function": {"arguments": ": 1}"}});
        let events = [
            json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "I "}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "look."}}]}),
            json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}),
            json!({"choices": [{"index": 0, "delta": {"tool_calls": [more]}, "finish_reason": "tool_calls"}]}),
        ];
        let stream: String = events.iter().map(|event| format!("data: {event}\r\n\r\n")).collect();
        all.end(handle, &(stream + "data: [DONE]\r\n\r\n"));
    }
    for n in [5, 3, 7, 0, 1, 2, 6, 4] {
        let id = format!("call-{n}");
        let call = json!({"type": "function", "id": id, "function": {"arguments": "{ \"a\":1 }", "name": "bash"}});
        let answer =
            json!({"tool_calls": [call], "content": [{"type": "text", "text": "I look. "}], "role": "assistant"});
        let tool = json!({"role": "tool", "tool_call_id": id, "content": "same"});
        let program = all.step(&chat(&json!([user("task"), answer, tool])), &said("x"));
        assert_eq!(program, handles[n].program, "{n}");
    }
}

#[test]
fn what_was_thought_need_not_come_back() {
    let mut all = Fixture::default();
    let first = all.start(&chat(&json!([user("task")])));
    let second = all.start(&chat(&json!([user("task")])));
    all.end(&first, &said("<think>\nhm</think>\n\none").to_string());
    all.end(&second, &said("<think>\nhm</think>\n\ntwo").to_string());
    let next = |text| chat(&json!([user("task"), assistant(text), user("on")]));
    assert_eq!(all.step(&next("two"), &said("x")), second.program);
    assert_eq!(all.step(&next("<think>\nhm</think>\n\none"), &said("x")), first.program);
}

#[test]
fn an_answer_that_the_client_could_not_use_may_be_dropped() {
    let mut all = Fixture::default();
    let handles: Vec<StepHandle> = (0..3).map(|_| all.start(&chat(&json!([user("task")])))).collect();
    for (n, handle) in handles.iter().enumerate() {
        let calls = if n == 1 { json!([]) } else { json!([{"id": n.to_string(), "function": {"name": "f"}}]) };
        let message = json!({"role": "assistant", "content": "I look.", "tool_calls": calls});
        all.end(handle, &json!({"choices": [{"message": message}]}).to_string());
    }
    let complaint = chat(&json!([user("task"), user("no call")]));
    assert_eq!(all.step(&complaint, &said("sorry")), handles[1].program);
    let complaint = chat(&json!([user("task"), user("no call"), user("no call")]));
    assert_eq!(all.step(&complaint, &said("sorry")), handles[1].program);
}

#[test]
fn what_is_appended_to_the_last_message_goes_on_with_it() {
    let mut all = Fixture::default();
    let part = |text: &str| json!({"type": "text", "text": text});
    let first = all.step(&chat(&json!([user("task")])), &said("b"));
    let merged = json!({"role": "user", "content": [part("task"), part("no call")]});
    assert_eq!(all.step(&chat(&json!([merged])), &said("c")), first);
    assert_eq!(all.step(&chat(&json!([merged, assistant("c"), user("d")])), &said("e")), first);
}

#[test]
fn a_client_that_rewrites_the_answer_is_known_when_nobody_else_can_be_meant() {
    let mut all = Fixture::default();
    let first = all.step(&chat(&json!([user("task")])), &said("one two three"));
    assert_eq!(all.step(&chat(&json!([user("task"), assistant("ONE"), user("on")])), &said("x")), first);
    let handles: Vec<StepHandle> = (0..2).map(|_| all.start(&chat(&json!([user("other")])))).collect();
    handles.iter().for_each(|handle| all.end(handle, &said("said").to_string()));
    let program = all.step(&chat(&json!([user("other"), assistant("neither"), user("on")])), &said("x"));
    assert!(handles.iter().all(|handle| handle.program != program));
}

#[test]
fn a_step_that_is_tried_again_belongs_to_the_same_program() {
    let mut all = Fixture::default();
    let body = chat(&json!([user("task")]));
    let failed = all.start(&body);
    all.table.finish(all.now, &failed, End::Broken);
    let again = all.start(&body);
    assert_eq!(again.program, failed.program);
    assert_ne!(all.start(&body).program, failed.program, "while one is in flight, another one is another program");
    all.end(&again, &said("b").to_string());
    let next = chat(&json!([user("task"), assistant("b"), user("c")]));
    let double = [all.start(&next), all.start(&next)];
    all.end(&double[0], &said("d").to_string());
    all.end(&double[1], &said("other").to_string());
    let third = all.start(&next);
    all.end(&third, &said("third").to_string());
    let programs = [double[0].program, double[1].program, third.program];
    assert_eq!(programs, [failed.program; 3]);
    let on = chat(&json!([user("task"), assistant("b"), user("c"), assistant("other"), user("e")]));
    assert_eq!(all.step(&on, &said("f")), failed.program);
}

#[test]
fn a_client_that_does_not_wait_for_the_last_bytes_goes_on_with_its_program() {
    let mut all = Fixture::default();
    let early = all.start(&chat(&json!([user("task")])));
    let next = all.start(&chat(&json!([user("task"), assistant("b"), user("c")])));
    assert_eq!(next.program, early.program);
    // The answer to the first step is ignored now.
    all.end(&early, &said("zzz").to_string());
    all.end(&next, &said("d").to_string());
    let on = chat(&json!([user("task"), assistant("b"), user("c"), assistant("d"), user("e")]));
    assert_eq!(all.step(&on, &said("f")), early.program);
}

#[test]
fn marks_for_a_prompt_cache_and_ways_of_writing_do_not_count() {
    let mut all = Fixture::default();
    let mark = json!({"type": "ephemeral"});
    let text = |text: &str| json!([{"type": "text", "text": text, "cache_control": mark}]);
    let system = |note: &str| json!([{"type": "text", "text": format!("x-anthropic-billing-header: {note}")}, {"type": "text", "text": "You"}]);
    let first = json!({"model": "m", "system": system("1"), "messages": [{"role": "user", "content": text("a")}]});
    let first = all.step(&first, &json!({"type": "message", "content": [{"type": "text", "text": "b"}]}));
    let tool = json!({"type": "tool_result", "tool_use_id": "t", "content": text("d"), "cache_control": mark});
    let second = r#"{"messages": [ {"content":"a","role":"user","name":null}, {"role":"assistant","content":"b"},
        {"role":"user","content":TOOL} ], "system": SYSTEM, "model":"m"}"#;
    let second = second.replace("TOOL", &json!([tool]).to_string()).replace("SYSTEM", &system("2").to_string());
    let second = all.start_raw(&second);
    assert_eq!(second.program, first);
    all.end(&second, r#"{"type":"message","content":[]}"#);
    let tool = json!({"type": "tool_result", "content": "d", "tool_use_id": "t"});
    let messages = json!([user("a"), assistant("b"), {"role": "user", "content": [tool]}, assistant("e"), user("f")]);
    let third = json!({"model": "m", "system": system("3"), "messages": messages});
    assert_eq!(all.step(&third, &said("g")), first);
}

#[test]
fn streamed_messages_tell_samples_apart() {
    let mut all = Fixture::default();
    let body = json!({"model": "m", "max_tokens": 9, "messages": [user("task")]});
    let handles = [all.start(&body), all.start(&body)];
    for (handle, path) in handles.iter().zip(["x", "y"]) {
        let input = format!("{{\"path\": \"{path}\"}}");
        let events = [
            json!({"type": "message_start", "message": {"id": "msg", "content": [], "usage": {}}}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "I look."}}),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t", "name": "ls", "input": {}}}),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": input[..5]}}),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": input[5..]}}),
            json!({"type": "message_stop"}),
        ];
        let stream = events.map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()));
        all.end(handle, &stream.concat());
    }
    for (handle, path) in handles.iter().zip(["x", "y"]).rev() {
        let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
        let call = json!({"type": "tool_use", "id": "t", "name": "ls", "input": {"path": path}});
        let answer = json!({"role": "assistant", "content": [thought, {"type": "text", "text": "I look."}, call]});
        let result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "z"}]});
        let next = json!({"model": "m", "max_tokens": 9, "messages": [user("task"), answer, result]});
        assert_eq!(all.step(&next, &json!({"type": "message", "content": []})), handle.program, "{path}");
    }
}

#[test]
fn responses_go_on_by_their_items_or_by_name() {
    let mut all = Fixture::default();
    let answer = |n: usize| {
        let text = json!({"type": "output_text", "text": format!("said {n}")});
        let message = json!({"type": "message", "id": format!("msg_{n}"), "role": "assistant", "content": [text]});
        let call =
            json!({"type": "function_call", "id": "fc", "call_id": format!("c{n}"), "name": "f", "arguments": "{}"});
        json!({"id": format!("resp_{n}"), "object": "response", "output": [{"type": "reasoning"}, message, call]})
    };
    let request =
        |input: &Value, previous: Value| json!({"model": "m", "input": input, "previous_response_id": previous});
    let first = json!([user("task")]);
    let handles: Vec<StepHandle> = (0..3).map(|_| all.start(&request(&first, Value::Null))).collect();
    for (n, handle) in handles.iter().enumerate() {
        let event = json!({"type": "response.completed", "response": answer(n)});
        let created = json!({"type": "response.created", "response": {"id": format!("resp_{n}"), "output": []}});
        all.end(handle, &format!("event: x\ndata: {created}\n\nevent: y\ndata: {event}\n\n"));
    }
    let output = |n: usize| json!({"type": "function_call_output", "call_id": format!("c{n}"), "output": "o"});
    // The next step names the answer, or names it with a text as input, or repeats its items.
    let by_name = all.start(&request(&json!([output(2)]), json!("resp_2")));
    all.end(&by_name, &answer(12).to_string());
    let by_text = all.start(&request(&json!("go on"), json!("resp_0")));
    all.end(&by_text, &answer(10).to_string());
    let mut items = vec![user("task")];
    items.extend(answer(1)["output"].as_array().unwrap().clone());
    items.push(output(1));
    let by_items = all.start(&request(&json!(items), Value::Null));
    all.end(&by_items, &answer(11).to_string());
    let found = [by_text.program, by_items.program, by_name.program];
    assert_eq!(found, [handles[0].program, handles[1].program, handles[2].program]);
    // A text counts as one item. The name of the first answer is forgotten.
    assert_eq!(all.start(&request(&json!([output(12)]), json!("resp_12"))).program, handles[2].program);
    assert!(!all.start(&request(&json!("again"), json!("resp_2"))).known);
}

#[test]
fn a_conversation_that_the_client_names_is_one_program() {
    let mut all = Fixture::default();
    let request = |name: Value, input: &str| json!({"model": "m", "input": input, "conversation": name});
    let a = all.step(&request(json!("conv_a"), "1"), &json!({"id": "resp_1", "output": []}));
    let b = all.step(&request(json!({"id": "conv_b"}), "1"), &json!({"id": "resp_2", "output": []}));
    assert_ne!(a, b);
    assert_eq!(all.start(&request(json!("conv_a"), "2")).program, a);
    assert_eq!(all.start(&request(json!("conv_a"), "3")).program, a, "several at once");
    assert_eq!(all.start(&request(json!({"id": "conv_b"}), "2")).program, b);
}

#[test]
fn a_text_that_grows_is_one_program_whatever_its_length() {
    for key in ["prompt", "text"] {
        let mut all = Fixture::default();
        let answer = |text: &str| match key {
            "prompt" => json!({"choices": [{"index": 0, "text": text}]}),
            _ => json!({"text": text, "meta_info": {}}),
        };
        let mut texts = ["System. Task \u{e9}\n\"", "System. Task \u{e9}\n\""].map(str::to_owned);
        let handles: Vec<StepHandle> = texts.iter().map(|text| all.start(&json!({key: text}))).collect();
        for (handle, n) in handles.iter().zip(0..) {
            all.end(handle, &answer(&format!(" answer\n\u{1f600} {n}")).to_string());
        }
        for (text, n) in texts.iter_mut().zip(0..) {
            text.push_str(&format!("answer\n\u{1f600} {n}. Output: "));
        }
        for round in 0..40 {
            for (text, handle) in texts.iter_mut().zip(&handles).rev() {
                text.push_str(&"x".repeat(round * 13 % 97));
                assert_eq!(all.step(&json!({key: text}), &answer("y")), handle.program, "{key} {round}");
                text.push('y');
            }
        }
        assert_eq!(all.table.len(), 2);
        texts[0].replace_range(3..4, "!");
        assert!(!all.start(&json!({key: texts[0]})).known);
    }
}

#[test]
fn token_ids_grow_as_texts_do() {
    for (key, answers) in [("prompt", "choices"), ("input_ids", "output_ids")] {
        let mut all = Fixture::default();
        let prompt: Vec<u64> = (1000..1200).collect();
        let handles: Vec<StepHandle> = (0..4).map(|_| all.start(&json!({key: prompt}))).collect();
        for (handle, n) in handles.iter().zip(0..) {
            let answer = match answers {
                "choices" => json!({"choices": [{"index": 0, "text": "t", "token_ids": [5, 6, n]}]}),
                _ => json!({"text": "t", "output_ids": [5, 6, n]}),
            };
            all.end(handle, &answer.to_string());
        }
        for n in [2, 0, 3, 1] {
            let mut next = prompt.clone();
            next.extend([5, 6, n, 77, 78]);
            assert_eq!(all.step(&json!({key: next}), &json!({})), handles[n as usize].program, "{key} {n}");
        }
    }
}

#[test]
fn what_cannot_grow_has_no_fingerprint() {
    for body in [
        r#"{}"#,
        r#"{"messages": []}"#,
        r#"{"messages": {}}"#,
        r#"{"prompt": ["a", "b"]}"#,
        r#"{"prompt": [[1], [2]]}"#,
        r#"{"prompt": ""}"#,
        r#"{"prompt": null}"#,
        r#"{"prompt": 5}"#,
        r#"{"input": {}}"#,
        r#"{"text": {"format": {}}}"#,
    ] {
        let envelope = Envelope::scan(Bytes::from_static(body.as_bytes()), 128).unwrap();
        assert!(Conversation::of(&envelope, 7).is_none(), "{body}");
    }
}

#[test]
fn scopes_and_models_are_apart() {
    let mut table = Table::default();
    let mut program = |model: &str, scope| {
        let body = json!({"model": model, "messages": [user("a"), assistant("b"), user("c")]}).to_string();
        let envelope = Envelope::scan(body.into(), 128).unwrap();
        let handle = table.step(Duration::ZERO, RETENTION, &Conversation::of(&envelope, scope).unwrap());
        table.finish(Duration::ZERO, &handle, End::Broken);
        handle.program
    };
    let [a, b, c] = [program("m", 1), program("m", 2), program("n", 1)];
    assert!(a != b && b != c && a != c);
    assert_eq!(program("m", 1), a);
}

#[test]
fn no_more_programs_are_kept_than_allowed_and_idle_ones_are_forgotten() {
    let mut all = Fixture::default();
    let body = |n: usize| chat(&json!([user(&n.to_string())]));
    let held = all.start(&body(0));
    let longest = all.step(&body(1), &said("b"));
    for n in 2..RETENTION.max + 1 {
        all.now += Duration::from_millis(1);
        all.step(&body(n), &said("b"));
    }
    assert_eq!(all.table.len(), RETENTION.max);
    assert_ne!(all.step(&chat(&json!([user("1"), assistant("b"), user("c")])), &said("d")), longest);
    all.now += RETENTION.idle_ttl * 2;
    all.step(&body(0), &said("b"));
    assert_eq!(all.table.len(), 2, "all but the one in flight are forgotten");
    all.end(&held, &said("b").to_string());
    all.now += RETENTION.idle_ttl;
    let next = chat(&json!([user("0"), assistant("other"), user("c")]));
    assert!(!all.start(&next).known);
    let next = chat(&json!([user("0"), assistant("b"), user("c")]));
    assert_eq!(all.step(&next, &said("d")), held.program, "its time counts from the end of its step");
    all.now += RETENTION.idle_ttl + Duration::from_secs(1);
    all.step(&body(5), &said("b"));
    assert_eq!(all.table.len(), 2, "and the one that has not ended");
    for _ in 0..2_000 {
        // The same step every time: many programs at one position.
        all.step(&body(5), &said("b"));
    }
    assert_eq!(all.table.len(), 257);
    assert_eq!(all.table.places(), 2);
}

#[test]
fn an_answer_that_is_too_long_is_not_known_and_not_kept() {
    let digest = |pieces: &[String]| {
        let mut all = Fixture::default();
        let mut digest = all.start(&chat(&json!([user("task")]))).digest();
        pieces.iter().for_each(|piece| digest.feed(piece.as_bytes()));
        digest
    };
    let event = |text: &str| format!("data: {}\n\n", json!({"choices": [{"delta": {"content": text}}]}));
    let events = |count: usize| (0..count).map(|n| event(&n.to_string())).collect::<Vec<_>>();
    assert_ne!(digest(&events(10_000)).read(), digest(&events(10_001)).read(), "long, and known");
    let megabytes = vec![event(&"x".repeat(100_000)); 50];
    for pieces in [megabytes, vec![event(&"x".repeat(300_000))], vec![said(&"x".repeat(300_000)).to_string()]] {
        let digest = digest(&pieces);
        assert!(digest.kept() < 1 << 17);
        assert_eq!(digest.read().0, ReplyHash::Unknown);
    }
}

#[test]
fn deep_and_odd_values_are_hashed_whole() {
    for value in ["[[[]]]", "{\"a\":{\"]\":\"}\\\"\"}}", "NaN", "-1.5e3", "\"\\\\\""] {
        let deep = format!("{}{value}{}", "[".repeat(100), "]".repeat(100));
        for value in [value, &deep] {
            let list = format!("[ {value} , {{\"role\": \"assistant\"}},1]");
            let turns = canon::turns(list.as_bytes()).unwrap();
            assert_eq!(turns.len(), 3, "{list}");
            assert_eq!(&list[turns[0].start..turns[0].end], value);
            assert_eq!(turns.iter().map(|turn| turn.answer).collect::<Vec<_>>(), [false, true, false]);
        }
    }
    let hash = |text: &str| canon::hash(text.as_bytes());
    assert_eq!(hash(r#"{"a":1, "b":[ 2,"c"] }"#), hash(r#"{"b":[2,"c"],"a":1,"d":null}"#));
    assert_ne!(hash(r#"{"a":1,"b":2}"#), hash(r#"{"a":2,"b":1}"#));
    assert_ne!(hash(r#"["a","b"]"#), hash(r#"["b","a"]"#));
    assert_ne!(hash(r#""1""#), hash("1"));
    assert_ne!(hash(r#"[["a"],"b"]"#), hash(r#"["a",["b"]]"#));
}
