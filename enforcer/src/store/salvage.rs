//! What can still be read of a broken database, row by row.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, Row};

use super::admission::{self, ADMISSIONS, admission_of};
use super::letter::{self, LETTERS, letter_of};
use super::row::{BadRow, bare_record_of};
use super::trouble::reading;
use super::{ReadError, connect, load, tables, wal};
use crate::session::{Admission, KnownEtcd, Letter, Record};

/// How many times a broken place is stepped over in one table, at most.
const STEPS: u32 = 100_000;

/// What was saved. What could not be read is counted where it can be, and told in `notes`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// This gateway's id, if it can be read.
    pub gateway: Option<String>,
    /// Above every number that was seen; at least 1.
    pub next_number: u64,
    /// Whole rows alone, in the order of their numbers. A record whose guards cannot all be read has those that can.
    pub records: Vec<Record>,
    /// Numbers that were lifted, rising. None of `records` is among them.
    pub lifted: Vec<u64>,
    /// What the other gateways have yet to be told, in the order in which it was written.
    pub letters: Vec<Letter>,
    /// In the order in which they were written.
    pub admissions: Vec<Admission>,
    /// Only where nothing was skipped: it says that everything of that etcd's is in force here, and what was lost has to be
    /// learned again.
    pub known: Option<KnownEtcd>,
    /// Rows that were seen and could not be understood, and places where an unknown count of rows could not be read.
    pub skipped: u64,
    /// For people: what was skipped, at most 100 lines.
    pub notes: Vec<String>,
}

/// Reads what can be read of the database at `path`, with its log beside it, and changes neither. Best effort: it
/// fails only where nothing at all can be read. Not while an enforcer writes there.
///
/// Sessions and the audit log are not saved: those of ocserv are learned anew from it, those of the web gateway are over
/// (their users log in again), and the audit log stays in the file that was put aside.
pub fn salvage(path: &Path) -> Result<Salvaged, ReadError> {
    // SQLite is told not to follow links, in any part of the path
    let path = &std::fs::canonicalize(path)
        .map_err(|error| ReadError::CannotRead { path: path.to_owned(), why: error.to_string() })?;
    let db = connect::sealed(path).map_err(|error| reading(path, &error))?;
    let mut saved = Salvaged::default();
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    match wal::damage(Path::new(&log)) {
        Ok(None) => {}
        Ok(Some(what)) => saved.note(format!("{what}: what was written after that is lost")),
        Err(error) => saved.note(format!("its write-ahead log cannot be read: {error}")),
    }
    match load::meta(&db, path) {
        Ok(meta) => {
            (saved.gateway, saved.next_number) = (Some(meta.gateway), meta.next_number);
            saved.known = meta.known;
        }
        Err(error) => saved.note(error.to_string()),
    }
    // by what the tables are, and not by the version, which may be what is broken
    let is_before_4 =
        db.prepare(tables::REVOCATIONS).is_err() && db.prepare(tables::REVOCATIONS_BEFORE_4).is_ok();
    let select = if is_before_4 { tables::REVOCATIONS_BEFORE_4 } else { tables::REVOCATIONS };
    let revocations = scan(&db, path, &mut saved, ("revocation", "number"), select, |row| {
        Ok(bare_record_of(&tables::revocation(row)?))
    });
    let lifted = scan(&db, path, &mut saved, ("lifted", "number"), tables::LIFTED, tables::lifted);
    let (revocations, lifted) = match (revocations, lifted) {
        (Err(error), Err(_)) if saved.gateway.is_none() => return Err(error),
        (revocations, lifted) => (revocations.unwrap_or_default(), lifted.unwrap_or_default()),
    };
    saved.lifted = lifted.into_values().collect();
    saved.records = revocations.into_values().collect();
    let Salvaged { records, lifted, .. } = &mut saved;
    records.retain(|record| lifted.binary_search(&record.number).is_err());
    guards(&db, &mut saved);
    if !is_before_4 {
        // what went wrong is in the notes
        let letters = scan(&db, path, &mut saved, ("letter", "generation"), LETTERS, |row| {
            Ok(letter_of(&letter::letter(row)?))
        });
        saved.letters = letters.unwrap_or_default().into_values().collect();
        let admissions = scan(&db, path, &mut saved, ("admission", "generation"), ADMISSIONS, |row| {
            Ok(admission_of(&admission::admission(row)?))
        });
        saved.admissions = admissions.unwrap_or_default().into_values().collect();
    }
    if saved.skipped > 0 {
        saved.known = None;
    }
    let highest = saved.records.last().map(|record| record.number).max(saved.lifted.last().copied());
    saved.next_number = saved.next_number.max(highest.map_or(0, |number| number.saturating_add(1))).max(1);
    Ok(saved)
}

impl Salvaged {
    fn note(&mut self, what: String) {
        self.skipped += 1;
        if self.notes.len() < 100 {
            self.notes.push(what);
        }
    }
}

/// Every row of a table that can be reached, by its number: from both ends of each broken place. `select` begins with
/// the column that is the number. Fails where something is broken and no row at all could be read.
fn scan<T>(
    db: &Connection,
    path: &Path,
    saved: &mut Salvaged,
    (table, number): (&str, &str),
    select: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<Result<T, BadRow>>,
) -> Result<BTreeMap<i64, T>, ReadError> {
    let mut found = BTreeMap::new();
    // a stretch of rows up or down from a number; where it ended, and why if not at the end of the table
    let mut walk = |saved: &mut Salvaged, from: i64, until: i64, down: bool| {
        let mut last = None;
        let mut go = || {
            let order = if down { "DESC" } else { "ASC" };
            let mut rows =
                db.prepare(&format!("{select} WHERE {number} BETWEEN ?1 AND ?2 ORDER BY {number} {order}"))?;
            let mut rows = rows.query([from, until])?;
            while let Some(row) = rows.next()? {
                let number: i64 = row.get(0)?;
                last = Some(number);
                let why = match read(row) {
                    Ok(Ok(one)) => {
                        found.insert(number, one);
                        continue;
                    }
                    Ok(Err(why)) => why.to_string(),
                    Err(error) => error.to_string(),
                };
                saved.note(format!("table {table}, row {number}: {why}"));
            }
            Ok::<_, rusqlite::Error>(())
        };
        let ended = go();
        (last, ended)
    };
    let mut from = 0;
    let mut tries = 0;
    let mut first_error = None;
    loop {
        let (last, ended) = walk(saved, from, i64::MAX, false);
        let Err(error) = ended else { break };
        saved.note(format!("table {table}, behind row {}: {error}", last.unwrap_or(from)));
        first_error.get_or_insert(reading(path, &error));
        // further and further, until something can be read again …
        let broken = last.map_or(from, |last| last.saturating_add(1));
        let mut step = 1_i64;
        let far = loop {
            tries += 1;
            let far = broken.saturating_add(step);
            if far == i64::MAX || tries > STEPS {
                break None;
            }
            let probe = db
                .prepare_cached(&format!("{select} WHERE {number} = ?1"))
                .and_then(|mut row| row.exists([far]));
            match probe {
                Ok(_) => break Some(far),
                Err(_) => step = step.saturating_mul(2),
            }
        };
        // … and back from there, as far as it goes
        let back = far.map_or(i64::MAX, |far| far - 1);
        let _ = walk(saved, broken, back, true);
        match far {
            Some(far) => from = far,
            None => break,
        }
    }
    match first_error {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// The guards that can be read, to the records that were saved.
fn guards(db: &Connection, saved: &mut Salvaged) {
    let mut notes = Vec::new();
    for record in &mut saved.records {
        let number = record.number;
        let mut read = || {
            let select = format!("{} WHERE number = ?1 ORDER BY position", tables::GUARDS);
            let mut rows = db.prepare_cached(&select)?;
            let mut rows = rows.query([i64::try_from(number).unwrap_or(i64::MAX)])?;
            while let Some(row) = rows.next()? {
                match tables::guard(row)?.guard() {
                    Ok(guard) => record.guards.push(guard),
                    Err(why) => notes.push(format!("a guard of revocation {number}: {why}")),
                }
            }
            Ok::<_, rusqlite::Error>(())
        };
        if let Err(error) = read() {
            notes.push(format!("guards of revocation {number}: {error}"));
        }
    }
    notes.into_iter().for_each(|note| saved.note(note));
}
