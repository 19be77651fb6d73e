//! What the provider is answered when it tells of an end.

use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::{Response, StatusCode};

use super::OidcError;

/// The answer to a logout token that was taken, when all of its sessions have ended.
pub fn done() -> Response<Bytes> {
    answer(StatusCode::OK, "")
}

/// The answer to a logout token whose sessions could not all be ended.
pub fn failed() -> Response<Bytes> {
    answer(
        StatusCode::BAD_REQUEST,
        r#"{"error":"server_error","error_description":"not all sessions could be ended: send it again"}"#,
    )
}

/// The answer to a logout token that was not taken. What is wrong with it belongs into the log.
pub fn refused(error: &OidcError) -> Response<Bytes> {
    match error {
        OidcError::Token { .. } => answer(
            StatusCode::BAD_REQUEST,
            r#"{"error":"invalid_request","error_description":"this logout token is not accepted"}"#,
        ),
        _ => answer(
            StatusCode::BAD_REQUEST,
            r#"{"error":"temporarily_unavailable","error_description":"it cannot be checked now: send it again"}"#,
        ),
    }
}

/// No cache keeps it.
fn answer(status: StatusCode, text: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(text.as_bytes()));
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !text.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::TokenError;
    use super::*;

    #[test]
    fn no_cache_keeps_an_answer_to_the_provider() {
        let error = OidcError::Token { what: "logout token", why: TokenError::Signature };
        let busy = OidcError::Busy(String::new());
        for (response, status) in
            [(done(), 200), (failed(), 400), (refused(&error), 400), (refused(&busy), 400)]
        {
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            assert!(response.body().is_empty() || serde_json::from_slice::<Value>(response.body()).is_ok());
        }
    }
}
