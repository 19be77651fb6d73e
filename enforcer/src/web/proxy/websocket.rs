//! What a WebSocket's handshake needs where HTTP/2 has no words for it (RFC 8441).

use hyper::HeaderMap;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};

/// Gives the request the key that HTTP/1.1 demands. It keeps no secret: it shows that the answer is one to a
/// WebSocket's handshake and no older one out of a cache, and between us and an origin there is no cache.
pub(super) fn complete(headers: &mut HeaderMap, protocol: &HeaderValue, extended: bool) {
    if extended && protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("ZW5mb3JjZXIgZ2F0ZXdheQ=="));
        headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    }
}

/// Takes out of the answer what HTTP/2 does not say.
pub(super) fn forget(headers: &mut HeaderMap) {
    headers.remove(SEC_WEBSOCKET_ACCEPT);
}
