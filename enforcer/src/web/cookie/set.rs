//! One `Set-Cookie` field.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use super::place::{LONGEST_ATTRIBUTE, Place, Scope, can_be_named, default_path};
use super::{date, domain_matches, part, replaced, split, trim};

/// A `Set-Cookie` field, as it stands there. Every field is one: what a browser would refuse is for the browser to
/// refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetCookie<'a> {
    field: &'a [u8],
    name: Range<usize>,
    value: Range<usize>,
    attributes: &'a [u8],
}

/// One attribute, without the spaces around name and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    pub name: &'a [u8],
    /// Empty where there is no `=`.
    pub value: &'a [u8],
}

impl Attribute<'_> {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

impl<'a> SetCookie<'a> {
    pub fn parse(field: &'a [u8]) -> Self {
        let end = field.iter().position(|&byte| byte == b';');
        let (pair, attributes) = match end {
            Some(end) => (part(field, &(0..end)), field.get(end + 1..).unwrap_or_default()),
            None => (field, &[][..]),
        };
        let (name, value) = split(pair);
        Self { field, name, value, attributes }
    }

    /// As it came.
    pub fn field(&self) -> &'a [u8] {
        self.field
    }

    /// Without the spaces around it. Empty where there is no `=`: such a cookie has no name.
    pub fn name(&self) -> &'a [u8] {
        part(self.field, &self.name)
    }

    /// Without the spaces around it, with its quotes.
    pub fn value(&self) -> &'a [u8] {
        part(self.field, &self.value)
    }

    /// The same field with another value: every other byte stays.
    pub fn with_value(&self, value: &[u8]) -> Vec<u8> {
        replaced(self.field, &self.value, value)
    }

    /// In their order, also those that nobody knows and those that stand there twice.
    pub fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        self.attributes.split(|&byte| byte == b';').filter_map(|text| {
            let (name, value) = match text.iter().position(|&byte| byte == b'=') {
                Some(at) => (trim(text, 0..at), trim(text, at + 1..text.len())),
                None => (trim(text, 0..text.len()), 0..0),
            };
            let attribute = Attribute { name: part(text, &name), value: part(text, &value) };
            let counts = !attribute.name.is_empty() && attribute.value.len() <= LONGEST_ATTRIBUTE;
            counts.then_some(attribute)
        })
    }

    /// Whether a browser that gets this only deletes: an empty value, `Max-Age` of 0 or below, or else an `Expires` that
    /// is over. The last of several that are valid counts (RFC 6265 5.3).
    pub fn deletes(&self, now: SystemTime) -> bool {
        if self.value().is_empty() {
            return true;
        }
        let (mut over_by_age, mut over_by_date) = (None, None);
        for attribute in self.attributes() {
            if attribute.is("max-age") {
                over_by_age = is_over(attribute.value).or(over_by_age);
            } else if attribute.is("expires") {
                over_by_date = date::parse(attribute.value).map(|at| at <= seconds(now)).or(over_by_date);
            }
        }
        over_by_age.or(over_by_date).unwrap_or(false)
    }

    /// Where a browser keeps it that asked `host` for `path`. None where it would refuse the domain, and where no
    /// attribute can name the path, so that no deletion can.
    ///
    /// `host`: in lower case, without a port. `path`: of the request, with or without the query.
    pub fn place(&self, host: &[u8], path: &[u8]) -> Option<Place> {
        let (mut domain, mut partitioned) = (None, false);
        for attribute in self.attributes() {
            if attribute.is("domain") {
                let name = attribute.value.strip_prefix(b".").unwrap_or(attribute.value);
                domain = Some(name.to_ascii_lowercase()).filter(|name| !name.is_empty());
            } else if attribute.is("partitioned") {
                partitioned = true;
            }
        }
        let scope = match domain {
            None => Scope::Host(host.to_vec()),
            Some(domain) if domain_matches(host, &domain) => Scope::Domain(domain),
            Some(_) => return None,
        };
        let path = match self.path() {
            Some(path) => Some(path).filter(|path| can_be_named(path)),
            None => default_path(path),
        };
        Some(Place { scope, path: path?.to_vec(), partitioned })
    }

    /// The `Path` that it names: the last one, if that begins with `/`. None: the path of the request decides.
    pub fn path(&self) -> Option<&'a [u8]> {
        let last = self.attributes().filter(|attribute| attribute.is("path")).last()?;
        Some(last.value).filter(|path| path.starts_with(b"/"))
    }
}

/// Whether a `Max-Age` is over. None where it is no number: browsers look at none such.
fn is_over(age: &[u8]) -> Option<bool> {
    let (negative, digits) = match age.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, age),
    };
    let number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    number.then(|| negative || digits.iter().all(|&digit| digit == b'0'))
}

/// Since 1970; before it 0.
fn seconds(now: SystemTime) -> i64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn read(field: &[u8]) -> (&[u8], &[u8]) {
        let cookie = SetCookie::parse(field);
        (cookie.name(), cookie.value())
    }

    #[test]
    fn name_and_value_are_what_a_browser_takes() {
        assert_eq!(read(b"sid=abc; Path=/"), (&b"sid"[..], &b"abc"[..]));
        assert_eq!(read(b" sid = a b \t; Path=/"), (&b"sid"[..], &b"a b"[..]));
        assert_eq!(read(b"a=b=c"), (&b"a"[..], &b"b=c"[..]));
        assert_eq!(read(b"alone; Path=/"), (&b""[..], &b"alone"[..]));
        assert_eq!(read(b"=v"), (&b""[..], &b"v"[..]));
        assert_eq!(read(b"a="), (&b"a"[..], &b""[..]));
        assert_eq!(read(b"a=\"x; y\""), (&b"a"[..], &b"\"x"[..]));
        assert_eq!(read(b""), (&b""[..], &b""[..]));
        assert_eq!(read(b"; Path=/"), (&b""[..], &b""[..]));
    }

    #[test]
    fn a_new_value_leaves_every_attribute_byte() {
        let field = b" sid = old ;  PATH=/x ;;Unknown; Expires=nonsense;HttpOnly=\xff; ";
        let new = SetCookie::parse(field).with_value(b"NEW");
        assert_eq!(new, b" sid = NEW ;  PATH=/x ;;Unknown; Expires=nonsense;HttpOnly=\xff; ");
    }

    #[test]
    fn deletions_are_known() {
        let deletes = |field: &str| SetCookie::parse(field.as_bytes()).deletes(now());
        for field in [
            "sid=; Path=/",
            "sid=gone; Max-Age=0",
            "sid=gone; max-age=-1; Expires=Fri, 31 Dec 9999 23:59:59 GMT",
            "sid=gone; Max-Age = 000",
            "sid=gone; Max-Age=-99999999999999999999999",
            "sid=gone; Expires=Thu, 01-Jan-1970 00:00:00 GMT",
            "sid=\"\"; expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/",
            "sid=gone; Max-Age=100; Max-Age=0",
            "sid=gone; Max-Age=0; Max-Age=soon",
            "",
        ] {
            assert!(deletes(field), "{field}");
        }
        for field in [
            "sid=here",
            "sid=\"\"",
            "sid=here; Max-Age=1",
            "sid=here; Max-Age=99999999999999999999999",
            "sid=here; Max-Age=-",
            "sid=here; Max-Age=",
            "sid=here; Max-Age=+0",
            "sid=here; Max-Age=0; Max-Age=60",
            "sid=here; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
            "sid=here; Expires=Fri, 31 Dec 9999 23:59:59 GMT",
            "sid=here; Expires=yesterday",
            "sid=here; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Expires=Fri, 31 Dec 9999 23:59:59 GMT",
            "Max-Age=0",
        ] {
            assert!(!deletes(field), "{field}");
        }
    }

    #[test]
    fn where_a_browser_keeps_it() {
        let place = |field: &[u8], path: &[u8]| SetCookie::parse(field).place(b"app.example.com", path);
        let host = |path: &[u8]| Place {
            scope: Scope::Host(b"app.example.com".to_vec()),
            path: path.to_vec(),
            partitioned: false,
        };
        assert_eq!(place(b"a=b", b"/x/y?z=/w"), Some(host(b"/x")));
        assert_eq!(place(b"a=b; Path=/q; path=/r", b"/x/y"), Some(host(b"/r")));
        assert_eq!(place(b"a=b; Path=/q; Path=relative", b"/x/y"), Some(host(b"/x")));
        assert_eq!(place(b"a=b; Path", b"/"), Some(host(b"/")));
        assert_eq!(place(b"a=b; Domain=; Path=/", b"/"), Some(host(b"/")));
        let domain = |name: &[u8]| Place { scope: Scope::Domain(name.to_vec()), ..host(b"/") };
        assert_eq!(place(b"a=b; Domain=.Example.COM; Path=/", b"/"), Some(domain(b"example.com")));
        assert_eq!(place(b"a=b; domain=app.example.com", b"/"), Some(domain(b"app.example.com")));
        assert_eq!(place(b"a=b; Domain=other.example", b"/"), None);
        assert_eq!(place(b"a=b; Domain=example.com; Domain=other.example", b"/"), None);
        // what no deletion can name is no place
        assert_eq!(place(b"a=b", b"/x;y/z"), None);
        assert_eq!(place(b"a=b; Path=/x\ty", b"/"), None);
        assert_eq!(place(b"a=b; Path=/\xe9 z", b"/x;y/z"), Some(host(b"/\xe9 z")));
        let partitioned = place(b"a=b; Secure; Path=/; partitioned", b"/");
        assert_eq!(partitioned, Some(Place { partitioned: true, ..host(b"/") }));
    }

    #[test]
    fn an_attribute_that_browsers_do_not_look_at_counts_for_nothing() {
        let long = format!("a=b; Path=/{}; Path=/x", "y".repeat(LONGEST_ATTRIBUTE));
        let place = SetCookie::parse(long.as_bytes()).place(b"h", b"/").unwrap();
        assert_eq!(place.path, b"/x");
        let only = format!("a=b; Path=/{}", "y".repeat(LONGEST_ATTRIBUTE));
        assert_eq!(SetCookie::parse(only.as_bytes()).place(b"h", b"/").unwrap().path, b"/");
    }

    proptest! {
        #[test]
        fn another_value_and_back_is_the_same_field(
            field in prop::collection::vec(
                prop_oneof![prop::sample::select(b"=; \tab,\"\xe9".to_vec()), any::<u8>()], 0..80
            ),
            value in "[!-:<-~]{1,20}"
        ) {
            let cookie = SetCookie::parse(&field);
            let changed = cookie.with_value(value.as_bytes());
            let again = SetCookie::parse(&changed);
            // a field without a `=` would be read another way with a value that has one
            if field.iter().take_while(|&&byte| byte != b';').any(|&byte| byte == b'=')
                || !value.contains('=')
            {
                prop_assert_eq!(again.name(), cookie.name());
                prop_assert_eq!(again.value(), value.as_bytes());
                prop_assert_eq!(again.attributes, cookie.attributes);
                prop_assert_eq!(again.with_value(cookie.value()), field.clone());
            }
            let _ = (cookie.deletes(now()), cookie.place(b"h.example", &field));
        }
    }
}
