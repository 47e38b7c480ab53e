//! HTTP/2: wrong frames, and too many right ones.

use super::frames::*;
use super::*;
use bytes::BufMut;

const ENHANCE_YOUR_CALM: u32 = 11;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// HPACK code of `:status: 200`, an entry of the static table.
const OK: u8 = 0x88;

fn step_head<'a>(more: &[(&'a str, &'a str)]) -> Vec<u8> {
    block(&[&request("POST", CHAT)[..], more].concat())
}

/// A whole step on one stream.
fn step_on(stream: u32) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &step_head(&[])), frame(DATA, END_STREAM, stream, STEP)].concat()
}

/// Sends `bytes` on a connection of their own, and checks that stream 1 or the whole connection is refused.
async fn refused(scene: &mut Scene, what: &str, bytes: &[u8]) {
    let mut wire = Wire::open(&scene.proxy, &[]).await;
    wire.send(bytes).await;
    let refused = wire.refused(1).await;
    eprintln!("{what}: {refused:?}");
    assert!(!matches!(&refused, Refused::Answer(head) if head.first() == Some(&OK)), "{what}: {refused:?}");
    assert!(scene.reached().is_empty(), "{what} reached a backend");
}

#[tokio::test]
async fn a_head_that_is_none_is_refused() {
    let mut scene = Scene::set().await;
    let usual = request("POST", CHAT);
    let without = |name: &str| usual.iter().copied().filter(|(key, _)| *key != name).collect::<Vec<_>>();
    let with = |name, value| [&usual[..], &[(name, value)]].concat();
    let instead = |name, value| [&without(name)[..], &[(name, value)]].concat();
    let heads = [
        ("no method", without(":method")),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("no authority and no host", without(":authority")),
        ("nothing", Vec::new()),
        ("two methods", with(":method", "GET")),
        ("two paths", with(":path", "/v1/hidden")),
        ("two authorities", with(":authority", "elsewhere")),
        ("an empty path", instead(":path", "")),
        ("a path without a slash", instead(":path", "v1/chat/completions")),
        ("an absolute path", instead(":path", "http://proxy/v1/chat/completions")),
        ("a path with a space", instead(":path", "/v1/chat/completions HTTP/1.1")),
        ("a path with a line in it", instead(":path", "/v1/x HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/hidden")),
        ("a path with NUL", instead(":path", "/v1/x\0")),
        ("a method with a line in it", instead(":method", "GET /v1/hidden HTTP/1.1\r\n\r\nPOST")),
        ("a method with a space", instead(":method", "POST /v1/hidden")),
        ("CONNECT", vec![(":method", "CONNECT"), (":authority", "proxy:80")]),
        ("an unknown pseudo header", with(":evil", "x")),
        ("a status", with(":status", "200")),
        ("a pseudo header behind others", [&[("a", "b")], &usual[..]].concat()),
        ("a host that differs", with("host", "elsewhere")),
        ("a user in the authority", instead(":authority", "a@proxy")),
        ("a name in capitals", with("X-Upper", "x")),
        ("an empty name", with("", "x")),
        ("a name with a space", with("a b", "x")),
        ("a name with a colon", with("a:b", "x")),
        ("a name with a line in it", with("a\r\nb", "x")),
        ("a value with a line in it", with("a", "b\r\nc: d")),
        ("a value with LF", with("a", "b\nc")),
        ("a value with NUL", with("a", "b\0c")),
        ("connection", with("connection", "close")),
        ("keep-alive", with("keep-alive", "timeout=5")),
        ("proxy-connection", with("proxy-connection", "keep-alive")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("upgrade", with("upgrade", "h2c")),
        ("te", with("te", "gzip")),
        ("two lengths", [&usual[..], &[("content-length", "81"), ("content-length", "3")]].concat()),
        ("a length that is none", with("content-length", "+81")),
        ("a negative length", with("content-length", "-1")),
        ("a length beyond 64 bits", with("content-length", "18446744073709551697")),
    ];
    for (what, head) in heads {
        let head = frame(HEADERS, END_HEADERS, 1, &block(&head));
        refused(&mut scene, what, &[head, frame(DATA, END_STREAM, 1, STEP)].concat()).await;
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_announced_is_refused() {
    let mut scene = Scene::set().await;
    let announced =
        |length: usize| frame(HEADERS, END_HEADERS, 1, &step_head(&[("content-length", &length.to_string())]));
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    for (what, bytes) in [
        ("longer", [announced(STEP.len() - 1), data(END_STREAM, STEP)].concat()),
        ("longer, later", [announced(STEP.len()), data(0, STEP), data(END_STREAM, b" ")].concat()),
        ("shorter", [announced(STEP.len() + 1), data(END_STREAM, STEP)].concat()),
        ("nothing", frame(HEADERS, END_HEADERS | END_STREAM, 1, &step_head(&[("content-length", "9")]))),
        (
            "nothing, but trailers",
            [announced(9), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("a", "b")]))].concat(),
        ),
    ] {
        refused(&mut scene, what, &bytes).await;
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn frames_out_of_order_are_refused() {
    let mut scene = Scene::set().await;
    let head = || frame(HEADERS, END_HEADERS, 1, &step_head(&[]));
    let open = || frame(HEADERS, 0, 1, &step_head(&[]));
    let mut padded = vec![200];
    padded.extend_from_slice(b"{}");
    for (what, bytes) in [
        ("PING, and DATA on no stream", [&frame(PING, 0, 0, &[0; 8])[..], &frame(DATA, END_STREAM, 1, STEP)].concat()),
        ("DATA on no stream", frame(DATA, END_STREAM, 1, STEP)),
        ("DATA on the connection", frame(DATA, END_STREAM, 0, STEP)),
        ("HEADERS on the connection", frame(HEADERS, END_HEADERS, 0, &step_head(&[]))),
        ("a stream of the server's", frame(HEADERS, END_HEADERS, 2, &step_head(&[]))),
        ("HEADERS within HEADERS", [open(), head()].concat()),
        ("PING within HEADERS", [open(), frame(PING, 0, 0, &[0; 8])].concat()),
        ("CONTINUATION of another stream", [open(), frame(CONTINUATION, END_HEADERS, 3, b"")].concat()),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, b"")),
        ("a reset of no stream", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        ("a window of zero more", [head(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat()),
        ("a window of zero more for all", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a window too large", [head(), frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat()),
        ("a window too large for all", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("a window beyond 31 bits", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ("half a setting", frame(SETTINGS, 0, 0, &[0, 4, 0])),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        ("an acknowledgement with settings", frame(SETTINGS, ACK, 0, &[0, 4, 0, 0, 0, 1])),
        ("frames too small", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("a short PING", frame(PING, 0, 0, &[0; 7])),
        ("more padding than frame", [head(), frame(DATA, 8 | END_STREAM, 1, &padded)].concat()),
        ("a frame too large", [&head()[..], &frame(DATA, 0, 1, &vec![b' '; 16_385])].concat()),
        ("a broken header block", frame(HEADERS, END_HEADERS, 1, &[0xff; 40])),
        ("an index that is none", frame(HEADERS, END_HEADERS, 1, &[0xfe])),
        ("a promise", frame(5, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("HTTP/1.1 behind the preface", b"GET /v1/hidden HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
    ] {
        refused(&mut scene, what, &bytes).await;
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn a_header_list_beyond_all_measure_is_refused() {
    let mut scene = Scene::set().await;
    // One header of 4,000 bytes goes into the table of the connection. Then one byte each time names this header.
    let mut bomb = block(&request("GET", "/v1/hidden"));
    bomb.extend_from_slice(&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    bomb.resize(bomb.len() + 4000, b'b');
    bomb.resize(16_000, 0xbe);
    refused(&mut scene, "one header 12,000 times", &frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
    let long = "x".repeat(120);
    let many = block(&vec![("a", &*long); 120]);
    let mut bytes = frame(HEADERS, END_STREAM, 1, &block(&request("GET", "/v1/hidden")));
    for _ in 0..8 {
        bytes.extend(frame(CONTINUATION, 0, 1, &many));
    }
    bytes.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
    refused(&mut scene, "960 headers", &bytes).await;
    scene.unharmed().await;
}

#[tokio::test]
async fn a_head_without_an_end_ends_its_connection() {
    let mut scene = Scene::set().await;
    for (what, piece) in [("empty", &b""[..]), ("small", b"\x00\x01a\x01b"), ("large", &[0xbe; 16_000])] {
        let mut wire = Wire::open(&scene.proxy, &[]).await;
        let mut bytes = frame(HEADERS, END_STREAM, 1, &block(&request("GET", "/v1/hidden")));
        let pieces = frame(CONTINUATION, 0, 1, piece).repeat(100);
        let mut sent = 0;
        // The loop sends more than all buffers take.
        while wire.send(&bytes).await && sent < 4_000_000 {
            bytes.clone_from(&pieces);
            sent += 100;
        }
        assert!(sent < 4_000_000, "{what}: it reads on and on");
        assert!(matches!(wire.refused(1).await, Refused::Connection(_) | Refused::Closed), "{what}");
        assert!(scene.reached().is_empty());
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn a_client_that_resets_what_it_asks_for_is_sent_away_and_costs_others_nothing() {
    let mut scene = Scene::set().await;
    for (what, end) in [("before its body", false), ("whole", true)] {
        let mut wire = Wire::open(&scene.proxy, &[]).await;
        let mut stream = 1;
        let mut bystander = scene.proxy.client().await;
        loop {
            let mut bytes = Vec::new();
            for _ in 0..100 {
                match end {
                    true => bytes.extend(step_on(stream)),
                    false => bytes.extend(frame(HEADERS, END_HEADERS, stream, &step_head(&[]))),
                }
                bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                stream += 2;
            }
            if !wire.send(&bytes).await {
                break;
            }
            assert!(stream < 40_000, "{what}: 20,000 resets, and it is still served");
            bystander.post(CHAT, "", STEP).await;
            assert_eq!(bystander.response().await.status(), 200, "{what}");
        }
        let refused = wire.refused(0).await;
        assert!(matches!(refused, Refused::Connection(ENHANCE_YOUR_CALM) | Refused::Closed), "{what}: {refused:?}");
        scene.unharmed().await;
    }
}

#[tokio::test]
async fn a_client_that_makes_the_server_reset_is_sent_away_too() {
    let mut scene = Scene::set().await;
    let mut wire = Wire::open(&scene.proxy, &[]).await;
    let mut stream = 1;
    loop {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &step_head(&[])));
            // The frame is an error of the stream, so the server resets the stream.
            bytes.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
            stream += 2;
        }
        if !wire.send(&bytes).await {
            break;
        }
        assert!(stream < 40_000, "20,000 resets, and it is still served");
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_from() {
    let mut scene = Scene::set().await;
    let mut settings = Vec::new();
    settings.put_u16(INITIAL_WINDOW_SIZE);
    settings.put_u32(70_000);
    for (what, one) in [("PING", frame(PING, 0, 0, &[7; 8])), ("SETTINGS", frame(SETTINGS, 0, 0, &settings))] {
        let mut wire = Wire::open(&scene.proxy, &[]).await;
        let many = one.repeat(4000);
        let mut sent = 0;
        // Each answer needs room. The sockets have little room, and nothing else may hold the answers.
        while wire.stalls_or_ends(&many).await.is_none() {
            sent += many.len();
            assert!(sent < 100 << 20, "{what}: 100 MB of them are answered to nobody");
        }
        scene.unharmed().await;
    }
}

#[tokio::test]
async fn a_window_that_never_opens_gives_its_place_back() {
    let idle = Duration::from_millis(400);
    let mut scene = Scene::with(|config| config.timeouts.stream_idle = idle).await;
    let mut wire = Wire::open(&scene.proxy, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    assert!(wire.send(&step_on(1)).await);
    assert!(wire.find(HEADERS, 1).await.is_some(), "the head takes no window");
    scene.unharmed().await;
    // The answer was not sent, and the proxy did not keep it either.
    assert!(matches!(wire.refused(1).await, Refused::Stream(_) | Refused::Connection(_) | Refused::Closed));

    // The windows of the streams are open, but not the window of the connection. Some answers come, and the others wait
    // for that window.
    let mut wire = Wire::open(&scene.proxy, &[]).await;
    let streams = 2 * 65_535 / WHOLE.len() as u32;
    assert!(streams < 1000, "as many as may be open");
    for n in 0..streams {
        assert!(wire.send(&step_on(2 * n + 1)).await);
    }
    let mut answered = 0;
    while let Some(frame) = wire.next().await {
        answered += frame.payload.len() * usize::from(frame.kind == DATA);
        if frame.kind == RST_STREAM || frame.kind == GOAWAY {
            break;
        }
    }
    assert!((1..=65_535).contains(&answered), "{answered}");
    scene.unharmed().await;
}
