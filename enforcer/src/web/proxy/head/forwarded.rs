//! Who is told to the origin as the client: `Forwarded` and `X-Forwarded-*`.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName, HeaderValue};

use super::super::guard::Peer;
use super::super::settings::Network;
use super::take_out;

pub(super) const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What is believed of nobody but a trusted proxy: each of these is read by some framework.
pub(super) static SAID_BY_PROXIES: [HeaderName; 10] = [
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-ssl"),
    HeaderName::from_static("x-forwarded-scheme"),
    HeaderName::from_static("x-real-ip"),
];

/// What a connection's peer is told as; made once for all its requests.
#[derive(Debug)]
pub(in super::super) struct Client {
    socket: SocketAddr,
    trusted: bool,
    https: bool,
    address: HeaderValue,
    /// The beginning of our element of `Forwarded`: `for=192.0.2.1;proto=https;host="`.
    element: String,
}

impl Client {
    pub(in super::super) fn new(socket: SocketAddr, trusted: bool, https: bool) -> Self {
        let socket = SocketAddr::new(socket.ip().to_canonical(), socket.port());
        let address = socket.ip().to_string();
        let node = if socket.is_ipv6() { format!("\"[{address}]\"") } else { address.clone() };
        let element = format!("for={node};proto={};host=\"", scheme(https));
        // an address is made of digits, letters, dots and colons
        let address = HeaderValue::from_str(&address).unwrap_or(HeaderValue::from_static("unknown"));
        Self { socket, trusted, https, address, element }
    }

    /// From where a request with that head came.
    pub(in super::super) fn peer(&self, headers: &HeaderMap, trusted: &[Network]) -> Peer {
        let own =
            Peer { socket: self.socket, client: self.socket.ip(), trusted: self.trusted, https: self.https };
        if !self.trusted {
            return own;
        }
        let said = headers.get_all(FOR).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let said: Vec<&[u8]> = said.map(<[u8]>::trim_ascii).collect();
        let mut client = own.client;
        // from the right: each was written by the one behind it, as long as that one is trusted
        for address in said.iter().rev() {
            let Some(address) = address_of(address) else { break };
            client = address.to_canonical();
            if !trusted.iter().any(|network| network.contains(client)) {
                break;
            }
        }
        let https = match headers.get(PROTO) {
            Some(proto) => proto.as_bytes().eq_ignore_ascii_case(b"https"),
            None => self.https,
        };
        Peer { client, https, ..own }
    }
}

/// An address, which some proxies write with a port.
fn address_of(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip())).ok()
}

fn scheme(https: bool) -> &'static str {
    if https { "https" } else { "http" }
}

/// Writes the fields for the origin. What an untrusted client sent under these names is gone. A trusted proxy's words are
/// kept as they are, byte for byte, and added to.
pub(in super::super) fn forward(headers: &mut HeaderMap, client: &Client, authority: &str) {
    let mut element = String::with_capacity(client.element.len() + authority.len() + 1);
    element.push_str(&client.element);
    element.push_str(authority);
    element.push('"');
    if client.trusted {
        append(headers, FOR, &client.address);
        if let Ok(element) = HeaderValue::from_str(&element) {
            append(headers, FORWARDED, &element);
        }
        headers.entry(PROTO).or_insert_with(|| HeaderValue::from_static(scheme(client.https)));
        if !headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::from_str(authority)
        {
            headers.insert(HOST, host);
        }
        return;
    }
    take_out(headers, &SAID_BY_PROXIES);
    headers.insert(FOR, client.address.clone());
    headers.insert(PROTO, HeaderValue::from_static(scheme(client.https)));
    if let Ok(host) = HeaderValue::from_str(authority) {
        headers.insert(HOST, host);
    }
    if let Ok(element) = HeaderValue::from_maybe_shared(hyper::body::Bytes::from(element)) {
        headers.insert(FORWARDED, element);
    }
}

/// One list in one field, since some readers look at the first field alone.
fn append(headers: &mut HeaderMap, name: HeaderName, more: &HeaderValue) {
    let mut whole: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    whole.push(more.as_bytes());
    // bytes of values that were allowed, and commas
    if let Ok(whole) = HeaderValue::from_bytes(&whole.join(&b", "[..])) {
        headers.insert(name, whole);
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

    fn told(headers: &HeaderMap) -> Vec<(String, String)> {
        let mut told: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        told.sort();
        told
    }

    #[test]
    fn what_a_client_says_of_itself_is_replaced() {
        let client = Client::new("192.0.2.1:5".parse().unwrap(), false, true);
        let mut said = headers(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-port", "1"),
            ("x-real-ip", "10.0.0.4"),
            ("forwarded", "for=10.0.0.5"),
            ("x_kept", "1"),
        ]);
        assert_eq!(client.peer(&said, &[]).client, "192.0.2.1".parse::<IpAddr>().unwrap());
        forward(&mut said, &client, "a.example:444");
        let expected = [
            ("forwarded", "for=192.0.2.1;proto=https;host=\"a.example:444\""),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "a.example:444"),
            ("x-forwarded-proto", "https"),
            ("x_kept", "1"),
        ];
        assert_eq!(told(&said), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_a_trusted_proxy_says_is_kept_and_added_to() {
        let client = Client::new("[2001:db8::1]:5".parse().unwrap(), true, false);
        let trusted: Vec<Network> = vec!["2001:db8::/64".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        let mut said = headers(&[
            ("x-forwarded-for", "192.0.2.9, 192.0.2.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=192.0.2.1"),
        ]);
        let peer = client.peer(&said, &trusted);
        assert_eq!(peer.client, "192.0.2.1".parse::<IpAddr>().unwrap());
        assert!(peer.https && peer.trusted);
        forward(&mut said, &client, "a.example");
        let expected = [
            ("forwarded", "for=192.0.2.1, for=\"[2001:db8::1]\";proto=http;host=\"a.example\""),
            ("x-forwarded-for", "192.0.2.9, 192.0.2.1, 10.0.0.2, 2001:db8::1"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(told(&said), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_trusted_proxys_odd_bytes_neither_hide_a_client_nor_get_lost() {
        let client = Client::new("10.0.0.1:5".parse().unwrap(), true, true);
        let trusted: Vec<Network> = vec!["10.0.0.0/8".parse().unwrap()];
        // what a client invented stands on the left; its address was written behind it
        let mut said =
            headers(&[("x-forwarded-for", "caf\u{e9}, 192.0.2.1:4711"), ("x-forwarded-for", "10.0.0.2")]);
        assert_eq!(client.peer(&said, &trusted).client, "192.0.2.1".parse::<IpAddr>().unwrap());
        forward(&mut said, &client, "a.example");
        let value = said.get("x-forwarded-for").unwrap().as_bytes();
        assert_eq!(value, "caf\u{e9}, 192.0.2.1:4711, 10.0.0.2, 10.0.0.1".as_bytes());
        // nothing left of what is no address is believed
        let said = headers(&[("x-forwarded-for", "192.0.2.1, caf\u{e9}, 10.0.0.2")]);
        assert_eq!(client.peer(&said, &trusted).client, "10.0.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client() {
        let client = Client::new("[::ffff:192.0.2.1]:5".parse().unwrap(), false, true);
        let mut said = HeaderMap::new();
        forward(&mut said, &client, "a.example");
        assert_eq!(said.get("x-forwarded-for").unwrap(), "192.0.2.1");
    }
}
