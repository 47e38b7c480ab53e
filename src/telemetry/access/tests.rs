use super::*;
use crate::units::Tokens;
use serde_json::Value;

/// A streamed step that was held.
pub(in crate::telemetry) fn record() -> AccessRecord {
    AccessRecord {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_770_532_800_123),
        request_id: "r-1".into(),
        client: Some(([127, 0, 0, 1], 5555).into()),
        method: http::Method::POST,
        path: "/v1/chat/completions".into(),
        status: 200,
        model: Some("glm".into()),
        program: Some("agent-1".into()),
        backend: Some("http://gpu1:8000".into()),
        held: Duration::from_millis(1500),
        ttft: Some(Duration::from_millis(1700)),
        duration: Duration::from_micros(4_200_900),
        usage: Some(Usage { prompt: Tokens(120), completion: Tokens(30), cached: Some(Tokens(96)) }),
        bytes_in: 2000,
        bytes_out: 900,
        error: None,
    }
}

fn render(format: AccessFormat, record: AccessRecord) -> String {
    let mut out = Vec::new();
    format.render(Box::new(record), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_json_line_has_every_field() {
    assert_eq!(
        render(AccessFormat::Json, record()),
        "{\"time\":\"2026-02-08T06:40:00.123Z\",\"request_id\":\"r-1\",\"client\":\"127.0.0.1:5555\",\
         \"method\":\"POST\",\"path\":\"/v1/chat/completions\",\"status\":200,\"model\":\"glm\",\
         \"program\":\"agent-1\",\"backend\":\"http://gpu1:8000\",\"held_ms\":1500,\"ttft_ms\":1700,\
         \"duration_ms\":4200,\"prompt_tokens\":120,\"cached_tokens\":96,\"completion_tokens\":30,\
         \"bytes_in\":2000,\"bytes_out\":900,\"error\":null}\n"
    );
    let (client, usage) = (None, None);
    let line = render(AccessFormat::Json, AccessRecord { client, usage, ..record() });
    let value: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 18, "what is not known is null");
    assert_eq!((&value["client"], &value["prompt_tokens"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_text_line_leaves_out_what_is_not_known() {
    let mut record = record();
    (record.usage, record.ttft, record.model) = (None, None, None);
    record.error = Some("no_backend");
    assert_eq!(
        render(AccessFormat::Text, record),
        "2026-02-08T06:40:00.123Z 127.0.0.1:5555 POST \"/v1/chat/completions\" 200 request_id=\"r-1\" \
         program=\"agent-1\" backend=\"http://gpu1:8000\" error=\"no_backend\" held_ms=1500 duration_ms=4200 \
         bytes_in=2000 bytes_out=900\n"
    );
}

#[test]
fn a_hostile_program_id_stays_on_its_line_and_moves_no_cursor() {
    let hostile = "a\"\n{\"status\":500}\r\u{1b}[2J\u{9b}2J\u{7f}\u{2028}\u{202e}\\";
    for format in [AccessFormat::Json, AccessFormat::Text] {
        let mut record = record();
        record.program = Some(hostile.into());
        record.request_id = hostile.into();
        let line = render(format, record);
        let body = line.strip_suffix('\n').unwrap();
        assert!(!body.chars().any(char::is_control), "{format:?}: {body:?}");
        assert!(!body.contains(['\u{2028}', '\u{202e}']), "{format:?}");
        if format == AccessFormat::Json {
            let value: Value = serde_json::from_str(body).unwrap();
            assert_eq!(value["program"], hostile, "escaped, not changed");
            assert_eq!(value["status"], 200);
        }
    }
}

/// The members of the JSON line, as a reader gets them.
fn read_back(record: AccessRecord) -> Value {
    serde_json::from_str(&render(AccessFormat::Json, record)).unwrap()
}

fn timestamp(time: SystemTime) -> String {
    read_back(AccessRecord { time, ..record() })["time"].as_str().unwrap().to_owned()
}

#[test]
fn whatever_the_clock_was_set_to_is_a_time() {
    assert_eq!(timestamp(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59.000Z");
    assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)), "", "beyond the year 9999");
}

proptest::proptest! {
    #[test]
    fn times_are_written_as_jiff_writes_them(nanos in -80_000_000_000_000_000_000_i128..260_000_000_000_000_000_000) {
        let distance = Duration::new((nanos.unsigned_abs() / 1_000_000_000) as u64, (nanos.unsigned_abs() % 1_000_000_000) as u32);
        let epoch = SystemTime::UNIX_EPOCH;
        let time = if nanos < 0 { epoch - distance } else { epoch + distance };
        let expected = jiff::Timestamp::try_from(time).map(|time| format!("{time:.3}")).unwrap_or_default();
        proptest::prop_assert_eq!(timestamp(time), expected);
    }

    #[test]
    fn whatever_a_client_sends_is_read_back_from_one_line_of_harmless_text(
        text in "[ -~\"\\\\\\x00-\\x1f\\x7f-\\u{a0}\\u{2028}-\\u{202e}\\u{1f600}]{0,30}",
        address in proptest::prelude::any::<SocketAddr>(),
        bytes_in in proptest::prelude::any::<u64>(),
    ) {
        let record = AccessRecord { path: text.clone(), client: Some(address), bytes_in, ..record() };
        let line = render(AccessFormat::Json, record.clone());
        proptest::prop_assert!(!line.trim_end_matches('\n').contains(is_unsafe_to_show), "{line:?}");
        let value = read_back(record);
        proptest::prop_assert_eq!(&value["path"], &text);
        proptest::prop_assert_eq!(&value["client"], &address.to_string());
        proptest::prop_assert_eq!(&value["bytes_in"], bytes_in);
    }
}
