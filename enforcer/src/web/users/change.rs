//! Changing the users file: one line, and every other byte of it stays.

use std::path::Path;

use super::{Line, Users, UsersError, check_name, examine_group, numbered};
use crate::web::safe_file::{self, FileError, Folder};

/// What is to become of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A password: of a new user, or in place of the old one. A locked user stays locked.
    Password {
        /// As [`super::hash`] makes it.
        hash: String,
        /// In place of the old ones; None leaves them.
        groups: Option<Vec<String>>,
    },
    Delete,
    Lock,
    Unlock,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Added,
    Changed,
    Deleted,
    Locked,
    Unlocked,
    /// It was so before.
    Nothing,
    /// There is no such user.
    Unknown,
}

/// Changes one user in a file, which is made (mode 0600) where there is none and a password is set. Two at once wait for
/// each other; a reader sees the file before or after it.
///
/// # Errors
/// [`UsersError`]: the name, the file's rights, a broken line. Then the file is as it was.
pub fn change(path: &Path, name: &str, change: &Change) -> Result<Done, UsersError> {
    check_name(name)?;
    if let Change::Password { groups: Some(groups), .. } = change {
        groups.iter().try_for_each(|group| examine_group(group)).map_err(UsersError::Name)?;
    }
    let folder = Folder::lock(path)?;
    let text = match folder.read(safe_file::GROUP_READS) {
        Ok(contents) => contents.bytes,
        Err(FileError::Missing { .. }) if matches!(change, Change::Password { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let at = |(line, what)| UsersError::Line { path: path.display().to_string(), line, what };
    // what was broken before is not written again under our hand
    Users::parse(&text).map_err(at)?;
    let (new, done) = changed(&text, name, change).map_err(at)?;
    if matches!(done, Done::Nothing | Done::Unknown) {
        return Ok(done);
    }
    // nor does what we write lock everybody out
    Users::parse(&new).map_err(at)?;
    folder.replace(&new)?;
    Ok(done)
}

fn changed(text: &[u8], name: &str, change: &Change) -> Result<(Vec<u8>, Done), (usize, String)> {
    let mut new = Vec::with_capacity(text.len() + 256);
    let mut done = Done::Unknown;
    let mut put = |line: &[u8], ends: bool| {
        new.extend_from_slice(line);
        new.extend(ends.then_some(b'\n'));
    };
    let mut lines = numbered(text).peekable();
    while let Some((number, bytes)) = lines.next() {
        let ends = lines.peek().is_some();
        let line = Line::read(bytes).map_err(|what| (number, what))?;
        let Some(line) = line.filter(|line| line.name == name) else {
            put(bytes, ends);
            continue;
        };
        let replaced = match change {
            Change::Delete => {
                done = Done::Deleted;
                continue;
            }
            Change::Lock | Change::Unlock => {
                let locked = *change == Change::Lock;
                done = match (line.locked == locked, locked) {
                    (true, _) => Done::Nothing,
                    (false, true) => Done::Locked,
                    (false, false) => Done::Unlocked,
                };
                Line { locked, ..line }.write()
            }
            Change::Password { hash, groups } => {
                done = Done::Changed;
                let groups = groups.as_ref().map(|groups| written(groups));
                Line { hash, groups: groups.as_deref().unwrap_or(line.groups), ..line }.write()
            }
        };
        put(replaced.as_bytes(), ends);
    }
    if let (Done::Unknown, Change::Password { hash, groups }) = (done, change) {
        let groups = written(groups.as_deref().unwrap_or_default());
        if !text.is_empty() && !text.ends_with(b"\n") {
            put(b"", true);
        }
        put(Line { name, groups: &groups, hash, locked: false }.write().as_bytes(), true);
        done = Done::Added;
    }
    Ok((new, done))
}

fn written(groups: &[String]) -> String {
    if groups.is_empty() { "*".to_owned() } else { groups.join(",") }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::super::UsersFile;
    use super::super::tests::cheap;
    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        hash: String,
    }

    impl Fixture {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), hash: cheap() }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("users")
        }

        fn text(&self) -> String {
            fs::read_to_string(self.path()).unwrap().replace(&self.hash, "HASH")
        }

        fn put(&self, text: &str) {
            fs::write(self.path(), text.replace("HASH", &self.hash)).unwrap();
            fs::set_permissions(self.path(), fs::Permissions::from_mode(0o640)).unwrap();
        }

        fn change(&self, name: &str, what: &Change) -> Done {
            change(&self.path(), name, what).unwrap()
        }

        fn set(&self, name: &str, groups: Option<&[&str]>) -> Done {
            let groups = groups.map(|groups| groups.iter().map(|&group| group.to_owned()).collect());
            self.change(name, &Change::Password { hash: self.hash.clone(), groups })
        }

        fn refused(&self, name: &str, what: &Change) -> String {
            change(&self.path(), name, what).unwrap_err().to_string()
        }
    }

    #[test]
    fn users_come_change_and_go_and_every_other_byte_stays() {
        let f = Fixture::new();
        assert_eq!(f.set("alice", None), Done::Added);
        assert_eq!(f.text(), "alice:*:HASH\n");
        assert_eq!(fs::metadata(f.path()).unwrap().permissions().mode() & 0o7777, 0o600);
        f.put("# ours \n\n  # odd\r\nbob:a,b:HASH\ncarol:*:!HASH\r\nlast::HASH");
        assert_eq!(f.set("alice", Some(&["x", "y"])), Done::Added);
        assert_eq!(f.set("carol", None), Done::Changed);
        assert_eq!(f.set("bob", Some(&[])), Done::Changed);
        assert_eq!(
            f.text(),
            "# ours \n\n  # odd\r\nbob:*:HASH\ncarol:*:!HASH\nlast::HASH\nalice:x,y:HASH\n",
            "and carol stays locked"
        );
        assert_eq!(f.change("carol", &Change::Unlock), Done::Unlocked);
        assert_eq!(f.change("carol", &Change::Unlock), Done::Nothing);
        assert_eq!(f.change("last", &Change::Lock), Done::Locked);
        assert_eq!(f.change("last", &Change::Lock), Done::Nothing);
        assert_eq!(f.change("bob", &Change::Delete), Done::Deleted);
        for what in [Change::Delete, Change::Lock, Change::Unlock] {
            assert_eq!(f.change("bob", &what), Done::Unknown);
        }
        assert_eq!(f.text(), "# ours \n\n  # odd\r\ncarol:*:HASH\nlast::!HASH\nalice:x,y:HASH\n");
        assert_eq!(fs::metadata(f.path()).unwrap().permissions().mode() & 0o7777, 0o640);
        let users = UsersFile::open(&f.path()).unwrap().look().0;
        assert!(users.verify("alice", b"right").is_some() && users.verify("last", b"right").is_none());
    }

    #[test]
    fn the_last_user_can_go() {
        let f = Fixture::new();
        f.put("alice:*:HASH");
        assert_eq!(f.change("alice", &Change::Delete), Done::Deleted);
        assert_eq!(f.text(), "");
        assert_eq!(f.set("bob", None), Done::Added);
        assert_eq!(f.text(), "bob:*:HASH\n");
    }

    #[test]
    fn what_cannot_be_done_changes_nothing() {
        let f = Fixture::new();
        assert!(f.refused("alice", &Change::Delete).contains("does not exist"));
        assert!(!f.path().exists());
        let broken = "alice:*:HASH\nbob\n";
        f.put(broken);
        assert!(f.refused("alice", &Change::Lock).contains("line 2"));
        assert!(f.refused("a:b", &Change::Lock).contains("no user's name"));
        let password = |hash: &str, group: &str| Change::Password {
            hash: hash.to_owned(),
            groups: Some(vec![group.to_owned()]),
        };
        assert!(f.refused("alice", &password(&f.hash, "a,b")).contains("no group's name"));
        assert_eq!(f.text(), broken);
        f.put("alice:*:HASH\n");
        assert!(f.refused("alice", &password("x\ny", "a")).contains("no hash"));
        fs::set_permissions(f.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(f.refused("alice", &Change::Lock).contains("chmod 640"));
        assert_eq!(f.text(), "alice:*:HASH\n");
    }

    #[test]
    fn two_writers_lose_nothing() {
        let f = Fixture::new();
        std::thread::scope(|scope| {
            for who in 0..4 {
                let f = &f;
                scope.spawn(move || {
                    for number in 0..5 {
                        f.set(&format!("u{who}-{number}"), None);
                    }
                });
            }
        });
        assert_eq!(f.text().lines().count(), 20);
    }
}
