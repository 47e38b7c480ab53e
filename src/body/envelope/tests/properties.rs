//! Random bodies in random spelling, against an oracle that parses the same bodies.

use super::super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt::{self, Write};

const CASES: u32 = 1000;

/// A value to be written out in some spelling.
#[derive(Clone, Debug)]
enum Node {
    Atom(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

/// A value as parsed. Order, duplicates and the spelling of atoms are kept.
#[derive(Clone, Debug, PartialEq)]
enum Parsed {
    Atom(String),
    Array(Vec<Parsed>),
    Object(Vec<(String, Parsed)>),
}

struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Parsed {
    fn of(json: &str) -> Self {
        let json = json.trim();
        match json.as_bytes()[0] {
            b'{' => {
                let members: Members = serde_json::from_str(json).unwrap();
                let parsed = |(key, raw): (String, Box<RawValue>)| (key, Self::of(raw.get()));
                Self::Object(members.0.into_iter().map(parsed).collect())
            }
            b'[' => {
                let elements: Vec<Box<RawValue>> = serde_json::from_str(json).unwrap();
                Self::Array(elements.iter().map(|raw| Self::of(raw.get())).collect())
            }
            _ => Self::Atom(json.to_owned()),
        }
    }

    fn members(&self) -> &[(String, Parsed)] {
        match self {
            Self::Object(members) => members,
            _ => &[],
        }
    }

    /// The body that is expected upstream.
    fn without_ours(&self) -> Self {
        let mut kept = Vec::new();
        for (key, value) in self.members() {
            if key == "program_id" || key == "docker_ids" {
                continue;
            }
            if let ("extra_body", Self::Object(inner)) = (key.as_str(), value) {
                let ours = |key: &str| key == "program_id" || key == "docker_ids";
                let rest: Vec<_> = inner.iter().filter(|(key, _)| !ours(key)).cloned().collect();
                if inner.is_empty() || !rest.is_empty() {
                    kept.push((key.clone(), Self::Object(rest)));
                }
                continue;
            }
            kept.push((key.clone(), value.clone()));
        }
        Self::Object(kept)
    }

    /// Whether the answer has several choices, in which case the proxy does not ask for usage.
    fn has_several_choices(&self) -> bool {
        let value = |name: &str| Some(&self.members().iter().rfind(|(key, _)| key == name)?.1);
        let one = match value("n") {
            Some(Self::Atom(n)) => n == "null" || n == "1",
            other => other.is_none(),
        };
        let is_prompt = |first: &Self| match first {
            Self::Atom(text) => text.starts_with('"'),
            Self::Array(_) => true,
            Self::Object(_) => false,
        };
        let prompts = match value("prompt") {
            Some(Self::Array(list)) => list.len() > 1 && is_prompt(&list[0]),
            _ => false,
        };
        !one || prompts
    }

    /// The body that is expected upstream when usage is asked for, and whether anything was added.
    fn with_usage(&self) -> (Self, bool) {
        let yes = || Self::Atom("true".to_owned());
        let include = || ("include_usage".to_owned(), yes());
        let mut members = self.members().to_vec();
        let last = |members: &[(String, Parsed)], name: &str| members.iter().rposition(|(key, _)| key == name);
        if last(&members, "stream").is_none_or(|at| members[at].1 != yes()) || self.has_several_choices() {
            return (self.clone(), false);
        }
        let Some(at) = last(&members, "stream_options") else {
            members.push(("stream_options".to_owned(), Self::Object(vec![include()])));
            return (Self::Object(members), true);
        };
        match &mut members[at].1 {
            Self::Object(options) => match last(options, "include_usage") {
                None => options.insert(0, include()),
                Some(at) if matches!(&options[at].1, Self::Atom(x) if x == "null" || x == "false") => {
                    options[at].1 = yes();
                }
                Some(_) => return (self.clone(), false),
            },
            Self::Atom(null) if null == "null" => members[at].1 = Self::Object(vec![include()]),
            _ => return (self.clone(), false),
        }
        (Self::Object(members), true)
    }
}

/// The source of a body's spelling: random, and the same for the same seed.
struct Pen {
    seed: u64,
    out: String,
}

impl Pen {
    fn write(seed: u64, node: &Node) -> String {
        let mut pen = Self { seed, out: String::new() };
        pen.blank();
        pen.node(node);
        pen.blank();
        pen.out
    }

    fn pick(&mut self, n: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.seed >> 33) % n
    }

    fn blank(&mut self) {
        while self.pick(4) == 0 {
            let symbol = b" \n\t\r"[self.pick(4) as usize];
            self.out.push(symbol.into());
        }
    }

    fn node(&mut self, node: &Node) {
        match node {
            Node::Atom(text) => self.out.push_str(text),
            Node::Array(elements) => {
                self.list('[', elements, Self::node);
                self.out.push(']');
            }
            Node::Object(members) => {
                self.list('{', members, |pen, (key, value)| {
                    pen.string(key);
                    pen.blank();
                    pen.out.push(':');
                    pen.blank();
                    pen.node(value);
                });
                self.out.push('}');
            }
        }
    }

    fn list<T>(&mut self, open: char, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.out.push(open);
        self.blank();
        for (n, item) in items.iter().enumerate() {
            if n > 0 {
                self.out.push(',');
                self.blank();
            }
            write(self, item);
            self.blank();
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for symbol in text.chars() {
            let must = symbol < ' ' || symbol == '"' || symbol == '\\';
            if must || self.pick(12) == 0 {
                for unit in symbol.encode_utf16(&mut [0; 2]) {
                    write!(self.out, "\\u{unit:04x}").unwrap();
                }
            } else {
                self.out.push(symbol);
            }
        }
        self.out.push('"');
    }
}

fn key() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        "[a-z\"\\\\é😀]{0,12}",
        Just("extra_body".to_owned()),
        Just("messages".to_owned()),
        Just("metadata".to_owned()),
        Just("vllm_xargs".to_owned()),
        Just("model".to_owned()),
        Just("program_idx".to_owned()),
    ]
}

fn atom() -> impl Strategy<Value = Node> + Clone {
    let text = "[ -~é😀\n\u{7f}]{0,20}".prop_map(|text| serde_json::to_string(&text).unwrap());
    let number = "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,6})?([eE][+-]?[0-9]{1,3})?";
    prop_oneof![
        text,
        number,
        Just(r#""\ud83d\u0022\/""#.to_owned()),
        prop_oneof![Just("null"), Just("true"), Just("false")].prop_map(str::to_owned),
    ]
    .prop_map(Node::Atom)
}

fn node() -> impl Strategy<Value = Node> + Clone {
    atom().prop_recursive(5, 40, 6, |inner| {
        prop_oneof![vec(inner.clone(), 0..6).prop_map(Node::Array), vec((key(), inner), 0..6).prop_map(Node::Object),]
    })
}

/// Members that are written for Thundergate, and the objects in which they count.
fn ours() -> impl Strategy<Value = (String, Node)> {
    let name = prop_oneof![Just("program_id"), Just("docker_ids")].prop_map(str::to_owned);
    let member = (name, node());
    let inside = vec(prop_oneof![(key(), node()), member.clone()], 0..4);
    prop_oneof![member, inside.prop_map(|members| ("extra_body".to_owned(), Node::Object(members))),]
}

fn streaming() -> impl Strategy<Value = (String, Node)> {
    let word = |text: &str| Node::Atom(text.to_owned());
    let flag = prop_oneof![Just("true"), Just("false"), Just("null"), Just("true")];
    let option =
        prop_oneof![flag.clone().prop_map(move |flag| ("include_usage".to_owned(), word(flag))), (key(), atom()),];
    let options = prop_oneof![
        Just(Node::Atom("null".to_owned())),
        Just(Node::Atom("\"x\"".to_owned())),
        vec(option, 0..3).prop_map(Node::Object),
    ];
    prop_oneof![
        flag.prop_map(move |flag| ("stream".to_owned(), word(flag))),
        options.prop_map(|options| ("stream_options".to_owned(), options)),
        prop_oneof![Just("1"), Just("null"), Just("2"), Just("\"\"")].prop_map(move |n| ("n".to_owned(), word(n))),
        vec(atom(), 0..3).prop_map(|prompts| ("prompt".to_owned(), Node::Array(prompts))),
    ]
}

fn object(member: impl Strategy<Value = (String, Node)>) -> impl Strategy<Value = String> {
    (vec(member, 0..8), any::<u64>()).prop_map(|(members, seed)| Pen::write(seed, &Node::Object(members)))
}

fn forward(body: &str, usage: AskUsage) -> Forwarded {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let envelope = Envelope::scan(body, 128).unwrap();
    envelope.forward(&Edits { model: None, usage })
}

/// Whether `part` is `whole` with some bytes deleted.
fn is_subsequence(part: &[u8], whole: &[u8]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|byte| rest.any(|other| other == byte))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn a_body_without_our_fields_passes_untouched(
        body in object((key().prop_filter("ours", |key| key != "extra_body"), node())),
    ) {
        let bytes = Bytes::from(body);
        let envelope = Envelope::scan(bytes.clone(), 128).unwrap();
        let out = envelope.forward(&Edits::default());
        prop_assert_eq!(out.body.as_ptr(), bytes.as_ptr());
        prop_assert_eq!(out.body, bytes);
    }

    #[test]
    fn exactly_our_fields_are_cut(body in object(prop_oneof![ours(), (key(), node())])) {
        let out = forward(&body, AskUsage::Never);
        let text = std::str::from_utf8(&out.body).unwrap();
        let expected = Parsed::of(&body).without_ours();
        prop_assert_eq!(Parsed::of(text), expected.clone(), "{} from {}", text, body);
        prop_assert!(is_subsequence(&out.body, body.as_bytes()));
        if expected == Parsed::of(&body) {
            prop_assert_eq!(text, body);
        }
    }

    #[test]
    fn only_usage_is_added(body in object(prop_oneof![streaming(), ours(), (key(), node())])) {
        let out = forward(&body, AskUsage::Openai);
        let text = std::str::from_utf8(&out.body).unwrap();
        let (expected, added) = Parsed::of(&body).without_ours().with_usage();
        prop_assert_eq!(Parsed::of(text), expected, "{} from {}", text, body);
        prop_assert_eq!(out.usage_added, added);
    }

    #[test]
    fn a_program_id_is_what_an_ordinary_parser_reads(
        id in "[ -~é😀\n]{0,30}",
        rest in vec((key(), node()), 0..4),
        seed in any::<u64>(),
    ) {
        let mut pen = Pen { seed, out: String::new() };
        pen.string(&id);
        let mut members = rest;
        members.push(("program_id".to_owned(), Node::Atom(pen.out)));
        let body = Pen::write(seed, &Node::Object(members));
        let envelope = Envelope::scan(Bytes::from(body), 128).unwrap();
        let found = envelope.scalar(Field::ProgramId).unwrap();
        prop_assert_eq!(found.as_deref(), Some(&*id).filter(|id| !id.is_empty()));
    }

    #[test]
    fn damaged_bodies_are_accepted_exactly_when_a_strict_parser_accepts_them(
        body in object(prop_oneof![ours(), (key(), node())]),
        damage in vec((any::<prop::sample::Index>(), 0..4_u8, any::<prop::sample::Index>()), 0..4),
    ) {
        let mut bytes = body.into_bytes();
        for (place, kind, what) in damage {
            if bytes.is_empty() {
                break;
            }
            let at = place.index(bytes.len());
            let marks = b"{}[]\",:\\0123456789.eE+- \n\x01truefalsn/u\xc3";
            let mark = marks[what.index(marks.len())];
            match kind {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, mark),
                2 => bytes[at] = mark,
                _ => bytes.truncate(at),
            }
        }
        let strict = std::str::from_utf8(&bytes).is_ok()
            && bytes.trim_ascii_start().starts_with(b"{")
            && serde_json::from_slice::<IgnoredAny>(&bytes).is_ok();
        let ours = Envelope::scan(Bytes::from(bytes.clone()), 128);
        prop_assert_eq!(ours.is_ok(), strict, "{:?}: {:?}", String::from_utf8_lossy(&bytes), ours.err());
    }
}
