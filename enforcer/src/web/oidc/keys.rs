//! The provider's public keys: a JWK set (RFC 7517).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

use super::jws::Algorithm;
use super::settings::shown;

/// How many keys are looked at; the rest of a set is not.
const MAX_KEYS: usize = 64;

/// The keys of a set that can check a signature here. What is of another kind, of another curve, for another use, or
/// malformed is left out, as the standard wants it.
#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
pub(super) struct Key {
    kid: Option<String>,
    /// The only algorithm that it is for, where the provider says so.
    alg: Option<String>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Modulus and exponent, big endian, without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// A point, uncompressed: 0x04, x, y.
    P256(Vec<u8>),
    /// 32 bytes.
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// # Errors
    /// A sentence: it is no set, or there is no key in it that could be used.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Set = serde_json::from_slice(text)
            .map_err(|error| format!("it is no JWK set: {}", shown(&error.to_string())))?;
        let jwks =
            set.keys.into_iter().take(MAX_KEYS).filter_map(|jwk| serde_json::from_value::<Jwk>(jwk).ok());
        let keys: Vec<Key> = jwks.filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err("there is no key in it for RS256, PS256, ES256 or EdDSA".into());
        }
        Ok(Self(keys))
    }

    /// The keys that may have signed so. Without a `kid` there has to be no more than one: the standard leaves it out
    /// only then.
    pub(super) fn fitting(&self, algorithm: Algorithm, kid: Option<&str>) -> impl Iterator<Item = &Key> {
        let fits =
            move |key: &&Key| key.is_for(algorithm) && kid.is_none_or(|kid| key.kid.as_deref() == Some(kid));
        let clear = kid.is_some() || self.0.iter().filter(fits).count() == 1;
        self.0.iter().filter(fits).filter(move |_| clear)
    }
}

impl Key {
    fn read(jwk: Jwk) -> Option<Self> {
        let signs = jwk.usage.as_deref().is_none_or(|usage| usage == "sig");
        let verifies = jwk.key_ops.as_ref().is_none_or(|all| all.iter().any(|one| one == "verify"));
        if !signs || !verifies {
            return None;
        }
        let bytes = |part: Option<String>| URL_SAFE_NO_PAD.decode(part?).ok();
        let kind = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => Kind::Rsa { n: number(bytes(jwk.n)?), e: number(bytes(jwk.e)?) },
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(jwk.x)?, bytes(jwk.y)?);
                if (x.len(), y.len()) != (32, 32) {
                    return None;
                }
                Kind::P256([&[4], &*x, &*y].concat())
            }
            ("OKP", Some("Ed25519")) => Kind::Ed25519(bytes(jwk.x).filter(|x| x.len() == 32)?),
            _ => return None,
        };
        Some(Self { kid: jwk.kid, alg: jwk.alg, kind })
    }

    fn is_for(&self, algorithm: Algorithm) -> bool {
        let kind = match algorithm {
            Algorithm::Rs256 | Algorithm::Ps256 => matches!(self.kind, Kind::Rsa { .. }),
            Algorithm::Es256 => matches!(self.kind, Kind::P256(_)),
            Algorithm::EdDsa => matches!(self.kind, Kind::Ed25519(_)),
        };
        kind && self.alg.as_deref().is_none_or(|alg| alg == algorithm.name())
    }

    /// Whether this key has signed it.
    pub(super) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let verdict = match (&self.kind, algorithm) {
            (Kind::Rsa { n, e }, Algorithm::Rs256) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Kind::Rsa { n, e }, Algorithm::Ps256) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PSS_2048_8192_SHA256, message, signature)
            }
            (Kind::P256(point), Algorithm::Es256) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Kind::Ed25519(key), Algorithm::EdDsa) => {
                UnparsedPublicKey::new(&ED25519, key).verify(message, signature)
            }
            _ => return false,
        };
        verdict.is_ok()
    }
}

/// Without leading zeros, which some providers write.
fn number(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

    fn ec(rest: &str) -> String {
        format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}","y":"{Y}"{rest}}}"#)
    }

    fn keys(of: &[String]) -> Result<Keys, String> {
        Keys::parse(format!(r#"{{"keys":[{}]}}"#, of.join(",")).as_bytes())
    }

    fn found(keys: &Keys, algorithm: Algorithm, kid: Option<&str>) -> usize {
        keys.fitting(algorithm, kid).count()
    }

    #[test]
    fn a_key_is_found_by_its_name_its_kind_and_its_algorithm() {
        let keys =
            keys(&[ec(r#","kid":"a""#), ec(r#","kid":"b","alg":"ES384""#), ec(r#","kid":"c","use":"sig""#)]);
        let keys = keys.unwrap();
        assert_eq!(found(&keys, Algorithm::Es256, Some("a")), 1);
        assert_eq!(found(&keys, Algorithm::Es256, Some("b")), 0, "for another algorithm");
        assert_eq!(found(&keys, Algorithm::Es256, Some("d")), 0);
        assert_eq!(found(&keys, Algorithm::Rs256, Some("a")), 0, "of another kind");
        assert_eq!(found(&keys, Algorithm::Es256, None), 0, "one of two");
    }

    #[test]
    fn without_a_name_there_has_to_be_one_alone() {
        let one = keys(&[ec("")]).unwrap();
        assert_eq!(found(&one, Algorithm::Es256, None), 1);
        assert_eq!(found(&one, Algorithm::Es256, Some("a")), 0);
        assert_eq!(found(&keys(&[ec(""), ec("")]).unwrap(), Algorithm::Es256, None), 0);
    }

    #[test]
    fn what_cannot_be_used_is_left_out() {
        let odd = [
            ec(r#","use":"enc""#),
            ec(r#","key_ops":["sign"]"#),
            ec(r#","kid":7"#),
            r#"{"kty":"oct","k":"c2VjcmV0"}"#.to_owned(),
            format!(r#"{{"kty":"EC","crv":"P-384","x":"{X}","y":"{Y}"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}AA","y":"{Y}"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}=","y":"{Y}"}}"#),
            r#"{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#.to_owned(),
            r#"{"kty":"RSA","n":"AQAB"}"#.to_owned(),
            "7".to_owned(),
            "{}".to_owned(),
        ];
        for one in &odd {
            assert!(keys(std::slice::from_ref(one)).unwrap_err().contains("no key in it"), "{one}");
        }
        let mut all = odd.to_vec();
        all.push(ec(r#","kid":"good","key_ops":["verify"]"#));
        assert_eq!(keys(&all).unwrap().0.len(), 1);
        for text in ["", "[]", "{}", r#"{"keys":{}}"#] {
            assert!(Keys::parse(text.as_bytes()).unwrap_err().contains("no JWK set"), "{text}");
        }
    }

    /// It goes to the log.
    #[test]
    fn r7_what_is_wrong_with_a_set_is_told_in_one_short_line() {
        let text = format!(r#"{{"keys":"{}"}}"#, "x\\n\\u001b".repeat(10_000));
        let said = Keys::parse(text.as_bytes()).unwrap_err();
        assert!(said.len() < 2_500 && !said.contains(['\n', '\u{1b}']), "{} bytes", said.len());
    }

    #[test]
    fn r7_a_set_of_a_thousand_keys_is_not_looked_through() {
        let many: Vec<String> = (0..1000).map(|n| ec(&format!(r#","kid":"{n}""#))).collect();
        assert_eq!(keys(&many).unwrap().0.len(), MAX_KEYS);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Keys::parse(&text);
        }
    }
}
