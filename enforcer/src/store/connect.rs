//! Connections to the database, as they are used here.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

/// How long a statement waits for somebody else's lock: a checkpoint takes milliseconds. An administrator's open
/// transaction in sqlite3 must not stop the writer for longer than this.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The log is brought into the database by the writer between two batches; this is the bound should that not
/// come to it, in pages.
const AUTOCHECKPOINT: u32 = 8_000;
/// What is left of the log's file after it was brought in, in bytes.
const JOURNAL_LIMIT: u32 = 16 * 1024 * 1024;

/// For the one writer. The file has to exist.
///
/// synchronous=FULL: a commit returns when the log is on the disk. Not the exclusive locking mode, so that sqlite3
/// can look at any time.
pub(super) fn writer(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW,
    )?;
    common(&db)?;
    db.execute_batch(&format!(
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA journal_mode = WAL;
         PRAGMA cache_size = -16384; PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT};
         PRAGMA journal_size_limit = {JOURNAL_LIMIT};"
    ))?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(db)
}

/// Why this connection does not write through a log, if so: then readers and the writer would stop each other.
pub(super) fn without_log(db: &Connection) -> rusqlite::Result<Option<String>> {
    let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    Ok((mode != "wal").then(|| {
        format!(
            "its file system cannot share memory between processes, as SQLite's log needs it (its mode is {mode}): put \
             [state] directory on a local disk"
        )
    }))
}

/// For reading beside a writer, and what a dead one left: it takes part in SQLite's locks and needs the shared
/// index beside the file, or room and right to make it.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW,
    )?;
    common(&db)?;
    Ok(db)
}

/// For reading where nothing at all can be written (a full disk, a read-only file system) and for broken files,
/// which must stay as they are: no locks, the index of the log in memory, nothing brought into the database.
/// Only where nobody writes at the same time.
pub(super) fn sealed(path: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let db = if std::fs::metadata(wal).is_ok_and(|about| about.len() > 0) {
        let db = Connection::open_with_flags_and_vfs(path, flags, "unix-none")?;
        // before anything is read: it makes SQLite keep the log's index in memory
        db.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
        db
    } else {
        // without a log the database alone is everything
        Connection::open_with_flags(immutable(path), flags | OpenFlags::SQLITE_OPEN_URI)?
    };
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    common(&db)?;
    Ok(db)
}

/// The path as a URI that tells SQLite that the file does not change: every byte that is not plain is escaped.
fn immutable(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            // writing to a String cannot fail
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri + "?immutable=1"
}

/// What the file says is not trusted further than needed: no functions out of its schema, cells checked as they
/// are read.
fn common(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(PATIENCE)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    db.execute_batch("PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;")
}
