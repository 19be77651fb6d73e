//! What a request is for: one host and one path, the same to everybody who reads it.

use hyper::header::{HOST, HeaderValue};
use hyper::http::request;
use hyper::{Method, StatusCode, Uri, Version};

use super::super::origin::{is_host, is_plain};
use super::Refusal;

/// The host that was asked for.
#[derive(Debug)]
pub(in super::super) struct Target {
    /// In lower case.
    authority: String,
    /// How much of it is the host.
    host: usize,
}

impl Target {
    pub(in super::super) fn authority(&self) -> &str {
        &self.authority
    }

    pub(in super::super) fn host(&self) -> &str {
        &self.authority[..self.host]
    }
}

/// Checks the request line with `Host`, and gives them the shape that an origin expects: `Host`, and a path alone.
///
/// `https`: whether the client came by it. The port that its scheme has anyway says nothing (RFC 9110, 4.2.3) and is left
/// out, as browsers do: an application that compares `Host` with the `Origin` of a page would refuse `a.example:443`.
pub(in super::super) fn target(parts: &mut request::Parts, https: bool) -> Result<Target, Refusal> {
    let bad = |text| Refusal(StatusCode::BAD_REQUEST, text);
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "The method is not allowed."));
    }
    let mut fields = parts.headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(bad("The request names several hosts."));
    }
    let field = field.map(HeaderValue::to_str).transpose().map_err(|_| bad("The host is malformed."))?;
    let line = parts.uri.authority().map(|line| without_usual_port(line.as_str(), https));
    let authority = match (field.map(|field| without_usual_port(field, https)), line) {
        (Some(field), None) => field,
        (Some(field), Some(line)) if field.eq_ignore_ascii_case(line) => field,
        (Some(_), Some(_)) => return Err(bad("The request names two hosts.")),
        (None, Some(line)) if parts.version == Version::HTTP_2 => line,
        (None, _) => return Err(bad("The request names no host.")),
    };
    let told = (field != Some(authority)).then(|| HeaderValue::from_str(authority)).transpose();
    let told = told.map_err(|_| bad("The host is malformed."))?;
    let authority = authority.to_ascii_lowercase();
    let host = host_of(&authority).ok_or_else(|| bad("The host is malformed."))?.len();
    let path = parts.uri.path();
    if !path.starts_with('/') || parts.uri.path_and_query().is_none() {
        return Err(bad("The request names no path."));
    }
    if !is_plain(path) {
        return Err(bad("The path leads through dots."));
    }
    if let Some(told) = told {
        parts.headers.insert(HOST, told);
    }
    if parts.uri.authority().is_some()
        && let Some(path) = parts.uri.path_and_query()
    {
        parts.uri = Uri::from(path.clone());
    }
    parts.version = Version::HTTP_11;
    Ok(Target { authority, host })
}

/// `host:443` of `https` and `host:80` of `http` as `host`, and everything else as it is.
fn without_usual_port(authority: &str, https: bool) -> &str {
    let usual: u16 = if https { 443 } else { 80 };
    let Some((host, port)) = authority.rsplit_once(':') else { return authority };
    // what is no port is left for who looks whether it is a host
    let is_one =
        port.bytes().all(|byte| byte.is_ascii_digit()) && (host.ends_with(']') || !host.contains(':'));
    if is_one && port.parse() == Ok(usual) { host } else { authority }
}

/// The host of `host` or `host:port`.
fn host_of(authority: &str) -> Option<&str> {
    let colon = match authority.rfind(':') {
        // within the brackets of an IPv6 address
        Some(at) if authority[at..].contains(']') => None,
        other => other,
    };
    let (host, port) = match colon {
        Some(at) => (&authority[..at], Some(&authority[at + 1..])),
        None => (authority, None),
    };
    let port_is_one = port.is_none_or(|port| port.parse::<u16>().is_ok() && !port.starts_with('+'));
    (port_is_one && is_host(host)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(version: Version, uri: &str, hosts: &[&str]) -> Result<(Target, request::Parts), StatusCode> {
        asked_by(true, version, uri, hosts)
    }

    fn asked_by(
        https: bool,
        version: Version,
        uri: &str,
        hosts: &[&str],
    ) -> Result<(Target, request::Parts), StatusCode> {
        let (mut parts, ()) = hyper::Request::new(()).into_parts();
        parts.version = version;
        parts.uri = uri.parse().unwrap();
        for host in hosts {
            parts.headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        match target(&mut parts, https) {
            Ok(target) => Ok((target, parts)),
            Err(Refusal(status, _)) => Err(status),
        }
    }

    #[test]
    fn a_request_names_one_host() {
        for (version, uri, hosts, host, left) in [
            (Version::HTTP_11, "/a?b", &["A.example:8443"][..], "a.example", "/a?b"),
            (Version::HTTP_11, "http://a.example/a", &["a.example"], "a.example", "/a"),
            (Version::HTTP_2, "https://a.example/a?b=c", &[], "a.example", "/a?b=c"),
            (Version::HTTP_2, "https://a.example:444/", &["a.example:444"], "a.example", "/"),
            (Version::HTTP_11, "/", &["[2001:db8::1]:8443"], "[2001:db8::1]", "/"),
            (Version::HTTP_11, "/", &["[2001:db8::1]"], "[2001:db8::1]", "/"),
        ] {
            let (target, parts) = asked(version, uri, hosts).unwrap();
            assert_eq!(target.host(), host);
            assert_eq!(parts.uri.to_string(), left);
            assert_eq!(parts.headers.get_all(HOST).iter().count(), 1);
        }
    }

    #[test]
    fn the_port_that_a_scheme_has_anyway_is_told_to_nobody() {
        for (https, version, uri, hosts, authority, told) in [
            (true, Version::HTTP_11, "/", &["A.example:443"][..], "a.example", "A.example"),
            (true, Version::HTTP_11, "/", &["a.example:0443"], "a.example", "a.example"),
            (true, Version::HTTP_11, "/", &["[2001:db8::1]:443"], "[2001:db8::1]", "[2001:db8::1]"),
            (true, Version::HTTP_2, "https://a.example:443/", &[], "a.example", "a.example"),
            // the same host, written in two ways
            (true, Version::HTTP_2, "https://a.example/", &["a.example:443"], "a.example", "a.example"),
            (true, Version::HTTP_11, "https://a.example:443/", &["A.example"], "a.example", "A.example"),
            (false, Version::HTTP_11, "/", &["a.example:80"], "a.example", "a.example"),
            // and what says something stays
            (true, Version::HTTP_11, "/", &["a.example:80"], "a.example:80", "a.example:80"),
            (false, Version::HTTP_11, "/", &["a.example:443"], "a.example:443", "a.example:443"),
            (true, Version::HTTP_11, "/", &["a.example:8443"], "a.example:8443", "a.example:8443"),
            (true, Version::HTTP_11, "/", &["[2001:db8::443]"], "[2001:db8::443]", "[2001:db8::443]"),
        ] {
            let (target, parts) = asked_by(https, version, uri, hosts).unwrap();
            assert_eq!(
                (target.authority(), &parts.headers[HOST]),
                (authority, &HeaderValue::from_static(told))
            );
        }
    }

    #[test]
    fn a_request_that_names_none_or_two_is_refused() {
        for (version, uri, hosts) in [
            (Version::HTTP_11, "/", &[][..]),
            (Version::HTTP_11, "http://a.example/", &[]),
            (Version::HTTP_11, "/", &["a.example", "a.example"]),
            (Version::HTTP_11, "http://b.example/", &["a.example"]),
            (Version::HTTP_2, "https://a.example/", &["b.example"]),
            (Version::HTTP_11, "/", &[""]),
            (Version::HTTP_11, "/", &["a b"]),
            (Version::HTTP_11, "/", &["a.example:"]),
            (Version::HTTP_11, "/", &["a.example:+80"]),
            (Version::HTTP_11, "/", &["a.example:+443"]),
            (Version::HTTP_11, "/", &["a.example:443:443"]),
            (Version::HTTP_11, "/", &[":443"]),
            (Version::HTTP_2, "https://a.example:444/", &["a.example:443"]),
            (Version::HTTP_11, "/", &["a.example:99999"]),
            (Version::HTTP_11, "/", &["user@a.example"]),
            (Version::HTTP_11, "/", &["a.example/x"]),
            (Version::HTTP_11, "*", &["a.example"]),
            (Version::HTTP_11, "/a/%2e%2e/b", &["a.example"]),
        ] {
            assert_eq!(asked(version, uri, hosts).unwrap_err(), StatusCode::BAD_REQUEST, "{uri} {hosts:?}");
        }
    }
}
