//! What can still be read of a broken database, row by row.

use std::path::Path;

use rusqlite::{Connection, Row};

use super::row::bare_record_of;
use super::trouble::reading;
use super::{ReadError, connect, load, tables, wal};
use crate::session::Record;

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
        Ok(meta) => (saved.gateway, saved.next_number) = (Some(meta.gateway), meta.next_number),
        Err(error) => saved.note(error.to_string()),
    }
    let revocations = |saved: &mut Salvaged, row: &Row<'_>| {
        let row = tables::revocation(row).map_err(|error| error.to_string())?;
        let record = bare_record_of(&row).map_err(|error| error.to_string())?;
        saved.records.push(record);
        Ok(())
    };
    let lifted = |saved: &mut Salvaged, row: &Row<'_>| {
        let number = tables::lifted(row).map_err(|error| error.to_string())?;
        saved.lifted.push(number.map_err(|error| error.to_string())?);
        Ok(())
    };
    let first = scan(&db, path, &mut saved, "revocation", tables::REVOCATIONS, revocations);
    let second = scan(&db, path, &mut saved, "lifted", tables::LIFTED, lifted);
    if let (Err(error), Err(_)) = (first, second)
        && saved.gateway.is_none()
    {
        return Err(error);
    }
    saved.records.sort_by_key(|record| record.number);
    saved.records.dedup_by_key(|record| record.number);
    saved.lifted.sort_unstable();
    saved.lifted.dedup();
    let Salvaged { records, lifted, .. } = &mut saved;
    records.retain(|record| lifted.binary_search(&record.number).is_err());
    guards(&db, &mut saved);
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

/// Every row of a table with a number that can be reached, from both ends of each broken place.
fn scan(
    db: &Connection,
    path: &Path,
    saved: &mut Salvaged,
    table: &str,
    select: &str,
    take: impl Fn(&mut Salvaged, &Row<'_>) -> Result<(), String>,
) -> Result<(), ReadError> {
    // a stretch of rows up or down from a number; where it ended, and why if not at the end of the table
    let walk = |saved: &mut Salvaged, from: i64, until: i64, down: bool| {
        let mut last = None;
        let mut go = || {
            let order = if down { "DESC" } else { "ASC" };
            let mut rows =
                db.prepare(&format!("{select} WHERE number BETWEEN ?1 AND ?2 ORDER BY number {order}"))?;
            let mut rows = rows.query([from, until])?;
            while let Some(row) = rows.next()? {
                let number: i64 = row.get(0)?;
                last = Some(number);
                if let Err(why) = take(saved, row) {
                    saved.note(format!("table {table}, row {number}: {why}"));
                }
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
                .prepare_cached(&format!("{select} WHERE number = ?1"))
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
        Some(error) if saved.records.is_empty() && saved.lifted.is_empty() => Err(error),
        _ => Ok(()),
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
