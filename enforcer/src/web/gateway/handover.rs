//! One session over several hosts: how a further host gets a token of its own.
//!
//! ```text
//! further host   no session: a nonce in a cookie of this host, and its digest along to
//! login host     /.enforcer/login: logs in, or is logged in; a one-time code, bound to host and nonce, along to
//! further host   /.enforcer/code: the code, and the nonce's cookie: a token of this session for this host
//! ```
//! The secret of the session is wrapped anew for the new token; it never leaves the process.

use std::time::Instant;

use hyper::Method;
use hyper::body::Bytes;
use hyper::http::{Response, StatusCode};

use crate::config::gateway::RESERVED;
use crate::web::link::Cause;
use crate::web::proxy::Asked;
use crate::web::seal::Token;

use super::codes::{CodeError, Offer};
use super::guard::{Gateway, Instead};
use super::login::{nonce, not_allowed, query};
use super::rules::Rules;
use super::sessions::{Present, begin_trouble, trouble};
use super::wish::{Binding, Fields, Further, Wish};
use super::{cookies, page};

impl Gateway {
    /// From a further host to the login host.
    pub(super) fn send_over(&self, asked: &Asked<'_>, rules: &Rules, wish: &Wish) -> Response<Bytes> {
        let (nonce, fresh) = match nonce(&asked.head.headers) {
            Ok(nonce) => nonce,
            Err(instead) => return *instead,
        };
        let further = Further { host: asked.host.to_owned(), binding: Binding::of(&nonce) };
        let wish = Wish { to: wish.to.clone(), further: Some(further) };
        let there = rules.address(&rules.login_host, &format!("{RESERVED}/login?{}", wish.query()));
        page::with_cookies(page::redirect(&there), fresh)
    }

    /// From the login host back: the address, with the code.
    pub(super) async fn hand_over(
        &self,
        rules: &Rules,
        present: &Present,
        further: Further,
        to: String,
    ) -> Result<String, Instead> {
        let held = self.held(present).await.map_err(|why| {
            tracing::warn!(session = %present.session.key, "the secret of a session does not open: {why}");
            let text = "Your session cannot go on on another host. Log out, and log in again.";
            Box::new(page::note(StatusCode::INTERNAL_SERVER_ERROR, "Not logged in", text))
        })?;
        let host = further.host.clone();
        let session = present.session.key;
        let offer = Offer { session, known: present.digest, held, further, to };
        let put = self.codes.put(offer, Instant::now());
        // its end may have been heard meanwhile
        if !self.link.is_alive(&session) {
            self.codes.forget(&session);
        }
        match put {
            Ok(code) => Ok(rules.address(&host, &format!("{RESERVED}/code?c={}", *code.write()))),
            Err(error) => {
                tracing::warn!("a session is not handed over to another host: {error}");
                let status = match error {
                    CodeError::Full => StatusCode::SERVICE_UNAVAILABLE,
                    CodeError::Seal(_) => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let page =
                    page::note(status, "Not logged in", "That did not work. Try again in half a minute.");
                Err(Box::new(page::after(page, super::codes::LASTS)))
            }
        }
    }

    /// On the further host again.
    pub(super) async fn code(&self, asked: &Asked<'_>, rules: &Rules) -> Result<Response<Bytes>, Instead> {
        if asked.head.method != Method::GET {
            return Ok(not_allowed("GET"));
        }
        let headers = &asked.head.headers;
        let fields = Fields::parse(query(asked).as_bytes());
        let code = fields.get("c").and_then(|code| Token::parse(code.as_bytes()));
        let nonce = cookies::read(headers, cookies::NONCE);
        let refused = |error| Box::new(trouble(&error, true));
        // first: where the daemon does not answer the code is good for another try
        let before = self.present(headers, rules, asked.host).await.map_err(refused)?;
        let offer = match (code, nonce) {
            (Some(code), Some(nonce)) => self.codes.take(&code, asked.host, &nonce, Instant::now()),
            _ => None,
        };
        let Some(offer) = offer else {
            if before.is_some() {
                // the page was loaded again
                return Ok(page::redirect(&rules.address(asked.host, "/")));
            }
            let main = "<p role=\"alert\">This address was used before, is too old, or was made for another browser.</p>\n\
                        <p><a href=\"/\">Try again</a></p>";
            return Ok(page::page(StatusCode::FORBIDDEN, "Not logged in", main));
        };
        let there = page::redirect(&rules.address(asked.host, &offer.to));
        match before {
            // another window was quicker
            Some(before) if before.session.key == offer.session => return Ok(there),
            Some(before) => self.end(&before, Cause::ChangedUser).await?,
            None => {}
        }
        let added = self.add_host(asked, &offer.known, &offer.held).await;
        let cookie = added.map_err(|error| Box::new(begin_trouble(&error, true)))?;
        let forget = cookies::delete(cookies::NONCE);
        Ok(page::with_cookies(there, [cookie].into_iter().chain(forget)))
    }
}
