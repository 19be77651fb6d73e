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
//! // oidc.ended(&out).await: answer with done(), otherwise oidc.again(&out) and failed(); or with refused(&error)
//!
//! // meanwhile, and for as long as the gateway runs: one task that ends what the provider has ended
//! for key in oidc.to_end() { … oidc.over(&key) }                      // Link::end_key with Cause::BackChannel
//! oidc.not_ended(keys).await;                                         // those that could not be: again in a second
//! oidc.wanted().await;
//!
//! oidc.has_ended(&key)                                                // is to be asked before a session is served
//! oidc.forget(&key);                                                  // at every end that is heard of
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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
pub use sessions::{Bounds, By, LoggedOut};
pub use settings::{SecretBy, Settings};
pub use token::TokenError;

/// Bytes of a logout token's form: what a gateway reads of such a request at the most.
pub const MAX_FORM: usize = jws::MAX_TOKEN + 1024;
/// How many logins are finished at once.
const LOGINS: usize = 64;
/// How many logout tokens are checked at once.
const CHECKS: usize = 256;
/// How long the provider waits for an end at the most, before it is told that it was not done.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// One provider.
pub struct Oidc {
    settings: Settings,
    secret: RwLock<Secret>,
    fetch: Fetch,
    provider: Provider,
    keeper: Keeper,
    sessions: Arc<Sessions>,
    logins: Semaphore,
    checks: Semaphore,
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
            checks: Semaphore::new(CHECKS),
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

    /// A session is heard to be over, for whatever reason. Also for sessions that are not the provider's. It does not wait.
    pub fn forget(&self, key: &WebKey) {
        self.sessions.forget(key);
    }

    /// One that was to be ended is over for good.
    pub fn over(&self, key: &WebKey) {
        self.sessions.over(key);
    }

    /// Which sessions a logout token ends: from now on they are among those that are to be ended ([`Oidc::to_end`]),
    /// whether or not anybody waits for it.
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
        let Ok(_place) = self.checks.try_acquire() else {
            return Err(OidcError::Busy(format!("{CHECKS} logout tokens are being checked at once")));
        };
        let known = self.provider.known_for_an_end(&self.fetch, &self.settings).await?;
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

    /// Waits until all of this has ended, or could not be: whether it has. What has not goes on to be tried.
    pub async fn ended(&self, out: &LoggedOut) -> bool {
        let settled = self.sessions.endings().settled(&out.sessions);
        tokio::time::timeout(ENDED_WITHIN, settled).await.unwrap_or(false)
    }

    /// Whether the provider has ended this session, which may still be known elsewhere: nothing of it may be served.
    pub fn has_ended(&self, key: &WebKey) -> bool {
        self.sessions.endings().has(key)
    }

    /// What the provider has ended and is not known to be over for good: to be ended, and told to [`Oidc::over`] then.
    pub fn to_end(&self) -> Vec<WebKey> {
        self.sessions.endings().all()
    }

    /// Those of these that could not be ended just now, and not before.
    pub fn fresh(&self, keys: &[WebKey]) -> Vec<WebKey> {
        self.sessions.endings().fresh(keys)
    }

    /// Waits until there is more of it.
    pub async fn wanted(&self) {
        self.sessions.endings().wanted().await;
    }

    /// These could not be ended, and are to be tried again: that is on the disk when this returns.
    ///
    /// # Errors
    /// [`OidcError::Sessions`], [`OidcError::System`]: a restart of the gateway would forget it. Until then it does not.
    pub async fn not_ended(&self, keys: Vec<WebKey>) -> Result<(), OidcError> {
        let (sessions, now) = (Arc::clone(&self.sessions), now()?);
        let kept = tokio::task::spawn_blocking(move || sessions.keep_endings(&keys, now)).await;
        kept.map_err(|error| OidcError::System(format!("an end was not written: {error}")))?
            .map_err(OidcError::from)
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
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::forge::{Signer, keys};
    use super::metadata::Metadata;
    use super::*;

    /// R2: an end is not lost because the provider cannot be asked for its keys just now: those of this day count for it.
    /// Nobody logs in with them.
    #[tokio::test]
    async fn r2_an_end_counts_while_the_provider_cannot_be_asked() {
        const ISSUER: &str = "https://127.0.0.1:1";
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let settings = Settings::new(ISSUER, "gateway", secret);
        let oidc = Oidc::new(settings.clone(), &folder.path().join("sessions")).unwrap();
        let now = now().unwrap();
        let key = WebKey::from_bytes([1; 16]);
        let login = Login {
            user: "alice".into(),
            subject: "s1".into(),
            sid: None,
            issuer: ISSUER.into(),
            issued: now - 5,
            target: "/".into(),
        };
        oidc.register(key, &login, now + 3600).await.unwrap();
        let signer = Signer::new(Algorithm::Es256);
        let document = json!({
            "issuer": ISSUER, "authorization_endpoint": "https://127.0.0.1:1/a", "token_endpoint": "https://127.0.0.1:1/t",
            "jwks_uri": "https://127.0.0.1:1/k",
        });
        let known = |hours: u64| {
            let metadata = Metadata::parse(document.to_string().as_bytes(), &settings).unwrap();
            let ago = Duration::from_secs(hours * 3600);
            oidc.provider.has_known(metadata, keys(&[signer.jwk(json!({"kid": "k"}))]), ago);
        };
        let token = |jti: &str| {
            let claims = json!({
                "iss": ISSUER, "aud": "gateway", "sub": "s1", "iat": now, "exp": now + 60, "jti": jti,
                "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
            });
            let header = json!({"alg": "ES256", "kid": "k"});
            let token = signer.sign(&header, claims.to_string().as_bytes(), Algorithm::Es256);
            format!("logout_token={token}")
        };
        known(25);
        let refused = oidc.backchannel(token("1").as_bytes()).await;
        assert!(matches!(refused, Err(OidcError::Provider(_))), "{refused:?}");
        assert!(!oidc.has_ended(&key));
        known(23);
        assert_eq!(oidc.backchannel(token("1").as_bytes()).await.unwrap().sessions, [key]);
        assert!(oidc.has_ended(&key));
        assert!(matches!(oidc.begin("https://a/", "/").await, Err(OidcError::Provider(_))));
    }

    /// A gateway's requests move between threads: what does not is found here, not there.
    #[test]
    fn what_waits_for_the_provider_can_move_to_another_thread() {
        fn can_move<T: Send>(_: T) {}
        let _asks = |oidc: &Oidc, login: &Login| {
            can_move(oidc.begin("", ""));
            can_move(oidc.finish("", None));
            can_move(oidc.register(WebKey::from_bytes([0; 16]), login, 0));
            can_move(oidc.backchannel(b""));
            can_move(oidc.not_ended(Vec::new()));
            can_move(oidc.wanted());
            can_move(oidc.end_session(None));
        };
    }
}
