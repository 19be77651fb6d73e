//! The fields `Cookie` and `Set-Cookie` (RFC 6265), read and written as bytes.
//!
//! A gateway in the middle has to hand on what it does not understand, so nothing here is ever an error: every field is
//! read, and what is rewritten differs from what came in the value alone. Names and values are trimmed of spaces and
//! tabs as browsers do it; what was trimmed stays where it was.
//!
//! A pair without a `=` has no name, and is all value: browsers send a cookie that way whose name is empty.

mod date;
mod name;
mod place;
mod set;

use std::ops::Range;

pub use date::parse as parse_date;
pub use name::{Folded, refused_without_name, smuggled};
pub use place::{Place, Scope, default_path, domain_matches, folders, path_matches};
pub use set::{Attribute, SetCookie};

/// One piece of a `Cookie` field: what stands between two semicolons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'a> {
    text: &'a [u8],
    name: &'a [u8],
    value: Range<usize>,
}

impl<'a> Pair<'a> {
    fn read(text: &'a [u8]) -> Self {
        let (name, value) = split(text);
        Self { text, name: part(text, &name), value }
    }

    /// All of it, as it stands there.
    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// Without the spaces around it. Empty where there is no `=`.
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// Without the spaces around it, with its quotes.
    pub fn value(&self) -> &'a [u8] {
        part(self.text, &self.value)
    }

    /// The same piece with another value.
    pub fn with_value(&self, value: &[u8]) -> Vec<u8> {
        replaced(self.text, &self.value, value)
    }
}

/// The cookies of one `Cookie` field, in their order. Pieces that are empty (`; ;`) are none.
pub fn pairs(field: &[u8]) -> impl Iterator<Item = Pair<'_>> {
    field.split(|&byte| byte == b';').map(Pair::read).filter(|pair| !trimmed(pair.text).is_empty())
}

/// What becomes of one cookie of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Keep,
    /// It gets this value.
    Value(Vec<u8>),
    /// It goes, with its separator.
    Strip,
}

/// A `Cookie` field after [`rewrite`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewritten {
    /// Not a byte of it has changed.
    Same,
    Changed(Vec<u8>),
    /// No cookie is left in it: the field is not to be sent.
    Gone,
}

/// Decides about each cookie of a field. Separators stay as they are, but for those of what is stripped.
pub fn rewrite<'a>(field: &'a [u8], mut fate: impl FnMut(&Pair<'a>) -> Fate) -> Rewritten {
    let mut written = Vec::with_capacity(field.len());
    let (mut first, mut changed, mut stripped, mut left) = (true, false, false, false);
    for text in field.split(|&byte| byte == b';') {
        let pair = Pair::read(text);
        let empty = trimmed(text).is_empty();
        let fate = if empty { Fate::Keep } else { fate(&pair) };
        let text = match &fate {
            Fate::Strip => {
                stripped = true;
                continue;
            }
            Fate::Keep => text,
            Fate::Value(value) => {
                changed = true;
                &pair.with_value(value)
            }
        };
        if first {
            // a field does not begin with the space that stood behind a semicolon
            written.extend_from_slice(if stripped { text.trim_ascii_start() } else { text });
        } else {
            written.push(b';');
            written.extend_from_slice(text);
        }
        first = false;
        left |= !empty;
    }
    match (changed || stripped, left) {
        (false, _) => Rewritten::Same,
        (true, true) => Rewritten::Changed(written),
        (true, false) => Rewritten::Gone,
    }
}

/// Several `Cookie` fields as one: HTTP/2 cuts it into crumbs, and HTTP/1.1 has to get it whole (RFC 9113 8.2.3). None
/// where there are no fields.
pub fn join<F: AsRef<[u8]>>(fields: &[F]) -> Option<Vec<u8>> {
    let (first, rest) = fields.split_first()?;
    let mut joined = first.as_ref().to_vec();
    for field in rest {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(field.as_ref());
    }
    Some(joined)
}

/// Where name and value stand in `name=value`, without the spaces around them.
fn split(text: &[u8]) -> (Range<usize>, Range<usize>) {
    match text.iter().position(|&byte| byte == b'=') {
        Some(at) => (trim(text, 0..at), trim(text, at + 1..text.len())),
        None => (0..0, trim(text, 0..text.len())),
    }
}

/// The range without the spaces and tabs at both ends. An empty one stands where its first space did.
fn trim(text: &[u8], range: Range<usize>) -> Range<usize> {
    let inside = part(text, &range);
    match inside.iter().position(|&byte| !is_space(byte)) {
        None => range.start..range.start,
        Some(from) => {
            let after = inside.iter().rposition(|&byte| !is_space(byte)).map_or(from, |last| last + 1);
            range.start + from..range.start + after
        }
    }
}

fn trimmed(text: &[u8]) -> &[u8] {
    part(text, &trim(text, 0..text.len()))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn part<'a>(text: &'a [u8], range: &Range<usize>) -> &'a [u8] {
    text.get(range.clone()).unwrap_or_default()
}

fn replaced(text: &[u8], range: &Range<usize>, with: &[u8]) -> Vec<u8> {
    let before = text.get(..range.start).unwrap_or_default();
    let after = text.get(range.end..).unwrap_or_default();
    [before, with, after].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(field: &[u8]) -> Vec<(&[u8], &[u8])> {
        pairs(field).map(|pair| (pair.name(), pair.value())).collect()
    }

    #[test]
    fn cookies_are_read_in_their_order_with_duplicates_quotes_and_odd_bytes() {
        assert_eq!(read(b"a=1; b=2; a=3"), [(&b"a"[..], &b"1"[..]), (b"b", b"2"), (b"a", b"3")]);
        assert_eq!(read(b"a=\"x y\";b=\xff\xfe"), [(&b"a"[..], &b"\"x y\""[..]), (b"b", b"\xff\xfe")]);
        assert_eq!(read(b" ; a = b=c ;; \t"), [(&b"a"[..], &b"b=c"[..])]);
        assert_eq!(
            read(b"alone; =value; name="),
            [(&b""[..], &b"alone"[..]), (b"", b"value"), (b"name", b"")]
        );
        assert_eq!(read(b""), []);
    }

    #[test]
    fn what_is_stripped_takes_its_separator_along_and_nothing_else() {
        let without = |field: &[u8], name: &[u8]| {
            rewrite(field, |pair| if pair.name() == name { Fate::Strip } else { Fate::Keep })
        };
        let changed = |text: &[u8]| Rewritten::Changed(text.to_vec());
        assert_eq!(without(b"a=1; b=2;c=3", b"a"), changed(b"b=2;c=3"));
        assert_eq!(without(b"a=1; b=2;c=3", b"b"), changed(b"a=1;c=3"));
        assert_eq!(without(b"a=1; b=2;c=3", b"c"), changed(b"a=1; b=2"));
        assert_eq!(without(b"a=1; a=2", b"a"), Rewritten::Gone);
        assert_eq!(without(b"a=1; ;", b"a"), Rewritten::Gone);
        assert_eq!(without(b"a=1;; b=2", b"c"), Rewritten::Same);
        assert_eq!(without(b"; ;", b""), Rewritten::Same);
    }

    #[test]
    fn a_new_value_leaves_every_other_byte() {
        let field = b"\ta =  1\t;b=2";
        let new = rewrite(
            field,
            |pair| if pair.name() == b"a" { Fate::Value(b"xyz".to_vec()) } else { Fate::Keep },
        );
        assert_eq!(new, Rewritten::Changed(b"\ta =  xyz\t;b=2".to_vec()));
        let empty = Pair::read(b"a=  ").with_value(b"v");
        assert_eq!(Pair::read(&empty).value(), b"v");
        assert_eq!(Pair::read(b"alone").with_value(b"other"), b"other");
    }

    #[test]
    fn crumbs_become_one_field() {
        assert_eq!(join::<&[u8]>(&[]), None);
        assert_eq!(join(&[b"a=1".as_slice(), b"b=2; c=3"]), Some(b"a=1; b=2; c=3".to_vec()));
    }

    /// Field values as they may come: any byte but control characters.
    fn field() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => prop::sample::select(b"=;, \"\tab\x80".to_vec()),
            1 => any::<u8>().prop_filter("no control characters", |byte| *byte >= 0x20 && *byte != 0x7f)
        ];
        prop::collection::vec(byte, 0..80)
    }

    proptest! {
        #[test]
        fn nothing_changes_unless_it_is_asked_for(field in field()) {
            prop_assert_eq!(rewrite(&field, |_| Fate::Keep), Rewritten::Same);
            let same = rewrite(&field, |pair| Fate::Value(pair.value().to_vec()));
            match same {
                Rewritten::Changed(text) => prop_assert_eq!(text, field),
                Rewritten::Same => prop_assert_eq!(pairs(&field).count(), 0),
                Rewritten::Gone => prop_assert!(false, "nothing was stripped"),
            }
        }

        #[test]
        fn a_value_is_read_back_and_its_neighbours_stay(field in field(), which in 0..8usize) {
            let mut at = 0;
            let new = rewrite(&field, |_| {
                at += 1;
                if at == which + 1 { Fate::Value(b"new".to_vec()) } else { Fate::Keep }
            });
            if let Rewritten::Changed(text) = new {
                let before: Vec<_> = read(&field);
                for (index, (name, value)) in read(&text).into_iter().enumerate() {
                    prop_assert_eq!(name, before[index].0);
                    prop_assert_eq!(value, if index == which { b"new" } else { before[index].1 });
                }
            }
        }

        #[test]
        fn what_is_stripped_leaves_the_others_as_they_were(field in field(), which: u8) {
            let mut at = 0;
            let mut kept = Vec::new();
            let new = rewrite(&field, |pair| {
                at += 1;
                if which & (1 << (at % 8)) != 0 { return Fate::Strip }
                kept.push((pair.name().to_vec(), pair.value().to_vec()));
                Fate::Keep
            });
            let left = match new {
                Rewritten::Same => field,
                Rewritten::Changed(text) => text,
                Rewritten::Gone => Vec::new(),
            };
            let left: Vec<_> =
                pairs(&left).map(|pair| (pair.name().to_vec(), pair.value().to_vec())).collect();
            prop_assert_eq!(left, kept);
        }
    }
}
