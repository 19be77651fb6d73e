//! The end of a session by its user: at the daemon first, then in the browser.

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::http::{Response, StatusCode, request};

use crate::config::gateway::LogoutClears;
use crate::session::WebDigest;
use crate::web::link::{Cause, LinkError};
use crate::web::proxy::Asked;
use crate::web::sealing::{self, Clear};

use super::guard::{Gateway, is_for_a_person};
use super::login::{is_foreign, not_allowed};
use super::rules::Rules;
use super::{cookies, page};

impl Gateway {
    /// A GET logs out, since old portals have these paths as links. Where the browser says that another site has led
    /// here, or that it only looks ahead, it does not: then it is asked for once more.
    pub(super) async fn logout(&self, asked: &mut Asked<'_>, rules: &Rules) -> Response<Bytes> {
        let is_post = match asked.head.method {
            Method::GET => false,
            Method::POST => true,
            _ => return not_allowed("GET, POST"),
        };
        if is_looking_ahead(asked.head) || is_embedded(asked.head) {
            return page::plain(
                StatusCode::FORBIDDEN,
                "A logout is nothing to be fetched ahead, nor a picture.",
            );
        }
        let site = asked.head.headers.get("sec-fetch-site");
        if site.is_some_and(|site| site == "cross-site") || (is_post && is_foreign(asked)) {
            return confirm(asked.head.uri.path());
        }
        let page = match self.end_all(asked).await {
            Ended::Over => over(),
            Ended::Unwritten => page::note(
                StatusCode::SERVICE_UNAVAILABLE,
                "Logged out for now",
                "Your session is over on every host. This could not be written down yet: until it is, it would be there \
                 again after a restart. Nobody has the key to it any more. Tell the administrator of this gateway.",
            ),
            Ended::Failed => page::note(
                StatusCode::SERVICE_UNAVAILABLE,
                "Not logged out everywhere",
                "This browser has forgotten your session here. It could not be ended on the other hosts, since a part \
                 of this gateway does not answer: there it ends by itself when it is not used. Close the browser, and \
                 tell the administrator.",
            ),
            // a session that has not come to this host, since it began after the one whose token is here
            Ended::Nothing if asked.host != rules.login_host && is_for_a_person(asked.head) => {
                page::redirect(&rules.address(&rules.login_host, asked.head.uri.path()))
            }
            Ended::Nothing if asked.host != rules.login_host => {
                let there = rules.address(&rules.login_host, asked.head.uri.path());
                page::plain(
                    StatusCode::OK,
                    &format!("There is no session of yours on this host. Log out at {there}"),
                )
            }
            Ended::Nothing => over(),
        };
        self.forgetting(page, asked, rules)
    }

    /// Ends every session that the browser has a token of on this host: it is one, unless somebody has put another one
    /// beside it.
    async fn end_all(&self, asked: &Asked<'_>) -> Ended {
        let mut all = Ended::Nothing;
        for token in cookies::all(&asked.head.headers, cookies::TOKEN) {
            let digest = WebDigest::from_bytes(token.digest());
            let ended = match self.link.end(&digest, Cause::Logout).await {
                Ok(()) => Ended::Over,
                Err(LinkError::Gone) => Ended::Nothing,
                Err(LinkError::Unwritten(why)) => {
                    tracing::error!("a logout is not on the disk yet: {why}");
                    Ended::Unwritten
                }
                Err(error) => {
                    tracing::error!("a session could not be ended at its logout: {error}");
                    Ended::Failed
                }
            };
            all = all.max(ended);
        }
        all
    }

    /// With everything that makes the browser forget.
    fn forgetting(&self, mut page: Response<Bytes>, asked: &Asked<'_>, rules: &Rules) -> Response<Bytes> {
        let clear = match rules.clears {
            LogoutClears::Host => Clear::Host,
            LogoutClears::Site => Clear::Site,
        };
        let host = asked.host.as_bytes();
        let logout = sealing::logout(&self.learned.read(), rules.policies_of(asked.host), host, true, clear);
        if logout.left_out > 0 {
            tracing::info!("{} cookies had no room in the answer to a logout", logout.left_out);
        }
        if let Some(clear) = logout.clear_site_data {
            page.headers_mut().insert("clear-site-data", HeaderValue::from_static(clear));
        }
        let deletions = logout.set_cookies.into_iter();
        let deletions = deletions.filter_map(|field| HeaderValue::from_maybe_shared(Bytes::from(field)).ok());
        let own = [cookies::TOKEN, cookies::NONCE].into_iter().flat_map(cookies::delete_all);
        page::with_cookies(page, deletions.chain(own))
    }
}

/// What came of a logout. The worst of it counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    /// There was nothing to end.
    Nothing,
    Over,
    /// The daemon would have it again after a restart.
    Unwritten,
    /// That cannot be said.
    Failed,
}

fn over() -> Response<Bytes> {
    let main =
        "<p>Your session is over, on every host of this gateway.</p>\n<p><a href=\"/\">Log in again</a></p>";
    page::page(StatusCode::OK, "Logged out", main)
}

fn confirm(path: &str) -> Response<Bytes> {
    let main = format!(
        "<p>Another site has led you here. Do you want to log out?</p>\n<form method=\"post\" action=\"{}\">\n\
         <p><button type=\"submit\">Log out</button></p>\n</form>",
        page::escape(path)
    );
    page::page(StatusCode::OK, "Log out?", &main)
}

/// Browsers fetch and render pages ahead of a click.
fn is_looking_ahead(head: &request::Parts) -> bool {
    ["sec-purpose", "purpose", "x-moz"].iter().any(|name| {
        head.headers.get_all(*name).iter().any(|value| {
            value.to_str().is_ok_and(|value| value.contains("prefetch") || value.contains("prerender"))
        })
    })
}

/// A picture, a script or a style that a page wants: whoever may write into a page of an application could log out all who
/// read it. A link, a frame, and a script's own request are logouts.
fn is_embedded(head: &request::Parts) -> bool {
    head.headers
        .get("sec-fetch-dest")
        .is_some_and(|dest| ![&b"document"[..], b"empty", b"frame", b"iframe"].contains(&dest.as_bytes()))
}
