//! The gateway's master keys, and what is stored of a session's sealing secret.

use std::path::Path;

use ring::rand::SystemRandom;
use zeroize::{Zeroize as _, Zeroizing};

use super::secret::{self, LENGTH};
use super::{SealError, SealingSecret, Token, VERSION, decrypt, derive, encrypt, extend_counted};
use crate::web::safe_file::{self, FileError, Folder};

/// How many master keys a file holds at the most.
pub const MAX_KEYS: usize = 16;

/// The master keys of one gateway. The one with the highest number wraps, all of them open.
///
/// In their file they are lines of a number and 64 hexadecimal digits; empty lines and lines that begin with `#` are
/// looked over. It belongs to root or to the gateway's own user, and nobody else may read it.
///
/// **Rotation**: [`MasterKeys::rotate`] adds a key; each session's secret is wrapped under it when the session is next
/// seen ([`Opened::rewrapped`]). After the longest time that a session may last the older lines can be deleted; whoever
/// has deleted them earlier has ended the sessions that were not seen meanwhile.
pub struct MasterKeys {
    /// By number, never empty.
    keys: Vec<(u32, Zeroizing<[u8; LENGTH]>)>,
}

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}, line {line}: {what}")]
    Line { path: String, line: usize, what: &'static str },
    #[error("{path} holds no key: delete it, so that a new one is made, and everybody logs in again")]
    Empty { path: String },
    #[error("{path} holds {max} keys: delete the lines of the oldest, which no session needs any more", max = MAX_KEYS)]
    Full { path: String },
    #[error(transparent)]
    Seal(#[from] SealError),
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
    /// # Errors
    /// [`KeyFileError`]: who else could read it, which line is none, that there is no key.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let text = Zeroizing::new(safe_file::read(path, safe_file::OWNER_ONLY)?.bytes);
        Self::parse(&text, path)
    }

    /// Loads the file, and makes it with a first key (mode 0600) where there is none.
    ///
    /// # Errors
    /// [`KeyFileError`]
    pub fn load_or_create(path: &Path) -> Result<Self, KeyFileError> {
        let folder = Folder::lock(path)?;
        match folder.read(safe_file::OWNER_ONLY) {
            Ok(file) => Self::parse(&Zeroizing::new(file.bytes), path),
            Err(FileError::Missing { .. }) => {
                let keys = Self { keys: vec![(1, secret::random()?)] };
                folder.replace(&keys.write())?;
                Ok(keys)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Adds a new key to the file, which wraps from now on: its number. A gateway that runs has to load the file again.
    ///
    /// # Errors
    /// [`KeyFileError`]
    pub fn rotate(path: &Path) -> Result<u32, KeyFileError> {
        let folder = Folder::lock(path)?;
        let text = Zeroizing::new(folder.read(safe_file::OWNER_ONLY)?.bytes);
        let mut keys = Self::parse(&text, path)?;
        let full = || KeyFileError::Full { path: path.display().to_string() };
        let number = keys.newest().checked_add(1).filter(|_| keys.keys.len() < MAX_KEYS).ok_or_else(full)?;
        keys.keys.push((number, secret::random()?));
        folder.replace(&keys.write())?;
        Ok(number)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, KeyFileError> {
        let shown = || path.display().to_string();
        let mut keys: Vec<(u32, Zeroizing<[u8; LENGTH]>)> = Vec::new();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let wrong = |what| KeyFileError::Line { path: shown(), line: index + 1, what };
            let (number, key) = read_line(line)
                .ok_or_else(|| wrong("it is no key: a number, a space and 64 hexadecimal digits"))?;
            if keys.last().is_some_and(|(last, _)| *last >= number) {
                return Err(wrong("the numbers have to ascend: a higher one is a newer key"));
            }
            if keys.len() == MAX_KEYS {
                return Err(wrong("a file holds at most 16 keys: delete the oldest"));
            }
            keys.push((number, key));
        }
        if keys.is_empty() {
            return Err(KeyFileError::Empty { path: shown() });
        }
        Ok(Self { keys })
    }

    fn write(&self) -> Zeroizing<Vec<u8>> {
        const HEAD: &[u8] =
            b"# enforcer gateway: master keys. The last one wraps, all of them open. Keep them secret.\n";
        // enough room from the start, so that nothing is left behind where it grew
        let mut text = Zeroizing::new(Vec::with_capacity(HEAD.len() + self.keys.len() * (12 + 2 * LENGTH)));
        text.extend_from_slice(HEAD);
        for (number, key) in &self.keys {
            text.extend_from_slice(number.to_string().as_bytes());
            text.push(b' ');
            for byte in key.iter() {
                for half in [byte >> 4, byte & 15] {
                    text.extend(b"0123456789abcdef".get(usize::from(half)));
                }
            }
            text.push(b'\n');
        }
        text
    }

    /// The number of the key that wraps.
    pub fn newest(&self) -> u32 {
        self.keys.last().map_or(0, |(number, _)| *number)
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
        let (number, master) = self.keys.last().ok_or(SealError::Cipher)?;
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
        let (_, master) =
            self.keys.iter().find(|(its, _)| *its == number).ok_or(UnwrapError::UnknownKey(number))?;
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

/// A number above 0 and a key.
fn read_line(line: &[u8]) -> Option<(u32, Zeroizing<[u8; LENGTH]>)> {
    let at = line.iter().position(|byte| matches!(byte, b' ' | b'\t'))?;
    let (number, digits) = line.split_at_checked(at)?;
    let number: u32 = std::str::from_utf8(number).ok()?.parse().ok().filter(|number| *number > 0)?;
    let digits = digits.trim_ascii();
    if digits.len() != 2 * LENGTH {
        return None;
    }
    let mut key = Zeroizing::new([0; LENGTH]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let digit = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(digit).ok()?;
        }
    }
    Some((number, key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SESSION: [u8; 16] = [9; 16];

    struct Fixture {
        folder: tempfile::TempDir,
        secret: SealingSecret,
        token: Token,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                secret: SealingSecret::new().unwrap(),
                token: Token::new().unwrap(),
            }
        }

        fn file(&self) -> std::path::PathBuf {
            self.folder.path().join("master.key")
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.file()).unwrap()
        }

        fn put(&self, text: &str) {
            std::fs::write(self.file(), text).unwrap();
            std::fs::set_permissions(self.file(), PermissionsExt::from_mode(0o600)).unwrap();
        }
    }

    fn why<T>(result: Result<T, KeyFileError>) -> String {
        match result {
            Ok(_) => panic!("it was taken"),
            Err(error) => error.to_string(),
        }
    }

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

    #[test]
    fn rotation_logs_nobody_out() {
        let f = Fixture::new();
        let old = MasterKeys::load_or_create(&f.file()).unwrap();
        let wrapped = old.wrap(&f.secret, &f.token, &SESSION, "h").unwrap();
        assert_eq!(MasterKeys::rotate(&f.file()).unwrap(), 2);
        let both = MasterKeys::load(&f.file()).unwrap();
        let opened = both.unwrap(&wrapped, &f.token, &SESSION, "h").unwrap();
        assert_eq!(opened.secret.bytes(), f.secret.bytes());
        let newer = opened.rewrapped.unwrap().unwrap();
        assert_eq!((wrapped.key(), newer.key()), (1, 2));
        let again = both.unwrap(&newer, &f.token, &SESSION, "h").unwrap();
        assert!(again.rewrapped.is_none() && again.secret.bytes() == f.secret.bytes());
        // once the old line is gone
        let newest: String = f.text().lines().filter(|line| line.starts_with("2 ")).collect();
        f.put(&newest);
        let one = MasterKeys::load(&f.file()).unwrap();
        assert!(one.unwrap(&newer, &f.token, &SESSION, "h").is_ok());
        let gone = one.unwrap(&wrapped, &f.token, &SESSION, "h");
        assert_eq!(gone.err(), Some(UnwrapError::UnknownKey(1)));
    }

    #[test]
    fn the_file_is_made_once_and_for_its_owner_alone() {
        let f = Fixture::new();
        assert!(matches!(MasterKeys::load(&f.file()), Err(KeyFileError::File(FileError::Missing { .. }))));
        MasterKeys::load_or_create(&f.file()).unwrap();
        let mode = std::fs::metadata(f.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let first = f.text();
        MasterKeys::load_or_create(&f.file()).unwrap();
        assert_eq!(f.text(), first);
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(f.file(), PermissionsExt::from_mode(mode)).unwrap();
            let said = why(MasterKeys::load(&f.file()));
            assert!(said.contains("chmod 600"), "{said}");
        }
        std::fs::set_permissions(f.file(), PermissionsExt::from_mode(0o400)).unwrap();
        MasterKeys::load(&f.file()).unwrap();
    }

    #[test]
    fn a_broken_file_says_what_is_wrong_and_no_key() {
        let f = Fixture::new();
        let key = "5a".repeat(32);
        for (text, said) in [
            (String::new(), "holds no key"),
            ("# nothing\n".to_owned(), "holds no key"),
            (format!("1 {key}\nx {key}\n"), "line 2: it is no key"),
            (format!("0 {key}\n"), "line 1: it is no key"),
            (format!("1 {}\n", &key[1..]), "line 1: it is no key"),
            (format!("1 {}g\n", &key[1..]), "line 1: it is no key"),
            (format!("1{key}\n"), "line 1: it is no key"),
            (format!("2 {key}\n\n2 {key}\n"), "line 3: the numbers have to ascend"),
            ((1..=17).map(|n| format!("{n} {key}\n")).collect(), "line 17: a file holds at most 16"),
        ] {
            f.put(&text);
            let why = why(MasterKeys::load(&f.file()));
            assert!(why.contains(said), "{why}");
            assert!(!why.contains("5a5a"), "{why}");
        }
        f.put(&format!("# old\n 7\t{} \r\n\n9 {key}", key.to_uppercase()));
        assert_eq!(MasterKeys::load(&f.file()).unwrap().newest(), 9);
    }

    #[test]
    fn r7_there_is_no_seventeenth_key() {
        let f = Fixture::new();
        MasterKeys::load_or_create(&f.file()).unwrap();
        for number in 2..=16 {
            assert_eq!(MasterKeys::rotate(&f.file()).unwrap(), number);
        }
        let before = f.text();
        assert!(why(MasterKeys::rotate(&f.file())).contains("holds 16 keys"));
        assert_eq!(f.text(), before);
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
