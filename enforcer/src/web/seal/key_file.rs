//! The file of the master keys: a new key, and old ones that no session needs any more.
//!
//! Its lines are a number, 64 hexadecimal digits and the second since 1970 in which the key was made (which may be
//! missing); empty lines and lines that begin with `#` are looked over. It belongs to root or to the gateway's own user,
//! and nobody else may read it; it is replaced as a whole.
//!
//! **Rotation** logs nobody out. A command needs three functions for it, none of which prints a key:
//! 1. [`MasterKeys::rotate`] adds a key, which wraps from now on. A gateway that runs sees that by itself ([`KeyFile`]):
//!    no signal, no restart. Each session's secret is wrapped under it when the session is next seen
//!    ([`super::Opened::rewrapped`]).
//! 2. [`MasterKeys::retire`] drops the keys that no session can need: under a key nothing is wrapped since its successor
//!    was made, so when that is longer ago than a session may last (`absolute-timeout`), whatever it has wrapped is over.
//!    It is safe to call it before each `rotate`, which then finds room.
//! 3. [`MasterKeys::load`] and [`MasterKeys::list`] say what there is.
//!
//! Who takes a line out by hand earlier has ended the sessions that were not seen since the next key was made: that is the
//! way to go where a key may be in wrong hands.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use super::keys::MasterKey;
use super::secret::{self, LENGTH};
use super::{MasterKeys, SealError};
use crate::web::safe_file::{self, FileError, Folder, Stamp};

/// How many master keys a file holds at the most.
pub const MAX_KEYS: usize = 16;

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}, line {line}: {what}")]
    Line { path: String, line: usize, what: &'static str },
    #[error("{path} holds no key: delete it, so that a new one is made, and everybody logs in again")]
    Empty { path: String },
    #[error(
        "{path} holds {max} keys: drop the oldest, which no session needs any more, or delete their lines",
        max = MAX_KEYS
    )]
    Full { path: String },
    #[error(transparent)]
    Seal(#[from] SealError),
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
        match Self::load(path) {
            Err(KeyFileError::File(FileError::Missing { .. })) => {}
            loaded => return loaded,
        }
        let folder = Folder::lock(path)?;
        match folder.read(safe_file::OWNER_ONLY) {
            // somebody else has made it meanwhile
            Ok(file) => Self::parse(&Zeroizing::new(file.bytes), path),
            Err(FileError::Missing { .. }) => {
                let first = MasterKey { number: 1, key: secret::random()?, made: Some(SystemTime::now()) };
                let keys = Self { keys: vec![first] };
                folder.replace(&keys.write())?;
                Ok(keys)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Adds a new key to the file, made `now`, which wraps from now on: its number.
    ///
    /// # Errors
    /// [`KeyFileError`]. Then the file is as it was.
    pub fn rotate(path: &Path, now: SystemTime) -> Result<u32, KeyFileError> {
        let (folder, mut keys) = Self::locked(path)?;
        let full = || KeyFileError::Full { path: path.display().to_string() };
        let number = keys.newest().checked_add(1).filter(|_| keys.keys.len() < MAX_KEYS).ok_or_else(full)?;
        keys.keys.push(MasterKey { number, key: secret::random()?, made: Some(now) });
        folder.replace(&keys.write())?;
        Ok(number)
    }

    /// Takes the keys out of the file that no session can need any more: their numbers. `longest`: how long a session may
    /// last, by the longest `absolute-timeout` that there was since. The newest key always stays, and so does one whose
    /// successor's line does not say when it was made.
    ///
    /// # Errors
    /// [`KeyFileError`]. Then the file is as it was.
    pub fn retire(path: &Path, longest: Duration, now: SystemTime) -> Result<Vec<u32>, KeyFileError> {
        let (folder, mut keys) = Self::locked(path)?;
        let over = |key: &MasterKey| {
            key.made
                .and_then(|made| made.checked_add(longest))
                .is_some_and(|needed_until| needed_until <= now)
        };
        // of the successors, the last one that is old enough
        let Some(stays) = keys.keys.iter().rposition(over).filter(|&first| first > 0) else {
            return Ok(Vec::new());
        };
        let dropped = keys.keys.drain(..stays).map(|key| key.number).collect();
        folder.replace(&keys.write())?;
        Ok(dropped)
    }

    fn locked(path: &Path) -> Result<(Folder, Self), KeyFileError> {
        let folder = Folder::lock(path)?;
        let text = Zeroizing::new(folder.read(safe_file::OWNER_ONLY)?.bytes);
        let keys = Self::parse(&text, path)?;
        Ok((folder, keys))
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, KeyFileError> {
        let shown = || path.display().to_string();
        let mut keys: Vec<MasterKey> = Vec::new();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let wrong = |what| KeyFileError::Line { path: shown(), line: index + 1, what };
            let key = read_line(line).ok_or_else(|| {
                wrong("it is no key: a number, 64 hexadecimal digits, and the second since 1970 in which it was made")
            })?;
            if keys.last().is_some_and(|last| last.number >= key.number) {
                return Err(wrong("the numbers have to ascend: a higher one is a newer key"));
            }
            if keys.len() == MAX_KEYS {
                return Err(wrong("a file holds at most 16 keys: delete the oldest"));
            }
            keys.push(key);
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
        let mut text = Zeroizing::new(Vec::with_capacity(HEAD.len() + self.keys.len() * (34 + 2 * LENGTH)));
        text.extend_from_slice(HEAD);
        for MasterKey { number, key, made } in &self.keys {
            text.extend_from_slice(number.to_string().as_bytes());
            text.push(b' ');
            for byte in key.iter() {
                for half in [byte >> 4, byte & 15] {
                    text.extend(b"0123456789abcdef".get(usize::from(half)));
                }
            }
            if let Some(since) = made.and_then(|made| made.duration_since(UNIX_EPOCH).ok()) {
                text.extend_from_slice(format!(" {}", since.as_secs()).as_bytes());
            }
            text.push(b'\n');
        }
        text
    }
}

/// A number above 0, a key, and when it was made.
fn read_line(line: &[u8]) -> Option<MasterKey> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let number = words.next()?;
    let number: u32 = std::str::from_utf8(number).ok()?.parse().ok().filter(|number| *number > 0)?;
    let digits = words.next().filter(|digits| digits.len() == 2 * LENGTH)?;
    let mut key = Zeroizing::new([0; LENGTH]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let digit = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(digit).ok()?;
        }
    }
    let made = match words.next() {
        None => None,
        Some(seconds) => {
            let seconds = std::str::from_utf8(seconds).ok()?.parse().ok()?;
            Some(UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?)
        }
    };
    words.next().is_none().then_some(MasterKey { number, key, made })
}

/// The key file of a gateway that runs: read again when it has changed.
pub struct KeyFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    keys: Arc<MasterKeys>,
    /// What was tried last, if anything was: Some(None) if the file was not there.
    tried: Option<Option<Stamp>>,
}

impl KeyFile {
    /// Loads the file, and makes it where there is none.
    ///
    /// # Errors
    /// [`KeyFileError`]
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        let keys = Arc::new(MasterKeys::load_or_create(path)?);
        // the next look reads it once more: it may have changed since
        Ok(Self { path: path.to_owned(), state: Mutex::new(State { keys, tried: None }) })
    }

    /// The keys as they are now: one stat(2), and the file is read again if it has changed. For a login and for each
    /// secret that is unwrapped, not for each request.
    ///
    /// If what it has become cannot be taken, or it is gone, the keys from before stay, and the error is handed out once,
    /// to be logged.
    pub fn look(&self) -> (Arc<MasterKeys>, Option<KeyFileError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Some(safe_file::stamp(&self.path).ok());
        if now == state.tried {
            return (Arc::clone(&state.keys), None);
        }
        state.tried = now;
        let error = match MasterKeys::load(&self.path) {
            Ok(keys) => {
                state.keys = Arc::new(keys);
                None
            }
            Err(error) => Some(error),
        };
        (Arc::clone(&state.keys), error)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{KeyInfo, SealingSecret, Token, UnwrapError};
    use super::*;

    pub(in super::super) const SESSION: [u8; 16] = [9; 16];

    const LONGEST: Duration = Duration::from_secs(12 * 3600);

    /// So many seconds after some moment.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    pub(in super::super) struct Fixture {
        folder: tempfile::TempDir,
        pub(in super::super) secret: SealingSecret,
        pub(in super::super) token: Token,
    }

    impl Fixture {
        pub(in super::super) fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                secret: SealingSecret::new().unwrap(),
                token: Token::new().unwrap(),
            }
        }

        pub(in super::super) fn file(&self) -> std::path::PathBuf {
            self.folder.path().join("master.key")
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.file()).unwrap()
        }

        pub(in super::super) fn put(&self, text: &str) {
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
            (format!("1 {key} soon\n"), "line 1: it is no key"),
            (format!("1 {key} 18446744073709551615\n"), "line 1: it is no key"),
            (format!("1 {key} 1 1\n"), "line 1: it is no key"),
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
            assert_eq!(MasterKeys::rotate(&f.file(), at(0)).unwrap(), number);
        }
        let before = f.text();
        assert!(why(MasterKeys::rotate(&f.file(), at(0))).contains("holds 16 keys"));
        assert_eq!(f.text(), before);
    }

    #[test]
    fn rotation_logs_nobody_out() {
        let f = Fixture::new();
        let old = MasterKeys::load_or_create(&f.file()).unwrap();
        let wrapped = old.wrap(&f.secret, &f.token, &SESSION, "h").unwrap();
        assert_eq!(MasterKeys::rotate(&f.file(), at(0)).unwrap(), 2);
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
    fn r2_a_key_goes_when_no_session_can_need_it() {
        let f = Fixture::new();
        MasterKeys::load_or_create(&f.file()).unwrap();
        let retire = |seconds| MasterKeys::retire(&f.file(), LONGEST, at(seconds)).unwrap();
        assert!(retire(1_000_000_000).is_empty(), "the one that wraps stays");
        MasterKeys::rotate(&f.file(), at(0)).unwrap();
        MasterKeys::rotate(&f.file(), at(100)).unwrap();
        let before = f.text();
        let longest = LONGEST.as_secs();
        assert!(retire(0).is_empty() && retire(longest - 1).is_empty());
        assert_eq!(f.text(), before, "nothing is written where nothing changes");
        assert_eq!(retire(longest), [1]);
        assert!(retire(longest + 99).is_empty());
        assert_eq!(retire(longest + 100), [2]);
        let left: Vec<_> = MasterKeys::load(&f.file()).unwrap().list().collect();
        assert_eq!(left, [KeyInfo { number: 3, made: Some(at(100)), wraps: true }]);
        assert!(before.lines().last() == f.text().lines().last(), "it is the same key");
        let mode = std::fs::metadata(f.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn several_keys_go_at_once_and_one_of_unknown_age_keeps_its_elder() {
        let f = Fixture::new();
        let key = "5a".repeat(32);
        let early = at(0).duration_since(UNIX_EPOCH).unwrap().as_secs();
        f.put(&format!("1 {key}\n2 {key} {early}\n3 {key} {early}\n4 {key}\n"));
        assert_eq!(MasterKeys::retire(&f.file(), LONGEST, at(1_000_000)).unwrap(), [1, 2]);
        assert!(MasterKeys::retire(&f.file(), LONGEST, at(1_000_000)).unwrap().is_empty(), "3, before 4");
        let left: Vec<_> = MasterKeys::load(&f.file()).unwrap().list().collect();
        assert_eq!(
            left.iter().map(|key| (key.number, key.wraps)).collect::<Vec<_>>(),
            [(3, false), (4, true)]
        );
        // a clock that was set back, and a time-out that is no time
        f.put(&format!("1 {key}\n2 {key} {}\n", early + 10));
        for (longest, now) in [(Duration::ZERO, at(9)), (Duration::MAX, at(1_000_000))] {
            assert!(MasterKeys::retire(&f.file(), longest, now).unwrap().is_empty());
        }
    }

    /// A gateway that runs takes a new key by itself, and a file that cannot be taken ends no session.
    #[test]
    fn r4_a_gateway_that_runs_sees_each_change() {
        let f = Fixture::new();
        let file = KeyFile::open(&f.file()).unwrap();
        let look = || {
            let (keys, error) = file.look();
            (keys.newest(), error.map(|error| error.to_string()))
        };
        assert_eq!(look(), (1, None));
        assert!(Arc::ptr_eq(&file.look().0, &file.look().0), "it is not read again");
        MasterKeys::rotate(&f.file(), at(0)).unwrap();
        assert_eq!(look(), (2, None));
        f.put("nonsense");
        let (newest, said) = look();
        assert!(newest == 2 && said.unwrap().contains("line 1: it is no key"));
        assert_eq!(look(), (2, None), "once");
        std::fs::remove_file(f.file()).unwrap();
        let (newest, said) = look();
        assert!(newest == 2 && said.unwrap().contains("does not exist"));
        assert_eq!(look(), (2, None));
        f.put(&format!("7 {}\n", "5a".repeat(32)));
        assert_eq!(look(), (7, None));
    }
}
