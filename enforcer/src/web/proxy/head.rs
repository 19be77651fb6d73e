//! What becomes of the heads of messages: which are refused, what is taken out, what is added.

mod forwarded;
mod reserved;
mod target;

use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HeaderName, HeaderValue, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::{StatusCode, request, response};

pub(super) use forwarded::{Client, forward};
pub(super) use reserved::Reserved;
pub(super) use target::{Target, target};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// A request that cannot be served, and what its client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) StatusCode, pub(super) &'static str);

/// What a client wanted of this connection alone.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// To what it wants to upgrade.
    pub(super) upgrade: Option<HeaderValue>,
    /// It can take trailers.
    pub(super) trailers: bool,
}

/// Takes everything out of a request's head that is meant for this connection alone.
pub(super) fn incoming(parts: &mut request::Parts) -> Result<Wanted, Refusal> {
    let headers = &mut parts.headers;
    if parts.version == hyper::Version::HTTP_2 {
        join_crumbs(headers);
    }
    if !headers.keys().any(is_of_this_connection) {
        return Ok(Wanted::default());
    }
    let trailers = has_token(headers, &TE, b"trailers");
    let upgrade = match headers.get(UPGRADE) {
        Some(value) if has_token(headers, &CONNECTION, b"upgrade") => Some(value.clone()),
        _ => None,
    };
    if let Some(expected) = headers.remove(EXPECT) {
        // the other end's answer to it is hyper's, when the body is first read
        if !expected.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Refusal(StatusCode::EXPECTATION_FAILED, "The expectation is not known."));
        }
    }
    strip(headers);
    headers.remove(PROXY_AUTHORIZATION);
    // trailers of a request are not passed on
    headers.remove(TRAILER);
    Ok(Wanted { upgrade, trailers })
}

/// Tells the origin what is wanted of the connection to it.
pub(super) fn outgoing(headers: &mut HeaderMap, upgrade: Option<HeaderValue>, trailers: bool) {
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    } else if trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes everything out of an answer's head that is meant for the connection to the origin alone.
pub(super) fn answered(parts: &mut response::Parts) {
    let headers = &mut parts.headers;
    if headers.contains_key(TRANSFER_ENCODING) {
        // it counts alone (RFC 9112, 6.3); what is left would frame another body
        headers.remove(CONTENT_LENGTH);
    }
    strip(headers);
    parts.version = hyper::Version::HTTP_11;
}

/// Takes out what is hop by hop: what is always so, and what `Connection` names.
pub(super) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter(|token| !is_plain_option(token))
            .filter_map(|token| HeaderName::from_bytes(token).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    static ALWAYS: [HeaderName; 6] =
        [KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS];
    take_out(headers, &ALWAYS);
}

/// Removes fields that are seldom there: a glance at each name that is there costs less than a hash of each that is not.
pub(super) fn take_out(headers: &mut HeaderMap, names: &[HeaderName]) {
    if headers.keys().any(|name| names.contains(name)) {
        for name in names {
            headers.remove(name);
        }
    }
}

/// Whether a request's field is one that [`incoming`] looks at: most requests have none of these.
fn is_of_this_connection(name: &HeaderName) -> bool {
    static NAMES: [HeaderName; 10] = [
        CONNECTION,
        EXPECT,
        HTTP2_SETTINGS,
        KEEP_ALIVE,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    NAMES.contains(name)
}

/// Those that say nothing of another field, or of one that is taken out anyway. `Host` is never taken out: it is what
/// the request was routed by.
fn is_plain_option(token: &[u8]) -> bool {
    [&b"keep-alive"[..], b"close", b"upgrade", b"te", b"host"]
        .iter()
        .any(|plain| token.eq_ignore_ascii_case(plain))
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    headers.get_all(name).iter().flat_map(tokens).any(|other| {
        // parameters do not matter: `trailers;q=0.5`
        let other = other.split(|byte| *byte == b';').next().unwrap_or(other);
        other.trim_ascii_end().eq_ignore_ascii_case(token)
    })
}

/// HTTP/2 sends cookies in crumbs; HTTP/1.1 knows one field (RFC 9113, 8.2.3).
fn join_crumbs(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn request(version: hyper::Version, fields: &[(&str, &str)]) -> request::Parts {
        let (mut parts, ()) = hyper::Request::new(()).into_parts();
        parts.version = version;
        parts.headers = headers(fields);
        parts
    }

    #[test]
    fn what_is_hop_by_hop_stays_here() {
        let mut parts = request(
            hyper::Version::HTTP_11,
            &[
                ("Host", "a.example"),
                ("Connection", "Keep-Alive, X-Secret , ,host"),
                ("Connection", "upgrade"),
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Connection", "keep-alive"),
                ("Proxy-Authorization", "Basic x"),
                ("TE", "gzip, trailers;q=0.5"),
                ("Transfer-Encoding", "chunked"),
                ("Upgrade", "websocket"),
                ("X-Secret", "1"),
                ("X-Kept", "2"),
                ("Expect", "100-Continue"),
            ],
        );
        let wanted = incoming(&mut parts).unwrap();
        assert!(wanted.trailers);
        assert_eq!(wanted.upgrade.unwrap(), "websocket");
        let mut left: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "x-kept"]);
    }

    #[test]
    fn an_upgrade_is_wanted_only_where_the_connection_says_so() {
        let mut parts = request(hyper::Version::HTTP_11, &[("Upgrade", "websocket"), ("TE", "gzip")]);
        let wanted = incoming(&mut parts).unwrap();
        assert!(wanted.upgrade.is_none());
        assert!(!wanted.trailers);
    }

    #[test]
    fn an_expectation_that_nobody_knows_is_refused() {
        let mut parts = request(hyper::Version::HTTP_11, &[("Expect", "the-unexpected")]);
        assert_eq!(incoming(&mut parts).unwrap_err().0, StatusCode::EXPECTATION_FAILED);
    }

    #[test]
    fn crumbs_of_http2_become_one_field_in_their_order() {
        let fields = [("Cookie", "a=1"), ("Cookie", "b=\u{e9}"), ("Cookie", "a=2")];
        let mut parts = request(hyper::Version::HTTP_2, &fields);
        incoming(&mut parts).unwrap();
        let all: Vec<&[u8]> = parts.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(all, ["a=1; b=\u{e9}; a=2".as_bytes()]);
        let mut parts = request(hyper::Version::HTTP_11, &fields);
        incoming(&mut parts).unwrap();
        assert_eq!(parts.headers.get_all(COOKIE).iter().count(), 3);
    }

    #[test]
    fn an_answer_keeps_one_framing() {
        let (mut parts, ()) = hyper::Response::new(()).into_parts();
        parts.headers = headers(&[
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "close, x-hop"),
            ("X-Hop", "1"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
        ]);
        answered(&mut parts);
        assert_eq!(parts.headers.keys().count(), 1);
        assert_eq!(parts.headers.get_all("set-cookie").iter().count(), 2);
    }
}
