//! An ID token: who has logged in (OpenID Connect Core 1.0, 3.1.3.7).

use serde_json::{Map, Value};
use subtle::ConstantTimeEq as _;

use super::token::{Common, LEEWAY, Parties, TokenError, seconds};

/// By how many seconds the times of one token may differ from ours: those that it names lie no further apart than what
/// they tell of has taken.
const DRIFT: u64 = 10;

/// Which login a token has to be for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub parties: Parties<'a>,
    pub nonce: &'a str,
    /// When the login was begun (unix seconds): the token is not older.
    pub begun: u64,
    /// Whether the user has to have logged in since then.
    pub fresh: bool,
}

/// What a good one says.
#[derive(Debug)]
pub(super) struct IdToken {
    pub sub: String,
    pub sid: Option<String>,
    /// Unix seconds, by the provider's clock.
    pub issued: u64,
    /// All that it says beside that.
    pub claims: Map<String, Value>,
}

impl IdToken {
    /// Checks what a token says whose signature is good.
    ///
    /// `typ`: of its header.
    ///
    /// # Errors
    /// [`TokenError`], the first check that it does not pass.
    pub(super) fn check(payload: &[u8], typ: Option<&str>, wanted: Wanted<'_>) -> Result<Self, TokenError> {
        let claims = Common::read(payload, typ, &["jwt"], wanted.parties)?;
        let before = wanted.begun.saturating_sub(claims.issued);
        if before > LEEWAY {
            return Err(TokenError::Old(before));
        }
        let nonce = claims.rest.get("nonce").and_then(Value::as_str).unwrap_or_default();
        if !bool::from(nonce.as_bytes().ct_eq(wanted.nonce.as_bytes())) {
            return Err(TokenError::Nonce);
        }
        if wanted.fresh {
            let time = match claims.rest.get("auth_time") {
                Some(Value::Number(time)) => seconds(time, "auth_time")?,
                _ => return Err(TokenError::NoLoginTime),
            };
            let before = wanted.begun.saturating_sub(time);
            if before > LEEWAY {
                return Err(TokenError::NotFresh(before));
            }
            // by the provider's clock alone, so that nobody has a whole leeway for the login of the one before him
            let took = wanted.parties.now.saturating_sub(wanted.begun);
            let before = claims.issued.saturating_sub(time).saturating_sub(took);
            if before > DRIFT {
                return Err(TokenError::NotFresh(before));
            }
        }
        let sub = claims.sub.ok_or(TokenError::Subject)?;
        Ok(Self { sub, sid: claims.sid, issued: claims.issued, claims: claims.rest })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const WANTED: Wanted<'static> = Wanted {
        parties: Parties { issuer: "https://id.example", client_id: "gateway", now: NOW },
        nonce: "the nonce of this login",
        begun: NOW - 30,
        fresh: true,
    };

    fn good() -> Value {
        json!({
            "iss": "https://id.example", "sub": "s1", "aud": "gateway", "exp": NOW + 300, "iat": NOW,
            "nonce": "the nonce of this login", "auth_time": NOW - 1, "sid": "p1", "preferred_username": "alice",
        })
    }

    fn check(claims: &Value) -> Result<IdToken, TokenError> {
        IdToken::check(claims.to_string().as_bytes(), Some("jwt"), WANTED)
    }

    /// Changed so, it fails by that check; and it was good before.
    #[track_caller]
    fn fails(change: impl FnOnce(&mut Value), why: TokenError) {
        let mut claims = good();
        check(&claims).unwrap();
        change(&mut claims);
        assert_eq!(check(&claims).unwrap_err(), why, "{claims}");
    }

    #[test]
    fn a_good_one_says_who() {
        let token = check(&good()).unwrap();
        assert_eq!((token.sub.as_str(), token.sid.as_deref(), token.issued), ("s1", Some("p1"), NOW));
        assert_eq!(token.claims["preferred_username"], "alice");
        // what may be otherwise
        for change in [
            json!({"aud": ["gateway"]}),
            json!({"aud": ["other", "gateway"], "azp": "gateway"}),
            json!({"azp": "gateway"}),
            json!({"exp": NOW - 59}),
            json!({"exp": NOW as f64 + 0.5}),
            json!({"iat": NOW + 60, "nbf": NOW + 60, "auth_time": NOW + 59}),
            json!({"iat": NOW - 90}),
            json!({"auth_time": NOW - 40}),
            json!({"auth_time": NOW - 90, "iat": NOW - 50}),
            json!({"sid": null}),
        ] {
            let mut claims = good();
            claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            check(&claims).unwrap_or_else(|why| panic!("{change}: {why}"));
        }
        IdToken::check(good().to_string().as_bytes(), None, WANTED).unwrap();
    }

    #[test]
    fn each_check_refuses_what_fails_by_it_alone() {
        fails(|c| c["iss"] = json!("https://id.example/"), TokenError::Issuer("https://id.example/".into()));
        fails(|c| c["aud"] = json!("other"), TokenError::Audience);
        fails(|c| c["aud"] = json!([]), TokenError::Audience);
        fails(|c| c["aud"] = json!(["gateway", "other"]), TokenError::Party);
        fails(|c| c["azp"] = json!("other"), TokenError::Party);
        fails(|c| c["azp"] = json!(["gateway"]), TokenError::Party);
        fails(|c| c["exp"] = json!(NOW - 60), TokenError::Expired(60));
        fails(|c| c["iat"] = json!(NOW + 61), TokenError::Future(61));
        fails(|c| c["iat"] = json!(NOW - 91), TokenError::Old(61));
        fails(|c| c["nbf"] = json!(NOW + 61), TokenError::Early);
        fails(|c| c["nonce"] = json!("of another login"), TokenError::Nonce);
        fails(|c| drop(c.as_object_mut().unwrap().remove("nonce")), TokenError::Nonce);
        fails(|c| c["nonce"] = json!(["the nonce of this login"]), TokenError::Nonce);
        fails(|c| c["auth_time"] = json!(NOW - 91), TokenError::NotFresh(61));
        fails(|c| c["auth_time"] = json!(NOW - 41), TokenError::NotFresh(11));
        fails(|c| drop(c.as_object_mut().unwrap().remove("auth_time")), TokenError::NoLoginTime);
        fails(|c| c["auth_time"] = json!("now"), TokenError::NoLoginTime);
        fails(|c| drop(c.as_object_mut().unwrap().remove("sub")), TokenError::Subject);
        fails(|c| c["sub"] = json!(""), TokenError::Subject);
        fails(|c| c["sub"] = json!("x".repeat(256)), TokenError::Subject);
        fails(|c| c["sid"] = json!(""), TokenError::Sid);
    }

    /// A time that is a text is no missing time: it is refused.
    #[test]
    fn claims_of_another_type_are_refused() {
        for (claim, value) in [
            ("exp", json!("9999999999")),
            ("exp", json!(null)),
            ("exp", json!(-1)),
            ("exp", json!(1e300)),
            ("iat", json!("0")),
            ("nbf", json!("0")),
            ("sub", json!(7)),
            ("sid", json!({})),
            ("iss", json!(["https://id.example"])),
            ("aud", json!({"gateway": 1})),
            ("aud", json!([["gateway"]])),
        ] {
            let mut claims = good();
            claims[claim] = value.clone();
            let why = check(&claims).unwrap_err();
            assert!(matches!(why, TokenError::Claims(_)), "{claim} {value}: {why}");
        }
        for claim in ["iss", "aud", "exp", "iat"] {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(claim);
            assert!(matches!(check(&claims).unwrap_err(), TokenError::Claims(_)), "{claim}");
        }
        let twice = good().to_string().replacen('{', r#"{"iss":"https://id.example","#, 1);
        let why = IdToken::check(twice.as_bytes(), None, WANTED).unwrap_err();
        assert!(matches!(why, TokenError::Claims(_)), "the same claim twice: {why}");
    }

    #[test]
    fn a_token_of_another_kind_is_none() {
        for typ in ["at+jwt", "logout+jwt", "dpop+jwt", ""] {
            let why = IdToken::check(good().to_string().as_bytes(), Some(typ), WANTED).unwrap_err();
            assert_eq!(why, TokenError::Kind(typ.into()));
        }
    }

    /// R2: at a browser that several people use, the login of the one before is no fresh one, however short a time ago it
    /// was: the token says both times by the provider's clock, which may be wrong by a minute.
    #[test]
    fn r2_the_login_of_the_person_before_is_not_fresh() {
        for skew in [-50_i64, 0, 50] {
            let provider = |time: u64| time.checked_add_signed(skew).unwrap();
            let login = |ago: u64| {
                let mut claims = good();
                claims["iat"] = json!(provider(NOW));
                claims["auth_time"] = json!(provider(WANTED.begun - ago));
                check(&claims)
            };
            assert!(login(0).is_ok(), "{skew}");
            assert_eq!(
                login(11).unwrap_err(),
                TokenError::NotFresh(if skew == -50 { 61 } else { 11 }),
                "{skew}"
            );
        }
    }

    /// With single sign-on nobody asks when the user has logged in.
    #[test]
    fn an_earlier_login_is_good_enough_where_that_is_wanted() {
        let mut claims = good();
        claims["auth_time"] = json!(NOW - 86_400);
        let wanted = Wanted { fresh: false, ..WANTED };
        IdToken::check(claims.to_string().as_bytes(), None, wanted).unwrap();
        assert_eq!(check(&claims).unwrap_err(), TokenError::NotFresh(86_370));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(IdToken::check(&text, None, WANTED).is_err());
        }

        /// Whatever becomes of one claim, a token that is taken still names its own subject and this login.
        #[test]
        fn no_changed_claim_makes_somebody_else(
            claim in prop::sample::select(vec!["iss", "sub", "aud", "azp", "exp", "iat", "nbf", "nonce", "auth_time", "sid"]),
            number in any::<i64>(),
            text in "\\PC{0,20}",
            which in 0_u8..5,
        ) {
            let mut claims = good();
            claims[claim] = match which {
                0 => json!(number),
                1 => json!(text),
                2 => json!([text]),
                3 => json!({ text.clone(): number }),
                _ => Value::Null,
            };
            if let Ok(token) = check(&claims) {
                prop_assert!(matches!(claim, "sub" | "azp" | "exp" | "iat" | "nbf" | "auth_time" | "sid"));
                prop_assert_eq!(Some(token.sub.as_str()), claims["sub"].as_str());
                prop_assert_eq!(&claims["nonce"], &good()["nonce"]);
            }
        }
    }
}
