//! Reading what is in force without the daemon: for the gate when the pinned maps are missing, and for `check`.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::chain::{AuditLine, Start};
use super::folder::{self, FILE, Still};
use super::row::{BadRow, hex, natural};
use super::trouble::{bad_row, reading};
use super::{ReadError, commit, connect, load, open, schema, tables};
use crate::session::{CutoffKey, LockKey, SafeId};

/// A look at the state, beside a writer or without one. It waits up to a second for a lock of SQLite's.
///
/// It reads what a daemon that crashed left in the log. Where SQLite's shared index cannot be made (a full disk, a
/// read-only file system) it is read past SQLite's locks, as long as no enforcer writes; if one does, that is an
/// error.
///
/// Not within the process that writes: whoever closes a file there takes away all locks (fcntl(2)) that the process
/// holds on it, and with them SQLite's.
#[derive(Debug)]
pub struct Reader {
    db: Connection,
    path: PathBuf,
    /// Where SQLite's own locks could not be used.
    still: Option<Still>,
}

impl Reader {
    /// Opens the state in that directory for reading; `None`: there is none at all. Changes nothing.
    pub fn open(directory: &Path) -> Result<Option<Self>, ReadError> {
        match std::fs::symlink_metadata(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let directory = folder::examine(directory)?;
        if !folder::exists(&directory)? {
            return Ok(None);
        }
        let path = directory.join(FILE);
        open::head(&path)?;
        let failed = |error: rusqlite::Error| reading(&path, &error);
        let usual = connect::reader(&path).map_err(failed).and_then(|db| known(&db, &path).map(|()| db));
        let (db, still) = match usual {
            Ok(db) => (db, None),
            Err(ReadError::CannotRead { .. }) => {
                let still = Still::new(&directory);
                let _lock = still.hold()?;
                let db = connect::sealed(&path).map_err(failed)?;
                known(&db, &path)?;
                still.unchanged()?;
                (db, Some(still))
            }
            Err(error) => return Err(error),
        };
        Ok(Some(Self { db, path, still }))
    }

    /// Who this gateway is to others: 32 hexadecimal digits.
    pub fn gateway(&self) -> Result<String, ReadError> {
        self.ask(|| Ok(load::meta(&self.db, &self.path)?.gateway))
    }

    /// The revocation that refuses this cookie.
    pub fn safe_id(&self, id: &SafeId) -> Result<Option<u64>, ReadError> {
        Ok(self.guard("safe_id", &id.to_string())?.map(|(number, _)| number))
    }

    /// The revocation that refuses cookies of this (server, user), and up to which moment of their creation (unix
    /// seconds); of several the one that refuses most.
    pub fn cutoff(&self, key: &CutoffKey) -> Result<Option<(u64, u64)>, ReadError> {
        self.guard("cutoff", &hex(key.as_bytes()))
    }

    /// The lock with that key that stands at that moment (unix seconds).
    pub fn lock(&self, key: &LockKey, now: u64) -> Result<Option<u64>, ReadError> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let number: Option<i64> = self.ask(|| {
            let failed = |error: rusqlite::Error| reading(&self.path, &error);
            self.db
                .prepare_cached(
                    "SELECT number FROM guard JOIN revocation USING (number)
                     WHERE guard.kind = 'lock' AND id = ?1 AND (until IS NULL OR until > ?2)
                     ORDER BY number LIMIT 1",
                )
                .map_err(failed)?
                .query_row(params![hex(key.as_bytes()), now], |row| row.get(0))
                .optional()
                .map_err(failed)
        })?;
        let bad = |number, why| bad_row(&self.path, "guard", number, &why);
        number.map(|number| natural("number", number).map_err(|why| bad(number, why))).transpose()
    }

    /// Lines of the audit log that are newer than `after`, in their order, as they are at one moment, `most` at the most;
    /// `begin` is told first what they begin with. `each` must not wait for anybody: the daemon's log grows meanwhile.
    pub fn audit(
        &self,
        after: u64,
        most: Option<u32>,
        begin: impl FnOnce(Start),
        mut each: impl FnMut(AuditLine),
    ) -> Result<AuditEnds, ReadError> {
        let failed = |error: rusqlite::Error| reading(&self.path, &error);
        self.ask(|| {
            let found = open::whose(&self.db, &self.path, schema::version_of(schema::STEPS))?;
            if found < CHAINED_SINCE {
                return Err(ReadError::Older { path: self.path.clone(), found, known: CHAINED_SINCE });
            }
            // one state, whatever the daemon writes meanwhile
            let _moment = self.db.unchecked_transaction().map_err(failed)?;
            let after_line = i64::try_from(after).unwrap_or(i64::MAX);
            let pruned = self.pruned()?;
            let mut before = match self.link_before(after_line).map_err(failed)? {
                Some(link) => link,
                None => pruned.as_ref().and_then(|(_, chain)| chain.clone()),
            };
            let number = |sql: &str| -> Result<Option<u64>, ReadError> {
                let found: Option<i64> =
                    self.db.query_row(sql, [], |row| row.get(0)).optional().map_err(failed)?;
                Ok(found.and_then(|found| u64::try_from(found).ok()))
            };
            begin(if after == 0 {
                let chained_since = number("SELECT first FROM audit_chain")?.unwrap_or(1);
                Start::Log { pruned, chained_since }
            } else {
                Start::Part
            });
            let mut lines = (self.db)
                .prepare(
                    "SELECT line, at, number, complete, CAST(what AS BLOB), CAST(target AS BLOB), CAST(asked_by AS BLOB),
                       CAST(reason AS BLOB), CAST(text AS BLOB), CAST(chain AS BLOB)
                     FROM audit WHERE line > ?1 ORDER BY line LIMIT ?2",
                )
                .map_err(failed)?;
            let most = most.map_or(-1, i64::from);
            let mut rows = lines.query([after_line, most]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                let mut line = audit_line(row).map_err(failed)?;
                line.before = std::mem::replace(&mut before, line.chain.clone());
                each(line);
            }
            Ok(AuditEnds {
                given: number("SELECT seq FROM sqlite_sequence WHERE name = 'audit'")?,
                put_in: number("SELECT count(*) FROM audit WHERE line < 1")?.unwrap_or(0),
            })
        })
    }

    /// The last line that was pruned, and its digest.
    fn pruned(&self) -> Result<Option<(u64, Option<String>)>, ReadError> {
        for (key, value) in tables::meta(&self.db).map_err(|error| reading(&self.path, &error))? {
            if key == commit::AUDIT_BEFORE {
                let bad = |why| bad_row(&self.path, "meta", format_args!("{key:?}"), &why);
                let text = value.map_err(bad)?;
                let wanted = "a line's number and its digest";
                let meaning = |found| BadRow::Meaning { column: "value", found, wanted };
                return commit::pruned_of(&text).map(Some).ok_or_else(|| bad(meaning(text)));
            }
        }
        Ok(None)
    }

    /// The digest of the last line up to that one; `None`: there is no such line.
    fn link_before(&self, line: i64) -> rusqlite::Result<Option<Option<String>>> {
        (self.db)
            .query_row(
                "SELECT CAST(chain AS BLOB) FROM audit WHERE line BETWEEN 1 AND ?1 ORDER BY line DESC LIMIT 1",
                [line],
                |row| row.get::<_, Option<Vec<u8>>>(0),
            )
            .optional()
            .map(|chain| chain.map(|chain| chain.map(commit::readable)))
    }

    /// Number and moment of the strongest guard.
    fn guard(&self, kind: &str, id: &str) -> Result<Option<(u64, u64)>, ReadError> {
        self.ask(|| {
            let failed = |error: rusqlite::Error| reading(&self.path, &error);
            let sql = format!(
                "{} WHERE kind = ?1 AND id = ?2 ORDER BY moment DESC, number LIMIT 1",
                tables::GUARDS
            );
            let mut guards = self.db.prepare_cached(&sql).map_err(failed)?;
            let mut rows = guards.query([kind, id]).map_err(failed)?;
            let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
            let row = tables::guard(row).map_err(failed)?;
            let place = format!("{}/{}", row.number, row.position);
            let bad = |why| bad_row(&self.path, "guard", &place, &why);
            let guard = row.guard().map_err(bad)?;
            Ok(Some((natural("number", row.number).map_err(bad)?, guard.moment)))
        })
    }

    /// One question, to one state.
    fn ask<T>(&self, question: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
        let Some(still) = &self.still else { return question() };
        let _lock = still.hold()?;
        let answer = question()?;
        still.unchanged()?;
        Ok(answer)
    }
}

/// What the database says of the audit log besides its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEnds {
    /// The number of the last line that was ever written.
    pub given: Option<u64>,
    /// How many lines stand before line 1.
    pub put_in: u64,
}

/// What is no text any more is read as far as it is: who verifies finds that it was changed.
fn audit_line(row: &rusqlite::Row<'_>) -> rusqlite::Result<AuditLine> {
    let number = |column| {
        let found: i64 = row.get(column)?;
        u64::try_from(found).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, found))
    };
    let text = |column| row.get(column).map(commit::readable);
    Ok(AuditLine {
        line: number(0)?,
        at: number(1)?,
        number: number(2)?,
        complete: row.get(3)?,
        what: text(4)?,
        target: text(5)?,
        asked_by: text(6)?,
        reason: text(7)?,
        text: text(8)?,
        before: None,
        chain: row.get::<_, Option<Vec<u8>>>(9)?.map(commit::readable),
    })
}

/// The version since which lines of the audit log have a digest.
const CHAINED_SINCE: i64 = 5;
/// The version since which the tables that are asked here are as they are: so the gate of a new enforcer also reads what
/// the daemon of an older one has left, before the new one has brought it up to date.
const ASKED_SINCE: i64 = 1;

/// Whether it is a state of ours, of a version that these questions are made for.
fn known(db: &Connection, path: &Path) -> Result<(), ReadError> {
    let known = schema::version_of(schema::STEPS);
    let found = open::whose(db, path, known)?;
    if found < ASKED_SINCE {
        return Err(ReadError::Older { path: path.to_owned(), found, known: ASKED_SINCE });
    }
    // also the log has to be readable, which is not asked for by the header alone
    db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(|error| reading(path, &error))
}
