//! The gateway's master keys, and what is stored of a session's sealing secret.

use std::time::SystemTime;

use ring::rand::SystemRandom;
use zeroize::{Zeroize as _, Zeroizing};

use super::secret::LENGTH;
use super::{SealError, SealingSecret, Token, VERSION, decrypt, derive, encrypt, extend_counted};

/// The master keys of one gateway. The one with the highest number wraps, all of them open. Where they are kept, how a
/// new one is made and old ones go: `seal/key_file.rs`.
pub struct MasterKeys {
    /// By number, never empty.
    pub(super) keys: Vec<MasterKey>,
}

pub(super) struct MasterKey {
    pub(super) number: u32,
    pub(super) key: Zeroizing<[u8; LENGTH]>,
    /// When it was made, if its line says so.
    pub(super) made: Option<SystemTime>,
}

/// What may be said of a master key: not the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo {
    pub number: u32,
    /// Since then nothing was wrapped under the one before it. None if its line does not say.
    pub made: Option<SystemTime>,
    /// Whether it is the one that wraps.
    pub wraps: bool,
}

/// A sealing secret, wrapped under one host's token and one master key. 65 bytes: version 1, the key's number (four
/// bytes, big endian), nonce (12), ciphertext (32), tag (16).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped([u8; Wrapped::LENGTH]);

/// Why a wrapped secret does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    #[error("master key {0} is not in the key file: it was deleted, and the session has to log in again")]
    UnknownKey(u32),
    #[error("this token does not open the session's secret on this host")]
    Refused,
}

/// An unwrapped secret.
pub struct Opened {
    pub secret: SealingSecret,
    /// The same wrapped under the newest master key, where it was an older one: to be stored in place of what was
    /// opened. That it could not be wrapped is told here and harms nothing.
    pub rewrapped: Option<Result<Wrapped, SealError>>,
}

impl Wrapped {
    pub const LENGTH: usize = 1 + 4 + 12 + LENGTH + 16;

    /// None if it is not of this version: then the session has to log in again.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; Self::LENGTH] = bytes.try_into().ok()?;
        (bytes.first() == Some(&VERSION)).then_some(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// The number of the master key that it needs.
    pub fn key(&self) -> u32 {
        let [_, a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    fn sealed(&self) -> &[u8] {
        self.0.get(5..).unwrap_or_default()
    }
}

impl MasterKeys {
    /// The number of the key that wraps.
    pub fn newest(&self) -> u32 {
        self.keys.last().map_or(0, |key| key.number)
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> impl Iterator<Item = KeyInfo> {
        let newest = self.newest();
        self.keys.iter().map(move |key| KeyInfo {
            number: key.number,
            made: key.made,
            wraps: key.number == newest,
        })
    }

    /// Wraps a session's secret for the holder of `token` on `host`.
    ///
    /// `session`: the session's key. `host`: in lower case, without a port.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn wrap(
        &self,
        secret: &SealingSecret,
        token: &Token,
        session: &[u8; 16],
        host: &str,
    ) -> Result<Wrapped, SealError> {
        let MasterKey { number, key: master, .. } = self.keys.last().ok_or(SealError::Cipher)?;
        let about = about(*number, session, host);
        let key = derive(master.as_slice(), token.bytes(), &[INFO])?;
        let sealed = encrypt(&key, &SystemRandom::new(), &about, secret.bytes())?;
        let wrapped = [&[VERSION][..], &number.to_be_bytes(), &sealed].concat();
        Ok(Wrapped(wrapped.try_into().map_err(|_| SealError::Cipher)?))
    }

    /// The session's secret, for the holder of `token` on `host`.
    ///
    /// # Errors
    /// [`UnwrapError`]
    pub fn unwrap(
        &self,
        wrapped: &Wrapped,
        token: &Token,
        session: &[u8; 16],
        host: &str,
    ) -> Result<Opened, UnwrapError> {
        let number = wrapped.key();
        let master = self.keys.iter().find(|key| key.number == number);
        let master = &master.ok_or(UnwrapError::UnknownKey(number))?.key;
        let about = about(number, session, host);
        let key = derive(master.as_slice(), token.bytes(), &[INFO]).map_err(|_| UnwrapError::Refused)?;
        let mut bytes = decrypt(&key, &about, wrapped.sealed()).ok_or(UnwrapError::Refused)?;
        let secret = SealingSecret::read(&bytes);
        bytes.zeroize();
        let secret = secret.ok_or(UnwrapError::Refused)?;
        let older = number != self.newest();
        let rewrapped = older.then(|| self.wrap(&secret, token, session, host));
        Ok(Opened { secret, rewrapped })
    }
}

const INFO: &[u8] = b"enforcer wrap 1";

fn about(number: u32, session: &[u8; 16], host: &str) -> Vec<u8> {
    let mut data = vec![VERSION];
    data.extend_from_slice(&number.to_be_bytes());
    data.extend_from_slice(session);
    extend_counted(&mut data, host.as_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::super::key_file::tests::{Fixture, SESSION};
    use super::*;

    #[test]
    fn r2_a_secret_opens_with_its_token_on_its_host_for_its_session_alone() {
        let f = Fixture::new();
        let keys = MasterKeys::load_or_create(&f.file()).unwrap();
        let wrapped = keys.wrap(&f.secret, &f.token, &SESSION, "app.example").unwrap();
        let opened = keys.unwrap(&wrapped, &f.token, &SESSION, "app.example").unwrap();
        assert_eq!(opened.secret.bytes(), f.secret.bytes());
        assert!(opened.rewrapped.is_none());
        let refused = |token: &Token, session: &[u8; 16], host: &str| {
            assert_eq!(keys.unwrap(&wrapped, token, session, host).err(), Some(UnwrapError::Refused));
        };
        refused(&Token::new().unwrap(), &SESSION, "app.example");
        refused(&f.token, &[8; 16], "app.example");
        refused(&f.token, &SESSION, "other.example");
    }

    #[test]
    fn r2_a_stolen_store_and_another_gateways_keys_open_nothing() {
        let (f, other) = (Fixture::new(), Fixture::new());
        let keys = MasterKeys::load_or_create(&f.file()).unwrap();
        let wrapped = keys.wrap(&f.secret, &f.token, &SESSION, "h").unwrap();
        let theirs = MasterKeys::load_or_create(&other.file()).unwrap();
        let opened = theirs.unwrap(&wrapped, &f.token, &SESSION, "h");
        assert_eq!(opened.err(), Some(UnwrapError::Refused), "key 1 of another gateway");
        let text = wrapped.bytes().as_slice();
        assert!(!text.windows(8).any(|part| f.secret.bytes().windows(8).any(|secret| secret == part)));
    }

    #[test]
    fn every_bit_of_a_wrapped_secret_counts() {
        let f = Fixture::new();
        let keys = MasterKeys::load_or_create(&f.file()).unwrap();
        let wrapped = keys.wrap(&f.secret, &f.token, &SESSION, "h").unwrap();
        for bit in 0..Wrapped::LENGTH * 8 {
            let mut bytes = *wrapped.bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match Wrapped::read(&bytes) {
                None => assert!(bit < 8, "only the version"),
                Some(changed) => assert!(keys.unwrap(&changed, &f.token, &SESSION, "h").is_err(), "{bit}"),
            }
        }
        assert_eq!(Wrapped::read(wrapped.bytes()), Some(wrapped.clone()));
        assert_eq!(Wrapped::read(&wrapped.bytes()[1..]), None);
    }

    /// A known answer, made by another program: what is stored opens in every later version.
    #[test]
    fn a_secret_that_was_wrapped_elsewhere_opens() {
        let f = Fixture::new();
        f.put(&format!("3 {}\n", "11".repeat(32)));
        let keys = MasterKeys::load(&f.file()).unwrap();
        let bytes: Vec<u8> = (0..WRAPPED.len() / 2)
            .map(|at| u8::from_str_radix(&WRAPPED[2 * at..][..2], 16).unwrap())
            .collect();
        let token = Token::parse("A".repeat(43).as_bytes()).unwrap();
        let opened = keys.unwrap(&Wrapped::read(&bytes).unwrap(), &token, &SESSION, "app.example");
        assert_eq!(opened.unwrap_or_else(|why| panic!("{why}")).secret.bytes(), &[7; LENGTH]);
    }

    const WRAPPED: &str = "0100000003000102030405060708090a0bc40058d915cfab15ea0d1d431b070586e5b26b0bb8d929\
        6a0c6ffea0ffd11113cfa1c32ef537438f9983cf1059e00db4";
}
