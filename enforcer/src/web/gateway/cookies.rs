//! The gateway's own cookies: the token of a session on one host, and the nonce of a browser that is about to log in.
//!
//! Both are `__Host-` cookies: no other host can set them, also none of the same site, and they never pass in the clear.

use hyper::HeaderMap;
use hyper::header::{COOKIE, HeaderValue};

use crate::web::cookie::pairs;
use crate::web::seal::Token;

/// The session's token on this host.
pub(super) const TOKEN: &str = "__Host-enforcer";
/// What a login form, and the way back from another host, are bound to.
pub(super) const NONCE: &str = "__Host-enforcer-login";

/// Tokens of one request that are looked at.
const MOST: usize = 8;

/// What a browser has sent under that name. `None` also where it sent two that differ: one of them is somebody else's.
pub(super) fn read(headers: &HeaderMap, name: &str) -> Option<Token> {
    Token::parse(value(headers, name)?)
}

/// The same, whatever it is.
pub(super) fn value<'a>(headers: &'a HeaderMap, name: &'a str) -> Option<&'a [u8]> {
    let mut values = values(headers, name);
    let value = values.next()?;
    (!values.any(|other| other != value)).then_some(value)
}

fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let fields = headers.get_all(COOKIE).iter();
    fields
        .flat_map(|field| pairs(field.as_bytes()))
        .filter(move |pair| pair.name() == name.as_bytes())
        .map(|pair| pair.value())
}

/// All tokens that a browser has sent under that name, each once, up to [`MOST`]: for a logout, which ends whatever there
/// is.
pub(super) fn all(headers: &HeaderMap, name: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for token in values(headers, name).filter_map(Token::parse) {
        if tokens.len() < MOST && !tokens.iter().any(|other| other.digest() == token.digest()) {
            tokens.push(token);
        }
    }
    tokens
}

/// Where a browser has sent several that differ, and none of them counts: the fields that delete them, so that the next
/// one is alone. A script of an application can put one beside ours, in the jar for partitioned cookies.
pub(super) fn untangle(headers: &HeaderMap, name: &str) -> Vec<HeaderValue> {
    let is_tangled = value(headers, name).is_none() && values(headers, name).next().is_some();
    if is_tangled { delete_all(name) } else { Vec::new() }
}

/// The fields that delete it, from whichever jar it is in.
pub(super) fn delete_all(name: &str) -> Vec<HeaderValue> {
    let partitioned = format!("{name}=; Path=/; Secure; HttpOnly; SameSite=Lax; Partitioned; Max-Age=0");
    let partitioned = HeaderValue::from_maybe_shared(hyper::body::Bytes::from(partitioned)).ok();
    delete(name).into_iter().chain(partitioned).collect()
}

/// The field that sets it. It goes with the browser's session; the daemon knows when it is over.
pub(super) fn set(name: &str, token: &Token) -> Option<HeaderValue> {
    let field = format!("{name}={}; Path=/; Secure; HttpOnly; SameSite=Lax", *token.write());
    let mut field = HeaderValue::from_maybe_shared(hyper::body::Bytes::from(field)).ok()?;
    // never in a table of HTTP/2's compression, nor in a debug text
    field.set_sensitive(true);
    Some(field)
}

/// The field that deletes it.
pub(super) fn delete(name: &str) -> Option<HeaderValue> {
    let field = format!("{name}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0");
    HeaderValue::from_maybe_shared(hyper::body::Bytes::from(field)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[String]) -> HeaderMap {
        fields.iter().map(|field| (COOKIE, HeaderValue::from_str(field).unwrap())).collect()
    }

    #[test]
    fn what_is_set_is_read_back_among_others() {
        let token = Token::new().unwrap();
        let text = set(TOKEN, &token).unwrap();
        assert!(text.is_sensitive());
        let text = text.to_str().unwrap();
        assert!(text.ends_with("; Path=/; Secure; HttpOnly; SameSite=Lax"), "{text}");
        let pair = text.split(';').next().unwrap();
        let read_of = |fields: &[String]| read(&headers(fields), TOKEN).map(|token| token.digest());
        assert_eq!(read_of(&[format!("a=1; {pair}; b=2")]), Some(token.digest()));
        assert_eq!(read_of(&["a=1".into(), format!(" {pair} ")]), Some(token.digest()));
        assert_eq!(read_of(&[format!("{pair}; {pair}")]), Some(token.digest()), "twice the same");
        let other = set(TOKEN, &Token::new().unwrap()).unwrap();
        let other = other.to_str().unwrap().split(';').next().unwrap().to_owned();
        assert_eq!(read_of(&[format!("{pair}; {other}")]), None, "which is it?");
        let both = headers(&[format!("{pair}; {other}; {TOKEN}=; {pair}"), format!("{NONCE}=x")]);
        assert_eq!(all(&both, TOKEN).len(), 2);
        assert_eq!(all(&both, TOKEN)[0].digest(), token.digest());
        let many: Vec<String> =
            (0..99).map(|_| format!("{TOKEN}={}", *Token::new().unwrap().write())).collect();
        assert_eq!(all(&headers(&many), TOKEN).len(), MOST);
        let deleted = untangle(&both, TOKEN);
        assert!(deleted.iter().all(|field| field.to_str().unwrap().ends_with("; Max-Age=0")));
        assert!(deleted.iter().any(|field| field.to_str().unwrap().contains("; Partitioned;")));
        assert_eq!(deleted.len(), 2);
        for one in [vec![pair.to_owned()], vec![format!("{pair}; {pair}")], vec![]] {
            assert!(untangle(&headers(&one), TOKEN).is_empty());
        }
        assert_eq!(read_of(&[pair.replace(TOKEN, NONCE)]), None);
        assert_eq!(read_of(&[format!("{pair}x")]), None);
        assert_eq!(read_of(&[]), None);
    }
}
