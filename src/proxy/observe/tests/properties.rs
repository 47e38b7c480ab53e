//! Random streams in random spelling and random chunks, against the list of events that each stream was made of.

use super::super::*;
use super::usage as tokens;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const CASES: u32 = 1000;

/// One event with the lines around it.
#[derive(Clone, Debug)]
struct Block {
    /// Comment lines in front of the event, which are not part of it.
    comments: Vec<String>,
    lines: Vec<String>,
    /// Usage that this event reports: tokens of prompt and completion.
    usage: Option<(u64, u64)>,
    only_usage: bool,
    /// Whether the event carries output.
    output: bool,
    /// Number of blank lines behind the event, beyond the one needed.
    blanks: usize,
    line_end: &'static str,
}

impl Block {
    fn written(&self, stripped: bool) -> String {
        let gone = stripped && self.only_usage;
        let lines = if gone { &[][..] } else { &self.lines };
        let blanks = self.blanks + usize::from(!self.lines.is_empty() && !gone);
        let mut text = String::new();
        for line in self.comments.iter().chain(lines) {
            text.push_str(line);
            text.push_str(self.line_end);
        }
        text + &self.line_end.repeat(blanks)
    }
}

/// Lines of an event; whether the event only reports usage; the usage that it reports; whether it carries output.
type Event = (Vec<String>, bool, Option<(u64, u64)>, bool);

fn usage_object() -> impl Strategy<Value = (String, (u64, u64))> {
    (0..10_000_u64, 0..10_000_u64, any::<bool>()).prop_map(|(prompt, completion, spaced)| {
        let text = if spaced {
            format!("{{ \"completion_tokens\" : {completion}, \"prompt_tokens\": {prompt} }}")
        } else {
            format!(
                "{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{completion}}}",
                prompt + completion
            )
        };
        (text, (prompt, completion))
    })
}

/// A token whose text tries to look like JSON or another part of an event.
fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~é😀]{0,20}",
        Just("\"choices\":[],\"usage\":{\"prompt_tokens\":1}".to_owned()),
        Just("data: [DONE]\r\n\n".to_owned()),
        Just("\\\"usage\\\": {".to_owned()),
        Just("y".repeat(70_000)),
    ]
}

fn data_line() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("data: "), Just("data:")]
}

fn only_usage() -> impl Strategy<Value = Event> {
    (usage_object(), data_line(), 0..4_u8).prop_map(|((usage, counts), data, shape)| {
        let lines = match shape {
            0 => vec![format!("{data}{{\"id\":\"c\",\"choices\":[],\"usage\":{usage}}}")],
            1 => vec![format!("{data}{{\"usage\" : {usage},\"choices\" : [ ],\"x\":1}}")],
            2 => vec![
                "id: 7".to_owned(),
                format!("{data}{{\"id\":\"choices\",\"choices\":"),
                ": a comment inside".to_owned(),
                format!("{data}[],"),
                format!("{data}\"usage\":{usage}}}"),
                "retry: 5".to_owned(),
            ],
            _ => vec![
                "event: message".to_owned(),
                format!("{data} {{\"choices\":[],\"usage\":{usage},\"m\":{{\"choices\":[1]}}}}"),
            ],
        };
        (lines, true, Some(counts), false)
    })
}

fn other_event() -> impl Strategy<Value = Event> {
    let output = (token(), data_line(), proptest::option::of(usage_object()), any::<bool>());
    let output = output.prop_map(|(text, data, usage, null)| {
        let text = serde_json::to_string(&text).unwrap();
        let (report, counts) = match usage {
            Some((object, counts)) => (format!(",\"usage\":{object}"), Some(counts)),
            None if null => (",\"usage\":null".to_owned(), None),
            None => (String::new(), None),
        };
        let line = format!("{data}{{\"id\":1,\"choices\":[{{\"delta\":{{\"content\":{text}}}}}]{report}}}");
        (vec![line], false, counts, true)
    });
    let plain = prop_oneof![
        Just("data: [DONE]"),
        Just("data: {\"choices\":[]}"),
        Just("data: {\"choices\":[],\"usage\":null}"),
        Just("data: {\"error\":{\"message\":\"no\",\"usage\":{\"prompt_tokens\":3}}}"),
        Just("data"),
        Just("data:"),
        Just("event: ping"),
        Just("retry: 1000"),
        Just("unknown field"),
        Just("dat"),
    ];
    let plain = plain.prop_map(|line| (vec![line.to_owned()], false, None, false));
    prop_oneof![3 => output, 2 => plain]
}

fn block() -> impl Strategy<Value = Block> {
    let comment = prop_oneof![Just(":"), Just(": ping"), Just(":\"usage\":{"), Just(": data: x")];
    let event = prop_oneof![
        1 => only_usage(),
        3 => other_event(),
        1 => Just((Vec::new(), false, None, false)),
    ];
    let line_end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let blanks = prop_oneof![3 => Just(0_usize), 1 => 1..3_usize];
    let comments = vec(comment.prop_map(str::to_owned), 0..2);
    (comments, event, blanks, line_end).prop_map(|(comments, event, blanks, line_end)| {
        let (lines, only_usage, usage, output) = event;
        // A block that starts with a bare LF would join with a CR in front of it.
        let nothing = comments.is_empty() && (lines.is_empty() || only_usage);
        Block { comments, lines, usage, only_usage, output, blanks: if nothing { 0 } else { blanks }, line_end }
    })
}

fn written(blocks: &[Block], stripped: bool) -> String {
    blocks.iter().map(|block| block.written(stripped)).collect()
}

fn split(text: &str, cuts: &[Index]) -> Vec<Bytes> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    places.extend([0, text.len()]);
    places.sort_unstable();
    let whole = Bytes::copy_from_slice(text.as_bytes());
    places.windows(2).map(|pair| whole.slice(pair[0]..pair[1])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn a_stream_loses_exactly_its_usage_events(
        blocks in vec(block(), 0..8),
        cuts in vec(any::<Index>(), 0..30),
        single_bytes in any::<bool>(),
    ) {
        let text = written(&blocks, false);
        let mut chunks = split(&text, &cuts);
        if single_bytes && text.len() < 4096 {
            chunks = (0..text.len()).map(|at| Bytes::copy_from_slice(&text.as_bytes()[at..=at])).collect();
        }
        let mut observer = Observer::sse(true);
        let mut out: Vec<u8> = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&observer.feed(chunk));
        }
        out.extend_from_slice(&observer.finish());
        let out = String::from_utf8(out).unwrap();
        prop_assert_eq!(out, written(&blocks, true));
        let last = blocks.iter().filter_map(|block| block.usage).next_back();
        let prompt = blocks.iter().filter_map(|block| block.usage).map(|(prompt, _)| prompt).max();
        let expected = last.zip(prompt).and_then(|((_, completion), prompt)| tokens(prompt, completion, None));
        prop_assert_eq!(observer.usage(), expected);
        let outputs = blocks.iter().filter(|block| block.output).count() as u64;
        prop_assert_eq!(observer.output(), outputs.max(last.map_or(0, |(_, completion)| completion)));
        prop_assert_eq!(observer.started(), outputs > 0);
        let done = |block: &Block| block.lines.iter().any(|line| line == "data: [DONE]");
        prop_assert_eq!(observer.ended(), blocks.iter().any(done));
    }

    #[test]
    fn a_stream_that_is_only_watched_passes_chunk_by_chunk(
        blocks in vec(block(), 0..8),
        cuts in vec(any::<Index>(), 0..30),
    ) {
        let text = written(&blocks, false);
        let mut observer = Observer::sse(false);
        for chunk in split(&text, &cuts) {
            let out = observer.feed(chunk.clone());
            prop_assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len()));
        }
        prop_assert!(observer.finish().is_empty());
        let mut whole = Observer::sse(true);
        whole.feed(Bytes::from(text));
        prop_assert_eq!(observer.usage(), whole.usage());
        prop_assert_eq!(observer.output(), whole.output());
    }

    #[test]
    fn whole_events_go_out_in_the_call_that_completes_them(blocks in vec(block(), 0..8)) {
        let mut observer = Observer::sse(true);
        for block in &blocks {
            let out = observer.feed(Bytes::from(block.written(false)));
            prop_assert_eq!(out, block.written(true));
        }
        prop_assert!(observer.finish().is_empty());
    }

    #[test]
    fn a_json_answer_tells_its_usage_however_it_is_split(
        text in token(),
        (object, (prompt, completion)) in usage_object(),
        wrapper in prop_oneof![Just(""), Just("\"response\":{"), Just("\"message\" : { ")],
        first in any::<bool>(),
        cuts in vec(any::<Index>(), 0..30),
    ) {
        let text = serde_json::to_string(&text).unwrap();
        let decoy = format!("\"choices\":[{{\"usage\":{{\"prompt_tokens\":77777}},\"text\":{text}}}],\"m\":{{}}");
        let members = if first {
            format!("\"usage\": {object} ,{decoy}")
        } else {
            format!("{decoy},\"usage\":{object}")
        };
        let close = if wrapper.is_empty() { "" } else { "}" };
        let answer = format!("{{{wrapper}{members}{close}}}");
        let mut observer = Observer::json();
        for chunk in split(&answer, &cuts) {
            observer.feed(chunk);
        }
        prop_assert_eq!(observer.usage(), tokens(prompt, completion, None));
        prop_assert!(observer.ended());
    }
}
