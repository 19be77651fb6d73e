//! What a token says, checked: of ID tokens and of logout tokens what both have. Pure: the time comes in.

use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::settings::shown;

/// By how many seconds the provider's clock may be ahead of ours, or behind.
pub(super) const LEEWAY: u64 = 60;
/// Bytes of a `sub`, as the standard has it, and of other names that are kept.
pub(super) const MAX_SUB: usize = 255;

/// Why a token is not believed. Each is one check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is no signed token (JWS, compact)")]
    Form,
    #[error("it is signed by {0:?}, which is not accepted")]
    Algorithm(String),
    #[error("it has extensions that have to be understood (crit), and none is")]
    Critical,
    #[error("none of the provider's keys that are known can have signed it")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it is a token of another kind ({0:?})")]
    Kind(String),
    #[error("its claims cannot be read: {0}")]
    Claims(String),
    #[error("it is of another issuer ({0:?})")]
    Issuer(String),
    #[error("it is not for this client (aud)")]
    Audience,
    #[error("it was issued to another client (azp)")]
    Party,
    #[error("it is over since {0} s (exp)")]
    Expired(u64),
    #[error("it is not valid yet (nbf)")]
    Early,
    #[error("it says that it was issued in {0} s: is a clock wrong? (iat)")]
    Future(u64),
    #[error("it was issued {0} s too early for what it is to prove (iat)")]
    Old(u64),
    #[error("it was made for another login (nonce)")]
    Nonce,
    #[error("it names nobody, or in more than {MAX_SUB} bytes (sub)")]
    Subject,
    #[error("its sid is empty, or has more than {MAX_SUB} bytes")]
    Sid,
    #[error(
        "it does not say when the user logged in (auth_time): without that the provider has to be believed with \
         `single-sign-on = true`"
    )]
    NoLoginTime,
    #[error("the user did not log in for it, but {0} s before (auth_time)")]
    NotFresh(u64),
    #[error("it is no logout token (events)")]
    Events,
    #[error("it is an ID token: a logout token has no nonce")]
    HasNonce,
    #[error("it says neither who nor which session (sub, sid)")]
    Nobody,
    #[error("it has no name of its own (jti), or one of more than {MAX_SUB} bytes")]
    Jti,
    #[error("it was seen before (jti)")]
    Seen,
}

/// What every token says.
#[derive(Debug)]
pub(super) struct Common {
    pub sub: Option<String>,
    pub sid: Option<String>,
    /// Unix seconds, by the provider's clock.
    pub issued: u64,
    /// Everything else.
    pub rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: Number,
    iat: Number,
    nbf: Option<Number>,
    sub: Option<String>,
    sid: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Whom a token has to be from and for, and what time it is (unix seconds).
#[derive(Debug, Clone, Copy)]
pub(super) struct Parties<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    pub now: u64,
}

impl Common {
    /// Checks what every token says whose signature is good.
    ///
    /// `typ`: of its header. `kinds`: what that may be; it may also not be there.
    ///
    /// # Errors
    /// [`TokenError`], the first check that it does not pass.
    pub(super) fn read(
        payload: &[u8],
        typ: Option<&str>,
        kinds: &[&str],
        parties: Parties<'_>,
    ) -> Result<Self, TokenError> {
        if let Some(other) = typ.filter(|typ| !kinds.contains(typ)) {
            return Err(TokenError::Kind(shown(other)));
        }
        let claims: Claims =
            serde_json::from_slice(payload).map_err(|error| TokenError::Claims(shown(&error.to_string())))?;
        if claims.iss != parties.issuer {
            return Err(TokenError::Issuer(shown(&claims.iss)));
        }
        let audiences = match &claims.aud {
            Audience::One(one) => std::slice::from_ref(one),
            Audience::Many(many) => many,
        };
        if !audiences.iter().any(|one| one == parties.client_id) {
            return Err(TokenError::Audience);
        }
        let party = match claims.rest.get("azp") {
            None | Some(Value::Null) => audiences.len() == 1,
            Some(party) => party.as_str() == Some(parties.client_id),
        };
        if !party {
            return Err(TokenError::Party);
        }
        let over = parties.now.saturating_sub(seconds(&claims.exp, "exp")?);
        if over >= LEEWAY {
            return Err(TokenError::Expired(over));
        }
        let issued = seconds(&claims.iat, "iat")?;
        let ahead = issued.saturating_sub(parties.now);
        if ahead > LEEWAY {
            return Err(TokenError::Future(ahead));
        }
        if let Some(begins) = &claims.nbf
            && seconds(begins, "nbf")?.saturating_sub(parties.now) > LEEWAY
        {
            return Err(TokenError::Early);
        }
        if claims.sub.as_ref().is_some_and(|sub| !fits(sub)) {
            return Err(TokenError::Subject);
        }
        if claims.sid.as_ref().is_some_and(|sid| !fits(sid)) {
            return Err(TokenError::Sid);
        }
        Ok(Self { sub: claims.sub, sid: claims.sid, issued, rest: claims.rest })
    }
}

pub(super) fn fits(name: &str) -> bool {
    (1..=MAX_SUB).contains(&name.len())
}

/// A time as tokens have it (RFC 7519, NumericDate): whole unix seconds, what is behind the point is cut off.
pub(super) fn seconds(number: &Number, claim: &str) -> Result<u64, TokenError> {
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|float| (0.0..9e15).contains(float))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and 9e15")]
        let whole = float as u64;
        Some(whole)
    });
    whole.ok_or_else(|| TokenError::Claims(format!("{claim} is no time")))
}
