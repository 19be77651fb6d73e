//! Which cookie an application takes a name for: applications read names less exactly than browsers write them.

use ring::digest::{SHA256, digest};

use super::is_space;

/// A name as the most careless application reads it, as a digest: ASP.NET does not look at the case, PHP makes `_` of
/// `.`, space and `[`, Rack and others decode `%XX`, Python strips every space of Unicode. Two names that some
/// application takes for one have the same; two that are the same here may still be two to the application.
///
/// 128 bits of SHA-256, so that a name of any length takes as much room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Folded(pub [u8; 16]);

impl Folded {
    pub fn of(name: &[u8]) -> Self {
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(digest(&SHA256, &fold(name)).as_ref()) {
            *to = *from;
        }
        Self(short)
    }
}

fn fold(name: &[u8]) -> Vec<u8> {
    let mut folded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', rest.get(1..).unwrap_or_default()),
            },
            _ => (*first, after),
        };
        folded.push(byte);
        rest = after;
    }
    // whatever is a space to somebody stands outside of what can be seen in ASCII
    let graphic = |byte: &u8| byte.is_ascii_graphic();
    let from = folded.iter().position(graphic).unwrap_or(0);
    let to = folded.iter().rposition(graphic).map_or(folded.len(), |last| last + 1);
    folded.truncate(to);
    folded.drain(..from.min(to));
    for byte in &mut folded {
        *byte = match byte {
            b'.' | b' ' | b'[' => b'_',
            _ => byte.to_ascii_lowercase(),
        };
    }
    folded
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether an application could find a cookie inside this value that `is_meant` knows by its name: some cut a field at
/// commas (RFC 2965), spaces (Python's `http.cookies`) and quotes as well as at semicolons; and where there is no name,
/// some look for it in the value.
pub fn smuggled(name: &[u8], value: &[u8], mut is_meant: impl FnMut(&[u8]) -> bool) -> bool {
    let cuts = |byte: &u8| is_space(*byte) || matches!(byte, b',' | b'"');
    let first = usize::from(!name.is_empty());
    value.split(cuts).skip(first).any(|piece| match piece.iter().position(|&byte| byte == b'=') {
        Some(at) => is_meant(piece.get(..at).unwrap_or_default()),
        None => false,
    })
}

/// Browsers refuse a cookie without a name whose value begins like one of these names: it would be sent as if it had
/// that name. Sealed they would take it.
pub fn refused_without_name(value: &[u8]) -> bool {
    let begins =
        |prefix: &[u8]| value.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    begins(b"__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_some_application_takes_for_one_are_one() {
        let name = Folded::of(b"my_sid");
        for other in [
            &b"MY_SID"[..],
            b"my.sid",
            b"my sid",
            b"my[sid",
            b"my%5fsid",
            b"%6dy_sid",
            b"\xc2\xa0my_sid",
            b"my_sid\xa0",
            b"my_sid%20",
            b" my_sid",
        ] {
            assert_eq!(Folded::of(other), name, "{}", other.escape_ascii());
        }
        for other in [&b"mysid"[..], b"my-sid", b"my_sid2", b"my%sid", b"", b"my%5", b"my_sid]"] {
            assert_ne!(Folded::of(other), name, "{}", other.escape_ascii());
        }
        assert_eq!(fold(b"%"), b"%");
        assert_eq!(fold(b"%%41"), b"%a");
        assert_eq!(fold(b"\xff\xff"), b"\xff\xff");
    }

    #[test]
    fn a_cookie_inside_a_value_is_seen() {
        let sid = |name: &[u8]| name == b"sid";
        for value in [&b"1,sid=x"[..], b"1 sid=x", b"1, sid=x", b"\"a sid=x\"", b"a\tsid=x", b"\"\"sid=x"] {
            assert!(smuggled(b"a", value, sid), "{}", value.escape_ascii());
        }
        for value in [&b"sid=x"[..], b"1,side=x", b"1,sid", b"a=b=c", b"", b"1, 2, 3"] {
            assert!(!smuggled(b"a", value, sid), "{}", value.escape_ascii());
        }
        assert!(smuggled(b"", b"sid=x", sid) && !smuggled(b"", b"sid", sid));
    }

    #[test]
    fn a_prefix_in_a_value_without_a_name_is_known() {
        assert!(refused_without_name(b"__Host-x=1") && refused_without_name(b"__secure-x"));
        assert!(!refused_without_name(b"_x") && !refused_without_name(b""));
    }
}
