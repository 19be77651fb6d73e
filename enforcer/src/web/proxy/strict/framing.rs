//! Where the requests on a connection begin and end, and what may not be in them. Pure: bytes in, a verdict out.

/// The longest name and value that are looked at.
const MOST: usize = 20;
/// More digits of a length, in decimal and in hexadecimal, than anybody means.
const MOST_DIGITS: usize = 18;
const MOST_HEX_DIGITS: usize = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Good,
    /// The byte at that place must not be.
    Bad(usize),
}

/// Reads a connection from its first byte on.
#[derive(Debug, Default)]
pub(super) struct Framing {
    at: At,
    head: Head,
}

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// Before a request; empty lines are skipped.
    #[default]
    Start,
    StartLf,
    RequestLine,
    RequestLineLf,
    LineStart,
    Name,
    Value,
    ValueLf,
    HeadLf,
    /// That many bytes of a body.
    Body(u64),
    ChunkSize(u64, usize),
    ChunkExtension(u64),
    ChunkSizeLf(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    length: Option<u64>,
    chunked: bool,
    field: Field,
    name: Short,
    value: Short,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Field {
    #[default]
    Other,
    Length,
    Coding,
}

/// The beginning of a text, and how long it is.
#[derive(Debug, Default)]
struct Short {
    bytes: [u8; MOST],
    length: usize,
}

impl Short {
    fn clear(&mut self) {
        self.length = 0;
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
        }
        self.length = self.length.saturating_add(1);
    }

    /// `None`: it is longer than what is looked at.
    fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }
}

impl Framing {
    /// Whether a request's head has begun and is not complete.
    pub(super) fn is_in_head(&self) -> bool {
        use At::{HeadLf, LineStart, Name, RequestLine, RequestLineLf, Value, ValueLf};
        matches!(self.at, RequestLine | RequestLineLf | LineStart | Name | Value | ValueLf | HeadLf)
    }

    /// Reads on. After something bad it must not be used any more.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.at {
                // nothing in them is looked at
                At::Body(left) | At::Chunk(left) => {
                    let more = (bytes.len() - at) as u64;
                    let skipped = left.min(more);
                    let left = left - skipped;
                    let chunk = matches!(self.at, At::Chunk(_));
                    self.at = match (left, chunk) {
                        (0, true) => At::ChunkCr,
                        (0, false) => At::Start,
                        (left, true) => At::Chunk(left),
                        (left, false) => At::Body(left),
                    };
                    // not more than the rest of `bytes`
                    at += usize::try_from(skipped).unwrap_or(usize::MAX);
                    continue;
                }
                At::Value if self.head.field == Field::Other => {
                    // most of what is read: on to the end of the line
                    let rest = &bytes[at..];
                    match rest.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                        Some(end) => at += end,
                        None => return Step::Good,
                    }
                    if bytes[at] != b'\r' {
                        return Step::Bad(at);
                    }
                    self.at = At::ValueLf;
                }
                _ => match self.step(byte) {
                    Some(next) => self.at = next,
                    None => return Step::Bad(at),
                },
            }
            at += 1;
        }
        Step::Good
    }

    /// Where a byte leads; `None`: it must not be.
    fn step(&mut self, byte: u8) -> Option<At> {
        let on = |good: bool, next: At| good.then_some(next);
        match self.at {
            At::Start if byte == b'\r' => Some(At::StartLf),
            At::Start => {
                self.head = Head::default();
                on(byte != b'\n' && byte != 0, At::RequestLine)
            }
            At::StartLf => on(byte == b'\n', At::Start),
            At::RequestLine if byte == b'\r' => Some(At::RequestLineLf),
            At::RequestLine => on(byte != b'\n' && byte != 0, At::RequestLine),
            At::RequestLineLf => on(byte == b'\n', At::LineStart),
            At::LineStart => match byte {
                b'\r' => Some(At::HeadLf),
                // a line that continues the one before, or an empty name
                b' ' | b'\t' | b':' | b'\n' | 0 => None,
                _ => {
                    self.head.name.clear();
                    self.head.name.push(byte);
                    Some(At::Name)
                }
            },
            At::Name => match byte {
                b':' => {
                    self.head.begin_value()?;
                    Some(At::Value)
                }
                b' ' | b'\t' | b'\r' | b'\n' | 0 => None,
                _ => {
                    self.head.name.push(byte);
                    Some(At::Name)
                }
            },
            At::Value => match byte {
                b'\r' => Some(At::ValueLf),
                b'\n' | 0 => None,
                _ => {
                    self.head.value.push(byte);
                    Some(At::Value)
                }
            },
            At::ValueLf => {
                let good = byte == b'\n' && self.head.end_value();
                on(good, At::LineStart)
            }
            At::HeadLf => match (byte, self.head.length, self.head.chunked) {
                (b'\n', Some(_), true) => None,
                (b'\n', _, true) => Some(At::ChunkSize(0, 0)),
                (b'\n', Some(length @ 1..), _) => Some(At::Body(length)),
                (b'\n', ..) => Some(At::Start),
                _ => None,
            },
            At::ChunkSize(size, digits) => match (char::from(byte).to_digit(16), byte) {
                (Some(digit), _) => {
                    on(digits < MOST_HEX_DIGITS, At::ChunkSize(size << 4 | u64::from(digit), digits + 1))
                }
                (None, b';') if digits > 0 => Some(At::ChunkExtension(size)),
                (None, b'\r') if digits > 0 => Some(At::ChunkSizeLf(size)),
                _ => None,
            },
            At::ChunkExtension(size) => match byte {
                b'\r' => Some(At::ChunkSizeLf(size)),
                b'\n' | 0 => None,
                _ => Some(At::ChunkExtension(size)),
            },
            At::ChunkSizeLf(size) => {
                on(byte == b'\n', if size == 0 { At::TrailerStart } else { At::Chunk(size) })
            }
            At::ChunkCr => on(byte == b'\r', At::ChunkLf),
            At::ChunkLf => on(byte == b'\n', At::ChunkSize(0, 0)),
            At::TrailerStart => match byte {
                b'\r' => Some(At::EndLf),
                b' ' | b'\t' | b'\n' | 0 => None,
                _ => Some(At::Trailer),
            },
            At::Trailer => match byte {
                b'\r' => Some(At::TrailerLf),
                b'\n' | 0 => None,
                _ => Some(At::Trailer),
            },
            At::TrailerLf => on(byte == b'\n', At::TrailerStart),
            At::EndLf => on(byte == b'\n', At::Start),
            // not looked at byte by byte
            At::Body(_) | At::Chunk(_) => None,
        }
    }
}

impl Head {
    /// A name is complete. `None`: it has been there before, and may be there once.
    fn begin_value(&mut self) -> Option<()> {
        self.value.clear();
        self.field = match self.name.get() {
            Some(b"content-length") => Field::Length,
            Some(b"transfer-encoding") => Field::Coding,
            _ => Field::Other,
        };
        match self.field {
            Field::Length if self.length.is_some() => None,
            Field::Coding if self.chunked => None,
            _ => Some(()),
        }
    }

    /// A value is complete. False: it must not be.
    fn end_value(&mut self) -> bool {
        let value = self.value.get().map(<[u8]>::trim_ascii);
        match (self.field, value) {
            (Field::Other, _) => true,
            (Field::Length, Some(digits)) if (1..=MOST_DIGITS).contains(&digits.len()) => {
                self.length = digits.iter().try_fold(0, |length: u64, byte| {
                    byte.is_ascii_digit().then(|| length * 10 + u64::from(byte - b'0'))
                });
                self.length.is_some()
            }
            (Field::Coding, Some(b"chunked")) => {
                self.chunked = true;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> (Step, Framing) {
        let mut framing = Framing::default();
        (framing.read(text), framing)
    }

    /// Where the bad byte is.
    fn bad(text: &str) -> &str {
        match read(text.as_bytes()).0 {
            Step::Bad(at) => &text[at..],
            Step::Good => "",
        }
    }

    #[test]
    fn what_is_clear_is_good() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5 \r\n\r\n\r\n\n\rx",
            "POST / HTTP/1.1\r\nTRANSFER-encoding:\tChunked\r\n\r\n5;x=\"y\"\r\nabcde\r\nA\r\n0123456789\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nEmpty:\r\nContent-Length-Not: x\r\n\r\n",
        ] {
            let (step, framing) = read(text.as_bytes());
            assert_eq!(step, Step::Good, "{text:?}");
            assert_eq!(framing.at, At::Start, "{text:?}");
        }
    }

    #[test]
    fn what_can_be_understood_in_two_ways_is_bad() {
        let post = "POST / HTTP/1.1\r\n";
        for (head, from) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "\n"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "\n"),
            ("Content-Length: 5\r\nContent-Length: 5\r\n\r\n", ": 5\r\n\r\n"),
            ("Content-Length: 5, 5\r\n\r\n", "\n\r\n"),
            ("Content-Length: +5\r\n\r\n", "\n\r\n"),
            ("Content-Length: -1\r\n\r\n", "\n\r\n"),
            ("Content-Length: 0x5\r\n\r\n", "\n\r\n"),
            ("Content-Length:\r\n\r\n", "\n\r\n"),
            ("Content-Length: 99999999999999999999\r\n\r\n", "\n\r\n"),
            ("Transfer-Encoding: gzip, chunked\r\n\r\n", "\n\r\n"),
            ("Transfer-Encoding: xchunked\r\n\r\n", "\n\r\n"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", ": chunked\r\n\r\n"),
            ("Transfer-Encoding: identity\r\n\r\n", "\n\r\n"),
            ("Content-Length : 5\r\n\r\n", " : 5\r\n\r\n"),
            ("X: a\r\n b\r\n\r\n", " b\r\n\r\n"),
            ("X: a\r\n\tb\r\n\r\n", "\tb\r\n\r\n"),
            (" X: a\r\n\r\n", " X: a\r\n\r\n"),
            ("X: a\nY: b\r\n\r\n", "\nY: b\r\n\r\n"),
            ("X: a\rY: b\r\n\r\n", "Y: b\r\n\r\n"),
            ("X: a\0b\r\n\r\n", "\0b\r\n\r\n"),
            ("X\r\n\r\n", "\r\n\r\n"),
            (": x\r\n\r\n", ": x\r\n\r\n"),
            ("X: a\r\n\n", "\n"),
        ] {
            let text = format!("{post}{head}");
            assert_eq!(bad(&text), from, "{text:?}");
        }
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, from) in [
            ("5\nabcde\r\n0\r\n\r\n", "\nabcde\r\n0\r\n\r\n"),
            ("5 \r\nabcde\r\n", " \r\nabcde\r\n"),
            ("\r\n", "\r\n"),
            ("0x5\r\nabcde\r\n", "x5\r\nabcde\r\n"),
            ("-1\r\n", "-1\r\n"),
            ("1000000000000005\r\n", "5\r\n"),
            ("2\r\nabc\r\n", "c\r\n"),
            ("5;x\ny\r\nabcde\r\n", "\ny\r\nabcde\r\n"),
            ("0\r\n\n", "\n"),
            ("0\r\nX: y\n\r\n", "\n\r\n"),
        ] {
            let text = format!("{chunked}{body}");
            assert_eq!(bad(&text), from, "{text:?}");
        }
        assert_eq!(bad("GET / HTTP/1.1\nHost: a\n\n"), "\nHost: a\n\n");
    }

    #[test]
    fn a_head_is_known_while_it_is_read() {
        let mut framing = Framing::default();
        for (piece, within) in
            [("\r\n", false), ("G", true), ("ET / HTTP/1.1\r\nA: b\r\n\r", true), ("\n", false), ("G", true)]
        {
            assert_eq!(framing.read(piece.as_bytes()), Step::Good);
            assert_eq!(framing.is_in_head(), within, "{piece:?}");
        }
    }

    proptest! {
        /// However the bytes are cut into pieces, the verdict is the same.
        #[test]
        fn pieces_do_not_matter(
            parts in proptest::collection::vec(prop_oneof![
                Just("GET / HTTP/1.1\r\n"), Just("Host: a\r\n"), Just("Content-Length: 3\r\n"), Just("\r\n"),
                Just("Transfer-Encoding: chunked\r\n"), Just("3\r\n"), Just("abc"), Just("0\r\n"), Just("\n"),
                Just("\r"), Just(" "), Just(":"), Just("X: y"),
            ], 0..12),
            cuts in proptest::collection::vec(1usize..9, 1..40),
        ) {
            let text = parts.concat();
            let (whole, _) = read(text.as_bytes());
            let mut framing = Framing::default();
            let mut from = 0;
            let mut pieces = Step::Good;
            for cut in cuts.iter().cycle() {
                if from >= text.len() {
                    break;
                }
                let to = (from + cut).min(text.len());
                if let Step::Bad(at) = framing.read(&text.as_bytes()[from..to]) {
                    pieces = Step::Bad(from + at);
                    break;
                }
                from = to;
            }
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&bytes);
        }
    }
}
