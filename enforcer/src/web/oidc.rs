//! OpenID Connect: who somebody is, as an identity provider says it, and that his session there is over.
//!
//! ```text
//! browser                  gateway                                      provider
//!    | GET /app               |                                             |
//!    |<-- redirect, cookie ---| begin: state, nonce, PKCE; stored nowhere    |
//!    |------------------------- logs in there ---------------------------->|
//!    |<------------------------ redirect: code, state ---------------------|
//!    | callback, cookie ----->| finish: code and verifier ---------------->|
//!    |                        |<---------------------------- ID token ------|
//!    |                        | register: whose this session is, on the disk |
//!    |<-- session ------------|                                             |
//!    |                        |<---------- logout token (back channel) -----|
//!    |                        | backchannel: which sessions end             |
//! ```
//!
//! The authorization code flow with PKCE (S256), with the client's secret. An ID token is believed after all checks of
//! OpenID Connect Core 3.1.3.7; a logout token after those of Back-Channel Logout 1.0, 2.6. Everything that is asked of
//! the provider goes over TLS and is bounded in bytes and time. Where the provider cannot be asked nobody logs in.
//!
//! **A login is a fresh one** unless [`Settings::single_sign_on`] says otherwise: the provider has its own session in the
//! same browser, and would let the next person at it in as the former one.
//!
//! # How it is meant to be used
//!
//! ```text
//! let oidc = Oidc::new(settings, &state.join("oidc-sessions"))?;
//!
//! let begun = oidc.begin("https://HOST/.enforcer/oidc/callback", target).await?;   // at HOST itself
//! // 303 to begun.location, with begun.set_cookie
//!
//! let login = oidc.finish(query, cookie).await?;                      // answer with forget_cookie(), whatever comes
//! // a fresh token, Link::create for login.user: a session with a key
//! oidc.register(key, &login, until).await?;                           // an error: end that session, give no cookie
//! // the cookie, and a redirect to login.target
//!
//! let out = oidc.backchannel(&body).await;                            // POST from the provider
//! // Link::end_key for each of out.sessions with Cause::BackChannel; if one fails: oidc.again(&out), failed()
//! // answer with done(), or refused(&error)
//!
//! oidc.forget(&key);                                                  // at every end, for whatever reason
//! ```

mod answers;
mod back;
mod error;
mod exchange;
mod fetch;
#[cfg(test)]
mod forge;
mod id_token;
mod jws;
mod keys;
mod logout_token;
mod metadata;
mod pending;
mod provider;
mod sessions;
mod settings;
mod token;
mod user;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::HeaderValue;
use ring::digest::{SHA256, digest};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::session::WebKey;

use back::Back;
use exchange::Tokens;
use fetch::Fetch;
use id_token::{IdToken, Wanted};
use jws::Jws;
use logout_token::LogoutToken;
use pending::{Keeper, Pending};
use provider::{Known, Provider};
use sessions::{AddError, Refused, Sessions, Whose};
use settings::Secret;
use token::Parties;

pub use answers::{done, failed, refused};
pub use error::OidcError;
pub use jws::Algorithm;
pub use metadata::algorithms;
pub use pending::{COOKIE, MAX_TARGET, PATIENCE, forget_cookie};
pub use sessions::{Bounds, By, LoggedOut, SessionsError};
pub use settings::{SecretBy, Settings};
pub use token::TokenError;

/// Bytes of a logout token's form: what a gateway reads of such a request at the most.
pub const MAX_FORM: usize = jws::MAX_TOKEN + 1024;
/// How many logins are finished at once.
const LOGINS: usize = 64;

/// One provider.
pub struct Oidc {
    settings: Settings,
    secret: RwLock<Secret>,
    fetch: Fetch,
    provider: Provider,
    keeper: Keeper,
    sessions: Arc<Sessions>,
    logins: Semaphore,
}

/// A login that was begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Where the browser has to go: a URL of the provider.
    pub location: String,
    /// `Set-Cookie`, for the host that the provider sends back to.
    pub set_cookie: HeaderValue,
}

/// Somebody who has logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Checked as every user's name.
    pub user: String,
    /// Who that is at the provider, for ever.
    pub subject: String,
    /// The provider's session, where it names it.
    pub sid: Option<String>,
    pub issuer: String,
    /// When the token was issued: unix seconds, by the provider's clock.
    pub issued: u64,
    /// What was asked for at first, as it was given to [`Oidc::begin`].
    pub target: String,
}

impl Oidc {
    /// Reads the secret, the roots and the file of sessions (made where there is none). The provider is not asked yet.
    ///
    /// # Errors
    /// [`OidcError::Settings`], [`OidcError::Sessions`], [`OidcError::System`]
    pub fn new(settings: Settings, sessions: &Path) -> Result<Self, OidcError> {
        Self::with_bounds(settings, sessions, Bounds::default())
    }

    /// # Errors
    /// As [`Oidc::new`].
    pub fn with_bounds(settings: Settings, sessions: &Path, bounds: Bounds) -> Result<Self, OidcError> {
        settings.check()?;
        Ok(Self {
            secret: RwLock::new(Secret::read(&settings.secret_file)?),
            fetch: Fetch::new(settings.roots.as_deref())?,
            provider: Provider::new(&settings)?,
            keeper: Keeper::new()?,
            sessions: Arc::new(Sessions::open(sessions, bounds, now()?)?),
            logins: Semaphore::new(LOGINS),
            settings,
        })
    }

    /// Reads the secret again. With an error the old one stays.
    ///
    /// # Errors
    /// [`OidcError::Settings`]
    pub fn reload_secret(&self) -> Result<(), OidcError> {
        let secret = Secret::read(&self.settings.secret_file)?;
        *self.secret.write().unwrap_or_else(PoisonError::into_inner) = secret;
        Ok(())
    }

    /// Begins a login.
    ///
    /// `redirect`: where the provider sends the browser back to, as the provider knows it: an https URL on the host that the
    /// browser asked, since the cookie is of that host. `target`: what was asked for, up to [`MAX_TARGET`] characters
    /// as they stand in a URL; it comes back in [`Login::target`] unchanged.
    ///
    /// # Errors
    /// [`OidcError::Begin`], [`OidcError::Provider`], [`OidcError::System`]
    pub async fn begin(&self, redirect: &str, target: &str) -> Result<Begun, OidcError> {
        let known = self.known().await?;
        let pending = Pending::new(redirect, target, now()?)?;
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, pending.verifier.as_bytes()));
        let scope = self.settings.scope();
        let mut parameters = vec![
            ("response_type", "code"),
            ("client_id", &self.settings.client_id),
            ("redirect_uri", redirect),
            ("scope", &scope),
            ("state", &pending.state),
            ("nonce", &pending.nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        if !self.settings.single_sign_on {
            // the second one makes the provider say when the user has logged in
            parameters.extend([("prompt", "login"), ("max_age", "0")]);
        }
        let location = known.metadata.authorization.with(parameters);
        let set_cookie = pending::set_cookie(&self.keeper.seal(&pending)?)?;
        Ok(Begun { location, set_cookie })
    }

    /// Finishes a login.
    ///
    /// `query`: what stands behind the `?` of the URL that the provider sent the browser back to. `cookie`: the value of
    /// [`COOKIE`], if the browser has sent it.
    ///
    /// # Errors
    /// [`OidcError`]: nobody has logged in.
    pub async fn finish(&self, query: &str, cookie: Option<&[u8]>) -> Result<Login, OidcError> {
        let cookie = cookie.ok_or_else(|| OidcError::Again("the browser has no cookie of it".into()))?;
        let pending = self.keeper.open(cookie, now()?)?;
        let back = Back::read(query)?;
        if !pending.is_state(&back.state) {
            return Err(OidcError::Again("another login of this browser was begun after it (state)".into()));
        }
        // from here on the provider is asked
        let Ok(_place) = self.logins.try_acquire() else {
            return Err(OidcError::Busy(format!(
                "{LOGINS} logins are being finished at once: one more has to wait"
            )));
        };
        let known = self.known().await?;
        let code = back.code(&self.settings.issuer, known.metadata.names_itself)?;
        let secret = self.secret.read().unwrap_or_else(PoisonError::into_inner).clone();
        let client = (self.settings.client_id.as_str(), &secret);
        let tokens = exchange::redeem(&self.fetch, &known.metadata, client, &code, &pending).await?;
        let token = self.id_token(&known, &tokens.id_token, &pending).await?;
        let user = self.user(&known, &tokens, &token).await?;
        Ok(Login {
            user,
            subject: token.sub,
            sid: token.sid,
            issuer: self.settings.issuer.clone(),
            issued: token.issued,
            target: pending.target.clone(),
        })
    }

    /// Keeps whose a session is, so that the provider can end it. It is on the disk when this returns, and the session may
    /// be given to the browser only then.
    ///
    /// `until`: unix seconds, when the session ends at the latest.
    ///
    /// # Errors
    /// [`OidcError::Ended`]: the provider has ended it meanwhile. [`OidcError::Busy`]: too many sessions.
    /// [`OidcError::Sessions`]: it cannot be written. The session has to be ended then.
    pub async fn register(&self, key: WebKey, login: &Login, until: u64) -> Result<(), OidcError> {
        let (sessions, login, now) = (Arc::clone(&self.sessions), login.clone(), now()?);
        let added = tokio::task::spawn_blocking(move || {
            let Login { issuer, subject, sid, issued, .. } = &login;
            let whose = Whose { issuer, sub: subject, sid: sid.as_deref(), issued: *issued, until };
            sessions.add(key, &whose, now)
        });
        match added.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(AddError::Refused(Refused::Ended))) => Err(OidcError::Ended),
            Ok(Err(AddError::Refused(_))) => Err(OidcError::Busy(format!(
                "of {} sessions is known whose they are at the identity provider: there is no room for one more",
                self.sessions.len()
            ))),
            Ok(Err(AddError::File(error))) => Err(error.into()),
            Err(error) => Err(OidcError::System(format!("whose a session is was not written: {error}"))),
        }
    }

    /// A session is over, for whatever reason. Also for sessions that are not the provider's. It does not wait.
    pub fn forget(&self, key: &WebKey) {
        self.sessions.forget(key);
    }

    /// Which sessions a logout token ends.
    ///
    /// `form`: the request's body, `application/x-www-form-urlencoded`, at most [`MAX_FORM`] bytes.
    ///
    /// # Errors
    /// [`OidcError`]: nothing ends. To be answered by [`refused`].
    pub async fn backchannel(&self, form: &[u8]) -> Result<LoggedOut, OidcError> {
        let wrong = |why| OidcError::Token { what: "logout token", why };
        let mut tokens = form_urlencoded::parse(form).filter(|(name, _)| name == "logout_token");
        let token = match (form.len() <= MAX_FORM, tokens.next(), tokens.next()) {
            (true, Some((_, token)), None) => token,
            _ => return Err(wrong(TokenError::Form)),
        };
        // before anybody is asked for keys
        let token = Jws::parse(&token, &self.settings.algorithms).map_err(wrong)?;
        let known = self.known().await?;
        let payload = self.verified(&known, &token, "logout token").await?;
        let now = now()?;
        let said = LogoutToken::check(&payload, token.typ.as_deref(), self.parties(now)).map_err(wrong)?;
        self.sessions.logout(&self.settings.issuer, &said, now).map_err(|refused| match refused {
            Refused::Seen => wrong(TokenError::Seen),
            Refused::Nobody => wrong(TokenError::Nobody),
            Refused::TooMany | Refused::Full | Refused::Ended => {
                OidcError::Busy("the identity provider tells of more ends than can be remembered".into())
            }
        })
    }

    /// Not everything of this could be ended: the provider is told so, and may send the same token again.
    pub fn again(&self, out: &LoggedOut) {
        self.sessions.again(out);
    }

    /// Where the browser can be sent so that the user's session at the provider ends as well; the provider may ask whether
    /// that is wanted. `None`: it has no such place.
    ///
    /// `back`: where the provider sends the browser then, an URL that it knows (`post_logout_redirect_uris`).
    ///
    /// # Errors
    /// [`OidcError::Provider`]
    pub async fn end_session(&self, back: Option<&str>) -> Result<Option<String>, OidcError> {
        let known = self.known().await?;
        let Some(place) = &known.metadata.end_session else { return Ok(None) };
        let client = ("client_id", self.settings.client_id.as_str());
        let back = back.map(|back| ("post_logout_redirect_uri", back));
        Ok(Some(place.with(std::iter::once(client).chain(back))))
    }

    /// Of how many sessions is known whose they are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    async fn known(&self) -> Result<Arc<Known>, OidcError> {
        self.provider.known(&self.fetch, &self.settings).await
    }

    fn parties(&self, now: u64) -> Parties<'_> {
        Parties { issuer: &self.settings.issuer, client_id: &self.settings.client_id, now }
    }

    /// What a token says, once a key of the provider's has signed it; newer keys are asked for where none has it.
    async fn verified(
        &self,
        known: &Arc<Known>,
        token: &Jws<'_>,
        what: &'static str,
    ) -> Result<Vec<u8>, OidcError> {
        let wrong = |why| OidcError::Token { what, why };
        match token.verify(&known.keys) {
            Err(TokenError::UnknownKey) => {}
            verdict => return verdict.map(<[u8]>::to_vec).map_err(wrong),
        }
        match self.provider.newer(known, &self.fetch, &self.settings).await? {
            Some(newer) => token.verify(&newer.keys).map(<[u8]>::to_vec).map_err(wrong),
            None => Err(wrong(TokenError::UnknownKey)),
        }
    }

    async fn id_token(
        &self,
        known: &Arc<Known>,
        text: &str,
        pending: &Pending,
    ) -> Result<IdToken, OidcError> {
        let wrong = |why| OidcError::Token { what: "ID token", why };
        let token = Jws::parse(text, &self.settings.algorithms).map_err(wrong)?;
        let payload = self.verified(known, &token, "ID token").await?;
        let wanted = Wanted {
            parties: self.parties(now()?),
            nonce: &pending.nonce,
            begun: pending.begun,
            fresh: !self.settings.single_sign_on,
        };
        IdToken::check(&payload, token.typ.as_deref(), wanted).map_err(wrong)
    }

    /// The name of whom the token is of. Where the claim is not in it, the provider is asked for more.
    async fn user(&self, known: &Known, tokens: &Tokens, token: &IdToken) -> Result<String, OidcError> {
        let configured = self.settings.user_claim.as_deref();
        let mut claims = token.claims.clone();
        claims.retain(|_, value| !value.is_null());
        claims.insert("sub".into(), Value::String(token.sub.clone()));
        let is_there = claims.contains_key(user::claim(configured));
        if let (false, Some(url)) = (is_there, &known.metadata.userinfo) {
            for (name, value) in exchange::more(&self.fetch, url, tokens, &token.sub).await? {
                claims.entry(name).or_insert(value);
            }
        }
        user::name(configured, &claims).map_err(OidcError::Name)
    }
}

/// Unix seconds.
fn now() -> Result<u64, OidcError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map(|now| now.as_secs()).map_err(|_| OidcError::System("the clock is before 1970".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway's requests move between threads: what does not is found here, not there.
    #[test]
    fn what_waits_for_the_provider_can_move_to_another_thread() {
        fn can_move<T: Send>(_: T) {}
        let _asks = |oidc: &Oidc, login: &Login| {
            can_move(oidc.begin("", ""));
            can_move(oidc.finish("", None));
            can_move(oidc.register(WebKey::from_bytes([0; 16]), login, 0));
            can_move(oidc.backchannel(b""));
            can_move(oidc.end_session(None));
        };
    }
}
