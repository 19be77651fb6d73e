//! Logins by way of an identity provider, and its word that one of them is over.

use std::sync::Arc;

use hyper::Method;
use hyper::body::Bytes;
use hyper::http::Response;

use crate::config::gateway::RESERVED;
use crate::web::link::Cause;
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
    pub(super) async fn back_from_provider(
        &self,
        oidc: &Oidc,
        asked: &Asked<'_>,
        rules: &Rules,
    ) -> Result<Response<Bytes>, Instead> {
        if asked.head.method != Method::GET {
            return Ok(not_allowed("GET"));
        }
        let cookie = cookies::value(&asked.head.headers, oidc::COOKIE);
        let done = self.finish(oidc, asked, rules, cookie).await;
        // it has served, whatever came of it
        let forget = |answer| page::with_cookies(answer, [oidc::forget_cookie()]);
        done.map(forget).map_err(|instead| Box::new(forget(*instead)))
    }

    async fn finish(
        &self,
        oidc: &Oidc,
        asked: &Asked<'_>,
        rules: &Rules,
        cookie: Option<&[u8]>,
    ) -> Result<Response<Bytes>, Instead> {
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
        self.go_on(asked, rules, present, wish).await
    }

    /// The provider says that somebody has logged out there. It is answered when the sessions have ended.
    pub(super) async fn provider_says(&self, oidc: Arc<Oidc>, asked: &mut Asked<'_>) -> Response<Bytes> {
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
        // it counts whether or not the provider waits for the answer: a request ends with its connection, a task does not
        let taken = tokio::spawn(take(oidc, body)).await;
        taken.unwrap_or_else(|error| {
            tracing::error!("a logout token was not looked at to its end: {error}");
            oidc::failed()
        })
    }
}

/// What the provider is answered.
async fn take(oidc: Arc<Oidc>, form: Bytes) -> Response<Bytes> {
    let out = match oidc.backchannel(&form).await {
        Ok(out) => out,
        Err(error) => {
            tracing::warn!("a logout token is not accepted: {error}");
            return oidc::refused(&error);
        }
    };
    if oidc.ended(&out).await {
        return oidc::done();
    }
    tracing::error!(
        sessions = out.sessions.len(),
        "the identity provider has ended sessions, which could not all be ended in the daemon: this is tried again, and \
         nothing of them is served meanwhile"
    );
    oidc.again(&out);
    oidc::failed()
}

fn refused(error: &OidcError) -> Instead {
    tracing::warn!("{error}");
    let main = format!(
        "<p role=\"alert\">{}</p>\n<p><a href=\"{RESERVED}/login\">Log in</a></p>",
        page::escape(error.plain())
    );
    Box::new(page::page(error.status(), "Not logged in", &main))
}
