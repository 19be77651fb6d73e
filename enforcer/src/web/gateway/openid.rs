//! Logins by way of an identity provider, and its word that one of them is over.

use hyper::Method;
use hyper::body::Bytes;
use hyper::http::Response;

use crate::config::gateway::RESERVED;
use crate::web::link::{Cause, LinkError};
use crate::web::oidc::{self, Oidc, OidcError};
use crate::web::proxy::Asked;

use super::guard::{Gateway, Instead};
use super::login::{not_allowed, query, wish};
use super::rules::Rules;
use super::sessions::begin_trouble;
use super::wish::{Fields, Wish};
use super::{cookies, page};

impl Gateway {
    /// To the provider. It sends the browser back to the login host.
    pub(super) async fn to_provider(
        &self,
        oidc: &Oidc,
        rules: &Rules,
        wish: &Wish,
    ) -> Result<Response<Bytes>, Instead> {
        let back = rules.address(&rules.login_host, &format!("{RESERVED}/oidc/callback"));
        let mut target = wish.query();
        if target.len() > oidc::MAX_TARGET {
            target = Wish { to: "/".into(), ..wish.clone() }.query();
        }
        let begun = oidc.begin(&back, &target).await.map_err(|error| refused(&error))?;
        Ok(page::with_cookies(page::redirect(&begun.location), [begun.set_cookie]))
    }

    /// Back from the provider.
    pub(super) async fn from_provider(
        &self,
        oidc: &Oidc,
        asked: &Asked<'_>,
        rules: &Rules,
    ) -> Result<Response<Bytes>, Instead> {
        if asked.head.method != Method::GET {
            return Ok(not_allowed("GET"));
        }
        let cookie = cookies::value(&asked.head.headers, oidc::COOKIE);
        let login = oidc.finish(&query(asked), cookie).await.map_err(|error| refused(&error))?;
        let wish = wish(&Fields::parse(login.target.as_bytes()), rules)?;
        self.end_former(asked, rules, &login.user).await?;
        let present = self.begin_session(asked, rules, &login.user).await;
        let present = present.map_err(|error| Box::new(begin_trouble(&error, true)))?;
        // whose it is is on the disk before the browser has it, so that the provider can end it after any restart
        if let Err(error) = oidc.register(present.session.key, &login, present.session.until).await {
            self.end(&present, Cause::BackChannel).await?;
            return Err(refused(&error));
        }
        let there = self.go_on(asked, rules, present, wish).await?;
        Ok(page::with_cookies(there, [oidc::forget_cookie()]))
    }

    /// The provider says that somebody has logged out there. It is answered when the sessions have ended.
    pub(super) async fn provider_says(&self, oidc: &Oidc, asked: &mut Asked<'_>) -> Response<Bytes> {
        if asked.head.method != Method::POST {
            return not_allowed("POST");
        }
        let most = u64::try_from(oidc::MAX_FORM).unwrap_or(u64::MAX);
        let body = match asked.body(most).await {
            Ok(body) => body,
            Err(error) => {
                tracing::warn!("a logout token cannot be read: {error}");
                return oidc::failed();
            }
        };
        let out = match oidc.backchannel(&body).await {
            Ok(out) => out,
            Err(error) => {
                tracing::warn!("a logout token is not accepted: {error}");
                return oidc::refused(&error);
            }
        };
        let mut all = true;
        for key in &out.sessions {
            match self.link.end_key(key, Cause::BackChannel).await {
                Ok(()) | Err(LinkError::Gone) => {
                    tracing::info!(session = %key, "the identity provider has ended a session");
                }
                Err(error) => {
                    tracing::error!(session = %key, "the identity provider has ended a session, which goes on: {error}");
                    all = false;
                }
            }
        }
        if all {
            return oidc::done();
        }
        oidc.again(&out);
        oidc::failed()
    }
}

fn refused(error: &OidcError) -> Instead {
    tracing::warn!("{error}");
    let main = format!(
        "<p role=\"alert\">{}</p>\n<p><a href=\"{RESERVED}/login\">Log in</a></p>",
        page::escape(error.plain())
    );
    Box::new(page::page(error.status(), "Not logged in", &main))
}
