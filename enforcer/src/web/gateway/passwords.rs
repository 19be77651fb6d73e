//! Passwords of the users file: who tries how often, and how many are looked at at once.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::web::attempts::{Attempts, Limits, Whose};
use crate::web::users::{UsersError, UsersFile};

/// How many may wait until a password is looked at.
const WAITING: usize = 64;
/// How long one may wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// The users who may log in with a password.
pub(super) struct Passwords {
    file: UsersFile,
    attempts: Mutex<Attempts>,
    /// Each look takes 19 MiB and tens of milliseconds of a processor.
    places: Arc<Semaphore>,
    waiting: Semaphore,
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tried {
    Right,
    /// The password, or there is no such user, or the file locks it: that is not told apart.
    Wrong,
    /// Too many tries.
    Wait(Duration),
    /// Too many others are logging in.
    Busy,
}

impl Passwords {
    /// # Errors
    /// [`UsersError`]
    pub(super) fn open(path: &Path, at_once: usize) -> Result<Arc<Self>, UsersError> {
        Ok(Arc::new(Self {
            file: UsersFile::open(path)?,
            attempts: Mutex::new(Attempts::new(Limits::default())),
            places: Arc::new(Semaphore::new(at_once.max(1))),
            waiting: Semaphore::new(WAITING),
        }))
    }

    /// `user`: by the realm's case rule.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        user: &str,
        password: Zeroizing<Vec<u8>>,
        client: IpAddr,
    ) -> Tried {
        if let Err(wait) = self.attempts().ask(user, client, Instant::now()) {
            let whose = match wait.whose {
                Whose::User => "of this user",
                Whose::Address => "from this address",
            };
            tracing::warn!(user = ?user, %client, "a login is refused for now: too many tries {whose}");
            return Tried::Wait(wait.time);
        }
        let Some((place, _waiting)) = self.place().await else {
            // nobody has looked at it: it was no try
            self.attempts().untried(user, client, Instant::now());
            return Tried::Busy;
        };
        let (this, name) = (Arc::clone(self), user.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            // also a look at the disk
            let (users, trouble) = this.file.look();
            if let Some(error) = trouble {
                tracing::error!(
                    "the changed users file cannot be used, those from before may log in: {error}"
                );
            }
            let right = users.verify(&name, &password).is_some();
            // here, and not where somebody waits: who hangs up in the middle makes no place for another one
            drop(place);
            right
        });
        if looked.await.unwrap_or(false) {
            self.attempts().succeeded(user, client, Instant::now());
            return Tried::Right;
        }
        tracing::info!(user = ?user, %client, "a login with a wrong name or password");
        Tried::Wrong
    }

    /// A place to look at a password, and that for waiting for it.
    async fn place(&self) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let waiting = self.waiting.try_acquire().ok()?;
        let place = tokio::time::timeout(PATIENCE, Arc::clone(&self.places).acquire_owned());
        Some((place.await.ok()?.ok()?, waiting))
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::users::{Change, change, hash};

    fn passwords() -> (tempfile::TempDir, Arc<Passwords>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        for (name, locked) in [("alice", false), ("bob", true)] {
            let password = Change::Password { hash: hash(b"secret").unwrap(), groups: None };
            change(&path, name, &password).unwrap();
            if locked {
                change(&path, name, &Change::Lock).unwrap();
            }
        }
        let passwords = Passwords::open(&path, 2).unwrap();
        (folder, passwords)
    }

    async fn attempt(passwords: &Arc<Passwords>, user: &str, password: &str) -> Tried {
        let password = Zeroizing::new(password.as_bytes().to_vec());
        passwords.attempt(user, password, "192.0.2.1".parse().unwrap()).await
    }

    #[tokio::test]
    async fn who_is_right_is_let_in_and_nobody_else_is_told_why_not() {
        let (_folder, passwords) = passwords();
        assert_eq!(attempt(&passwords, "alice", "secret").await, Tried::Right);
        for (user, password) in [("alice", "Secret"), ("alice", ""), ("bob", "secret"), ("eve", "secret")] {
            assert_eq!(attempt(&passwords, user, password).await, Tried::Wrong, "{user}");
        }
    }

    /// R7
    #[tokio::test]
    async fn r7_tries_have_an_end_for_a_name_that_is_there_and_for_one_that_is_not() {
        let (_folder, passwords) = passwords();
        for user in ["alice", "eve"] {
            let mut tries = 0;
            while attempt(&passwords, user, "wrong").await == Tried::Wrong {
                tries += 1;
            }
            assert_eq!(tries, Limits::default().user.tries, "{user}");
            assert!(matches!(attempt(&passwords, user, "secret").await, Tried::Wait(_)), "{user}");
        }
        assert_eq!(attempt(&passwords, "bob", "wrong").await, Tried::Wrong, "and others are not held up");
    }

    /// R4, R7: so many wait and no more; and what nobody has looked at was no try.
    #[tokio::test]
    async fn r4_r7_who_was_told_to_come_again_has_lost_no_try() {
        let (_folder, passwords) = passwords();
        let others = passwords.waiting.acquire_many(u32::try_from(WAITING).unwrap()).await.unwrap();
        for _ in 0..50 {
            assert_eq!(attempt(&passwords, "alice", "secret").await, Tried::Busy);
        }
        drop(others);
        assert_eq!(attempt(&passwords, "alice", "secret").await, Tried::Right);
    }
}
