//! The users file: who may log in with a password, in the manner of ocserv's `ocpasswd`.
//!
//! ```text
//! # name:groups:hash
//! alice:staff,admins:$argon2id$v=19$m=19456,t=2,p=1$...
//! bob:*:!$argon2id$...                                          locked
//! ```
//! Names count as they are written: in a realm that does not look at the case they belong here in lower case, and the
//! caller asks for them so. Groups are names with commas between them,
//! `*` for none. A `!` before the hash locks the user. Empty lines and lines that begin with `#` are looked over, and
//! stay. The file belongs to root or to the gateway's own user and has mode 0600 or 0640.
//!
//! A look at a password ([`Users::verify`]) takes some tens of milliseconds of one core and [`MEMORY_KIB`] of memory,
//! also where there is no such user: it belongs on a thread for such work, only so many at once, and behind
//! [`super::attempts`].

mod change;
mod file;
mod hash;

use std::collections::BTreeMap;

use hash::{Cost, Hash};

pub use change::{Change, Done, change};
pub use file::UsersFile;
pub use hash::{HashError, MAX_PASSWORD, MEMORY_KIB, hash};

use super::safe_file::FileError;

/// Where the users are, unless something else is said.
pub const DEFAULT_FILE: &str = "/etc/enforcer/users";

/// Bytes of a name: as many as the commands take.
pub const MAX_NAME: usize = 256;

/// Users of one file.
pub const MAX_USERS: usize = 100_000;

/// What is wrong with a users file, or with what is to be done with it.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}, line {line}: {what}")]
    Line { path: String, line: usize, what: String },
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("{0}")]
    Name(String),
}

/// Who may log in.
#[derive(Debug)]
pub struct Users {
    users: BTreeMap<String, Account>,
    /// What a name is checked against that nobody has: as costly as that of most users.
    decoy: Option<Hash>,
}

/// Nobody.
impl Default for Users {
    fn default() -> Self {
        Self { users: BTreeMap::new(), decoy: Hash::decoy(Cost::USUAL) }
    }
}

#[derive(Debug)]
struct Account {
    groups: Vec<String>,
    hash: Hash,
    locked: bool,
}

/// Somebody whose password was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// As it stands in the file.
    pub name: String,
    pub groups: Vec<String>,
}

impl Users {
    /// # Errors
    /// The number of the line, from 1, and what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, (usize, String)> {
        let mut users = BTreeMap::new();
        let mut costs: BTreeMap<Cost, usize> = BTreeMap::new();
        for (number, line) in numbered(text) {
            let wrong = |what: String| (number, what);
            let Some(line) = Line::read(line).map_err(wrong)? else { continue };
            let hash = Hash::read(line.hash).map_err(wrong)?;
            *costs.entry(hash.cost()).or_default() += 1;
            if users.len() >= MAX_USERS {
                return Err(wrong(format!("there are more than {MAX_USERS} users")));
            }
            let account = Account { groups: line.groups(), hash, locked: line.locked };
            if users.insert(line.name.to_owned(), account).is_some() {
                return Err(wrong(format!(
                    "{:?} stands in an earlier line as well: delete one of them",
                    line.name
                )));
            }
        }
        let cost = costs.into_iter().max_by_key(|(_, users)| *users).map_or(Cost::USUAL, |(cost, _)| cost);
        Ok(Self { users, decoy: Hash::decoy(cost) })
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether the user may log in with this password. None for a wrong password, for a locked user and for a name that
    /// nobody has, each after the same work.
    pub fn verify(&self, name: &str, password: &[u8]) -> Option<User> {
        let account = self.users.get(name);
        let hash = account.map(|account| &account.hash).or(self.decoy.as_ref());
        let right = hash.is_some_and(|hash| hash.verify(password));
        let account = account.filter(|account| right && !account.locked)?;
        Some(User { name: name.to_owned(), groups: account.groups.clone() })
    }
}

/// One user's line.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    name: &'a str,
    groups: &'a str,
    hash: &'a str,
    locked: bool,
}

impl<'a> Line<'a> {
    /// None for an empty line and for a comment.
    fn read(line: &'a [u8]) -> Result<Option<Self>, String> {
        let line = std::str::from_utf8(line).map_err(|_| "it is no UTF-8".to_owned())?.trim_end();
        if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
            return Ok(None);
        }
        let mut parts = line.splitn(3, ':');
        let (Some(name), Some(groups), Some(hash)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("it is no user: name:groups:hash".to_owned());
        };
        examine_name(name)?;
        for group in groups.split(',').filter(|_| groups != "*" && !groups.is_empty()) {
            examine_group(group)?;
        }
        let (hash, locked) = match hash.strip_prefix('!') {
            Some(hash) => (hash, true),
            None => (hash, false),
        };
        Ok(Some(Self { name, groups, hash, locked }))
    }

    fn groups(&self) -> Vec<String> {
        match self.groups {
            "" | "*" => Vec::new(),
            groups => groups.split(',').map(str::to_owned).collect(),
        }
    }

    fn write(&self) -> String {
        let lock = if self.locked { "!" } else { "" };
        format!("{}:{}:{lock}{}", self.name, self.groups, self.hash)
    }
}

/// The lines with their numbers, from 1.
fn numbered(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    text.split(|&byte| byte == b'\n').enumerate().map(|(index, line)| (index + 1, line))
}

/// Whether somebody can be called so in a users file.
///
/// # Errors
/// [`UsersError::Name`]
pub fn check_name(name: &str) -> Result<(), UsersError> {
    examine_name(name).map_err(UsersError::Name)
}

fn examine_name(name: &str) -> Result<(), String> {
    let odd = |c: char| c == ':' || c.is_control();
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.contains(odd)
        && !name.starts_with('#')
        && name.trim() == name;
    if fits {
        return Ok(());
    }
    let name = shown(name);
    Err(format!(
        "{name:?} is no user's name: take 1 to {MAX_NAME} bytes without `:`, control characters, a `#` at the start and \
         spaces at the ends"
    ))
}

/// As much of it as a message takes.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

fn examine_group(group: &str) -> Result<(), String> {
    let odd = |c: char| c == ':' || c == ',' || c == '*' || c.is_control() || c.is_whitespace();
    if (1..=MAX_NAME).contains(&group.len()) && !group.contains(odd) {
        return Ok(());
    }
    let group = shown(group);
    Err(format!(
        "{group:?} is no group's name: take 1 to {MAX_NAME} bytes without `:`, `,`, `*`, spaces and control characters"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of the password `right`, as cheap as can be.
    pub(super) fn cheap() -> String {
        Hash::of(b"right", Cost { memory: 8, passes: 1, lanes: 1 }).unwrap()
    }

    #[test]
    fn who_may_log_in() {
        let hash = cheap();
        let text = format!("# users\n\nalice:staff,admins:{hash}\nbob:*:!{hash}\r\nÇa va::{hash}");
        let users = Users::parse(text.as_bytes()).unwrap();
        assert_eq!(users.len(), 3);
        let alice = User { name: "alice".to_owned(), groups: vec!["staff".to_owned(), "admins".to_owned()] };
        assert_eq!(users.verify("alice", b"right"), Some(alice));
        assert_eq!(users.verify("Ça va", b"right").unwrap().groups, Vec::<String>::new());
        for (name, password) in [
            ("alice", &b"wrong"[..]),
            ("alice", b""),
            ("alice", b"right\n"),
            ("Alice", b"right"),
            ("bob", b"right"),
            ("nobody", b"right"),
            ("", b"right"),
            ("# users", b""),
        ] {
            assert_eq!(users.verify(name, password), None, "{name}");
        }
        assert_eq!(Users::default().verify("alice", b"right"), None);
    }

    /// A name that nobody has costs what most names cost.
    #[test]
    fn the_decoy_is_as_costly_as_most_users() {
        let (cheap, default) = (cheap(), hash(b"x").unwrap());
        let two_and_one =
            Users::parse(format!("a:*:{cheap}\nb:*:{default}\nc:*:!{cheap}").as_bytes()).unwrap();
        assert_eq!(two_and_one.decoy.as_ref().unwrap().cost(), Hash::read(&cheap).unwrap().cost());
        assert_eq!(Users::default().decoy.unwrap().cost(), Hash::read(&default).unwrap().cost());
        // whatever password it may be of, it is nobody's
        let decoy = two_and_one.decoy.unwrap();
        assert!(!decoy.verify(b"right") && !decoy.verify(b""));
    }

    #[test]
    fn a_broken_line_is_told_without_its_hash() {
        let hash = cheap();
        for (text, line, said) in [
            ("alice".to_owned(), 1, "name:groups:hash"),
            (format!("# x\nalice:{hash}"), 2, "name:groups:hash"),
            (format!(":*:{hash}"), 1, "no user's name"),
            (format!(" alice:*:{hash}"), 1, "no user's name"),
            (format!("{}:*:{hash}", "x".repeat(257)), 1, "no user's name"),
            (format!("alice:a b:{hash}"), 1, "no group's name"),
            (format!("alice:a,,b:{hash}"), 1, "no group's name"),
            (format!("alice:*:{hash}\nalice:*:{hash}"), 2, "in an earlier line"),
            ("alice:*:".to_owned(), 1, "no hash"),
            ("alice:*:$5$salt$secret".to_owned(), 1, "argon2id"),
            (format!("alice:*:!!{hash}"), 1, "no hash"),
            (hash.replace("argon2id", "argon2i").replacen("$", "alice:*:$", 1), 1, "argon2id"),
            (hash.replace("m=8,", "m=99999999,").replacen("$", "alice:*:$", 1), 1, "262144"),
        ] {
            let (number, what) = Users::parse(text.as_bytes()).unwrap_err();
            assert!(number == line && what.contains(said), "{text}: {number} {what}");
            assert!(!what.contains("$v=") && !what.contains("secret"), "{what}");
        }
        assert_eq!(Users::parse(b"\xff:*:x").unwrap_err().0, 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in "([a-z#!:*,$=\n \r]|argon2id|v=19|m=8,t=1,p=1){0,60}") {
            let _ = Users::parse(text.as_bytes());
        }
    }
}
