//! The login page, and what is posted to it.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{ALLOW, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::{Response, StatusCode};
use zeroize::Zeroizing;

use crate::config::gateway::RESERVED;
use crate::web::link::Cause;
use crate::web::oidc::Oidc;
use crate::web::proxy::Asked;
use crate::web::seal::Token;
use crate::web::users::MAX_NAME;

use super::guard::{Gateway, Instead, is_for_a_person};
use super::passwords::Tried;
use super::rules::{Named, Rules};
use super::sessions::{Present, Who, begin_trouble, trouble};
use super::wish::{Fields, Wish, form_token};
use super::{cookies, page};

/// Bytes of a form.
const FORM: u64 = 8 * 1_024;
/// How long somebody should wait where too many others log in.
const BUSY: Duration = Duration::from_secs(5);

/// A login page: what was typed before, and why it is there again.
#[derive(Default)]
struct Form<'a> {
    user: &'a str,
    why: Option<&'a str>,
}

impl Gateway {
    /// What is below the gateway's own path.
    pub(super) async fn own(
        &self,
        asked: &mut Asked<'_>,
        rules: &Rules,
        named: &Named,
        path: &str,
    ) -> Result<Response<Bytes>, Instead> {
        match path {
            "/login" => self.login(asked, rules, named).await,
            "/code" => self.code(asked, rules).await,
            "/oidc/begin" | "/oidc/callback" | "/oidc/logout" => match self.oidc.clone() {
                Some(oidc) => self.openid(&oidc, asked, rules, path).await,
                None => Ok(nothing()),
            },
            _ => Ok(nothing()),
        }
    }

    async fn login(
        &self,
        asked: &mut Asked<'_>,
        rules: &Rules,
        named: &Named,
    ) -> Result<Response<Bytes>, Instead> {
        let is_post = match asked.head.method {
            Method::GET | Method::HEAD => false,
            Method::POST => true,
            _ => return Ok(not_allowed("GET, HEAD, POST")),
        };
        if asked.host != rules.login_host {
            let wish = Wish::read(&Fields::parse(query(asked).as_bytes()));
            return Ok(self.begin(asked, rules, &Wish::new(&wish.to)));
        }
        if is_post && *named == Named::Unsaid {
            return self.posted(asked, rules).await;
        }
        let wish = wish(&Fields::parse(query(asked).as_bytes()), rules)?;
        if !self.link.is_connected() {
            return Err(Box::new(not_connected(asked)));
        }
        match self.who(asked, rules, named, true).await? {
            Who::Known(present) => self.go_on(asked, rules, present, wish).await,
            Who::Nobody => match (&self.oidc, &self.passwords) {
                (Some(oidc), None) => self.to_provider(oidc, rules, &wish).await,
                _ => Ok(self.form(asked, &wish, StatusCode::OK, Form::default())),
            },
        }
    }

    async fn posted(&self, asked: &mut Asked<'_>, rules: &Rules) -> Result<Response<Bytes>, Instead> {
        if is_foreign(asked) {
            let text = "This form was sent from another site. Log in on the gateway's own page.";
            return Ok(page::note(StatusCode::FORBIDDEN, "Not logged in", text));
        }
        let body = asked.body(FORM).await.map_err(|error| {
            Box::new(page::note(
                StatusCode::BAD_REQUEST,
                "Not logged in",
                &format!("The form cannot be read: {error}."),
            ))
        })?;
        let fields = Fields::parse(&body);
        let wish = wish(&fields, rules)?;
        let typed = fields.get("user").unwrap_or_default().trim();
        let user = typed.get(..typed.floor_char_boundary(MAX_NAME)).unwrap_or_default();
        let again = |status, why| self.form(asked, &wish, status, Form { user, why: Some(why) });
        let nonce = cookies::read(&asked.head.headers, cookies::NONCE);
        if nonce.is_none_or(|nonce| fields.get("form") != Some(form_token(&nonce).as_str())) {
            let why = "This page was too old, or your browser does not keep cookies. Try again.";
            return Ok(again(StatusCode::FORBIDDEN, why));
        }
        let Some(passwords) = &self.passwords else {
            return Ok(again(StatusCode::FORBIDDEN, "Nobody logs in with a password here."));
        };
        let password = Zeroizing::new(fields.get("password").unwrap_or_default().as_bytes().to_vec());
        let client = asked.peer.client;
        match passwords.attempt(&rules.person(user), password, client).await {
            Tried::Right => {}
            Tried::Wrong => {
                return Ok(again(StatusCode::FORBIDDEN, "The user name or the password is not right."));
            }
            Tried::Wait(wait) => {
                let wait = wait + Duration::from_millis(1);
                let why = format!("Too many tries. Wait {} seconds, then try again.", page::seconds(wait));
                return Ok(page::after(again(StatusCode::TOO_MANY_REQUESTS, &why), wait));
            }
            Tried::Busy => {
                let why = "Too many people are logging in at the moment. Try again in some seconds.";
                return Ok(page::after(again(StatusCode::SERVICE_UNAVAILABLE, why), BUSY));
            }
        }
        self.logged_in(asked, rules, user, wish).await
    }

    /// Somebody was authenticated, by whatever means: a new session, in the place of the one that this browser had.
    async fn logged_in(
        &self,
        asked: &Asked<'_>,
        rules: &Rules,
        user: &str,
        wish: Wish,
    ) -> Result<Response<Bytes>, Instead> {
        self.end_former(asked, rules, user).await?;
        let present = self.begin_session(asked, rules, user).await;
        let present = present.map_err(|error| Box::new(begin_trouble(&error, true)))?;
        self.go_on(asked, rules, present, wish).await
    }

    /// Ends the session that this browser has on this host, since somebody logs in anew.
    pub(super) async fn end_former(
        &self,
        asked: &Asked<'_>,
        rules: &Rules,
        user: &str,
    ) -> Result<(), Instead> {
        let refused = |error| Box::new(trouble(&error, true));
        let former = self.present(&asked.head.headers, rules, asked.host).await.map_err(refused)?;
        let Some(former) = former else { return Ok(()) };
        let same = former.session.name == rules.person(user);
        self.end(&former, if same { Cause::Logout } else { Cause::ChangedUser }).await
    }

    async fn openid(
        &self,
        oidc: &Arc<Oidc>,
        asked: &mut Asked<'_>,
        rules: &Rules,
        path: &str,
    ) -> Result<Response<Bytes>, Instead> {
        match path {
            "/oidc/logout" => Ok(self.provider_says(Arc::clone(oidc), asked).await),
            // the provider knows one host to send people back to
            _ if asked.host != rules.login_host => Ok(nothing()),
            "/oidc/callback" => self.back_from_provider(oidc, asked, rules).await,
            _ => {
                let wish = wish(&Fields::parse(query(asked).as_bytes()), rules)?;
                self.to_provider(oidc, rules, &wish).await
            }
        }
    }

    /// Who is logged in on the login host goes where they wanted to.
    pub(super) async fn go_on(
        &self,
        asked: &Asked<'_>,
        rules: &Rules,
        present: Present,
        wish: Wish,
    ) -> Result<Response<Bytes>, Instead> {
        let there = match wish.further {
            None => rules.address(asked.host, &wish.to),
            Some(further) => match self.hand_over(rules, &present, further, wish.to).await {
                Ok(there) => there,
                // a session of which the browser does not hear would stay until it is idle
                Err(instead) => return Err(Box::new(page::with_cookies(*instead, present.cookies))),
            },
        };
        let forget =
            cookies::read(&asked.head.headers, cookies::NONCE).and_then(|_| cookies::delete(cookies::NONCE));
        Ok(page::with_cookies(page::redirect(&there), present.cookies.into_iter().chain(forget)))
    }

    /// Sends somebody without a session to the login page.
    pub(super) fn begin(&self, asked: &Asked<'_>, rules: &Rules, wish: &Wish) -> Response<Bytes> {
        let page = if asked.host == rules.login_host {
            page::redirect(&rules.address(asked.host, &format!("{RESERVED}/login?{}", wish.query())))
        } else {
            self.send_over(asked, rules, wish)
        };
        page::with_cookies(page, cookies::untangle(&asked.head.headers, cookies::TOKEN))
    }

    /// The page. Its form is bound to a nonce in a cookie, which no other site can read or set.
    fn form(&self, asked: &Asked<'_>, wish: &Wish, status: StatusCode, form: Form<'_>) -> Response<Bytes> {
        if self.passwords.is_none() {
            let text = "Nobody logs in with a password here. Come by way of your portal.";
            return page::note(StatusCode::FORBIDDEN, "Not logged in", text);
        }
        let (nonce, fresh) = match nonce(&asked.head.headers) {
            Ok(nonce) => nonce,
            Err(instead) => return *instead,
        };
        let why = form.why.map(|why| format!("<p role=\"alert\" id=\"why\">{}</p>\n", page::escape(why)));
        let described = if why.is_some() { " aria-describedby=\"why\" aria-invalid=\"true\"" } else { "" };
        let hidden: String = wish
            .fields()
            .into_iter()
            .chain([("form", form_token(&nonce))])
            .map(|(name, value)| page::hidden(name, &value))
            .collect();
        let provider = self.oidc.as_ref().map(|_| {
            let there = format!("{RESERVED}/oidc/begin?{}", wish.query());
            format!("\n<p><a href=\"{}\">Log in by your organisation's service</a></p>", page::escape(&there))
        });
        let main = format!(
            "{}<form method=\"post\" action=\"{RESERVED}/login\">\n{hidden}\
             <p><label for=\"user\">User name</label>\n\
             <input id=\"user\" name=\"user\" type=\"text\" value=\"{}\" autocomplete=\"username\" autocapitalize=\"none\" \
             spellcheck=\"false\" maxlength=\"{MAX_NAME}\" required{described}></p>\n\
             <p><label for=\"password\">Password</label>\n\
             <input id=\"password\" name=\"password\" type=\"password\" autocomplete=\"current-password\" \
             required{described}></p>\n\
             <p><button type=\"submit\">Log in</button></p>\n</form>{}",
            why.unwrap_or_default(),
            page::escape(form.user),
            provider.unwrap_or_default(),
        );
        page::with_cookies(page::page(status, "Log in", &main), fresh)
    }
}

/// The browser's nonce, and the cookie that sets it if it had none.
pub(super) fn nonce(headers: &HeaderMap) -> Result<(Token, Option<HeaderValue>), Instead> {
    if let Some(nonce) = cookies::read(headers, cookies::NONCE) {
        return Ok((nonce, None));
    }
    match Token::new() {
        Ok(nonce) => {
            let cookie = cookies::set(cookies::NONCE, &nonce);
            Ok((nonce, cookie))
        }
        Err(error) => {
            tracing::error!("nobody can log in: {error}");
            let text = "Nobody can log in at the moment: tell the administrator of this gateway.";
            Err(Box::new(page::note(StatusCode::INTERNAL_SERVER_ERROR, "Not available", text)))
        }
    }
}

/// What somebody wants, if it is one of our hosts that they want it of.
pub(super) fn wish(fields: &Fields, rules: &Rules) -> Result<Wish, Instead> {
    let mut wish = Wish::read(fields);
    if wish.to.split(['?', '#']).next().is_some_and(|path| rules.is_logout(path)) {
        // nobody logs in for that
        wish.to = "/".to_owned();
    }
    match &wish.further {
        Some(further) if further.host == rules.login_host => wish.further = None,
        Some(further) if !rules.has(&further.host) => {
            let text = "That host is not behind this gateway.";
            return Err(Box::new(page::note(StatusCode::BAD_REQUEST, "Not logged in", text)));
        }
        _ => {}
    }
    Ok(wish)
}

fn nothing() -> Response<Bytes> {
    page::note(StatusCode::NOT_FOUND, "Not found", "There is nothing here.")
}

fn not_connected(asked: &Asked<'_>) -> Response<Bytes> {
    let gone = crate::web::link::LinkError::Unavailable("the enforcer's daemon does not tell of ends".into());
    trouble(&gone, is_for_a_person(asked.head))
}

pub(super) fn query(asked: &Asked<'_>) -> String {
    asked.head.uri.query().unwrap_or_default().to_owned()
}

pub(super) fn not_allowed(methods: &'static str) -> Response<Bytes> {
    let mut response = page::plain(StatusCode::METHOD_NOT_ALLOWED, "The method is not allowed.");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// Whether the browser says that something was sent from another site, or host, than the one that it is for.
pub(super) fn is_foreign(asked: &Asked<'_>) -> bool {
    is_from_elsewhere(&asked.head.headers, asked.authority)
}

/// Browsers come by https, also where a server before us ends it and does not say so.
fn is_from_elsewhere(headers: &HeaderMap, authority: &str) -> bool {
    if let Some(site) = headers.get("sec-fetch-site")
        && site != "same-origin"
        && site != "none"
    {
        return true;
    }
    let ours = format!("https://{}", authority.strip_suffix(":443").unwrap_or(authority));
    headers.get_all(ORIGIN).iter().any(|origin| origin.as_bytes() != ours.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R3: what another site has sent is told by what browsers say of it; whose TLS a server before us has ended comes
    /// from here.
    #[test]
    fn r3_a_form_of_another_site_is_told() {
        let from = |fields: &[(&'static str, &str)], authority: &str| {
            let field = |(name, value): &(&'static str, &str)| {
                (hyper::header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            };
            is_from_elsewhere(&fields.iter().map(field).collect(), authority)
        };
        for (origin, authority) in [
            ("https://a.example", "a.example"),
            ("https://a.example", "a.example:443"),
            ("https://a.example:8443", "a.example:8443"),
        ] {
            assert!(!from(&[("origin", origin)], authority), "{origin} {authority}");
            assert!(!from(&[("origin", origin), ("sec-fetch-site", "same-origin")], authority));
            assert!(from(&[("origin", origin), ("sec-fetch-site", "same-site")], authority));
        }
        for (origin, authority) in [
            ("http://a.example", "a.example"),
            ("https://a.example:8443", "a.example"),
            ("https://a.example", "a.example:8443"),
            ("https://b.example", "a.example"),
            ("https://a.example.evil", "a.example"),
            ("null", "a.example"),
            ("", "a.example"),
        ] {
            assert!(from(&[("origin", origin)], authority), "{origin} {authority}");
        }
        assert!(from(&[("origin", "https://a.example"), ("origin", "https://b.example")], "a.example"));
        assert!(from(&[("sec-fetch-site", "cross-site")], "a.example"));
        assert!(!from(&[("sec-fetch-site", "none")], "a.example") && !from(&[], "a.example"));
    }
}
