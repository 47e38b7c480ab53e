use super::*;
use proptest::prelude::*;

/// Positions of all marks outside of strings and of the quotes around strings, found byte by byte.
fn slowly(text: &[u8]) -> Vec<(usize, u8)> {
    let (mut quoted, mut escaped) = (false, false);
    let mut marks = Vec::new();
    for (at, &byte) in text.iter().enumerate() {
        let mark = match byte {
            _ if std::mem::take(&mut escaped) => byte != b'"' && !quoted && b"{}[]:,".contains(&byte),
            b'\\' => {
                escaped = true;
                false
            }
            b'"' => {
                quoted = !quoted;
                true
            }
            _ => !quoted && b"{}[]:,".contains(&byte),
        };
        marks.extend(mark.then_some((at, byte)));
    }
    marks
}

fn in_pieces<'a>(text: impl Iterator<Item = &'a [u8]>) -> Vec<(usize, u8)> {
    let (mut marker, mut found, mut before) = (Marker::default(), Vec::new(), 0);
    for piece in text {
        marker.feed(piece, |start, marks| {
            let all = marks.quotes | marks.opens | marks.closes | marks.colons | marks.commas;
            for bit in (0..BLOCK).filter(|bit| all >> bit & 1 == 1) {
                let byte = piece[start + bit];
                let kind = [marks.quotes, marks.opens, marks.closes, marks.colons, marks.commas];
                let kind = kind.iter().position(|mask| mask >> bit & 1 == 1).unwrap();
                assert!(["\"", "{[", "}]", ":", ","][kind].as_bytes().contains(&byte));
                found.push((before + start + bit, byte));
            }
        });
        before += piece.len();
    }
    found
}

proptest! {
    #[test]
    fn blocks_and_bytes_find_the_same_marks_however_the_text_is_split(
        parts in proptest::collection::vec(
            prop_oneof![4 => "[\"\\\\{}:,\\[\\]]{0,6}", 2 => "[ -~é]{0,60}", 1 => "\\\\{55,70}"], 0..40),
        sizes in proptest::collection::vec(1..150_usize, 1..5),
    ) {
        let text = parts.concat().into_bytes();
        let expected = slowly(&text);
        prop_assert_eq!(&in_pieces(std::iter::once(&text[..])), &expected);
        let (mut rest, mut sizes) = (&text[..], sizes.iter().cycle());
        let pieces = std::iter::from_fn(|| {
            let (piece, behind) = rest.split_at(rest.len().min(*sizes.next()?));
            rest = behind;
            (!piece.is_empty()).then_some(piece)
        });
        prop_assert_eq!(&in_pieces(pieces), &expected);
    }
}
