//! The gateway's own answers where an origin gives none: one plain sentence.

use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::{Response, StatusCode};

use super::head::Refusal;

/// A page of one sentence, which no cache keeps.
pub(super) fn page(status: StatusCode, text: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(format!("{status}\n{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl From<Refusal> for Response<Bytes> {
    fn from(Refusal(status, text): Refusal) -> Self {
        page(status, text)
    }
}
