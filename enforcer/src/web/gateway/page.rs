//! The gateway's own pages: plain, without scripts and without anything from elsewhere.

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION, REFERRER_POLICY,
    RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::http::{Response, StatusCode};
use ring::digest::{SHA256, digest};

/// Colours are the browser's own, so that its dark mode and high contrast hold.
const STYLE: &str = "html{color-scheme:light dark;font:100%/1.5 system-ui,sans-serif}\
    body{margin:0;padding:1rem}main{max-width:24rem;margin:10vh auto}\
    label{display:block;font-weight:600}input,button{font:inherit;padding:.5rem;box-sizing:border-box}\
    input{width:100%}button{padding:.5rem 1.5rem}[role=alert]{border-left:.3rem solid #b00020;padding-left:.8rem}";

/// A page. `title` is text; `main` is HTML, whose every foreign part went through [`escape`].
pub(super) fn page(status: StatusCode, title: &str, main: &str) -> Response<Bytes> {
    let title = escape(title);
    let text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{main}\n</main>\n</body>\n</html>\n"
    );
    let mut response = answer(status, "text/html; charset=utf-8", text);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, policy().clone());
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

/// A page that says one thing.
pub(super) fn note(status: StatusCode, title: &str, text: &str) -> Response<Bytes> {
    page(status, title, &format!("<p>{}</p>", escape(text)))
}

/// For who is no person before a browser: one sentence.
pub(super) fn plain(status: StatusCode, text: &str) -> Response<Bytes> {
    answer(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

/// 401 in plain words: somebody has to log in, in the browser.
pub(super) fn unauthorized(realm: &str) -> Response<Bytes> {
    let mut response = plain(StatusCode::UNAUTHORIZED, "You are not logged in, or your session is over.");
    // RFC 9110 wants a challenge; a scheme that no browser knows opens no window of its own
    let challenge = format!("Cookie realm=\"{}\"", realm.replace(['"', '\\'], "_"));
    let challenge =
        HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Cookie realm=\"web\""));
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

/// To another address, which is then asked for with GET.
pub(super) fn redirect(to: &str) -> Response<Bytes> {
    match HeaderValue::from_str(to) {
        Ok(location) => {
            let mut response = plain(StatusCode::SEE_OTHER, "It goes on at another address.");
            response.headers_mut().insert(LOCATION, location);
            response
        }
        Err(_) => plain(StatusCode::BAD_REQUEST, "The address is malformed."),
    }
}

fn answer(status: StatusCode, kind: &'static str, text: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // not `no-referrer`: with it browsers send a form's Origin as `null`
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// With what a browser is to remember or to forget.
pub(super) fn with_cookies(
    mut response: Response<Bytes>,
    cookies: impl IntoIterator<Item = HeaderValue>,
) -> Response<Bytes> {
    append(response.headers_mut(), cookies);
    response
}

pub(super) fn append(headers: &mut HeaderMap, cookies: impl IntoIterator<Item = HeaderValue>) {
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
}

/// With the time after which it may be tried again, in whole seconds, rounded up.
pub(super) fn after(mut response: Response<Bytes>, wait: Duration) -> Response<Bytes> {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
    response
}

/// Whole seconds, rounded up; at least one.
pub(super) fn seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// No script, no other resource, no frame around it. A form may lead to https alone: a host of its own cannot be named,
/// since browsers look at every redirect behind the form as well, and an application may lead anywhere.
fn policy() -> &'static HeaderValue {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    POLICY.get_or_init(|| {
        let style = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{style}'; form-action 'self' https:; frame-ancestors 'none'; \
             base-uri 'none'"
        );
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    })
}

/// Text as HTML, also within the quotes of an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

/// A field of a form that nobody sees.
pub(super) fn hidden(name: &str, value: &str) -> String {
    format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">\n", escape(name), escape(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_closed_to_everything_foreign() {
        let page = note(StatusCode::FORBIDDEN, "<Hello>", "a & \"b\" <script>");
        let text = std::str::from_utf8(page.body()).unwrap();
        assert!(text.contains("<title>&lt;Hello&gt;</title>") && text.contains("lang=\"en\""), "{text}");
        assert!(text.contains("a &amp; &quot;b&quot; &lt;script&gt;") && !text.contains("<script"), "{text}");
        let policy = page.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        for part in ["default-src 'none'", "frame-ancestors 'none'", "style-src 'sha256-"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(page.headers()[CACHE_CONTROL], "no-store");
    }

    #[test]
    fn waiting_times_are_whole_seconds_rounded_up() {
        for (wait, said) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (29_999, 30)] {
            let page = after(plain(StatusCode::TOO_MANY_REQUESTS, ""), Duration::from_millis(wait));
            assert_eq!(page.headers()[RETRY_AFTER], said.to_string());
        }
    }

    #[test]
    fn a_realm_cannot_leave_its_quotes() {
        let page = unauthorized("a\"b\\c");
        assert_eq!(page.headers()[WWW_AUTHENTICATE], "Cookie realm=\"a_b_c\"");
    }
}
