//! A logout token: the provider says that somebody's session there has ended (OpenID Connect Back-Channel Logout 1.0).

use serde_json::Value;

use super::token::{Common, LEEWAY, Parties, TokenError, fits};

/// The event that a logout token is about.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// How old one may be (seconds): so long its name has to be remembered.
pub(super) const MAX_AGE: u64 = 600;

/// What a good one says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LogoutToken {
    /// At least one of the two.
    pub sub: Option<String>,
    pub sid: Option<String>,
    pub jti: String,
    /// Unix seconds, by the provider's clock.
    pub issued: u64,
}

impl LogoutToken {
    /// Checks what a token says whose signature is good; that it was not seen before is the caller's to look at.
    ///
    /// # Errors
    /// [`TokenError`], the first check that it does not pass.
    pub(super) fn check(payload: &[u8], typ: Option<&str>, parties: Parties<'_>) -> Result<Self, TokenError> {
        let claims = Common::read(payload, typ, &["jwt", "logout+jwt"], parties)?;
        let age = parties.now.saturating_sub(claims.issued);
        if age > MAX_AGE + LEEWAY {
            return Err(TokenError::Old(age - MAX_AGE));
        }
        let event = claims.rest.get("events").and_then(|events| events.get(EVENT));
        if !event.is_some_and(Value::is_object) {
            return Err(TokenError::Events);
        }
        // whatever is in it
        if claims.rest.contains_key("nonce") {
            return Err(TokenError::HasNonce);
        }
        if claims.sub.is_none() && claims.sid.is_none() {
            return Err(TokenError::Nobody);
        }
        let jti = claims.rest.get("jti").and_then(Value::as_str).filter(|jti| fits(jti));
        let jti = jti.ok_or(TokenError::Jti)?.to_owned();
        Ok(Self { sub: claims.sub, sid: claims.sid, jti, issued: claims.issued })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const PARTIES: Parties<'static> =
        Parties { issuer: "https://id.example", client_id: "gateway", now: NOW };

    fn good() -> Value {
        json!({
            "iss": "https://id.example", "sub": "s1", "sid": "p1", "aud": "gateway", "exp": NOW + 120, "iat": NOW,
            "jti": "1", "events": { EVENT: {} },
        })
    }

    fn check(claims: &Value) -> Result<LogoutToken, TokenError> {
        LogoutToken::check(claims.to_string().as_bytes(), Some("logout+jwt"), PARTIES)
    }

    #[track_caller]
    fn fails(change: impl FnOnce(&mut Value), why: TokenError) {
        let mut claims = good();
        check(&claims).unwrap();
        change(&mut claims);
        assert_eq!(check(&claims).unwrap_err(), why, "{claims}");
    }

    fn without(claims: &mut Value, claim: &str) {
        claims.as_object_mut().unwrap().remove(claim);
    }

    #[test]
    fn a_good_one_says_who_or_which_session() {
        let both = check(&good()).unwrap();
        assert_eq!((both.sub.as_deref(), both.sid.as_deref()), (Some("s1"), Some("p1")));
        for (gone, left) in [("sub", (None, Some("p1"))), ("sid", (Some("s1"), None))] {
            let mut claims = good();
            without(&mut claims, gone);
            let token = check(&claims).unwrap();
            assert_eq!((token.sub.as_deref(), token.sid.as_deref()), left);
        }
        for typ in [None, Some("jwt")] {
            LogoutToken::check(good().to_string().as_bytes(), typ, PARTIES).unwrap();
        }
    }

    #[test]
    fn each_check_refuses_what_fails_by_it_alone() {
        fails(
            |c| c["iss"] = json!("https://evil.example"),
            TokenError::Issuer("https://evil.example".into()),
        );
        fails(|c| c["aud"] = json!("other"), TokenError::Audience);
        fails(|c| c["exp"] = json!(NOW - 60), TokenError::Expired(60));
        fails(|c| c["iat"] = json!(NOW + 61), TokenError::Future(61));
        fails(|c| c["iat"] = json!(NOW - 661), TokenError::Old(61));
        fails(|c| without(c, "events"), TokenError::Events);
        fails(|c| c["events"] = json!({}), TokenError::Events);
        fails(|c| c["events"] = json!([EVENT]), TokenError::Events);
        fails(|c| c["events"] = json!(EVENT), TokenError::Events);
        fails(|c| c["events"][EVENT] = json!(true), TokenError::Events);
        fails(|c| c["nonce"] = json!("n"), TokenError::HasNonce);
        fails(|c| c["nonce"] = json!(null), TokenError::HasNonce);
        fails(|c| without(c, "jti"), TokenError::Jti);
        fails(|c| c["jti"] = json!(7), TokenError::Jti);
        fails(|c| c["jti"] = json!("x".repeat(256)), TokenError::Jti);
        fails(|c| c["sub"] = json!("x".repeat(256)), TokenError::Subject);
        fails(
            |c| {
                without(c, "sub");
                without(c, "sid");
            },
            TokenError::Nobody,
        );
        let why = LogoutToken::check(good().to_string().as_bytes(), Some("at+jwt"), PARTIES).unwrap_err();
        assert_eq!(why, TokenError::Kind("at+jwt".into()));
    }

    /// An ID token, as a browser could have got hold of one, ends nobody.
    #[test]
    fn r3_an_id_token_is_no_logout_token() {
        let mut claims = good();
        without(&mut claims, "events");
        claims["nonce"] = json!("n");
        assert_eq!(check(&claims).unwrap_err(), TokenError::Events);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(LogoutToken::check(&text, None, PARTIES).is_err());
        }
    }
}
