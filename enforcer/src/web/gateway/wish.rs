//! Where somebody wanted to go when they had to log in, and what a form has sent. Pure.
//!
//! A wish comes back out of an address or a form that anybody may have written: a target that is not a path on this host
//! becomes `/`, so that a login leads nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use crate::config::gateway::RESERVED;
use crate::web::seal::Token;

/// Bytes of a target.
const LONGEST: usize = 2_048;
/// Fields of a form or a query that are looked at.
const FIELDS: usize = 16;

/// Where somebody wanted to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// A path with its query, on the host that was asked.
    pub(super) to: String,
    /// It is another host than the one that people log in on.
    pub(super) further: Option<Further>,
}

/// The host from which somebody was sent here, and what binds the way back to that browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Further {
    /// In lower case, without a port; not checked yet.
    pub(super) host: String,
    pub(super) binding: Binding,
}

/// What is told of a browser's nonce to others: its digest, of which the nonce cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding([u8; 32]);

impl Binding {
    pub(super) fn of(nonce: &Token) -> Self {
        Self(hash(b"enforcer hand-over 1", nonce))
    }

    fn parse(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    pub(super) fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// What a form of the browser with that nonce carries. Another site knows neither.
pub(super) fn form_token(nonce: &Token) -> String {
    URL_SAFE_NO_PAD.encode(hash(b"enforcer form 1", nonce))
}

fn hash(purpose: &[u8], nonce: &Token) -> [u8; 32] {
    let text = nonce.write();
    let mut bytes = [0; 32];
    let whole = Zeroizing::new([purpose, b"\0", text.as_bytes()].concat());
    bytes.copy_from_slice(digest(&SHA256, &whole).as_ref());
    bytes
}

impl Wish {
    pub(super) fn new(to: &str) -> Self {
        Self { to: path(to), further: None }
    }

    /// From the query of an address, or a form.
    pub(super) fn read(fields: &Fields) -> Self {
        let further = || {
            let host = fields.get("host").filter(|host| !host.is_empty())?.to_ascii_lowercase();
            Some(Further { host, binding: Binding::parse(fields.get("n")?)? })
        };
        Self { to: path(fields.get("to").unwrap_or_default()), further: further() }
    }

    /// The fields that give it back, in their order.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("to", self.to.clone())];
        if let Some(Further { host, binding }) = &self.further {
            fields.extend([("host", host.clone()), ("n", binding.write())]);
        }
        fields
    }

    /// As the query of an address.
    pub(super) fn query(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(self.fields()).finish()
    }
}

/// A path on this host, with its query; `/` for everything that a browser could take for something else.
///
/// Browsers read `\` as `/`, drop tabs and line ends, and take `//host` for an address.
fn path(text: &str) -> String {
    let here = text.starts_with('/')
        && !text.starts_with("//")
        && text.len() <= LONGEST
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        // what is the gateway's own is no place to go
        && !text.strip_prefix(RESERVED).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
    if here { text.to_owned() } else { "/".to_owned() }
}

/// What a form or a query holds. Wiped when it is dropped: one of the values may be a password.
#[derive(Default)]
pub(super) struct Fields(Vec<(String, Zeroizing<String>)>);

impl Fields {
    /// `application/x-www-form-urlencoded`. Everything is read; more than [`FIELDS`] are not looked at.
    pub(super) fn parse(text: &[u8]) -> Self {
        let pairs = form_urlencoded::parse(text).take(FIELDS);
        Self(pairs.map(|(name, value)| (name.into_owned(), Zeroizing::new(value.into_owned()))).collect())
    }

    /// The first of that name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(its, _)| its == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn r3_a_login_leads_nowhere_else() {
        for good in ["/", "/a/b?c=d&e=%20", "/a//b", "/@evil", "/a:b@c", "/.enforcement", "/?//evil"] {
            assert_eq!(path(good), good);
        }
        for odd in [
            "",
            "//evil",
            "///evil",
            "/\\evil",
            "\\\\evil",
            "https:evil",
            "https://evil/",
            "javascript:alert(1)",
            "evil",
            "/\t/evil",
            "/\n/evil",
            "\t//evil",
            " //evil",
            "/a\\b",
            "/a b",
            "/\u{e9}",
            "/\u{0}",
            "/\u{7f}",
            "/.enforcer/login?to=/",
            "/.enforcer",
            &format!("/{}", "a".repeat(LONGEST)),
        ] {
            assert_eq!(path(odd), "/", "{odd:?}");
        }
    }

    #[test]
    fn a_wish_comes_back_as_it_went() {
        let nonce = Token::new().unwrap();
        let binding = Binding::of(&nonce);
        let wish = Wish {
            to: "/a?b=c&d=%2f+e".into(),
            further: Some(Further { host: "b.example".into(), binding }),
        };
        assert_eq!(Wish::read(&Fields::parse(wish.query().as_bytes())), wish);
        assert_ne!(Binding::of(&Token::new().unwrap()), binding);
        assert_ne!(form_token(&nonce), binding.write());
        // half of it is none of it
        for query in ["host=b.example", "host=b.example&n=abc", "n=abc", "host=&n=abc"] {
            let read = Wish::read(&Fields::parse(query.as_bytes()));
            assert_eq!(read, Wish { to: "/".into(), further: None }, "{query}");
        }
    }

    #[test]
    fn a_form_is_read() {
        let fields = Fields::parse(b"user=al+ice&password=%C3%A4%zz+%2B&user=bob&empty=&bare&=x");
        assert_eq!((fields.get("user"), fields.get("password")), (Some("al ice"), Some("\u{e4}%zz +")));
        assert_eq!(
            (fields.get("empty"), fields.get("bare"), fields.get("missing")),
            (Some(""), Some(""), None)
        );
        let many = "a=1&".repeat(FIELDS) + "b=2";
        assert_eq!(Fields::parse(many.as_bytes()).get("b"), None);
    }

    proptest! {
        /// R3: whatever stands there, what comes out stays on this host for a browser's own rules.
        #[test]
        fn r3_no_text_leads_away(text in "[/\\\\:a.@\t\n ?#%-]{0,12}") {
            let to = path(&text);
            prop_assert!(to.starts_with('/') && !to.starts_with("//"));
            prop_assert!(to.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'));
        }

        #[test]
        fn no_form_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let fields = Fields::parse(&text);
            prop_assert!(fields.0.len() <= FIELDS);
            let again = Wish::read(&fields);
            prop_assert_eq!(Wish::read(&Fields::parse(again.query().as_bytes())), again);
        }
    }
}
