//! Which cookies an application reads in what a browser has sent: applications read names less exactly than browsers
//! write them.

use std::cell::RefCell;
use std::collections::BTreeSet;

use ring::digest::{SHA256, digest};

use super::is_space;

/// A name as the most careless application reads it, as a digest: ASP.NET does not look at the case; PHP makes `_` of
/// `.`, space and `[`, and an array `sid` of `sid[x]`; Rack, Perl and PHP have decoded `%XX` and `+`, and PHP stopped at a
/// NUL; Python strips every space of Unicode. Two names that some application takes for one have the same; two that are
/// the same here may still be two to the application.
///
/// 128 bits of SHA-256, so that a name of any length takes as much room. Digests are kept on the disk: whoever changes
/// what is one name here changes the word `sealed` of [`crate::web::learned::Entry`] as well, since the digests of before
/// would be those of other names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Folded(pub [u8; 16]);

impl Folded {
    pub fn of(name: &[u8]) -> Self {
        let Some(place) = KnownName::place(name) else { return Self::digest(name) };
        KNOWN.with_borrow_mut(|known| match known.get_mut(place) {
            Some(there) if there.name() == name => there.folded,
            Some(there) => {
                let folded = Self::digest(name);
                *there = KnownName::new(name, folded);
                folded
            }
            None => Self::digest(name),
        })
    }

    fn digest(name: &[u8]) -> Self {
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(digest(&SHA256, &fold(name)).as_ref()) {
            *to = *from;
        }
        Self(short)
    }
}

/// How many names each thread remembers, and how long these may be: applications have a few, which come with every
/// request.
const KNOWN_NAMES: usize = 64;
const LONGEST_KNOWN: usize = 47;

thread_local! {
    static KNOWN: RefCell<[KnownName; KNOWN_NAMES]> = const { RefCell::new([KnownName::NONE; KNOWN_NAMES]) };
}

/// A name and what comes of it. Whatever other name falls on its place takes that.
#[derive(Clone, Copy)]
struct KnownName {
    /// 0: none.
    length: u8,
    bytes: [u8; LONGEST_KNOWN],
    folded: Folded,
}

impl KnownName {
    const NONE: Self = Self { length: 0, bytes: [0; LONGEST_KNOWN], folded: Folded([0; 16]) };

    /// None: it is not remembered.
    fn place(name: &[u8]) -> Option<usize> {
        if !(1..=LONGEST_KNOWN).contains(&name.len()) {
            return None;
        }
        let sum = name.iter().fold(0usize, |sum, &byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        Some(sum % KNOWN_NAMES)
    }

    fn new(name: &[u8], folded: Folded) -> Self {
        let mut new = Self { folded, ..Self::NONE };
        // `place` has seen that it fits
        if let (Some(bytes), Ok(length)) = (new.bytes.get_mut(..name.len()), u8::try_from(name.len())) {
            bytes.copy_from_slice(name);
            new.length = length;
        }
        new
    }

    fn name(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

fn fold(name: &[u8]) -> Vec<u8> {
    let mut folded = decoded(name);
    // a string of C ends there
    if let Some(end) = folded.iter().position(|&byte| byte == 0) {
        folded.truncate(end);
    }
    // whatever is a space to somebody stands outside of what can be seen in ASCII
    let graphic = |byte: &u8| byte.is_ascii_graphic();
    let from = folded.iter().position(graphic).unwrap_or(0);
    let to = folded.iter().rposition(graphic).map_or(folded.len(), |last| last + 1);
    folded.truncate(to);
    folded.drain(..from.min(to));
    let bracket = folded.iter().position(|&byte| byte == b'[').filter(|&at| at > 0);
    if let Some(open) = bracket
        && folded.iter().skip(open).any(|&byte| byte == b']')
    {
        folded.truncate(open);
    }
    for byte in &mut folded {
        *byte = match byte {
            b'.' | b' ' | b'[' => b'_',
            _ => byte.to_ascii_lowercase(),
        };
    }
    folded
}

/// `%XX` is that byte, `+` a space.
fn decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', rest.get(1..).unwrap_or_default()),
            },
            (b'+', _) => (b' ', after),
            _ => (*first, after),
        };
        decoded.push(byte);
        rest = after;
    }
    decoded
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether some application could find a cookie in this pair that `is_meant` knows by its name, beside the pair's own
/// name. `pair`: all of it, name and value.
///
/// Some cut a field at commas as well as at semicolons (RFC 2109: Tomcat's legacy processor, Jetty, Perl, old Rack and
/// old Express). Python's `http.cookies` cuts at spaces, allows them on both sides of a `=`, and looked for the next name
/// behind whatever cannot stand in one. Tomcat's legacy processor passes over separators before a name. And where there
/// is no name, some look for it in the value. Who takes quotes for what they are cuts at fewer places than these.
pub fn smuggled(pair: &[u8], mut is_meant: impl FnMut(&Folded) -> bool) -> bool {
    let Some(first) = pair.iter().position(|&byte| byte == b'=') else { return false };
    let own = pair.get(..first).unwrap_or_default().trim_ascii();
    let cuts = |byte: &u8| !is_pythons(byte) || is_comma(byte);
    if own.first().is_some_and(is_token) && !pair.trim_ascii().iter().any(cuts) {
        // nobody cuts anywhere
        return false;
    }
    // who searches on behind what cannot stand in a name sees no name before that
    [true, false].into_iter().any(|before| {
        let pair = closed_up(pair, before);
        let by_commas = pair.split(is_comma).flat_map(|piece| [name_of(piece), name_of(bare(piece))]);
        let by_python = pair.split(|byte| !is_pythons(byte)).map(name_of);
        let by_both = pair.split(cuts).map(name_of);
        let names: BTreeSet<&[u8]> = by_commas.chain(by_python).chain(by_both).flatten().collect();
        names.into_iter().any(|name| name != own && is_meant(&Folded::of(name)))
    })
}

/// Without what somebody passes over at a `=`: spaces after the one that ends a name (a further one stands in the value,
/// and a space after that ends the value), and `before` it spaces, a quote and what is not ASCII.
fn closed_up(pair: &[u8], before: bool) -> Vec<u8> {
    let mut closed = Vec::with_capacity(pair.len());
    // how many `=` the word has that is being read, and how many the last one had; words end with what cannot stand in a
    // name
    let (mut here, mut last) = (0, 0);
    let mut ends_a_name = false;
    for &byte in pair {
        match byte {
            b'=' => {
                let skipped = |byte: &u8| is_space(*byte) || *byte == b'"' || !byte.is_ascii();
                let kept = closed.iter().rposition(|byte| !skipped(byte)).map_or(0, |last| last + 1);
                if before && kept < closed.len() {
                    closed.truncate(kept);
                    // the word goes on
                    here = if closed.last().is_some_and(is_pythons) { last } else { 0 };
                }
                here += 1;
                ends_a_name = here == 1 && closed.last().is_some_and(is_pythons);
                closed.push(byte);
            }
            _ if ends_a_name && is_space(byte) && closed.ends_with(b"=") => {}
            _ => {
                if !is_pythons(&byte) && closed.last().is_some_and(is_pythons) {
                    (last, here) = (here, 0);
                }
                closed.push(byte);
            }
        }
    }
    closed
}

/// What stands before the first `=`.
fn name_of(piece: &[u8]) -> Option<&[u8]> {
    let end = piece.iter().position(|&byte| byte == b'=')?;
    piece.get(..end).map(<[u8]>::trim_ascii).filter(|name| !name.is_empty())
}

/// Without the separators at its start.
fn bare(piece: &[u8]) -> &[u8] {
    let from = piece.iter().position(is_token).unwrap_or(piece.len());
    piece.get(from..).unwrap_or_default()
}

fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

/// What may stand in a name to `http.cookies`; a `=` may as well, behind the first letter.
fn is_pythons(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'[' | b']' | b'\\')
}

/// What may stand in a name to everybody (RFC 9110 5.6.2).
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
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
            b"+my+sid",
            b"my_sid%00x",
            b"my_sid[]",
            b"my.sid[x][y]z",
            b"my_sid%5bx%5d",
        ] {
            assert_eq!(Folded::of(other), name, "{}", other.escape_ascii());
        }
        for other in [&b"mysid"[..], b"my-sid", b"my_sid2", b"my%sid", b"", b"my%5", b"my_sid]", b"[my_sid]"]
        {
            assert_ne!(Folded::of(other), name, "{}", other.escape_ascii());
        }
        assert_eq!(fold(b"%"), b"%");
        assert_eq!(fold(b"%%41"), b"%a");
        assert_eq!(fold(b"\xff\xff"), b"\xff\xff");
    }

    /// R7: however many names come, a few are remembered, and none is taken for another.
    #[test]
    fn r7_a_name_that_is_remembered_is_the_name() {
        let names: Vec<Vec<u8>> = (0..1_000)
            .map(|number| format!("{number:0>width$}", width = 1 + number % 60).into_bytes())
            .collect();
        for name in names.iter().chain(&names).chain([&Vec::new()]) {
            for _ in 0..2 {
                assert_eq!(Folded::of(name), Folded::digest(name), "{}", name.escape_ascii());
            }
        }
        // the same place in the table
        assert_eq!(KnownName::place(b"Aa"), KnownName::place(b"BB"));
        for name in [&b"Aa"[..], b"BB", b"Aa"] {
            assert_eq!(Folded::of(name), Folded::digest(name));
        }
    }

    /// What is on the disk of a gateway is what it was.
    #[test]
    fn the_digest_of_a_name_does_not_change() {
        let digits: String = Folded::of(b"SessionID").0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digits, "a781fe2dc1a122c6d4c683752d382749");
    }

    #[test]
    fn r2_a_cookie_inside_another_is_seen() {
        let inside = |pair: &[u8]| smuggled(pair, |name| *name == Folded::of(b"sid"));
        for pair in [
            &b"a=1,sid=x"[..],
            b"a=1 sid=x",
            b"a=1, sid=x",
            b"a=\"a sid=x\"",
            b"a=a\tsid=x",
            b"a=\"\"sid=x",
            b"=sid=x",
            b"==sid=x",
            // a name with spaces, and spaces at the `=`
            b"secure sid=x",
            b"secure sid =x",
            b"a=1 sid =x",
            b"a=1\tsid\t=\tx",
            b"a=1, sid = x",
            // a comma in the name
            b"a,sid=x",
            b"a,sid =x",
            b"$Version=1,sid=x",
            // separators, quotes and other bytes before it
            b"(sid=x",
            b"a=1,\"sid\"=x",
            b"\"sid=x",
            b"[sid=x",
            b"a[sid=x",
            b"a=\xe9sid=x",
            b"a\xa0sid\xa0=x",
            b"a=1,%73id=x",
            b"a=1,sid[0]=x",
            b"a=b=c,d=e sid=f=g",
            // a `=` of the value, and what comes after its end
            b"&== sid=planted",
            b"a=x= sid=y",
            b"a=1,b= sid=x",
            b"a= b= sid=x",
            b"&\"= sid=x",
        ] {
            assert!(inside(pair), "{}", pair.escape_ascii());
        }
        for pair in [
            &b"a=sid=x"[..],
            b"a= sid=x",
            b"a=1,side=x",
            b"a=1,sid",
            b"a=b=c",
            b"",
            b"a=1, 2, 3",
            b"sid",
            b"a sid",
            // its own name is asked for elsewhere
            b"sid=x",
            b" sid = x",
            // a name to nobody: an address that a script has kept
            b"from=/page?sid=x&sid=y",
            b"a=1,2sid=x",
            b"a={\"u\":\"/?a=1&sid=x\"}",
            b"a={\"u\":\"/?sid=x\"}",
        ] {
            assert!(!inside(pair), "{}", pair.escape_ascii());
        }
    }

    #[test]
    fn a_name_with_a_comma_inside_another_cookie_is_seen() {
        let inside = |pair: &[u8]| smuggled(pair, |name| *name == Folded::of(b"x,sid"));
        assert!(inside(b"a=1 x,sid=2") && !inside(b"a=1 y,sid=2"));
    }

    #[test]
    fn a_prefix_in_a_value_without_a_name_is_known() {
        assert!(refused_without_name(b"__Host-x=1") && refused_without_name(b"__secure-x"));
        assert!(!refused_without_name(b"_x") && !refused_without_name(b""));
    }
}
