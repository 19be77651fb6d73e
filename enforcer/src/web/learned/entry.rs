//! One thing that was learned, as a line of text.

use crate::web::cookie::{Folded, Place, Scope};
use crate::web::seal::Group;

/// One thing that was learned.
///
/// As a line: words, each once, with a space between them. Bytes that are not visible ASCII, and `%`, are `%` and two
/// hexadecimal digits; a name has a `=` before it, since it may be empty.
/// ```text
/// sealed GROUP DIGEST                            16 bytes as 32 hexadecimal digits
/// full GROUP
/// place GROUP =NAME host|domain HOST PATH [default] [partitioned]
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A name was sealed for the group.
    Sealed { group: Group, name: Folded },
    /// The group has had more names than can be kept.
    Full { group: Group },
    /// Where browsers keep a cookie of the group. `stated`: the application has named the path; otherwise (`default`) it
    /// comes of the path that was asked for.
    Place { group: Group, name: Vec<u8>, place: Place, stated: bool },
}

impl Entry {
    pub fn group(&self) -> &Group {
        match self {
            Self::Sealed { group, .. } | Self::Full { group } | Self::Place { group, .. } => group,
        }
    }

    /// The line, without its end.
    pub fn write(&self) -> String {
        match self {
            Self::Sealed { group, name } => {
                let digits: String = name.0.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("sealed {group} {digits}")
            }
            Self::Full { group } => format!("full {group}"),
            Self::Place { group, name, place, stated } => {
                let (kind, host) = match &place.scope {
                    Scope::Host(host) => ("host", host),
                    Scope::Domain(domain) => ("domain", domain),
                };
                let default = if *stated { "" } else { " default" };
                let partitioned = if place.partitioned { " partitioned" } else { "" };
                let (name, host, path) = (escape(name), escape(host), escape(&place.path));
                format!("place {group} ={name} {kind} {host} {path}{default}{partitioned}")
            }
        }
    }

    /// None for every line that [`Self::write`] would not have written.
    pub fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let entry = match words[..] {
            ["sealed", group, digits] => {
                Self::Sealed { group: Group::new(group).ok()?, name: Folded(read_digest(digits)?) }
            }
            ["full", group] => Self::Full { group: Group::new(group).ok()? },
            ["place", group, name, kind, host, path, ref rest @ ..] => {
                let host = unescape(host)?;
                let scope = match kind {
                    "host" => Scope::Host(host),
                    "domain" => Scope::Domain(host),
                    _ => return None,
                };
                let path = unescape(path).filter(|path| path.starts_with(b"/"))?;
                let (stated, partitioned) = match rest {
                    [] => (true, false),
                    ["partitioned"] => (true, true),
                    ["default"] => (false, false),
                    ["default", "partitioned"] => (false, true),
                    _ => return None,
                };
                Self::Place {
                    group: Group::new(group).ok()?,
                    name: unescape(name.strip_prefix('=')?)?,
                    place: Place { scope, path, partitioned },
                    stated,
                }
            }
            _ => return None,
        };
        (entry.write() == line).then_some(entry)
    }
}

fn read_digest(digits: &str) -> Option<[u8; 16]> {
    let digits = digits.as_bytes();
    let mut digest = [0; 16];
    if digits.len() != 2 * digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'%' => text.push_str("%25"),
            _ if byte.is_ascii_graphic() => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02x}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let group = Group::new("app").unwrap();
        let place =
            Place { scope: Scope::Domain(b"a.example".to_vec()), path: b"/x y%".to_vec(), partitioned: true };
        for (entry, line) in [
            (
                Entry::Sealed { group: group.clone(), name: Folded([0xab; 16]) },
                "sealed app abababababababababababababababab",
            ),
            (Entry::Full { group: group.clone() }, "full app"),
            (
                Entry::Place {
                    group: group.clone(),
                    name: b"s=\xff".to_vec(),
                    place: place.clone(),
                    stated: true,
                },
                "place app =s=%ff domain a.example /x%20y%25 partitioned",
            ),
            (
                Entry::Place { group: group.clone(), name: b"s".to_vec(), place, stated: false },
                "place app =s domain a.example /x%20y%25 default partitioned",
            ),
            (
                Entry::Place {
                    group,
                    name: Vec::new(),
                    place: Place { scope: Scope::Host(Vec::new()), path: b"/".to_vec(), partitioned: false },
                    stated: true,
                },
                "place app = host  /",
            ),
        ] {
            assert_eq!(entry.write(), line);
            assert_eq!(Entry::read(line), Some(entry));
        }
    }

    #[test]
    fn lines_that_are_none() {
        for line in [
            "",
            "sealed app",
            "sealed app abab",
            "sealed app ABABABABABABABABABABABABABABABAB",
            "sealed App abababababababababababababababab",
            "sealed app +bababababababababababababababab",
            "full",
            "full app ",
            "place app sid host h /",
            "place app =sid host h x",
            "place app =sid other h /",
            "place app =sid host h / twice",
            "place app =sid host h / partitioned default",
            "place app =sid host h / default default",
            "place app =%4 host h /",
            "place app =%41 host h /",
            "place app =\u{e9} host h /",
        ] {
            assert_eq!(Entry::read(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_back(
            name in prop::collection::vec(any::<u8>(), 0..20),
            host in prop::collection::vec(any::<u8>(), 0..20),
            rest in prop::collection::vec(any::<u8>(), 0..20),
            partitioned: bool,
            stated: bool,
        ) {
            let place = Place { scope: Scope::Host(host), path: [b"/", &*rest].concat(), partitioned };
            let entry = Entry::Place { group: Group::new("g").unwrap(), name, place, stated };
            let line = entry.write();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Entry::read(&line), Some(entry));
        }

        #[test]
        fn no_line_makes_it_panic(line in "(sealed|full|place) app[ =%0-9a-f/é]{0,40}") {
            let _ = Entry::read(&line);
        }
    }
}
