//! What can be wrong, in words for people: what it is, and how to mend it.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use super::row::BadRow;

/// Why the durable state cannot be opened or read. Nothing was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} {what}")]
    Folder { path: PathBuf, what: String },
    #[error(
        "{path} is in use: another enforcer writes there. Stop it first, or give this one a [state] directory of its own"
    )]
    InUse { path: PathBuf },
    #[error("cannot read {path}: {why}. It stays as it is; mend the disk or the permissions and start again")]
    CannotRead { path: PathBuf, why: String },
    #[error(
        "cannot make {path}: {why}. Without it nothing would outlive a reboot: make room or name a [state] directory that can be written"
    )]
    CannotMake { path: PathBuf, why: String },
    #[error(
        "{path} is not a database: is [state] directory right? `enforcer check --repair` keeps it aside and makes a new one from what is in force in the kernel"
    )]
    NotADatabase { path: PathBuf },
    #[error(
        "{path} is damaged: {what}. `enforcer check --repair` keeps it aside and saves what can still be read; or put back a copy of it"
    )]
    Corrupt { path: PathBuf, what: String },
    #[error(
        "there is {wal} but no state.db, which it belongs to: put state.db back, or let `enforcer check --repair` keep the rest aside"
    )]
    WithoutDatabase { wal: PathBuf },
    #[error("{path} belongs to another program (application id {found:#x}): is [state] directory right?")]
    OtherApplication { path: PathBuf, found: i32 },
    #[error(
        "{path} was written by a newer enforcer (version {found}; this one knows up to {known}): install that one again, or let `enforcer check --repair` keep it aside"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{path} is of version {found} and this program reads version {known}: start the daemon once, which brings it up to date"
    )]
    Older { path: PathBuf, found: i64, known: i64 },
    #[error("cannot bring {path} up to date, it stays of version {found}: {why}. Make room, and start again")]
    CannotMigrate { path: PathBuf, found: i64, why: String },
    #[error(
        "this program's own tables cannot be made: {why}. This is a fault of the program, please report it"
    )]
    Internal { why: String },
}

impl OpenError {
    /// Whether putting the file aside and beginning anew with what can be read of it is a way out.
    pub fn is_repairable(&self) -> bool {
        matches!(
            self,
            Self::NotADatabase { .. }
                | Self::Corrupt { .. }
                | Self::WithoutDatabase { .. }
                | Self::Newer { .. }
        )
    }
}

/// A reader has the same troubles.
pub type ReadError = OpenError;

/// A row that is no record, as an error about the file.
pub(super) fn bad_row(path: &Path, table: &str, row: impl std::fmt::Display, why: &BadRow) -> OpenError {
    OpenError::Corrupt { path: path.to_owned(), what: format!("table {table}, row {row}: {why}") }
}

/// What kind of trouble an error of SQLite is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    NotADatabase,
    Corrupt,
    /// The host's: no room, no permission, a bad disk, somebody else's lock. Another try may succeed.
    Host,
    /// A row's own: a rule of the tables is broken.
    Row,
}

pub(super) fn kind(error: &rusqlite::Error) -> Kind {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        // a column of another type, or text that is no UTF-8
        return Kind::Corrupt;
    };
    match failure.code {
        ErrorCode::NotADatabase => Kind::NotADatabase,
        ErrorCode::DatabaseCorrupt => Kind::Corrupt,
        // a page that should be there is not: the file is cut off
        ErrorCode::SystemIoFailure
            if matches!(
                failure.extended_code,
                rusqlite::ffi::SQLITE_IOERR_SHORT_READ | rusqlite::ffi::SQLITE_IOERR_CORRUPTFS
            ) =>
        {
            Kind::Corrupt
        }
        ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig => Kind::Row,
        // "no such table", "no such column" and the like: SQLITE_ERROR while a known statement is prepared
        ErrorCode::Unknown if failure.extended_code == rusqlite::ffi::SQLITE_ERROR => Kind::Corrupt,
        _ => Kind::Host,
    }
}

/// An error of SQLite while `path` was read.
pub(super) fn reading(path: &Path, error: &rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match kind(error) {
        Kind::NotADatabase => OpenError::NotADatabase { path },
        Kind::Corrupt | Kind::Row => OpenError::Corrupt { path, what: error.to_string() },
        Kind::Host => OpenError::CannotRead { path, why: host(error) },
    }
}

/// What the host did not let us do, for people.
pub(super) fn host(error: &rusqlite::Error) -> String {
    let Some(code) = error.sqlite_error_code() else { return error.to_string() };
    match code {
        ErrorCode::DiskFull => "the disk is full".to_owned(),
        ErrorCode::ReadOnly => "the file or its file system is read-only".to_owned(),
        ErrorCode::CannotOpen => {
            "it cannot be opened (is there room, is the file system writable, who may write?)".to_owned()
        }
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            "another program holds a lock on it (an open transaction in sqlite3?)".to_owned()
        }
        ErrorCode::PermissionDenied => "permission denied".to_owned(),
        ErrorCode::SystemIoFailure => match error {
            rusqlite::Error::SqliteFailure(failure, _)
                if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE =>
            {
                "there is no room for its shared index (is the disk full?)".to_owned()
            }
            rusqlite::Error::SqliteFailure(failure, _) => {
                format!("the disk reports an error (SQLite's code {})", failure.extended_code)
            }
            error => error.to_string(),
        },
        _ => error.to_string(),
    }
}
