//! HTTP/1 requests that two servers may read in two ways.

use super::*;

/// A request that is hidden in bodies and behind them, and that nobody checked.
const HIDDEN: &str = "GET /v1/hidden HTTP/1.1\r\nhost: x\r\n\r\n";

/// A POST of `body` with these header lines, each ended by CRLF, besides `Host`.
fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}").into_bytes()
}

/// Checks the one step that may have come of an attack: its framing leaves no doubt.
fn is_well_formed(request: &Message) {
    let values = |name: &str| request.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).count();
    assert_eq!(values("content-length"), 1, "{request:?}");
    assert_eq!(request.header("content-length"), Some(request.body.len().to_string()));
    for name in ["transfer-encoding", "expect", "trailer", "upgrade", "te", "connection"] {
        assert_eq!(values(name), 0, "{name}: {request:?}");
    }
    assert_eq!(values("host"), 1, "{request:?}");
    assert_eq!((request.method(), request.path()), ("POST", CHAT));
    serde_json::from_slice::<serde_json::Value>(&request.body).expect("a step");
}

/// Checks that every attack is refused with one of these statuses, its connection closed, and that nothing of it
/// reaches a backend.
async fn all_refused(attacks: &[(&str, Vec<u8>)], statuses: &[u16]) {
    let mut scene = Scene::set().await;
    for (what, bytes) in attacks {
        eprintln!("{what}");
        let fate = scene.attack(bytes, usize::MAX).await;
        let [answer] = &fate.answers[..] else { panic!("{what}: {fate:?}") };
        assert!(statuses.contains(&answer.status()), "{what}: {fate:?}");
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], code(answer).as_str(), "{what}: {fate:?}");
        assert_eq!((answer.header("server"), answer.header("connection").as_deref()), (None, Some("close")), "{what}");
        assert!(fate.closed, "{what}");
        assert!(scene.reached().is_empty(), "{what} reached a backend");
    }
    scene.unharmed().await;
}

fn body() -> String {
    String::from_utf8(STEP.to_vec()).expect("text")
}

#[tokio::test]
async fn a_request_with_two_framings_or_an_unknown_one_is_refused_and_its_connection_closed() {
    let (body, len) = (body(), STEP.len());
    let chunks = format!("{len:x}\r\n{body}\r\n0\r\n\r\n{HIDDEN}");
    let chunked = |lines: &str| post(lines, &chunks);
    let plain = |lines: &str| post(lines, &format!("{body}{HIDDEN}"));
    let behind = |te: &str| post(&format!("Content-Length: {len}\r\nTransfer-Encoding: {te}\r\n"), &chunks);
    all_refused(
        &[
            ("CL.TE", behind("chunked")),
            (
                "CL.TE, hidden behind the last chunk",
                post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{HIDDEN}")),
            ),
            ("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &chunks)),
            ("TE in capitals", behind("CHUNKED")),
            ("CL in capitals", post(&format!("CONTENT-LENGTH: {len}\r\nTransfer-Encoding: chunked\r\n"), &chunks)),
            ("two framings, CL of zero", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", &chunks)),
            ("an unknown coding", chunked("Transfer-Encoding: xchunked\r\n")),
            ("an unknown coding and a length", behind("xchunked")),
            ("identity last", chunked("Transfer-Encoding: chunked, identity\r\n")),
            ("identity first", chunked("Transfer-Encoding: identity, chunked\r\n")),
            ("gzip first", chunked("Transfer-Encoding: gzip, chunked\r\n")),
            ("chunked twice", chunked("Transfer-Encoding: chunked, chunked\r\n")),
            ("chunked and nothing", chunked("Transfer-Encoding: chunked,\r\n")),
            ("identity alone", chunked("Transfer-Encoding: identity\r\n")),
            ("two lines", chunked("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n")),
            ("two lines, turned", chunked("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n")),
            ("two lines alike", chunked("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
            ("a quoted coding", chunked("Transfer-Encoding: \"chunked\"\r\n")),
            ("a parameter", chunked("Transfer-Encoding: chunked;a=b\r\n")),
            ("a vertical tab", chunked("Transfer-Encoding: \x0bchunked\r\n")),
            ("no coding", chunked("Transfer-Encoding:\r\n")),
            (
                "TE in HTTP/1.0",
                format!("POST {CHAT} HTTP/1.0\r\nhost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes(),
            ),
            ("two lengths", plain(&format!("Content-Length: {len}\r\nContent-Length: 0\r\n"))),
            ("two lengths in one", plain(&format!("Content-Length: {len}, 0\r\n"))),
            ("one length twice", plain(&format!("Content-Length: {len}\r\nContent-Length: {len}\r\n"))),
            ("one length twice in one", plain(&format!("Content-Length: {len}, {len}\r\n"))),
            ("a length with a sign", plain(&format!("Content-Length: +{len}\r\n"))),
            ("a negative length", plain("Content-Length: -1\r\n")),
            ("a length of nothing", plain("Content-Length:\r\n")),
            ("a length in hex", plain("Content-Length: 0x10\r\n")),
            ("a length with a space", plain("Content-Length: 1 0\r\n")),
            ("a length with a point", plain("Content-Length: 5.0\r\n")),
            ("a length beyond 64 bits", plain("Content-Length: 18446744073709551621\r\n")),
            ("a length with digits of others", plain("Content-Length: \u{0665}\r\n")),
        ],
        &[400],
    )
    .await;
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused_and_its_connection_closed() {
    let len = STEP.len();
    let length = format!("Content-Length: {len}\r\n");
    let with = |line: &str| [post(&format!("{line}{length}"), &body()), HIDDEN.into()].concat();
    let lf = |head: &str| [head.as_bytes(), STEP, HIDDEN.as_bytes()].concat();
    let line = |first: &str| format!("{first}\r\nhost: x\r\n{length}\r\n{}", body()).into_bytes();
    all_refused(
        &[
            ("bare LF everywhere", lf(&format!("POST {CHAT} HTTP/1.1\nhost: x\nContent-Length: {len}\n\n"))),
            ("bare LF in the request line", lf(&format!("POST {CHAT} HTTP/1.1\nhost: x\r\n{length}\r\n"))),
            ("bare LF between headers", with("a: b\nc: d\r\n")),
            ("bare LF hides a framing", with("a: b\nTransfer-Encoding: chunked\r\n")),
            ("bare LF at the end", lf(&format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nContent-Length: {len}\r\n\n"))),
            ("bare LF in front", lf(&format!("\nPOST {CHAT} HTTP/1.1\r\nhost: x\r\n{length}\r\n"))),
            ("bare CR in a value", with("a: b\rTransfer-Encoding: chunked\r\n")),
            ("bare CR in a name", with("a\rb: c\r\n")),
            ("CR CR LF", with("a: b\r\r\n")),
            ("a fold", with("a: b\r\n c\r\n")),
            ("a fold with a tab", with("a: b\r\n\tc\r\n")),
            ("a fold of the framing", post("Transfer-Encoding:\r\n chunked\r\n", &format!("0\r\n\r\n{HIDDEN}"))),
            ("a fold of the first header", lf(&format!("POST {CHAT} HTTP/1.1\r\n host: x\r\n{length}\r\n"))),
            ("a space before the colon", post(&format!("Content-Length : {len}\r\n"), &body())),
            ("a tab before the colon", post("Transfer-Encoding\t: chunked\r\n", &format!("0\r\n\r\n{HIDDEN}"))),
            ("a space in a name", with("a b: c\r\n")),
            ("NUL in a value", with("a: b\0c\r\n")),
            ("NUL in a name", with("a\0b: c\r\n")),
            ("a control byte in a value", with("a: b\x01\r\n")),
            ("DEL in a value", with("a: b\x7f\r\n")),
            ("a backspace in a value", with("a: b\x08\r\n")),
            ("no name", with(": b\r\n")),
            ("no colon", with("abc\r\n")),
            ("a name that is none", with("a(b): c\r\n")),
            ("a name of other letters", with("caf\u{e9}: c\r\n")),
            ("Host twice", with("host: y\r\n")),
            ("Host twice alike", with("Host: x\r\n")),
            ("no Host", lf(&format!("POST {CHAT} HTTP/1.1\r\n{length}\r\n"))),
            ("a user in Host", lf(&format!("POST {CHAT} HTTP/1.1\r\nhost: a@x\r\n{length}\r\n"))),
            ("another Host in the target", line(&format!("POST http://elsewhere{CHAT} HTTP/1.1"))),
            ("a user in the target", line(&format!("POST http://a@x{CHAT} HTTP/1.1"))),
            ("no version", line(&format!("POST {CHAT}"))),
            ("a version that is none", line(&format!("POST {CHAT} HTTP/1.2"))),
            ("a version of old", line(&format!("POST {CHAT} HTTP/0.9"))),
            ("a version of HTTP/2", line(&format!("POST {CHAT} HTTP/2.0"))),
            ("a version in small letters", line(&format!("POST {CHAT} http/1.1"))),
            ("no target", line("POST  HTTP/1.1")),
            ("no method", line(&format!(" {CHAT} HTTP/1.1"))),
            ("a method that is none", line(&format!("PO(ST {CHAT} HTTP/1.1"))),
            ("257 headers", with(&"a: b\r\n".repeat(257))),
            ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ],
        &[400],
    )
    .await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_before_it_is_whole() {
    let endless = |start: &str, more: &str| [start.as_bytes(), more.repeat(200_000 / more.len()).as_bytes()].concat();
    all_refused(
        &[
            ("a long request line", endless("GET /", "a")),
            ("a long name", endless("GET / HTTP/1.1\r\nhost: x\r\n", "a")),
            ("a long value", endless("GET / HTTP/1.1\r\nhost: x\r\na: ", "b")),
            ("many headers", endless("GET / HTTP/1.1\r\nhost: x\r\n", "abcdefgh: ijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789\r\n")),
        ],
        &[400, 431],
    )
    .await;
}

#[tokio::test]
async fn a_head_without_an_end_is_refused_in_time() {
    let never = |head: &str| head.as_bytes().to_vec();
    all_refused(
        &[
            ("half a line", never("POST /v1/chat")),
            ("no blank line", never("POST / HTTP/1.1\r\nhost: x\r\n")),
            ("only line ends", never("\r\n\r\n\r\n")),
            ("a CR at the end", never("POST / HTTP/1.1\r\nhost: x\r")),
        ],
        &[408],
    )
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_its_framing_is_refused_and_its_connection_closed() {
    let len = STEP.len();
    let chunked = |chunks: String| post("Transfer-Encoding: chunked\r\n", &chunks);
    let body = body();
    all_refused(
        &[
            ("a size beyond 64 bits", chunked(format!("fffffffffffffffff\r\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("a size that wraps", chunked(format!("10000000000000000{len:x}\r\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("a size with a sign", chunked(format!("+{len:x}\r\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("a negative size", chunked(format!("-1\r\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("a size with 0x", chunked(format!("0x{len:x}\r\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("a size that is none", chunked(format!("xyz\r\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("a space before the size", chunked(format!(" {len:x}\r\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("bare LF behind the size", chunked(format!("{len:x}\n{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("bare CR behind the size", chunked(format!("{len:x}\r{body}\r\n0\r\n\r\n{HIDDEN}"))),
            ("a chunk longer than its size", chunked(format!("{:x}\r\n{body}\r\n0\r\n\r\n{HIDDEN}", len - 1))),
            ("bare LF behind a chunk", chunked(format!("{len:x}\r\n{body}\n0\r\n\r\n{HIDDEN}"))),
            ("no line end behind a chunk", chunked(format!("{len:x}\r\n{body}0\r\n\r\n{HIDDEN}"))),
            ("an endless extension", chunked(format!("{len:x};{}", "a".repeat(200_000)))),
            ("endless trailers", chunked(format!("{len:x}\r\n{body}\r\n0\r\n{}", "a: b\r\n".repeat(40_000)))),
            ("a body that stops", post(&format!("Content-Length: {}\r\n", len + 1), &body)),
            ("chunks that stop", chunked(format!("{:x}\r\n{body}", len + 1))),
            ("no last chunk", chunked(format!("{len:x}\r\n{body}\r\n"))),
            ("a body over the limit", post("Content-Length: 99999999999\r\n", &body)),
            ("the longest length there is", post("Content-Length: 18446744073709551615\r\n", &body)),
        ],
        &[400, 408, 413],
    )
    .await;
}

#[tokio::test]
async fn what_is_odd_but_clear_is_forwarded_as_one_plain_request() {
    let mut scene = Scene::set().await;
    let (body, len) = (body(), STEP.len());
    let length = format!("Content-Length: {len}\r\n");
    let chunked = |chunks: String| post("Transfer-Encoding: chunked\r\n", &chunks);
    let first = |line: &str| format!("{line}\r\nhost: x\r\n{length}\r\n{body}").into_bytes();
    for (what, bytes, stays) in [
        (
            "spaces around the coding",
            post("Transfer-Encoding: \t chunked \t\r\n", &format!("{len:x}\r\n{body}\r\n0\r\n\r\n")),
            true,
        ),
        ("a size in capitals", chunked(format!("{len:X}\r\n{body}\r\n0\r\n\r\n")), true),
        ("leading zeros in a size", chunked(format!("000{len:x}\r\n{body}\r\n000\r\n\r\n")), true),
        ("leading zeros in a length", post(&format!("Content-Length: 000{len}\r\n"), &body), true),
        ("an extension", chunked(format!("{len:x};a=\"b;c\"\r\n{body}\r\n0;d\r\n\r\n")), true),
        ("trailers", chunked(format!("{len:x}\r\n{body}\r\n0\r\nContent-Length: 9\r\nhost: evil\r\n\r\n")), true),
        ("blank lines in front", [b"\r\n\r\n", &first(&format!("POST {CHAT} HTTP/1.1"))[..]].concat(), true),
        ("an absolute target", first(&format!("POST http://x{CHAT} HTTP/1.1")), true),
        ("an empty Host", format!("POST {CHAT} HTTP/1.1\r\nhost:\r\n{length}\r\n{body}").into_bytes(), true),
        ("a header named Content_Length", post(&format!("Content_Length: 3\r\n{length}"), &body), true),
        ("256 headers", post(&format!("{}{length}", "a: b\r\n".repeat(254)), &body), true),
        (
            "hop-by-hop headers",
            post(&format!("Connection: keep-alive, x-a\r\nx-a: b\r\nTE: trailers\r\nTrailer: x\r\n{length}"), &body),
            true,
        ),
        (
            "an upgrade",
            post(
                &format!("Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n{length}"),
                &body,
            ),
            true,
        ),
        // Pingora accepts both of these, and the proxy's hooks cannot see them. The backend gets the bodies framed
        // anew.
        ("bare LF in an extension", chunked(format!("{len:x};a\nb\r\n{body}\r\n0\r\n\r\n")), true),
        ("no size for zero", chunked(format!("{len:x}\r\n{body}\r\n\r\nx: y\r\n\r\n")), true),
        ("HTTP/1.0", first(&format!("POST {CHAT} HTTP/1.0")), false),
        ("a client that closes", post(&format!("Connection: close\r\n{length}"), &body), false),
    ] {
        let fate = scene.attack(&bytes, 1).await;
        assert_eq!(fate.answers.len(), 1, "{what}: {fate:?}");
        assert_eq!((fate.answers[0].status(), fate.closed), (200, !stays), "{what}: {fate:?}");
        let reached = scene.reached();
        let [request] = &reached[..] else { panic!("{what}: {reached:?}") };
        is_well_formed(request);
        for name in ["x-a", "http2-settings"] {
            assert_eq!(request.header(name), None, "{what}");
        }
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn a_body_that_nobody_wants_does_not_become_a_request() {
    let mut scene = Scene::set().await;
    let hidden = HIDDEN.len();
    for (what, bytes) in [
        (
            "GET with a body, answered here",
            format!("GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"),
        ),
        (
            "GET with chunks, answered here",
            format!(
                "GET /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n"
            ),
        ),
        (
            "refused with a body",
            format!("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"),
        ),
        (
            "refused with chunks",
            format!(
                "POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n"
            ),
        ),
        (
            "refused for its body",
            format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"),
        ),
        ("HEAD with a body", format!("HEAD /livez HTTP/1.1\r\nhost: x\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}")),
        (
            "DELETE with a body",
            format!("DELETE /programs/none HTTP/1.1\r\nhost: x\r\ncontent-length: {hidden}\r\n\r\n{HIDDEN}"),
        ),
        ("CONNECT", format!("CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n{HIDDEN}")),
    ] {
        let fate = scene.attack(bytes.as_bytes(), 1).await;
        let reached = scene.reached();
        assert!(reached.is_empty(), "{what}: {reached:?}");
        assert!(fate.answers.len() <= 1, "{what}: {fate:?}");
    }
    // A GET is passed on with its body, as any other request.
    let get = format!(
        "GET /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n"
    );
    let fate = scene.attack(get.as_bytes(), 1).await;
    assert_eq!(fate.answers[0].status(), 200);
    let reached = scene.reached();
    let [request] = &reached[..] else { panic!("{reached:?}") };
    assert_eq!((request.method(), request.path(), &request.body[..]), ("GET", "/v1/x", HIDDEN.as_bytes()));
    scene.unharmed().await;
}

#[tokio::test]
async fn what_is_pipelined_behind_a_doubtful_request_is_never_read() {
    let mut scene = Scene::set().await;
    let good = [format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", STEP.len()).as_bytes(), STEP]
        .concat();
    let doubtful = post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc");
    let fate = scene.attack(&[&good[..], &doubtful, &good].concat(), usize::MAX).await;
    let statuses: Vec<_> = fate.answers.iter().map(Message::status).collect();
    assert_eq!((statuses, fate.closed, scene.reached().len()), (vec![200, 400], true, 1));
    let broken = b"POST / HTTP/1.1\r\nhost : x\r\n\r\n";
    let fate = scene.attack(&[&good[..], broken, &good].concat(), usize::MAX).await;
    let statuses: Vec<_> = fate.answers.iter().map(Message::status).collect();
    assert_eq!((statuses, fate.closed, scene.reached().len()), (vec![200, 400], true, 1));
    assert_eq!(code(&fate.answers[1]), "invalid_request");
    scene.unharmed().await;
}
