//! Mistakes in a body: for each, what is wrong, at which byte, and what to do about it.

/// One mistake in a body, and the position of the byte where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JsonFault {
    pub what: Complaint,
    pub at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    Empty,
    ByteOrderMark,
    NotUtf8,
    NotAnObject,
    TrailingBytes,
    TooDeep,
    CutShort,
    NoValue,
    NoKey,
    NoColon,
    NoCommaOrEnd,
    BadNumber,
    BadEscape,
    ControlCharacter,
}

// === impl JsonFault ===

impl std::fmt::Display for JsonFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, remedy) = self.what.words();
        write!(f, "{what} at byte {}; {remedy}", self.at)
    }
}

impl Complaint {
    /// Two texts: what is wrong, and what to do about it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Empty => ("nothing there", "send one JSON object"),
            Self::ByteOrderMark => ("a byte order mark", "send UTF-8 without one"),
            Self::NotUtf8 => ("not UTF-8", "encode the body as UTF-8"),
            Self::NotAnObject => ("not a JSON object", "send one object: {\"model\": …}"),
            Self::TrailingBytes => ("something after the JSON object", "send one object only"),
            Self::TooDeep => ("nested deeper than limits.json_depth", "flatten it, or raise the limit"),
            Self::CutShort => ("the JSON ends too early", "send it whole, with the right Content-Length"),
            Self::NoValue => ("expected a JSON value", "values are \"…\", numbers, {…}, […], true, false, null"),
            Self::NoKey => ("expected a key in double quotes", "remove a trailing comma or comment, quote the key"),
            Self::NoColon => ("expected `:` after a key", "write members as \"key\": value"),
            Self::NoCommaOrEnd => ("expected `,` or the end of the object or array", "check commas and brackets"),
            Self::BadNumber => ("expected a digit", "write numbers as 1, -1, 0.5 or 1e9, without leading zeros"),
            Self::BadEscape => ("unknown escape in a string", "write a backslash as \\\\, others as \\n or \\u000a"),
            Self::ControlCharacter => {
                ("raw control character in a string", "write a line break as \\n, others as \\u0000")
            }
        }
    }
}
