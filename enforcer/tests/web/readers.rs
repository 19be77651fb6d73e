//! How applications read a `Cookie` field, written after what they do: whatever a browser sends, none of them finds a
//! value under a name that was sealed, unless the session has sealed it.

use enforcer::web::cookie::join;
use proptest::prelude::*;

use super::world::World;

type Cookies = Vec<(Vec<u8>, Vec<u8>)>;

struct Reader {
    name: &'static str,
    read: fn(&[u8]) -> Cookies,
}

const READERS: [Reader; 12] = [
    Reader { name: "Django", read: django },
    Reader { name: "PHP", read: |field| php(field, false) },
    Reader { name: "PHP before 7.2.34, which decodes names", read: |field| php(field, true) },
    Reader { name: "Node (cookie)", read: |field| cut(field, b";", |name| name.to_vec()) },
    Reader { name: "Node (cookie before 0.2)", read: |field| cut(field, b";,", |name| name.to_vec()) },
    Reader { name: "Go", read: go },
    Reader { name: "Rack", read: |field| cut(field, b";", |name| name.to_vec()) },
    Reader { name: "Rack before 2, Perl's CGI", read: |field| cut(field, b";,", decoded) },
    Reader { name: "ASP.NET", read: |field| cut(field, b";", <[u8]>::to_ascii_lowercase) },
    Reader { name: "Tomcat's legacy processor", read: tomcat },
    Reader { name: "Python's http.cookies", read: |field| python(field, false) },
    Reader { name: "Python 2's Cookie, which searches", read: |field| python(field, true) },
];

/// At any of these, with spaces around name and value taken away.
fn cut(field: &[u8], separators: &[u8], name: fn(&[u8]) -> Vec<u8>) -> Cookies {
    let pieces = field.split(|byte| separators.contains(byte));
    let pairs = pieces.filter_map(|piece| {
        let at = piece.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (piece.get(..at)?, piece.get(at + 1..)?);
        Some((name(key.trim_ascii()).trim_ascii().to_vec(), value.trim_ascii().to_vec()))
    });
    pairs.collect()
}

/// Every space of Unicode is one.
fn django(field: &[u8]) -> Cookies {
    let text = String::from_utf8_lossy(field);
    let pairs = text.split(';').filter_map(|piece| piece.split_once('='));
    pairs.map(|(name, value)| (name.trim().into(), value.trim().into())).collect()
}

fn decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(&byte) = name.get(at) {
        let hex = name.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) if name[at + 1] != b'+' => {
                decoded.push(byte);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(byte),
        }
        at += 1;
    }
    decoded
}

fn php(field: &[u8], decodes: bool) -> Cookies {
    let mut cookies = Vec::new();
    for piece in field.split(|&byte| byte == b';') {
        let piece = piece.trim_ascii_start();
        let Some(at) = piece.iter().position(|&byte| byte == b'=') else { continue };
        let mut name = if decodes { decoded(&piece[..at]) } else { piece[..at].to_vec() };
        if let Some(end) = name.iter().position(|&byte| byte == 0) {
            name.truncate(end);
        }
        let spaces = name.iter().take_while(|&&byte| byte == b' ').count();
        name.drain(..spaces);
        if let Some(open) = name.iter().position(|&byte| byte == b'[') {
            if name[open..].contains(&b']') {
                // an array of that name
                name.truncate(open);
            } else {
                name[open] = b'_';
            }
        }
        name.iter_mut().filter(|byte| b". ".contains(byte)).for_each(|byte| *byte = b'_');
        cookies.push((name, piece[at + 1..].to_vec()));
    }
    cookies
}

/// A name that is no token is none.
fn go(field: &[u8]) -> Cookies {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let mut cookies = cut(field, b";", |name| name.to_vec());
    cookies.retain(|(name, _)| !name.is_empty() && name.iter().all(token));
    cookies
}

/// Separators before a name are passed over; a comma is as good as a semicolon; a quoted value may hide either.
fn tomcat(field: &[u8]) -> Cookies {
    let separator = |byte: u8| b"\t \"(),:;<=>?@[\\]{}".contains(&byte);
    let space = |byte: u8| byte == b' ' || byte == b'\t';
    let skip = |mut at: usize, while_: &dyn Fn(u8) -> bool| {
        while field.get(at).is_some_and(|&byte| while_(byte)) {
            at += 1;
        }
        at
    };
    let (mut cookies, mut at) = (Vec::new(), 0);
    while at < field.len() {
        let start = skip(at, &separator);
        let end = skip(start, &|byte| !separator(byte));
        let equals = skip(end, &space);
        at = end;
        if field.get(equals) == Some(&b'=') {
            let value = skip(equals + 1, &space);
            at = match field.get(value) {
                Some(b'"') => {
                    let mut close = value + 1;
                    while field.get(close).is_some_and(|&byte| byte != b'"') {
                        close += if field[close] == b'\\' { 2 } else { 1 };
                    }
                    close.min(field.len())
                }
                _ => skip(value, &|byte| !separator(byte)),
            };
            cookies.push((field[start..end].to_vec(), field[value..at].to_vec()));
        }
        at = skip(at, &|byte| byte != b';' && byte != b',') + 1;
    }
    cookies
}

/// By its pattern: a key of legal letters, as few as will do, perhaps `=` and a value, and then a space, a `;` or the end;
/// what does not match ends it. The old one needs no end, and searches on where nothing matches.
fn python(field: &[u8], searches: bool) -> Cookies {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#%&'~_`><@,:/$*+-.^|)(?}{=".contains(&byte);
    let space = |at: usize| field.get(at).is_some_and(|byte| b" \t\r\n\x0b\x0c".contains(byte));
    let spaces = |mut at: usize| {
        while space(at) {
            at += 1;
        }
        at
    };
    // where a value ends that begins here
    let value = |at: usize| {
        if field.get(at) == Some(&b'"') {
            let mut close = at + 1;
            while field.get(close).is_some_and(|&byte| byte != b'"') {
                close += if field[close] == b'\\' { 2 } else { 1 };
            }
            if close < field.len() {
                return close + 1;
            }
        }
        let more = |&byte: &u8| legal(byte) || (!searches && (byte == b'[' || byte == b']'));
        at + field[at..].iter().take_while(|byte| more(byte)).count()
    };
    // where the pattern ends that has come so far
    let tail = |at: usize| match (searches, field.get(spaces(at))) {
        (_, Some(b';')) => Some(spaces(at) + 1),
        (true, _) | (false, None) => Some(spaces(at)),
        (false, Some(_)) => space(at).then(|| spaces(at)),
    };
    let matched = |start: usize| {
        let start = if searches { start } else { spaces(start) };
        let most = field.get(start..)?.iter().take_while(|&&byte| legal(byte)).count();
        (1..=most).find_map(|length| {
            let key = field[start..start + length].to_vec();
            let equals = spaces(start + length);
            if field.get(equals) == Some(&b'=') {
                let from = spaces(equals + 1);
                let to = value(from);
                if let Some(next) = tail(to) {
                    return Some((Some((key, field[from..to].to_vec())), next));
                }
            }
            // no value: then the new one goes on or ends, and the old one does not match
            (!searches).then(|| tail(start + length).map(|next| (None, next))).flatten()
        })
    };
    let (mut cookies, mut at) = (Vec::new(), 0);
    while at < field.len() {
        match matched(at) {
            Some((cookie, next)) => {
                cookies.extend(cookie);
                at = next.max(at + 1);
            }
            None if searches => at += 1,
            None => break,
        }
    }
    cookies
}

/// Whether somebody finds something under the name.
fn found(field: &[u8], wanted: &[u8]) -> Option<String> {
    READERS.iter().find_map(|reader| {
        let has = |(name, value): &(Vec<u8>, Vec<u8>)| name == wanted && !value.trim_ascii().is_empty();
        let cookies = (reader.read)(field);
        cookies.iter().any(has).then(|| format!("{}: {}", reader.name, field.escape_ascii()))
    })
}

/// The readers themselves: what each finds that others do not.
#[test]
fn applications_read_the_same_field_in_many_ways() {
    let who = |field: &str| -> Vec<&str> {
        let finds =
            |reader: &&Reader| (reader.read)(field.as_bytes()).contains(&(b"sid".to_vec(), b"x".to_vec()));
        READERS.iter().filter(finds).map(|reader| reader.name.split([' ', ',']).next().unwrap()).collect()
    };
    assert_eq!(who("a=1; sid=x").len(), READERS.len());
    assert_eq!(who("a=1; side=x; sid; =sid").len(), 0);
    assert_eq!(who("a=1,sid=x"), ["Node", "Rack", "Tomcat's"]);
    assert_eq!(who("a=1 sid=x"), ["Python's", "Python"]);
    assert_eq!(who("secure sid =x"), ["Python's", "Python"]);
    assert_eq!(who("%73id=x"), ["PHP", "Rack"]);
    assert_eq!(who("sid[a]=x"), ["PHP", "PHP"]);
    assert_eq!(who("a=1;(sid=x"), ["Tomcat's"]);
    assert_eq!(who("SID=x"), ["ASP.NET"]);
    assert_eq!(who("\u{2003}sid\u{a0}=x"), ["Django"]);
}

fn field() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&[u8]> = vec![
        b"sid",
        b"sid",
        b"=",
        b"=",
        b"=planted",
        b"; ",
        b";",
        b",",
        b" ",
        b"\t",
        b"\"",
        b"\\",
        b"a",
        b"a=1",
        b"SID",
        b"%73id",
        b"[",
        b"]",
        b"(",
        b"/",
        b"?",
        b"&",
        b"+",
        b"%00",
        b"\xe9",
        b"\xc2\xa0",
        b"$Version=1",
        b".",
        b"secure",
        b"__Host-enforcer",
        b"csrftoken=",
    ];
    prop::collection::vec(prop::sample::select(words), 0..14).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// R2: what was sealed once reaches no application unsealed, however it reads; and the gateway's own cookie none at all.
    #[test]
    fn r2_no_application_reads_a_planted_cookie_under_a_sealed_name(fields in prop::collection::vec(field(), 1..3)) {
        let mut world = World::new();
        world.learn_sealed(b"sid");
        let got = join(&world.incoming(&fields).fields).unwrap_or_default();
        for name in [&b"sid"[..], b"__Host-enforcer"] {
            prop_assert_eq!(found(&got, name), None, "of {:?}", &fields);
        }
        prop_assert_eq!(found(&got.to_ascii_lowercase(), b"__host-enforcer"), None);
    }

    /// And its twin: where no name was sealed, every byte passes.
    #[test]
    fn r3_where_nothing_was_sealed_every_byte_passes(field in field()) {
        let world = World::plain();
        let incoming = world.incoming(&[&field]);
        prop_assert_eq!(incoming.fields, [field]);
    }
}
