//! Opening: make it where there is none, migrate, check, load.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::folder::{self, FILE, Lock, WAL};
use super::load::{self, Everything, Meta};
use super::trouble::{Kind, host, kind, reading};
use super::{Loaded, OpenError, Outcome, Settings, Writer, connect, row, schema, tables, wal, writer};

/// The state, opened for writing. Until it is dropped, or its writer has ended, nobody else can open it.
#[derive(Debug)]
pub struct Store {
    pub(super) path: PathBuf,
    pub(super) meta: Meta,
    /// `None`: it could not be written when it was opened.
    pub(super) db: Option<Connection>,
    pub(super) settings: Settings,
    /// Dropped last: the connection has to be closed before somebody else may write.
    pub(super) lock: Lock,
}

impl Store {
    /// Starts the thread that writes. `done` is called from it, for every write once and in their order.
    pub fn start(self, done: impl Fn(Outcome) + Send + 'static) -> std::io::Result<Writer> {
        writer::start(self, done)
    }
}

/// Opens the state, or makes it where there is none at all, brings it up to date, checks it and reads everything.
///
/// What can be read but not written (a full disk, a read-only file or file system) is opened all the same:
/// [`Loaded::unwritable`] says why.
pub fn open(settings: &Settings) -> Result<(Store, Loaded), OpenError> {
    open_as(settings, schema::STEPS, None)
}

/// As [`open`]; where there is no state at all, the new one is that of this gateway (32 hexadecimal digits), as far as
/// it is known. For a repair: other gateways know this one by its id, and what it has told them stands below it.
pub fn open_again(settings: &Settings, gateway: Option<&str>) -> Result<(Store, Loaded), OpenError> {
    open_as(settings, schema::STEPS, gateway)
}

/// As a program that knows these steps. Apart from tests: ours.
fn open_as(settings: &Settings, steps: &[&str], gateway: Option<&str>) -> Result<(Store, Loaded), OpenError> {
    let directory = folder::prepare(&settings.directory)?;
    let lock = folder::lock(&directory)?;
    let path = directory.join(FILE);
    let fresh = !folder::exists(&directory)?;
    if fresh {
        folder::make(&directory, |new| fill(new, steps, gateway))?;
    }
    head(&path)?;
    let log = directory.join(WAL);
    if let Some(what) =
        wal::damage(&log).map_err(|error| OpenError::CannotRead { path: log, why: error.to_string() })?
    {
        return Err(OpenError::Corrupt { path, what });
    }
    let (db, everything, unwritable) = read(&path, steps)?;
    let Everything { meta, records, lifted, sessions, web, letters, admissions } = everything;
    let loaded = Loaded {
        gateway: meta.gateway.clone(),
        boot_id: meta.boot_id.clone(),
        wall: meta.wall,
        web_gateways: meta.web_gateways.clone().flatten(),
        next_number: meta.next_number,
        records,
        lifted,
        sessions,
        web,
        letters,
        known: meta.known,
        admissions,
        unwritable,
        fresh,
    };
    Ok((Store { path, meta, db, settings: settings.clone(), lock }, loaded))
}

/// A new database: its tables, its gateway's id, and the mode that lets others read while one writes.
fn fill(path: &Path, steps: &[&str], gateway: Option<&str>) -> Result<(), OpenError> {
    let gateway = match gateway {
        Some(known) => known.to_owned(),
        None => {
            let mut id = [0; 16];
            let read = std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut id));
            read.map_err(|error| OpenError::CannotMake {
                path: path.to_owned(),
                why: format!("/dev/urandom: {error}"),
            })?;
            row::hex(&id)
        }
    };
    let make = || {
        let db = connect::writer(path)?;
        schema::migrate(&db, steps)?;
        db.execute_batch("BEGIN IMMEDIATE")?;
        for (key, value) in
            [("gateway", gateway.as_str()), ("generation", "0"), ("next_number", "1"), ("wall", "0")]
        {
            tables::set_meta(&db, key, value)?;
        }
        db.execute_batch("COMMIT")?;
        // all of it into the one file that is renamed
        db.close().map_err(|(_, error)| error)
    };
    make().map_err(|error| match kind(&error) {
        Kind::Host => OpenError::CannotMake { path: path.to_owned(), why: host(&error) },
        _ => OpenError::CannotMake { path: path.to_owned(), why: error.to_string() },
    })
}

/// The first bytes and the length, as SQLite does not look at them: it takes an empty file for a new database, an
/// unknown format for one that it may only read, and fills up the last page.
pub(super) fn head(path: &Path) -> Result<(), OpenError> {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let cannot =
        |error: std::io::Error| OpenError::CannotRead { path: path.to_owned(), why: error.to_string() };
    let corrupt = |what: String| Err(OpenError::Corrupt { path: path.to_owned(), what });
    let mut head = Vec::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    let length = file.metadata().map_err(cannot)?.len();
    file.take(100).read_to_end(&mut head).map_err(cannot)?;
    let Some((magic, rest)) = head.split_at_checked(MAGIC.len()).filter(|_| head.len() == 100) else {
        if MAGIC.starts_with(head.get(..MAGIC.len()).unwrap_or(&head)) {
            return corrupt(format!("it is cut off after {} bytes", head.len()));
        }
        return Err(OpenError::NotADatabase { path: path.to_owned() });
    };
    if magic != MAGIC {
        return Err(OpenError::NotADatabase { path: path.to_owned() });
    }
    // <https://www.sqlite.org/fileformat2.html#the_database_header>: page size, write version, read version
    let page = match u64::from(u16::from_be_bytes([rest[0], rest[1]])) {
        1 => 65_536,
        size => size,
    };
    if rest[2] > 2 || rest[3] > 2 {
        return corrupt(format!("its header tells of format {}/{}, which there is not", rest[2], rest[3]));
    }
    // while the log is brought in, a crash may leave half a page; the log still has all of it then
    let log = std::fs::metadata(path.with_file_name(WAL)).map_or(0, |about| about.len());
    if log == 0 && !length.is_multiple_of(page) {
        return corrupt(format!("it is cut off within a page, after {length} bytes"));
    }
    Ok(())
}

/// Reads everything: to go on with if it can be written, otherwise without touching anything.
fn read(path: &Path, steps: &[&str]) -> Result<(Option<Connection>, Everything, Option<String>), OpenError> {
    let why = match writable(path, steps) {
        Ok((db, everything, None)) => return Ok((Some(db), everything, None)),
        Ok((_, everything, why)) => return Ok((None, everything, why)),
        // perhaps only what SQLite needs to write for reading
        Err(OpenError::CannotRead { why, .. }) => why,
        Err(error) => return Err(error),
    };
    let cannot_read = |error| match error {
        OpenError::CannotRead { path, why: also } if also != why => {
            OpenError::CannotRead { path, why: format!("{why}; without writing: {also}") }
        }
        error => error,
    };
    let db = connect::sealed(path).map_err(|error| cannot_read(reading(path, &error)))?;
    let found = whose(&db, path, schema::version_of(steps)).map_err(cannot_read)?;
    if found < schema::version_of(steps) {
        return Err(OpenError::CannotMigrate { path: path.to_owned(), found, why });
    }
    let everything = checked(&db, path, steps).map_err(cannot_read)?;
    Ok((None, everything, Some(why)))
}

/// The usual way. Migrates; then reads; then tries a write that changes nothing, and tells why it failed.
fn writable(path: &Path, steps: &[&str]) -> Result<(Connection, Everything, Option<String>), OpenError> {
    let failed = |error: rusqlite::Error| reading(path, &error);
    let db = connect::writer(path).map_err(failed)?;
    let found = whose(&db, path, schema::version_of(steps))?;
    if found < schema::version_of(steps) {
        schema::migrate(&db, steps).map_err(|error| {
            let why = if kind(&error) == Kind::Host { host(&error) } else { error.to_string() };
            OpenError::CannotMigrate { path: path.to_owned(), found, why }
        })?;
    }
    let everything = checked(&db, path, steps)?;
    let probe = || {
        db.execute_batch("BEGIN IMMEDIATE")?;
        // a row that is written anew is a page that is written, also if nothing in it changed
        tables::set_meta(&db, "gateway", &everything.meta.gateway)?;
        db.execute_batch("COMMIT")
    };
    let unwritable = match probe() {
        Ok(()) => connect::without_log(&db).map_err(failed)?,
        Err(error) => Some(host(&error)),
    };
    Ok((db, everything, unwritable))
}

/// Whose file it is; its version, which is none that we do not know.
pub(super) fn whose(db: &Connection, path: &Path, known: i64) -> Result<i64, OpenError> {
    let failed = |error: rusqlite::Error| reading(path, &error);
    let path = path.to_owned();
    let application = schema::application(db).map_err(failed)?;
    if application != schema::APPLICATION_ID {
        return Err(OpenError::OtherApplication { path, found: application });
    }
    let found = schema::version(db).map_err(failed)?;
    match found {
        found if found > known => Err(OpenError::Newer { path, found, known }),
        found if found < 1 => Err(OpenError::Corrupt { path, what: format!("it tells version {found}") }),
        found => Ok(found),
    }
}

/// Everything, after every check.
fn checked(db: &Connection, path: &Path, steps: &[&str]) -> Result<Everything, OpenError> {
    if let Some(what) = schema::compare(db, steps)? {
        return Err(OpenError::Corrupt { path: path.to_owned(), what });
    }
    load::examine(db, path)?;
    load::everything(db, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Write, web};

    /// A further version, as it might be.
    const NEXT: &str = "ALTER TABLE revocation ADD COLUMN note TEXT;
        INSERT INTO meta (key, value, sum) SELECT 'note', count(*), 0 FROM revocation; DELETE FROM meta WHERE key = 'note'";

    fn settings(folder: &tempfile::TempDir) -> Settings {
        Settings { directory: folder.path().join("state"), audit_days: 0, audit_rows: 10 }
    }

    fn number_of_tables_and_version(settings: &Settings) -> (i64, i64) {
        let db = Connection::open(settings.directory.join(FILE)).unwrap();
        let tables = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        (tables, schema::version(&db).unwrap())
    }

    fn first_version(folder: &tempfile::TempDir) -> (Settings, Loaded) {
        let settings = settings(folder);
        let (store, _) = open(&settings).unwrap();
        let writer = store.start(|outcome| outcome.result.unwrap()).unwrap();
        for number in 1..=100 {
            writer.write(number, Write::Lift(number)).unwrap();
        }
        writer.stop().unwrap();
        let loaded = open(&settings).unwrap().1;
        assert_eq!(loaded.lifted.len(), 100);
        (settings, loaded)
    }

    #[test]
    fn r5_an_older_version_is_brought_up_to_date_with_all_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let (settings, before) = first_version(&folder);
        let steps = [schema::STEPS, &[NEXT]].concat();
        let (store, after) = open_as(&settings, &steps, None).unwrap();
        drop(store);
        assert_eq!(after, before);
        assert_eq!(number_of_tables_and_version(&settings).1, schema::version_of(&steps));
        // again: nothing to do. And the older program does not touch it
        assert_eq!(open_as(&settings, &steps, None).unwrap().1, before);
        assert!(matches!(open(&settings), Err(OpenError::Newer { .. })));
        // a new one is made by the same steps
        let new = tempfile::tempdir().unwrap();
        let settings = self::settings(&new);
        assert!(open_as(&settings, &steps, None).unwrap().1.fresh);
        assert!(!open_as(&settings, &steps, None).unwrap().1.fresh);
    }

    /// R5: what the version before web sessions wrote is there in the one that has them.
    #[test]
    fn r5_a_state_of_before_web_sessions_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder);
        drop(open_as(&settings, &schema::STEPS[..1], None).map(drop));
        let db = connect::writer(&settings.directory.join(FILE)).unwrap();
        assert_eq!(schema::version(&db).unwrap(), 1);
        tables::lift(&db, 7, "0123456789abcdef0123456789abcdef", 1, 5).unwrap();
        drop(db);
        let (store, loaded) = open(&settings).unwrap();
        drop(store);
        assert_eq!((loaded.lifted, loaded.web), (vec![7], vec![]));
        assert_eq!(number_of_tables_and_version(&settings).1, schema::version_of(schema::STEPS));
    }

    /// R5: what the version that kept the web gateway's records wrote is there without them, and so is the rest.
    #[test]
    fn r5_a_state_with_what_the_web_gateway_had_learned_is_taken_over_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder);
        drop(open_as(&settings, &schema::STEPS[..2], None).map(drop));
        let db = connect::writer(&settings.directory.join(FILE)).unwrap();
        assert_eq!(schema::version(&db).unwrap(), 2);
        tables::lift(&db, 7, "0123456789abcdef0123456789abcdef", 1, 5).unwrap();
        let session = web::tests::record();
        web::put(&db, &web::rows_of(&session, "0123456789abcdef0123456789abcdef", 2).unwrap()).unwrap();
        db.execute("INSERT INTO web_learned (key, value, sum) VALUES ('01', '02', 3)", []).unwrap();
        drop(db);
        let (store, loaded) = open(&settings).unwrap();
        drop(store);
        assert_eq!((loaded.lifted, loaded.web), (vec![7], vec![session]));
        let db = Connection::open(settings.directory.join(FILE)).unwrap();
        let is_there =
            db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'web_learned'", [], |row| {
                row.get(0)
            });
        assert_eq!(is_there, Ok(0));
    }

    /// R5: what several gateways share and the audit log of before it was a chain are there in the version that chains it.
    #[test]
    fn r5_a_state_of_before_the_audit_log_was_a_chain_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder);
        drop(open_as(&settings, &schema::STEPS[..4], None).map(drop));
        let db = connect::writer(&settings.directory.join(FILE)).unwrap();
        assert_eq!(schema::version(&db).unwrap(), 4);
        tables::lift(&db, 7, "0123456789abcdef0123456789abcdef", 1, 5).unwrap();
        db.execute("INSERT INTO audit VALUES (1, 5, 'lifted', 7, 'user x', 'root', '', 1, 'done')", [])
            .unwrap();
        drop(db);
        let (store, loaded) = open(&settings).unwrap();
        drop(store);
        assert_eq!(loaded.lifted, [7]);
        let db = Connection::open(settings.directory.join(FILE)).unwrap();
        let line = db.query_row("SELECT text, chain FROM audit", [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(line, Ok(("done".to_owned(), None::<String>)));
        assert_eq!(schema::version(&db).unwrap(), schema::version_of(schema::STEPS));
    }

    #[test]
    fn r5_a_step_that_fails_leaves_the_version_before_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (settings, before) = first_version(&folder);
        let steps = [schema::STEPS, &["CREATE TABLE half (x); INSERT INTO nowhere VALUES (1)"]].concat();
        let was = number_of_tables_and_version(&settings);
        let error = open_as(&settings, &steps, None).map(drop).unwrap_err();
        assert!(matches!(error, OpenError::CannotMigrate { found, .. } if found == was.1), "{error}");
        assert_eq!(number_of_tables_and_version(&settings), was);
        assert_eq!(open(&settings).unwrap().1, before);
    }
}
