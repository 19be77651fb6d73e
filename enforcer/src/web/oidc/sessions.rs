//! Which of the gateway's sessions belong to which session, and which person, at the provider: so that an end there
//! ends them here, also after a restart of the gateway.
//!
//! In memory, and in a file of the gateway's state. Both have the sessions' keys, which are no secrets, and of `sub` and
//! `sid` digests alone. **A digest hides a name from a glance, not from who guesses it**: names can be tried.
//!
//! What ends otherwise has to be told of ([`Sessions::forget`]); what was missed while the gateway was down is forgotten
//! when its time is over, and takes room until then.
//!
//! What the provider has ended is to be ended here **until it is** ([`endings`]): also when the provider has long been
//! told that it could not be done, and after a restart of the gateway.

mod endings;
mod file;
mod table;

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::digest::{SHA256, digest};

use crate::session::WebKey;
use crate::web::line_file::{LineError, LineFile};

use super::logout_token::LogoutToken;
use endings::Endings;
use file::Line;
use table::{Entry, Table};

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sessions.
    pub sessions: usize,
    /// Logout tokens, each for 12 minutes.
    pub logouts: usize,
}

impl Default for Bounds {
    /// 100,000 sessions, as many as the daemon has, and a logout token for each and more.
    fn default() -> Self {
        Self { sessions: 100_000, logouts: 131_072 }
    }
}

/// By what a logout token says which sessions end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The provider's session.
    Sid,
    /// The person: all of his sessions.
    Sub,
}

/// What a logout token ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedOut {
    pub by: By,
    /// May be none: they have ended already, or there never was one.
    pub sessions: Vec<WebKey>,
    jti: Digest,
}

/// Why the table does not take something in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Whose session it would be was logged out meanwhile.
    Ended,
    Full,
    Seen,
    TooMany,
    Nobody,
}

/// Who or what something is about: the first 16 bytes of SHA-256 over kind, issuer and name, with a NUL between them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Digest([u8; 16]);

impl Digest {
    /// No issuer holds a NUL.
    fn of(kind: &str, issuer: &str, name: &str) -> Self {
        let whole = digest(&SHA256, [kind, issuer, name].join("\0").as_bytes());
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(whole.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    fn read(text: &str) -> Option<Self> {
        // of the same form
        text.parse::<WebKey>().ok().map(|key| Self(*key.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(")?;
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// Whose a session is, as the provider says it.
pub(super) struct Whose<'a> {
    pub issuer: &'a str,
    pub sub: &'a str,
    pub sid: Option<&'a str>,
    /// When the ID token was issued, by the provider's clock.
    pub issued: u64,
    /// Unix seconds: when the session ends at the latest.
    pub until: u64,
}

/// Why a session is not taken in.
#[derive(Debug)]
pub(super) enum AddError {
    Refused(Refused),
    File(LineError),
}

/// All of them. Its functions lock; [`Sessions::add`] and [`Sessions::keep_endings`] write to the disk.
#[derive(Debug)]
pub(super) struct Sessions {
    /// Locked for a moment alone; after `file` where both are.
    table: Mutex<Table>,
    endings: Endings,
    file: Mutex<LineFile>,
    /// What is over and was not written yet: it goes with the next line.
    over: Mutex<Vec<WebKey>>,
}

impl Sessions {
    /// # Errors
    /// [`LineError`]
    pub(super) fn open(path: &Path, bounds: Bounds, now: u64) -> Result<Self, LineError> {
        let (file, table, left) = file::open(path, bounds, now)?;
        Ok(Self {
            table: Mutex::new(table),
            endings: Endings::new(left),
            file: Mutex::new(file),
            over: Mutex::default(),
        })
    }

    /// Takes a session in. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`AddError`]: then it is not in, and must not be given to anybody.
    pub(super) fn add(&self, key: WebKey, whose: &Whose<'_>, now: u64) -> Result<(), AddError> {
        let Whose { issuer, sub, sid, issued, until } = *whose;
        let sub = Digest::of("sub", issuer, sub);
        let entry = Entry { sub, sid: sid.map(|sid| Digest::of("sid", issuer, sid)), until, issued };
        lock(&self.table).add(key, entry, now).map_err(AddError::Refused)?;
        let written = self.write([Line::Begun(key, entry)], now);
        if written.is_err() {
            lock(&self.table).forget(&key);
        }
        written.map_err(AddError::File)
    }

    /// `lines`: of what table and endings have already.
    fn write(&self, lines: impl IntoIterator<Item = Line>, now: u64) -> Result<(), LineError> {
        let mut file = lock(&self.file);
        let over = std::mem::take(&mut *lock(&self.over));
        let written = if file.has_grown() {
            let ending = self.endings.all();
            let all = file::all(&lock(&self.table), ending.into_iter(), now);
            file.write_anew(&all)
        } else {
            file.add(&file::lines(over.iter().copied().map(Line::Over).chain(lines)))
        };
        if written.is_err() {
            lock(&self.over).extend(over);
        }
        written
    }

    /// A session that is heard to be over, for whatever reason. What is to be ended stays until it is ([`Sessions::over`]):
    /// what is heard may not be on a disk yet.
    pub(super) fn forget(&self, key: &WebKey) {
        if !self.endings.has(key) && lock(&self.table).forget(key) {
            lock(&self.over).push(*key);
        }
    }

    /// A session that is over for good, as whoever ends sessions says.
    pub(super) fn over(&self, key: &WebKey) {
        self.endings.forget(key);
        self.forget(key);
    }

    /// From now on what it ends is to be ended ([`Sessions::endings`]).
    ///
    /// # Errors
    /// [`Refused`]
    pub(super) fn logout(&self, issuer: &str, token: &LogoutToken, now: u64) -> Result<LoggedOut, Refused> {
        let out = lock(&self.table).logout(issuer, token, now)?;
        self.endings.want(&out.sessions);
        Ok(out)
    }

    /// What it ends could not be ended: the provider may say it again.
    pub(super) fn again(&self, out: &LoggedOut) {
        lock(&self.table).again(&out.jti);
    }

    /// What the provider has ended, and nobody has said to be over.
    pub(super) fn endings(&self) -> &Endings {
        &self.endings
    }

    /// These could not be ended. That they are to be is on the disk when this returns, where it was not before.
    ///
    /// # Errors
    /// [`LineError`]: a restart of the gateway would forget it. Until then it does not.
    pub(super) fn keep_endings(&self, keys: &[WebKey], now: u64) -> Result<(), LineError> {
        let fresh = self.endings.fresh(keys);
        let written =
            if fresh.is_empty() { Ok(()) } else { self.write(fresh.into_iter().map(Line::Ending), now) };
        self.endings.failed(keys);
        written
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.table).len()
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        let over = std::mem::take(&mut *lock(&self.over));
        let wanted = self.endings.fresh(&self.endings.all());
        let lines = over.into_iter().map(Line::Over).chain(wanted.into_iter().map(Line::Ending));
        let text = file::lines(lines);
        if !text.is_empty() {
            // what is over and not written is forgotten when its time is over
            let _ = lock(&self.file).add(&text);
        }
    }
}

/// Whoever panicked did so between two whole changes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://id.example";
    const NOW: u64 = 1_800_000_000;

    fn key(byte: u8) -> WebKey {
        WebKey::from_bytes([byte; 16])
    }

    fn whose<'a>(sub: &'a str, sid: Option<&'a str>) -> Whose<'a> {
        Whose { issuer: ISSUER, sub, sid, issued: NOW, until: NOW + 3600 }
    }

    fn out(sub: &str, jti: &str) -> LogoutToken {
        LogoutToken { sub: Some(sub.into()), sid: None, jti: jti.into(), issued: NOW }
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn open(path: &Path) -> Sessions {
        Sessions::open(path, Bounds::default(), NOW).unwrap()
    }

    #[test]
    fn r5_the_provider_ends_a_session_after_a_restart_of_the_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let sessions = open(&path);
        sessions.add(key(1), &whose("alice", Some("a")), NOW).unwrap();
        sessions.add(key(2), &whose("alice", None), NOW).unwrap();
        sessions.add(key(3), &whose("bob", None), NOW).unwrap();
        sessions.forget(&key(2));
        sessions.forget(&key(9));
        drop(sessions);
        let sessions = open(&path);
        assert_eq!(sessions.logout(ISSUER, &out("alice", "1"), NOW).unwrap().sessions, [key(1)]);
        assert_eq!(sessions.len(), 2);
        // nobody's name stands there
        let text = text(&path);
        assert!(!text.contains("alice") && !text.contains("bob"), "{text}");
    }

    /// A gateway that was killed has not written what was over: it comes back, and is of nobody's harm.
    #[test]
    fn what_is_over_is_written_with_the_next_session() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let sessions = open(&path);
        sessions.add(key(1), &whose("alice", None), NOW).unwrap();
        sessions.forget(&key(1));
        sessions.add(key(2), &whose("alice", None), NOW).unwrap();
        let text = text(&path);
        assert_eq!(text.lines().filter(|line| line.starts_with("- ")).count(), 1, "{text}");
        assert_eq!(text.lines().count(), 3);
    }

    /// R5: a session whose owner is not on the disk is not given to anybody.
    #[test]
    fn r5_what_cannot_be_written_is_not_taken_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let sessions = open(&path);
        // a descriptor that cannot be written to stands for a disk that cannot
        lock(&sessions.file).break_it();
        sessions.forget(&key(7));
        assert!(matches!(sessions.add(key(1), &whose("alice", None), NOW), Err(AddError::File(_))));
        assert_eq!(sessions.len(), 0);
        assert!(sessions.logout(ISSUER, &out("alice", "1"), NOW).unwrap().sessions.is_empty());
    }

    /// R2, R5: what the provider has ended is to be ended until it is, whatever happens to the gateway meanwhile: it stops,
    /// or it is killed after it could not end it.
    #[test]
    fn r2_r5_what_the_provider_has_ended_is_to_be_ended_until_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let sessions = open(&path);
        sessions.add(key(1), &whose("alice", None), NOW).unwrap();
        sessions.add(key(2), &whose("bob", None), NOW).unwrap();
        let out = sessions.logout(ISSUER, &out("alice", "1"), NOW).unwrap();
        assert_eq!((&out.sessions, sessions.endings().all()), (&vec![key(1)], vec![key(1)]));
        assert!(!text(&path).contains("! "), "it may succeed at once");
        drop(sessions);
        let sessions = open(&path);
        assert_eq!(sessions.endings().all(), [key(1)], "stopped in between");
        sessions.forget(&key(1));
        drop(sessions);
        let sessions = open(&path);
        assert_eq!(
            sessions.endings().all(),
            [key(1)],
            "heard to be over: the daemon may not have written it"
        );
        sessions.over(&key(1));
        drop(sessions);
        let sessions = open(&path);
        assert!(sessions.endings().all().is_empty());
        sessions.logout(ISSUER, &self::out("bob", "2"), NOW).unwrap();
        for _ in 0..3 {
            sessions.keep_endings(&[key(2)], NOW).unwrap();
        }
        assert_eq!(
            text(&path).matches(&format!("! {}\n", key(2))).count(),
            1,
            "written once: {}",
            text(&path)
        );
        // killed: nothing more is written
        let copy = folder.path().join("copy");
        std::fs::write(&copy, text(&path)).unwrap();
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(open(&copy).endings().all(), [key(2)]);
    }

    /// R6: also where that cannot be written down it is not forgotten before the next restart, and it is told.
    #[test]
    fn r6_an_end_that_cannot_be_written_is_told_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = open(&folder.path().join("sessions"));
        sessions.add(key(1), &whose("alice", None), NOW).unwrap();
        sessions.logout(ISSUER, &out("alice", "1"), NOW).unwrap();
        lock(&sessions.file).break_it();
        assert!(sessions.keep_endings(&[key(1)], NOW).is_err());
        assert_eq!(sessions.endings().all(), [key(1)]);
    }

    #[test]
    fn a_digest_does_not_mix_kind_issuer_and_name() {
        let one = Digest::of("sub", "https://a", "b");
        assert_eq!(Digest::read(&one.to_string()), Some(one));
        for other in [("sid", "https://a", "b"), ("sub", "https://ab", ""), ("sub", "https://", "ab")] {
            assert_ne!(one, Digest::of(other.0, other.1, other.2));
        }
        assert_eq!(format!("{one:?}").len(), "Digest(01020304…)".len());
    }
}
