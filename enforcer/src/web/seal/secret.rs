//! What nobody else may know: a browser's token and a session's sealing secret. Both are 256 random bits, wiped from
//! memory when they are dropped, and cannot be printed by accident.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::SealError;

/// How many bytes each secret has.
pub(super) const LENGTH: usize = 32;

/// What one host's `__Host-` cookie holds: who has it is the session, on that host.
pub struct Token(Zeroizing<[u8; LENGTH]>);

impl Token {
    /// A fresh one.
    ///
    /// # Errors
    /// [`SealError::NoRandom`]
    pub fn new() -> Result<Self, SealError> {
        random().map(Self)
    }

    /// Reads a cookie's value: 43 characters of base64url without padding. None for everything else.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; LENGTH]);
        // a longer one would not fit; a shorter one fits, and is none
        let length = URL_SAFE_NO_PAD.decode_slice(value, bytes.as_mut_slice()).ok()?;
        (length == LENGTH).then_some(Self(bytes))
    }

    /// The cookie's value.
    pub fn write(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.bytes()))
    }

    /// SHA-256: what is stored of it, and by which a session is found. Nothing that opens anything comes of it.
    pub fn digest(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(digest(&SHA256, self.bytes()).as_ref()) {
            *to = *from;
        }
        bytes
    }

    pub(super) fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

/// What all cookies of one session are sealed with. It is stored wrapped alone ([`super::MasterKeys::wrap`]).
pub struct SealingSecret(Zeroizing<[u8; LENGTH]>);

impl SealingSecret {
    /// A fresh one.
    ///
    /// # Errors
    /// [`SealError::NoRandom`]
    pub fn new() -> Result<Self, SealError> {
        random().map(Self)
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut own = Zeroizing::new([0; LENGTH]);
        if bytes.len() != LENGTH {
            return None;
        }
        own.copy_from_slice(bytes);
        Some(Self(own))
    }

    #[cfg(test)]
    pub(super) fn from_bytes(bytes: [u8; LENGTH]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

pub(super) fn random() -> Result<Zeroizing<[u8; LENGTH]>, SealError> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| SealError::NoRandom)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_no_other_text_is_one() {
        let token = Token::new().unwrap();
        let text = token.write();
        assert_eq!(text.len(), 43);
        assert_eq!(Token::parse(text.as_bytes()).unwrap().bytes(), token.bytes());
        assert_ne!(Token::new().unwrap().bytes(), token.bytes());
        for odd in [
            String::new(),
            format!("{}=", *text),
            format!("{}A", *text),
            format!(" {}", *text),
            text[1..].to_owned(),
            "+".repeat(43),
            // its last character has bits that are no part of the token
            format!("{}B", "A".repeat(42)),
            "A".repeat(100_000),
        ] {
            assert!(Token::parse(odd.as_bytes()).is_none(), "{odd:.80}");
        }
    }

    #[test]
    fn the_digest_is_sha_256() {
        let zero = Token::parse("A".repeat(43).as_bytes()).unwrap();
        let digest: String = zero.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925");
    }
}
