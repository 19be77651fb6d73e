//! For tests: keys that sign tokens, good ones and forged ones.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::jws::Algorithm;
use super::keys::Keys;

/// A key pair.
pub(super) enum Signer {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    /// A fresh one.
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        match algorithm {
            Algorithm::Rs256 | Algorithm::Ps256 => Self::Rsa(rsa(2048)),
            Algorithm::Es256 => {
                let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
                let document = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
                Self::P256(EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).unwrap())
            }
            Algorithm::EdDsa => {
                let document = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                Self::Ed25519(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
            }
        }
    }

    /// The public half, with these members beside it.
    pub(super) fn jwk(&self, more: Value) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match self {
            Self::Rsa(key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                // some providers write a zero before it
                json!({"kty": "RSA", "n": text(&[&[0], &*public.n].concat()), "e": text(&public.e)})
            }
            Self::P256(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])})
            }
            Self::Ed25519(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref())})
            }
        };
        jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwk
    }

    pub(super) fn sign(&self, header: &Value, payload: &[u8], algorithm: Algorithm) -> String {
        let signed = signed(header, payload);
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let padding: &dyn ring::signature::RsaEncoding =
                    if algorithm == Algorithm::Ps256 { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                key.sign(padding, &random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
            Self::P256(key) => key.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Header and payload, as they are signed.
pub(super) fn signed(header: &Value, payload: &[u8]) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload))
}

pub(super) fn keys(jwks: &[Value]) -> Keys {
    Keys::parse(json!({"keys": jwks}).to_string().as_bytes()).unwrap()
}

/// An RSA key of so many bits, which ring does not make itself.
fn rsa(bits: usize) -> RsaKeyPair {
    let output = std::process::Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt"])
        .arg(format!("rsa_keygen_bits:{bits}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let der = PrivatePkcs8KeyDer::from_pem_slice(&output.stdout).unwrap();
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap()
}
