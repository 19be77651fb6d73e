//! The users file of a gateway that runs: read again when it has changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Users, UsersError};
use crate::web::safe_file::{self, FileError, Stamp};

/// A users file, and who was in it when it was last read.
#[derive(Debug)]
pub struct UsersFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    users: Arc<Users>,
    /// What was tried last; None: it was not there.
    tried: Option<Stamp>,
}

impl UsersFile {
    /// # Errors
    /// [`UsersError`]: a gateway that is to look at passwords does not start without its users.
    pub fn open(path: &Path) -> Result<Self, UsersError> {
        let (users, stamp) = read(path)?;
        let state = Mutex::new(State { users: Arc::new(users), tried: Some(stamp) });
        Ok(Self { path: path.to_owned(), state })
    }

    /// Who may log in now: one stat(2), and the file is read again if it has changed.
    ///
    /// If what it has become cannot be taken (a broken line, a mode that lets others write), those who were there before
    /// stay, and the error is handed out once, to be logged. If it is gone, nobody may log in.
    pub fn look(&self) -> (Arc<Users>, Option<UsersError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = safe_file::stamp(&self.path).ok();
        if now == state.tried {
            return (Arc::clone(&state.users), None);
        }
        let error = match read(&self.path) {
            Ok((users, stamp)) => {
                *state = State { users: Arc::new(users), tried: Some(stamp) };
                None
            }
            Err(error) => {
                if matches!(error, UsersError::File(FileError::Missing { .. })) {
                    state.users = Arc::default();
                }
                state.tried = now;
                Some(error)
            }
        };
        (Arc::clone(&state.users), error)
    }
}

fn read(path: &Path) -> Result<(Users, Stamp), UsersError> {
    let contents = safe_file::read(path, safe_file::GROUP_READS)?;
    let users = Users::parse(&contents.bytes).map_err(|(line, what)| UsersError::Line {
        path: path.display().to_string(),
        line,
        what,
    })?;
    Ok((users, contents.stamp))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::tests::cheap;
    use super::*;

    /// As an editor does it: a new file under the same name.
    fn put(path: &Path, text: &str) {
        let new = path.with_extension("put");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o640)).unwrap();
        fs::rename(&new, path).unwrap();
    }

    #[test]
    fn a_change_counts_at_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let hash = cheap();
        assert!(UsersFile::open(&path).unwrap_err().to_string().contains("does not exist"));
        put(&path, &format!("alice:*:{hash}\n"));
        let file = UsersFile::open(&path).unwrap();
        assert!(file.look().0.verify("alice", b"right").is_some());
        put(&path, &format!("alice:*:!{hash}\nbob:*:{hash}\n"));
        let (users, error) = file.look();
        assert!(error.is_none());
        assert!(users.verify("alice", b"right").is_none() && users.verify("bob", b"right").is_some());
        assert!(Arc::ptr_eq(&users, &file.look().0), "it is not read again");
    }

    #[test]
    fn what_cannot_be_taken_is_told_once_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let hash = cheap();
        put(&path, &format!("alice:*:{hash}\n"));
        let file = UsersFile::open(&path).unwrap();
        put(&path, &format!("alice:*:!{hash}\nbob"));
        let (users, error) = file.look();
        assert!(error.unwrap().to_string().ends_with("line 2: it is no user: name:groups:hash"));
        assert!(users.verify("alice", b"right").is_some());
        assert!(file.look().1.is_none(), "once");
        // somebody else could write it: not taken either
        put(&path, &format!("mallory:*:{hash}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o646)).unwrap();
        let (users, error) = file.look();
        assert!(error.unwrap().to_string().contains("`chmod 640` it"));
        assert!(users.verify("mallory", b"right").is_none());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(file.look().0.verify("mallory", b"right").is_some(), "mended");
        // gone
        fs::remove_file(&path).unwrap();
        let (users, error) = file.look();
        assert!(users.is_empty() && error.unwrap().to_string().contains("does not exist"));
        assert!(file.look().1.is_none());
    }
}
