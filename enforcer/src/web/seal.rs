//! Keys and the cipher: what makes a cookie worth nothing without its session.
//!
//! ```text
//! master key (file)  --salt--+
//! a host's token  ----input--+-- HKDF-SHA-256 --> wrapping key --> opens the session's sealing secret
//! sealing secret  --------------- HKDF-SHA-256 --> cookie key  --> opens each cookie's value
//! ```
//!
//! A session has one sealing secret, made at its login ([`SealingSecret::new`]), and a token for each host. It is stored
//! only wrapped ([`MasterKeys::wrap`]), once for each token, and of the token only its digest is stored: who has the
//! whole store and the master key opens nothing, and once the session's rows are deleted the browser's token opens
//! nothing either.
//!
//! **How it is meant to be used.** At a login: [`Token::new`] for the host, [`SealingSecret::new`], [`MasterKeys::wrap`];
//! stored are [`Token::digest`] and the [`Wrapped`] secret. For a further host a token of its own, and the secret that
//! [`MasterKeys::unwrap`] gives with the first host's, wrapped again. At a request: [`Token::parse`] the cookie, find the
//! session by the digest, unwrap, [`Sealer::new`]; what comes back as [`Opened::rewrapped`] is to be stored.
//!
//! Everything is AES-256-GCM (RFC 5116) with a random nonce of 96 bits for each use. A sealing secret may seal 2^32
//! times before that is too often (NIST SP 800-38D 8.3); at a thousand cookies a second that takes 49 days.
//!
//! Secrets have no `Debug` and no `Display`, and are wiped from memory when they are dropped. What `ring` makes of a key
//! for its own use (the expanded AES key, the states of HMAC) it does not wipe; the derived key itself is never here.

mod key_file;
mod keys;
mod secret;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};

pub use key_file::{KeyFile, KeyFileError, MAX_KEYS};
pub use keys::{KeyInfo, MasterKeys, Opened, UnwrapError, Wrapped};
pub use secret::{SealingSecret, Token};

/// What every sealed value begins with: whose it is, and the version. No value of an application should.
pub const PREFIX: &[u8] = b"es1.";

/// No value that is longer is opened. Browsers keep 4096 bytes.
pub const MAX_SEALED: usize = 64 * 1024;

/// A part of what every associated datum begins with.
const VERSION: u8 = 1;
const TAG_LEN: usize = 16;

/// Why nothing could be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the system has no random numbers to give: getrandom(2) fails")]
    NoRandom,
    #[error("a value of {0} bytes is too long to be sealed")]
    TooLong(usize),
    /// The cipher refused what its documentation says it takes.
    #[error("the cipher refuses: this is a fault of the enforcer")]
    Cipher,
}

/// The origins that share their cookies: a value sealed for one of them opens for each, and for no other.
///
/// 1 to 64 characters of `a-z`, `0-9`, `.`, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(Arc<str>);

impl Group {
    const MAX: usize = 64;

    /// # Errors
    /// A sentence that says what a group's name has to be.
    pub fn new(name: &str) -> Result<Self, String> {
        let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if (1..=Self::MAX).contains(&name.len()) && name.bytes().all(fits) {
            return Ok(Self(name.into()));
        }
        Err(format!(
            "{name:?} is no name of an origin group: take 1 to {} of a-z, 0-9, `.`, `-`, `_`",
            Self::MAX
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Seals and opens the cookies of one session.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    /// # Errors
    /// [`SealError::Cipher`], which does not happen.
    pub fn new(secret: &SealingSecret) -> Result<Self, SealError> {
        let key = derive(&[], secret.bytes(), &[b"enforcer cookie 1"])?;
        Ok(Self { key, random: SystemRandom::new() })
    }

    /// The value that the browser gets: [`PREFIX`], then base64url without padding of nonce (12 bytes), ciphertext and
    /// tag (16 bytes). Bound to the group and the cookie's name.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn seal(&self, group: &Group, name: &[u8], value: &[u8]) -> Result<Vec<u8>, SealError> {
        if sealed_len(value.len()) > MAX_SEALED {
            return Err(SealError::TooLong(value.len()));
        }
        let sealed = encrypt(&self.key, &self.random, &about(group, name), value)?;
        let mut text = vec![0; PREFIX.len() + text_len(sealed.len())];
        let (prefix, rest) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        let written = URL_SAFE_NO_PAD.encode_slice(sealed, rest).map_err(|_| SealError::Cipher)?;
        text.truncate(PREFIX.len() + written);
        Ok(text)
    }

    /// What was sealed by this session for this group under this name. None for everything else.
    pub fn open(&self, group: &Group, name: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        self.open_first([group], name, text).map(|(_, value)| value)
    }

    /// The first of these groups under which it opens, and the value.
    pub fn open_first<'g>(
        &self,
        groups: impl IntoIterator<Item = &'g Group>,
        name: &[u8],
        text: &[u8],
    ) -> Option<(&'g Group, Vec<u8>)> {
        if text.len() > MAX_SEALED {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        groups.into_iter().find_map(|group| Some((group, decrypt(&self.key, &about(group, name), &sealed)?)))
    }
}

/// Whether it claims to be a sealed value.
pub fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(PREFIX)
}

/// How long the sealed value of one of `length` bytes is: 76 of 26, 1407 of 1024.
pub fn sealed_len(length: usize) -> usize {
    PREFIX.len().saturating_add(text_len(length.saturating_add(NONCE_LEN + TAG_LEN)))
}

/// How many characters of base64url without padding so many bytes are.
fn text_len(bytes: usize) -> usize {
    bytes.saturating_mul(4).div_ceil(3)
}

/// Associated data: what a value is bound to. The lengths keep apart what stands side by side.
fn about(group: &Group, name: &[u8]) -> Vec<u8> {
    let lengths = 2 * size_of::<u64>();
    let mut data = Vec::with_capacity(1 + lengths + group.as_str().len() + name.len());
    data.push(VERSION);
    extend_counted(&mut data, group.as_str().as_bytes());
    extend_counted(&mut data, name);
    data
}

/// Its length as eight bytes, big endian, and itself.
fn extend_counted(data: &mut Vec<u8>, part: &[u8]) {
    data.extend_from_slice(&(part.len() as u64).to_be_bytes());
    data.extend_from_slice(part);
}

/// HKDF-SHA-256 (RFC 5869) to a key of AES-256-GCM.
fn derive(salt: &[u8], input: &[u8], info: &[&[u8]]) -> Result<LessSafeKey, SealError> {
    let key = Salt::new(HKDF_SHA256, salt).extract(input);
    let key = key.expand(info, &AES_256_GCM).map_err(|_| SealError::Cipher)?;
    Ok(LessSafeKey::new(UnboundKey::from(key)))
}

/// Nonce, ciphertext and tag.
fn encrypt(
    key: &LessSafeKey,
    random: &SystemRandom,
    about: &[u8],
    value: &[u8],
) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE_LEN];
    random.fill(&mut nonce).map_err(|_| SealError::NoRandom)?;
    let mut sealed = Vec::with_capacity(NONCE_LEN + value.len() + TAG_LEN);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(value);
    let (_, text) = sealed.split_at_mut(NONCE_LEN);
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(about), text)
        .map_err(|_| SealError::Cipher)?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

fn decrypt(key: &LessSafeKey, about: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut text = text.to_vec();
    let length = key.open_in_place(nonce, Aad::from(about), &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(name: &str) -> Group {
        Group::new(name).unwrap()
    }

    fn sealer() -> Sealer {
        Sealer::new(&SealingSecret::new().unwrap()).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_and_every_time_looks_another_way() {
        let sealer = sealer();
        let one = sealer.seal(&group("app"), b"sid", b"value").unwrap();
        let two = sealer.seal(&group("app"), b"sid", b"value").unwrap();
        assert_ne!(one, two);
        for text in [one, two] {
            assert!(is_sealed(&text));
            assert_eq!(sealer.open(&group("app"), b"sid", &text).unwrap(), b"value");
        }
    }

    /// R2, R3: not under another session, another group or another name.
    #[test]
    fn r2_nothing_opens_elsewhere() {
        let sealer = sealer();
        let text = sealer.seal(&group("app"), b"sid", b"value").unwrap();
        assert_eq!(super::tests::sealer().open(&group("app"), b"sid", &text), None);
        assert_eq!(sealer.open(&group("ap"), b"psid", &text), None, "lengths keep them apart");
        for (other, name) in
            [("app2", &b"sid"[..]), ("app", b"sid2"), ("app", b"SID"), ("app", b""), ("a", b"sid")]
        {
            assert_eq!(sealer.open(&group(other), name, &text), None, "{other} {name:?}");
        }
        let groups = [group("a"), group("app"), group("b")];
        let (found, value) = sealer.open_first(&groups, b"sid", &text).unwrap();
        assert_eq!((found.as_str(), &*value), ("app", &b"value"[..]));
        assert!(sealer.open(&group("app"), b"sid", &text).is_some(), "and its twin opens");
    }

    #[test]
    fn how_long_it_becomes() {
        assert_eq!((sealed_len(26), sealed_len(1024)), (76, 1407));
        let sealer = sealer();
        for length in [0, 1, 2, 3, 26, 27, 1024, 3038] {
            let text = sealer.seal(&group("g"), b"n", &vec![b'x'; length]).unwrap();
            assert_eq!(text.len(), sealed_len(length));
        }
        assert!(sealed_len(3038) + b"name".len() <= 4096 && sealed_len(3039) + b"name".len() > 4096);
        assert_eq!(sealed_len(usize::MAX), usize::MAX.div_ceil(3) + PREFIX.len());
    }

    #[test]
    fn r7_what_is_too_long_is_refused_both_ways() {
        let sealer = sealer();
        let long = vec![b'x'; MAX_SEALED];
        assert_eq!(sealer.seal(&group("g"), b"n", &long), Err(SealError::TooLong(MAX_SEALED)));
        let mut text = sealer.seal(&group("g"), b"n", &vec![b'x'; 49_000]).unwrap();
        assert!(sealer.open(&group("g"), b"n", &text).is_some());
        text.resize(MAX_SEALED + 1, b'A');
        assert_eq!(sealer.open(&group("g"), b"n", &text), None);
    }

    /// A known answer: the layout of the value, the derivation and the associated data do not change by accident, since
    /// then a new version would log everybody out of their applications.
    #[test]
    fn a_value_of_an_earlier_build_opens() {
        let secret = SealingSecret::from_bytes([7; 32]);
        let sealer = Sealer::new(&secret).unwrap();
        let text = KNOWN.as_bytes();
        assert_eq!(sealer.open(&group("app"), b"sid", text).unwrap(), b"a value of an earlier build");
    }

    const KNOWN: &str = "es1.StBBnodeo3y6mwtb-MIV03MGCNbENDCtcWD2U53AaQdwY5tHY6DNJvsaekbCXYd4SWvERAX_bg";

    #[test]
    fn names_of_groups() {
        for name in ["a", "app.example.com", "a_b-c.9"] {
            assert_eq!(group(name).to_string(), name);
        }
        for name in ["", "A", "a b", "a:b", "ä", &"x".repeat(65)] {
            assert!(Group::new(name).unwrap_err().contains("a-z"), "{name}");
        }
    }

    proptest! {
        #[test]
        fn sealing_and_opening_gives_the_same_bytes(
            name in prop::collection::vec(any::<u8>(), 0..60),
            value in prop::collection::vec(any::<u8>(), 0..300)
        ) {
            let sealer = sealer();
            let text = sealer.seal(&group("app"), &name, &value).unwrap();
            prop_assert!(text.iter().all(|&byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)));
            prop_assert_eq!(sealer.open(&group("app"), &name, &text), Some(value));
        }

        #[test]
        fn no_bytes_make_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let sealer = sealer();
            prop_assert_eq!(sealer.open(&group("app"), b"sid", &text), None);
            prop_assert_eq!(sealer.open(&group("app"), b"sid", &[PREFIX, &text].concat()), None);
        }
    }
}
