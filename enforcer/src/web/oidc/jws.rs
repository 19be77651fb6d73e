//! Signed tokens (JWS in its compact form, RFC 7515): what one says is believed once one of the provider's keys has
//! signed it, with an algorithm that is accepted. Never unsigned (`none`), never by a shared secret (`HS…`).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::TokenError;
use super::keys::Keys;

/// Bytes of a token.
pub(super) const MAX_TOKEN: usize = 64 * 1024;

/// How a token may be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256; keys of 2048 to 8192 bits.
    Rs256,
    /// RSASSA-PSS with SHA-256; keys of 2048 to 8192 bits.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    pub const ALL: [Self; 4] = [Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa];

    /// As it stands in tokens (RFC 7518, RFC 8037).
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = String;

    /// By its name, in that case.
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name).ok_or_else(|| {
            format!("{name:?} is no signature that is accepted: take RS256, PS256, ES256, EdDSA")
        })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// Extensions that have to be understood: none is.
    crit: Option<serde_json::Value>,
}

/// A token that nothing is known of yet but its form.
pub(super) struct Jws<'t> {
    pub algorithm: Algorithm,
    pub kid: Option<String>,
    /// The media type, in lower case and without `application/`.
    pub typ: Option<String>,
    signed: &'t [u8],
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// # Errors
    /// [`TokenError::Form`], [`TokenError::Algorithm`], [`TokenError::Critical`]
    pub(super) fn parse(text: &'t str, accepted: &[Algorithm]) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Form);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Form)?;
        let algorithm = header.alg.parse().ok().filter(|algorithm| accepted.contains(algorithm));
        let algorithm =
            algorithm.ok_or_else(|| TokenError::Algorithm(super::settings::shown(&header.alg)))?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let typ = header.typ.map(|typ| {
            let typ = typ.to_ascii_lowercase();
            typ.strip_prefix("application/").map(str::to_owned).unwrap_or(typ)
        });
        Ok(Self {
            algorithm,
            kid: header.kid,
            typ,
            signed: signed.as_bytes(),
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }

    /// What it says, which one of these keys has signed.
    ///
    /// # Errors
    /// [`TokenError::UnknownKey`]: newer keys may have it. [`TokenError::Signature`].
    pub(super) fn verify(&self, keys: &Keys) -> Result<&[u8], TokenError> {
        let mut fitting = keys.fitting(self.algorithm, self.kid.as_deref()).peekable();
        if fitting.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        if fitting.any(|key| key.verify(self.algorithm, self.signed, &self.signature)) {
            return Ok(&self.payload);
        }
        // a token that does not say which key it is may be signed with one that came later
        Err(if self.kid.is_none() { TokenError::UnknownKey } else { TokenError::Signature })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::forge::{Signer, keys, signed};
    use super::*;

    #[test]
    fn names_of_algorithms() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
        }
        for odd in ["", "none", "None", "HS256", "HS512", "rs256", "RS1", "ES256K"] {
            assert!(odd.parse::<Algorithm>().unwrap_err().contains("RS256"), "{odd}");
        }
    }

    /// RFC 7515 appendix A.2: RS256, signed by others.
    #[test]
    fn the_token_of_the_standard_is_good_and_no_changed_one() {
        let keys =
            Keys::parse(format!(r#"{{"keys":[{{"kty":"RSA","n":"{N}","e":"AQAB"}}]}}"#).as_bytes()).unwrap();
        let text = format!("{SIGNED}.{SIGNATURE}");
        let token = Jws::parse(&text, &Algorithm::ALL).unwrap();
        assert!(token.verify(&keys).unwrap().starts_with(b"{\"iss\":\"joe\""));
        for at in [SIGNED.len() - 1, SIGNED.len() + 5] {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let verdict =
                Jws::parse(&changed, &Algorithm::ALL).and_then(|token| token.verify(&keys).map(drop));
            assert!(verdict.is_err(), "{at}");
        }
        assert_eq!(
            Jws::parse(&text, &[Algorithm::Ps256, Algorithm::Es256]).err(),
            Some(TokenError::Algorithm("RS256".into())),
            "as configured"
        );
    }

    /// RFC 8037 appendix A.4: EdDSA.
    #[test]
    fn the_token_of_the_standard_for_ed25519_is_good() {
        let keys =
            br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let keys = Keys::parse(keys).unwrap();
        let text = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        let token = Jws::parse(text, &Algorithm::ALL).unwrap();
        assert_eq!(token.verify(&keys).unwrap(), b"Example of Ed25519 signing");
    }

    const PAYLOAD: &[u8] = br#"{"iss":"https://id.example"}"#;

    fn verdict(token: &str, keys: &Keys) -> Result<(), TokenError> {
        Jws::parse(token, &Algorithm::ALL)?.verify(keys).map(drop)
    }

    fn header(algorithm: Algorithm) -> Value {
        json!({"alg": algorithm.name(), "kid": "k"})
    }

    #[test]
    fn each_algorithm_is_good_with_its_own_key_and_no_other() {
        for algorithm in Algorithm::ALL {
            let (signer, other) = (Signer::new(algorithm), Signer::new(algorithm));
            let ours = keys(&[signer.jwk(json!({"kid": "k"}))]);
            let good = signer.sign(&header(algorithm), PAYLOAD, algorithm);
            let token = Jws::parse(&good, &Algorithm::ALL).unwrap();
            assert_eq!(token.verify(&ours), Ok(PAYLOAD), "{algorithm}");
            let forged = other.sign(&header(algorithm), PAYLOAD, algorithm);
            assert_eq!(verdict(&forged, &ours), Err(TokenError::Signature), "{algorithm}");
            for accepted in Algorithm::ALL.into_iter().filter(|accepted| *accepted != algorithm) {
                let said = Jws::parse(&good, &[accepted]).err();
                assert_eq!(said, Some(TokenError::Algorithm(algorithm.name().into())));
            }
        }
    }

    /// One changed bit anywhere, and it is not believed.
    #[test]
    fn every_bit_counts() {
        let signer = Signer::new(Algorithm::Es256);
        let ours = keys(&[signer.jwk(json!({"kid": "k"}))]);
        let good = signer.sign(&header(Algorithm::Es256), PAYLOAD, Algorithm::Es256);
        verdict(&good, &ours).unwrap();
        for at in 0..good.len() {
            for bit in 0..7 {
                let mut bytes = good.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(changed) = String::from_utf8(bytes) else { continue };
                assert!(verdict(&changed, &ours).is_err(), "{at} {bit}");
            }
        }
    }

    #[test]
    fn what_is_unsigned_or_signed_with_what_everybody_knows_is_refused() {
        let signer = Signer::new(Algorithm::Rs256);
        let jwk = signer.jwk(json!({"kid": "k"}));
        let ours = keys(std::slice::from_ref(&jwk));
        let good = signer.sign(&header(Algorithm::Rs256), PAYLOAD, Algorithm::Rs256);
        verdict(&good, &ours).unwrap();
        let (_, signature) = good.rsplit_once('.').unwrap();
        for none in ["none", "None", "NONE", "nOnE", "", "HS256", "HS512", "RS1", "RS512", "rs256"] {
            let signed = signed(&json!({"alg": none, "kid": "k"}), PAYLOAD);
            for token in [format!("{signed}."), format!("{signed}.{signature}")] {
                assert_eq!(verdict(&token, &ours), Err(TokenError::Algorithm(none.into())), "{token}");
            }
        }
        // the public key as a shared secret
        let signed = signed(&json!({"alg": "HS256", "kid": "k"}), PAYLOAD);
        for secret in [jwk["n"].as_str().unwrap(), &jwk.to_string()] {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
            let tag = ring::hmac::sign(&key, signed.as_bytes());
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
            assert_eq!(verdict(&token, &ours), Err(TokenError::Algorithm("HS256".into())));
        }
        // the good signature under another algorithm of the same key
        let other = signed_as(&good, "PS256");
        assert_eq!(verdict(&other, &ours), Err(TokenError::Signature));
        assert_eq!(verdict(&signed_as(&good, "ES256"), &ours), Err(TokenError::UnknownKey));
    }

    /// With another `alg` in the header.
    fn signed_as(token: &str, algorithm: &str) -> String {
        let (_, signature) = token.rsplit_once('.').unwrap();
        format!("{}.{signature}", signed(&json!({"alg": algorithm, "kid": "k"}), PAYLOAD))
    }

    #[test]
    fn the_key_that_a_token_names_has_to_be_the_one() {
        let (one, two) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::Es256));
        let both = keys(&[one.jwk(json!({"kid": "one"})), two.jwk(json!({"kid": "two"}))]);
        let sign = |header: Value| two.sign(&header, PAYLOAD, Algorithm::Es256);
        assert_eq!(verdict(&sign(json!({"alg": "ES256", "kid": "two"})), &both), Ok(()));
        assert_eq!(verdict(&sign(json!({"alg": "ES256", "kid": "one"})), &both), Err(TokenError::Signature));
        assert_eq!(verdict(&sign(json!({"alg": "ES256", "kid": "x"})), &both), Err(TokenError::UnknownKey));
        assert_eq!(verdict(&sign(json!({"alg": "ES256"})), &both), Err(TokenError::UnknownKey), "one of two");
        let alone = keys(&[two.jwk(json!({}))]);
        assert_eq!(verdict(&sign(json!({"alg": "ES256"})), &alone), Ok(()));
        let other = keys(&[one.jwk(json!({}))]);
        assert_eq!(
            verdict(&sign(json!({"alg": "ES256"})), &other),
            Err(TokenError::UnknownKey),
            "a newer one?"
        );
        // keys that the token brings along are nobody's
        let brought =
            json!({"alg": "ES256", "jwk": two.jwk(json!({})), "jku": "https://evil.example", "kid": "one"});
        assert_eq!(verdict(&sign(brought), &both), Err(TokenError::Signature));
    }

    #[test]
    fn what_has_another_form_is_refused() {
        let signer = Signer::new(Algorithm::Es256);
        let ours = keys(&[signer.jwk(json!({"kid": "k"}))]);
        let good = signer.sign(&header(Algorithm::Es256), PAYLOAD, Algorithm::Es256);
        let odd = [
            String::new(),
            "..".into(),
            "a.b".into(),
            format!("{good}."),
            format!(".{good}"),
            format!("{good}.x.y"),
            format!("{good}="),
            format!(" {good}"),
            format!("{good}\n"),
            good.replacen('.', "=.", 1),
            signer.sign(&json!({"alg": 7, "kid": "k"}), PAYLOAD, Algorithm::Es256),
            signer.sign(&json!({"kid": "k"}), PAYLOAD, Algorithm::Es256),
            signer.sign(&json!(["ES256"]), PAYLOAD, Algorithm::Es256),
            "x".repeat(MAX_TOKEN + 1),
        ];
        for token in odd {
            assert_eq!(verdict(&token, &ours), Err(TokenError::Form), "{token}");
        }
        let critical = json!({"alg": "ES256", "kid": "k", "crit": ["exp"], "exp": 1});
        let critical = signer.sign(&critical, PAYLOAD, Algorithm::Es256);
        assert_eq!(verdict(&critical, &ours), Err(TokenError::Critical));
        // a signature that is too short, empty, or all zeros
        let (signed, signature) = good.rsplit_once('.').unwrap();
        for forged in ["", &signature[..40], &URL_SAFE_NO_PAD.encode([0; 64])] {
            assert_eq!(verdict(&format!("{signed}.{forged}"), &ours), Err(TokenError::Signature), "{forged}");
        }
    }

    #[test]
    fn a_type_is_read_without_case_and_prefix() {
        for (typ, wanted) in [
            (json!("JWT"), Some("jwt")),
            (json!("application/logout+JWT"), Some("logout+jwt")),
            (json!(""), Some("")),
            (json!(null), None),
        ] {
            let text = signed(&json!({"alg": "ES256", "typ": typ}), PAYLOAD) + ".AAAA";
            assert_eq!(Jws::parse(&text, &Algorithm::ALL).unwrap().typ.as_deref(), wanted);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,120}", parts in prop::collection::vec(any::<u8>(), 0..90)) {
            let ours = keys(&[Signer::new(Algorithm::EdDsa).jwk(json!({}))]);
            prop_assert!(verdict(&text, &ours).is_err());
            let encoded = format!("{}.{}", signed(&json!({"alg": "EdDSA"}), &parts), URL_SAFE_NO_PAD.encode(&parts));
            prop_assert!(verdict(&encoded, &ours).is_err());
        }
    }

    const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    const SIGNED: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    const SIGNATURE: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
}
