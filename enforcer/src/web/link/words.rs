//! What the link speaks of.

use std::time::Duration;

use crate::control::api;
use crate::session::{WebDigest, WebKey};

use super::cache::Moment;

/// A web session, as one of its tokens shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// Its name before people and in the register of sockets. No secret.
    pub key: WebKey,
    /// As it was typed.
    pub user: String,
    pub realm: String,
    /// The user as the realm's case rule leaves it: two spellings of one person are equal.
    pub name: String,
    /// The host that this token is for.
    pub host: String,
    /// The session's secret, wrapped for this token.
    pub wrapped: Vec<u8>,
    /// Unix seconds.
    pub since: u64,
    /// Unix seconds: it ends then at the latest.
    pub until: u64,
    /// It ends when it was not used for so long.
    pub idle: Duration,
}

impl std::fmt::Debug for Session {
    /// Without the wrapped secret: debug texts are logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("key", &self.key)
            .field("user", &self.user)
            .field("realm", &self.realm)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// What a session is made of.
#[derive(Clone)]
pub struct NewSession {
    /// As it was typed: 1 to 256 bytes.
    pub user: String,
    /// Empty: `default`.
    pub realm: String,
    /// At most 255 bytes.
    pub host: String,
    /// SHA-256 of the token.
    pub digest: WebDigest,
    /// 1 to 512 bytes.
    pub wrapped: Vec<u8>,
    /// The client's address: at most 64 bytes.
    pub peer: String,
    /// The browser's own word; cut off at 256 bytes.
    pub agent: String,
    /// Whole seconds count: 10 s to 366 days, both.
    pub idle: Duration,
    pub lasts: Duration,
}

impl NewSession {
    pub(super) fn request(self) -> api::WebCreate {
        api::WebCreate {
            user: self.user,
            realm: self.realm,
            host: self.host,
            digest: self.digest.as_bytes().to_vec(),
            wrapped: self.wrapped,
            peer: self.peer,
            agent: self.agent,
            idle_seconds: self.idle.as_secs(),
            for_seconds: self.lasts.as_secs(),
        }
    }
}

/// Why a session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Logout,
    /// Another person came with its token.
    ChangedUser,
    /// The identity provider said so.
    BackChannel,
    /// It was not used for its idle time.
    Idle,
    /// It was as old as it may become.
    Over,
    /// A revocation or a lock. The gateway itself can end none for that.
    Revoked,
    /// It was not alive any more when the daemon was reached again.
    Missed,
}

impl Cause {
    pub(super) fn api(self) -> api::WebCause {
        match self {
            Self::Logout => api::WebCause::Logout,
            Self::ChangedUser => api::WebCause::ChangedUser,
            Self::BackChannel => api::WebCause::BackChannel,
            Self::Idle => api::WebCause::Idle,
            Self::Over => api::WebCause::Over,
            Self::Revoked => api::WebCause::Revoked,
            Self::Missed => api::WebCause::Unspecified,
        }
    }

    pub(super) fn of(cause: api::WebCause) -> Self {
        match cause {
            api::WebCause::Logout => Self::Logout,
            api::WebCause::ChangedUser => Self::ChangedUser,
            api::WebCause::BackChannel => Self::BackChannel,
            api::WebCause::Idle => Self::Idle,
            api::WebCause::Over => Self::Over,
            api::WebCause::Revoked => Self::Revoked,
            api::WebCause::Unspecified => Self::Missed,
        }
    }
}

/// Why it was not done. The texts are for the log, not for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The daemon is not there, or does not tell of ends: nobody gets in.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Locked(String),
    #[error("{0}")]
    Full(String),
    #[error("no such web session, or it is over")]
    Gone,
    #[error("that token is a session's already")]
    Taken,
    #[error("{0}")]
    Bad(String),
    /// The session is over, and would be there again after a restart of the daemon.
    #[error("{0}")]
    Unwritten(String),
}

/// The daemon's word for a session, and how old it is.
pub(super) fn session(alive: api::WebAlive) -> Result<(Session, Moment), LinkError> {
    let odd =
        || LinkError::Unavailable("the daemon's answer is not understood: is it of another version?".into());
    let key = <[u8; 16]>::try_from(alive.key.as_slice()).map(WebKey::from_bytes).map_err(|_| odd())?;
    let moment = alive.moment.ok_or_else(odd)?;
    let session = Session {
        key,
        user: alive.user,
        realm: alive.realm,
        name: alive.name,
        host: alive.host,
        wrapped: alive.wrapped,
        since: alive.since,
        until: alive.until,
        idle: Duration::from_secs(alive.idle_seconds),
    };
    Ok((session, Moment { run: moment.run, ends: moment.ends }))
}
