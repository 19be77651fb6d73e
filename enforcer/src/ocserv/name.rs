//! Names as ocserv has them: any bytes but NUL.
//!
//! A name is a key, so two different names must never become one, and it must be possible to say it to ocserv
//! again. What is UTF-8 stays as it is. A byte that is not becomes NUL and two hexadecimal digits: no name of
//! ocserv can hold a NUL (C strings), so nothing else is ever written like that.

use std::fmt::Write as _;

/// A name from ocserv. None if it holds a NUL.
pub fn from_wire(bytes: &[u8]) -> Option<String> {
    if bytes.contains(&0) {
        return None;
    }
    let mut name = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        name.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(name, "\0{byte:02x}");
        }
    }
    Some(name)
}

/// The bytes that ocserv has for this name. None if it is none: a NUL that no odd byte follows.
pub(super) fn to_wire(name: &str) -> Option<Vec<u8>> {
    let mut parts = name.split('\0');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(bytes)
}

/// For people: control characters, odd bytes and what reorders a line are shown as escapes.
pub fn printable(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        match character {
            '\0' => {
                shown.push_str("\\x");
                shown.extend(characters.by_ref().take(2));
            }
            // invisible and direction-changing characters: one name could be shown as another
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_names_stay_as_they_are() {
        for name in ["alice", "CORP\\alice", "jürgen", "a b@c", ""] {
            assert_eq!(from_wire(name.as_bytes()).as_deref(), Some(name));
            assert_eq!(to_wire(name).as_deref(), Some(name.as_bytes()));
            assert_eq!(printable(name), name);
        }
    }

    #[test]
    fn an_odd_byte_and_its_spelling_are_two_names() {
        assert_ne!(from_wire(b"a\xff"), from_wire(b"a\\xff"));
        assert_eq!(printable(&from_wire(b"a\xff\n").unwrap()), "a\\xff\\n");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(from_wire(b"a\0b"), None);
        assert_eq!(to_wire("a\0zz"), None);
        assert_eq!(to_wire("a\0f"), None);
    }

    proptest! {
        #[test]
        fn any_name_reads_back(bytes in proptest::collection::vec(1u8.., 0..80)) {
            let name = from_wire(&bytes).unwrap();
            prop_assert_eq!(to_wire(&name), Some(bytes));
            prop_assert!(printable(&name).chars().all(|c| !c.is_control()));
        }

        #[test]
        fn no_text_makes_it_panic(name in ".*") {
            let _ = to_wire(&name);
            let _ = printable(&name);
        }
    }
}
