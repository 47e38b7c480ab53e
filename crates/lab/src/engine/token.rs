//! The tokeniser. A text is cut into pieces of four bytes, counted from the start of each message. So a reply that is
//! sent back in the next prompt becomes the very tokens that were generated.

use super::chain::{TokenId, mix};

const PIECE: usize = 4;
/// Least id of a special token. The ids of pieces are smaller: at most four bytes, with one bit above them.
const SPECIAL: TokenId = 1 << 40;

/// Cuts a text into pieces of at most four bytes, between characters.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let cut = (1..=PIECE.min(rest.len())).rev();
        let (piece, after) = rest.split_at(cut.into_iter().find(|&at| rest.is_char_boundary(at))?);
        rest = after;
        Some(piece)
    })
}

/// The id of a piece: its bytes, below a bit that tells their number.
pub(super) fn token_of(piece: &str) -> TokenId {
    piece.bytes().fold(1, |id, byte| id << 8 | TokenId::from(byte))
}

/// The text of a token; empty for special tokens, and for ids that are no token.
pub(super) fn piece_of(token: TokenId) -> String {
    let bytes = token.to_be_bytes();
    let start = bytes.iter().position(|&byte| byte > 0);
    match start {
        Some(at) if token < SPECIAL && bytes[at] == 1 => String::from_utf8_lossy(&bytes[at + 1..]).into_owned(),
        _ => String::new(),
    }
}

/// The one token that stands for a role, a tool's name or another mark.
pub(super) fn special(name: &str) -> TokenId {
    let hash = name.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    SPECIAL | hash >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_characters_and_join_to_the_text() {
        let text = "abcdefg \u{e9}\u{e9}\u{e9}\u{1f600}x\u{20ac}\u{20ac}";
        let cut: Vec<_> = pieces(text).collect();
        assert!(cut.iter().all(|piece| (1..=4).contains(&piece.len())));
        assert_eq!(cut[0], "abcd");
        assert_eq!(cut.concat(), text);
        let back: String = cut.iter().map(|piece| piece_of(token_of(piece))).collect();
        assert_eq!(back, text);
    }

    #[test]
    fn a_special_token_is_no_text() {
        assert_ne!(special("user"), special("assistant"));
        assert_eq!(piece_of(special("user")), "");
        assert_eq!(piece_of(0), "");
    }
}
