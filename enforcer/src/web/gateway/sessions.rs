//! Whose request it is; how a session begins, and how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::http::{Response, StatusCode};

use crate::session::{WebDigest, WebKey};
use crate::web::link::{Cause, LinkError, NewSession, Session};
use crate::web::proxy::Asked;
use crate::web::seal::{SealError, SealingSecret, Token, UnwrapError, Wrapped};

use super::guard::{Gateway, Instead, agent, is_for_a_person};
use super::held::Held;
use super::rules::{Named, Rules};
use super::{cookies, page};

/// A session, and the token that this host has of it.
pub(super) struct Present {
    pub(super) session: Arc<Session>,
    pub(super) token: Token,
    pub(super) digest: WebDigest,
    /// What the browser has to be given of it.
    pub(super) cookies: Vec<HeaderValue>,
}

pub(super) enum Who {
    Known(Present),
    Nobody,
}

/// Why there is no session for somebody who was authenticated.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the token cannot be written as a cookie")]
    Cookie,
}

/// What a wrapped secret is bound to beside its token, master key and host. The session's own key is the daemon's to
/// give, and comes with its answer only; the token's digest is as unique, and known before.
fn bound_to(digest: &WebDigest) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    bytes
}

impl Gateway {
    /// The session of the token that the request brings, if it is alive, and this host's; and not one that the identity
    /// provider has ended and the daemon could not be told of yet.
    pub(super) async fn present(
        &self,
        headers: &HeaderMap,
        rules: &Rules,
        host: &str,
    ) -> Result<Option<Present>, LinkError> {
        let Some(token) = cookies::read(headers, cookies::TOKEN) else { return Ok(None) };
        let digest = WebDigest::from_bytes(token.digest());
        let session = self.link.check(&digest).await?;
        let has_ended = |key: &WebKey| self.oidc.as_ref().is_some_and(|oidc| oidc.has_ended(key));
        Ok(session
            .filter(|session| {
                session.host == host && session.realm == rules.realm && !has_ended(&session.key)
            })
            .map(|session| Present { session, token, digest, cookies: Vec::new() }))
    }

    /// The same; and where a server before the gateway names the user, it counts: for another user's session it ends
    /// that, and it makes one where there is none.
    ///
    /// `here`: one is to be made on this host in any case, also if the browser could be sent to the login host.
    pub(super) async fn who(
        &self,
        asked: &Asked<'_>,
        rules: &Rules,
        named: &Named,
        here: bool,
    ) -> Result<Who, Instead> {
        let for_a_person = is_for_a_person(asked.head);
        let refused = |error: LinkError| Box::new(trouble(&error, for_a_person));
        let present = self.present(&asked.head.headers, rules, asked.host).await.map_err(refused)?;
        let user = match named {
            Named::Unsaid => return Ok(present.map_or(Who::Nobody, Who::Known)),
            Named::User(user) => user,
            Named::Nobody => {
                let text = "The server before the gateway has not said who you are.";
                return Err(Box::new(note(for_a_person, StatusCode::FORBIDDEN, "Not logged in", text)));
            }
        };
        if let Some(present) = present {
            if present.session.name == rules.person(user) {
                return Ok(Who::Known(present));
            }
            tracing::info!(
                session = %present.session.key,
                "another user came with the token of a session: the session is ended"
            );
            self.end(&present, Cause::ChangedUser).await?;
        }
        // one session over all hosts: a browser goes by way of the login host
        if !here && for_a_person && asked.host != rules.login_host {
            return Ok(Who::Nobody);
        }
        match self.begin_session(asked, rules, user).await {
            Ok(present) => Ok(Who::Known(present)),
            Err(error) => Err(Box::new(begin_trouble(&error, for_a_person))),
        }
    }

    /// A new session for somebody who was authenticated, with a new token, on the host that was asked.
    pub(super) async fn begin_session(
        &self,
        asked: &Asked<'_>,
        rules: &Rules,
        user: &str,
    ) -> Result<Present, BeginError> {
        let (token, secret) = (Token::new()?, SealingSecret::new()?);
        let digest = WebDigest::from_bytes(token.digest());
        let cookie = cookies::set(cookies::TOKEN, &token).ok_or(BeginError::Cookie)?;
        let wrapped = self.keys().wrap(&secret, &token, &bound_to(&digest), asked.host)?;
        let new = NewSession {
            user: user.to_owned(),
            realm: rules.realm.clone(),
            host: asked.host.to_owned(),
            digest,
            wrapped: wrapped.bytes().to_vec(),
            peer: asked.peer.client.to_string(),
            agent: agent(asked.head),
            idle: rules.idle,
            lasts: rules.lasts,
        };
        let session = self.link.create(new).await?;
        self.hold(&session, Held::new(secret)?);
        tracing::info!(session = %session.key, user = ?session.user, client = %asked.peer.client, "a session begins");
        Ok(Present { session, token, digest, cookies: vec![cookie] })
    }

    /// A token of that session on the host that was asked.
    pub(super) async fn add_host(
        &self,
        asked: &Asked<'_>,
        known: &WebDigest,
        held: &Held,
    ) -> Result<HeaderValue, BeginError> {
        let token = Token::new()?;
        let digest = WebDigest::from_bytes(token.digest());
        let cookie = cookies::set(cookies::TOKEN, &token).ok_or(BeginError::Cookie)?;
        let wrapped = self.keys().wrap(&held.secret, &token, &bound_to(&digest), asked.host)?;
        self.link.add_token(known, asked.host, &digest, wrapped.bytes().to_vec()).await?;
        Ok(cookie)
    }

    /// What sealing needs of a session: as it is held, or opened with its token.
    pub(super) async fn held(&self, present: &Present) -> Result<Arc<Held>, UnwrapError> {
        let session = &present.session;
        let wrapped = Wrapped::read(&session.wrapped).ok_or(UnwrapError::Refused)?;
        let held = self.secrets.get(&session.key);
        if let Some(held) = &held
            && wrapped.key() >= self.newest.load(Ordering::Relaxed)
        {
            return Ok(Arc::clone(held));
        }
        let keys = self.keys();
        let opened = match keys.unwrap(&wrapped, &present.token, &bound_to(&present.digest), &session.host) {
            Ok(opened) => opened,
            // its master key is gone while the session goes on: wrapped anew, it outlives that
            Err(UnwrapError::UnknownKey(_)) if held.is_some() => {
                let held = held.ok_or(UnwrapError::Refused)?;
                let anew = keys.wrap(&held.secret, &present.token, &bound_to(&present.digest), &session.host);
                self.rewrap(present, anew).await;
                return Ok(held);
            }
            Err(error) => return Err(error),
        };
        if let Some(anew) = opened.rewrapped {
            self.rewrap(present, anew).await;
        }
        match held {
            Some(held) => Ok(held),
            None => {
                let fresh = Held::new(opened.secret).map_err(|_| UnwrapError::Refused)?;
                Ok(self.hold(session, fresh))
            }
        }
    }

    async fn rewrap(&self, present: &Present, anew: Result<Wrapped, SealError>) {
        let kept = match anew {
            Ok(anew) => {
                let kept = self.link.rewrap(&present.digest, anew.bytes().to_vec()).await;
                kept.map(drop).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = kept {
            tracing::warn!(session = %present.session.key, "its secret is not wrapped under the new key yet: {error}");
        }
    }

    fn hold(&self, session: &Session, fresh: Arc<Held>) -> Arc<Held> {
        let held = self.secrets.put(session.key, fresh);
        // its end may have been heard meanwhile
        if !self.link.is_alive(&session.key) {
            self.secrets.forget(&session.key);
        }
        held
    }

    /// Ends a session, here and everywhere. `Err`: that cannot be said.
    pub(super) async fn end(&self, present: &Present, cause: Cause) -> Result<(), Instead> {
        match self.link.end(&present.digest, cause).await {
            Ok(()) | Err(LinkError::Gone) => Ok(()),
            // it is over now; the daemon goes on trying to write it
            Err(LinkError::Unwritten(why)) => {
                tracing::error!(session = %present.session.key, "the end of a session is not on the disk yet: {why}");
                Ok(())
            }
            Err(error) => Err(Box::new(trouble(&error, true))),
        }
    }
}

fn note(for_a_person: bool, status: StatusCode, title: &str, text: &str) -> Response<Bytes> {
    if for_a_person { page::note(status, title, text) } else { page::plain(status, text) }
}

/// How long somebody should wait until the daemon may be there again.
const SOON: std::time::Duration = std::time::Duration::from_secs(5);

/// What is told where the daemon could not be asked. The error's own text is for the log.
pub(super) fn trouble(error: &LinkError, for_a_person: bool) -> Response<Bytes> {
    // with every request: that the daemon is gone is said once, by the link
    tracing::debug!("a request could not be judged: {error}");
    let text = "Whether you are logged in cannot be told at the moment, so nobody is let in. Try again in a moment; if it \
                stays so, tell the administrator of this gateway.";
    page::after(note(for_a_person, StatusCode::SERVICE_UNAVAILABLE, "Not available", text), SOON)
}

/// What somebody is told who was authenticated, and has no session for all that.
pub(super) fn begin_trouble(error: &BeginError, for_a_person: bool) -> Response<Bytes> {
    let link = match error {
        BeginError::Link(error) => error,
        BeginError::Seal(_) | BeginError::Cookie => {
            tracing::error!("no session could be made: {error}");
            let text = "No session could be made: tell the administrator of this gateway.";
            return note(for_a_person, StatusCode::INTERNAL_SERVER_ERROR, "No session", text);
        }
    };
    match link {
        LinkError::Locked(why) => {
            tracing::info!("a login of somebody who is locked: {why}");
            let text = "Your account is locked. Ask the administrator of this gateway.";
            note(for_a_person, StatusCode::FORBIDDEN, "Locked", text)
        }
        LinkError::Gone => {
            let text = "Your session has ended meanwhile. Log in again.";
            note(for_a_person, StatusCode::FORBIDDEN, "Logged out", text)
        }
        LinkError::Full(why) => {
            tracing::warn!("a login is refused: {why}");
            let text = "There are too many sessions, of yours or in all. Log out where you do not need them, or try again \
                        later.";
            page::after(note(for_a_person, StatusCode::SERVICE_UNAVAILABLE, "Too many sessions", text), SOON)
        }
        LinkError::Bad(why) => {
            tracing::warn!("a login is refused: {why}");
            let text = "No session can be made for this name: tell the administrator of this gateway.";
            note(for_a_person, StatusCode::FORBIDDEN, "No session", text)
        }
        other => trouble(other, for_a_person),
    }
}
