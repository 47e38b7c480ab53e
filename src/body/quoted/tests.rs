use super::*;
use proptest::prelude::*;

/// The position of the closing quote, or of the byte that is wrong, or of the end, found byte by byte; and whether an
/// escape was passed.
fn slowly(bytes: &[u8], mut at: usize) -> (usize, bool) {
    let mut escaped = false;
    loop {
        at += match &bytes[at..] {
            [b'\\', b'u', digits @ ..] if digits.len() >= 4 && digits[..4].iter().all(u8::is_ascii_hexdigit) => 6,
            [b'\\', byte, ..] if b"\"\\/bfnrt".contains(byte) => 2,
            [] | [b'"' | b'\\' | 0..0x20, ..] => return (at, escaped),
            _ => {
                at += 1;
                continue;
            }
        };
        escaped = true;
    }
}

/// Checks `skim` for every instruction set. The check goes on byte by byte where the blocks end.
fn check_all(bytes: &[u8], at: usize) {
    let expected = slowly(bytes, at);
    let mut levels = vec![Level::baseline(), Level::new()];
    #[cfg(target_arch = "x86_64")]
    levels.extend(Level::new().as_avx2().map(Level::Avx2));
    for level in levels {
        let skimmed = dispatch!(level, simd => skim_with(simd, bytes, at));
        let text = || format!("{level:?} from {at} to {skimmed:?}: {:?}", String::from_utf8_lossy(bytes));
        assert!(skimmed.at <= expected.0, "{}", text());
        let (end, escaped) = slowly(bytes, skimmed.at);
        assert_eq!(end, expected.0, "{}", text());
        let whole = |from: usize| bytes.len() - from >= 64;
        assert!(!whole(skimmed.at) || end - skimmed.at < 64, "stopped for nothing: {}", text());
        if bytes.get(end) == Some(&b'"') {
            assert_eq!(escaped || skimmed.escaped, expected.1, "{}", text());
            assert!(!whole(end) || skimmed.at == end, "did not come to the quote: {}", text());
        }
    }
}

#[test]
fn an_escape_may_stand_anywhere_in_a_block() {
    let good = r#"\n \" \\ \/ \b \f \r \t \u00e9 \uD83D\uDE00 é"#.split(' ');
    let bad = "\\ \\x \\v \\` \\u \\u12g4 \\u123\" \\\u{1} \u{1f} \u{7f} \"".split(' ');
    for escape in good.chain(bad) {
        for before in 0..140 {
            for end in ["\"", ""] {
                let text = [&"x".repeat(before), escape, &"y".repeat(before % 70), end, &" ".repeat(70)].concat();
                check_all(text.as_bytes(), 0);
            }
        }
    }
}

#[test]
fn runs_of_backslashes_cross_the_borders_of_blocks() {
    for before in 0..70 {
        for backslashes in (0..10).chain(60..70).chain(125..133) {
            for end in ["\"", "n", "u0041", "\"\"", "z"] {
                let text = ["x".repeat(before), "\\".repeat(backslashes), end.to_owned(), "y\"".repeat(80)].concat();
                check_all(text.as_bytes(), 0);
            }
        }
    }
}

proptest! {
    #[test]
    fn blocks_and_bytes_agree(
        parts in proptest::collection::vec(
            prop_oneof![
                4 => "[ -~é😀]{0,40}".prop_map(|text| text.replace(['"', '\\'], "")),
                8 => r#"\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}"#,
                1 => "[\"\\\\\u{0}-\u{20}uxU]",
            ],
            0..60,
        ),
        at in 0..80_usize,
        cut in 0..400_usize,
    ) {
        let text = parts.concat().into_bytes();
        check_all(&text, 0);
        // The text may begin and end anywhere, even within a character.
        let text = &text[..text.len().saturating_sub(cut)];
        check_all(text, at.min(text.len()));
    }
}
