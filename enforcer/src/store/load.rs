//! Everything that the database holds, read strictly: what cannot be understood is an error, never left out.

use std::path::Path;

use rusqlite::Connection;

use super::admission::{self, ADMISSIONS, admission_of};
use super::known::known_of;
use super::letter::{self, LETTERS, letter_of};
use super::row::{BadRow, record_of, session_of};
use super::trouble::{bad_row, reading};
use super::{OpenError, tables, web};
use crate::session::{Admission, Guard, KnownEtcd, Letter, Process, Record, SessionRecord, WebRecord};

/// The table `meta`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub gateway: String,
    pub generation: u64,
    pub next_number: u64,
    pub wall: u64,
    pub boot_id: Option<String>,
    /// `None`: nothing was ever written of them.
    pub web_gateways: Option<Option<Vec<Process>>>,
    /// `None`: nothing was ever written of an etcd.
    pub known: Option<KnownEtcd>,
}

#[derive(Debug)]
pub(super) struct Everything {
    pub meta: Meta,
    pub records: Vec<Record>,
    pub lifted: Vec<u64>,
    pub sessions: Vec<SessionRecord>,
    pub web: Vec<WebRecord>,
    pub letters: Vec<Letter>,
    pub admissions: Vec<Admission>,
}

/// SQLite's own look at the file: the shape of every page, every row, every index.
pub(super) fn examine(db: &Connection, path: &Path) -> Result<(), OpenError> {
    let found: String = db
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| reading(path, &error))?;
    if found == "ok" {
        return Ok(());
    }
    Err(OpenError::Corrupt { path: path.to_owned(), what: found.replace('\n', " ") })
}

pub(super) fn everything(db: &Connection, path: &Path) -> Result<Everything, OpenError> {
    let mut everything = Everything {
        meta: meta(db, path)?,
        records: records(db, path)?,
        lifted: lifted(db, path)?,
        sessions: sessions(db, path)?,
        web: web::sessions(db, path)?,
        letters: letters(db, path)?,
        admissions: admissions(db, path)?,
    };
    // a number is never given twice, whatever was written last
    let highest = |numbers: Option<u64>| numbers.map_or(0, |number| number.saturating_add(1));
    let own = &mut everything.meta.next_number;
    *own = (*own)
        .max(highest(everything.records.last().map(|record| record.number)))
        .max(highest(everything.lifted.last().copied()))
        .max(1);
    Ok(everything)
}

pub(super) fn meta(db: &Connection, path: &Path) -> Result<Meta, OpenError> {
    let bad = |key: &str, why: &BadRow| bad_row(path, "meta", format_args!("{key:?}"), why);
    let mut rows = std::collections::BTreeMap::new();
    for (key, value) in tables::meta(db).map_err(|error| reading(path, &error))? {
        let value = value.map_err(|why| bad(&key, &why))?;
        rows.insert(key, value);
    }
    let missing = |key: &str| OpenError::Corrupt {
        path: path.to_owned(),
        what: format!("table meta has no row {key:?}"),
    };
    let mut take = |key: &'static str| rows.remove(key).ok_or_else(|| missing(key));
    let number = |key: &'static str, text: String| {
        let number = text.parse::<u64>().ok().filter(|number| number.to_string() == text);
        number.filter(|number| i64::try_from(*number).is_ok()).ok_or_else(|| {
            bad(key, &BadRow::Meaning { column: "value", found: text, wanted: "a natural number" })
        })
    };
    let gateway = take("gateway")?;
    if gateway.len() != 32 || !gateway.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        let wanted = "32 hexadecimal digits";
        return Err(bad("gateway", &BadRow::Meaning { column: "value", found: gateway, wanted }));
    }
    Ok(Meta {
        gateway,
        generation: number("generation", take("generation")?)?,
        next_number: number("next_number", take("next_number")?)?,
        wall: number("wall", take("wall")?)?,
        boot_id: take("boot_id").ok(),
        web_gateways: match take("web_gateways") {
            Ok(text) => Some(web::gateways_of(&text).map_err(|why| bad("web_gateways", &why))?),
            Err(_) => None,
        },
        known: match take("known_etcd") {
            Ok(text) => Some(known_of(&text).map_err(|why| bad("known_etcd", &why))?),
            Err(_) => None,
        },
    })
}

/// In the order of their numbers.
fn records(db: &Connection, path: &Path) -> Result<Vec<Record>, OpenError> {
    let sql = |error: rusqlite::Error| reading(path, &error);
    let mut all = db.prepare(&format!("{} ORDER BY number", tables::REVOCATIONS)).map_err(sql)?;
    let mut all = all.query([]).map_err(sql)?;
    let mut guards = Guards::new(db, path)?;
    let mut guards = guards.start(path)?;
    let mut records = Vec::new();
    while let Some(row) = all.next().map_err(sql)? {
        let number: i64 = row.get(0).map_err(sql)?;
        let about = |why: BadRow| bad_row(path, "revocation", number, &why);
        let row = tables::revocation(row).map_err(|error| named(path, "revocation", number, &error))?;
        records.push(record_of(&row, guards.of(number)?).map_err(about)?);
    }
    guards.end()?;
    Ok(records)
}

/// The guards of all revocations, in the order of the numbers.
struct Guards<'d>(rusqlite::Statement<'d>);

impl<'d> Guards<'d> {
    fn new(db: &'d Connection, path: &Path) -> Result<Self, OpenError> {
        // the table itself, sorted, and not its index: what counts is what the rows say
        let sql = format!("{} NOT INDEXED ORDER BY number, position", tables::GUARDS);
        db.prepare(&sql).map(Self).map_err(|error| reading(path, &error))
    }

    fn start<'g>(&'g mut self, path: &'g Path) -> Result<GuardStream<'g>, OpenError> {
        let rows = self.0.query([]).map_err(|error| reading(path, &error))?;
        let mut stream = GuardStream { rows, path, next: None };
        stream.advance()?;
        Ok(stream)
    }
}

struct GuardStream<'g> {
    rows: rusqlite::Rows<'g>,
    path: &'g Path,
    /// Number, position.
    next: Option<(i64, i64, Guard)>,
}

impl GuardStream<'_> {
    fn advance(&mut self) -> Result<(), OpenError> {
        let sql = |error: rusqlite::Error| reading(self.path, &error);
        self.next = match self.rows.next().map_err(sql)? {
            None => None,
            Some(row) => {
                let (number, position): (i64, i64) = (row.get(2).map_err(sql)?, row.get(3).map_err(sql)?);
                let place = format!("{number}/{position}");
                let row = tables::guard(row).map_err(|error| named(self.path, "guard", &place, &error))?;
                let guard = row.guard().map_err(|why| bad_row(self.path, "guard", &place, &why))?;
                Some((number, position, guard))
            }
        };
        Ok(())
    }

    /// Of this revocation. Asked in rising order.
    fn of(&mut self, number: i64) -> Result<Vec<Guard>, OpenError> {
        let mut guards = Vec::new();
        while let Some((whose, position, guard)) = self.next.take_if(|(whose, ..)| *whose <= number) {
            if whose < number {
                return Err(orphan(self.path, whose));
            }
            if position != guards.len() as i64 {
                let wanted = "the next position";
                let why = BadRow::Meaning { column: "position", found: position.to_string(), wanted };
                return Err(bad_row(self.path, "guard", format_args!("{number}/{position}"), &why));
            }
            guards.push(guard);
            self.advance()?;
        }
        Ok(guards)
    }

    fn end(self) -> Result<(), OpenError> {
        self.next.map_or(Ok(()), |(whose, ..)| Err(orphan(self.path, whose)))
    }
}

fn orphan(path: &Path, number: i64) -> OpenError {
    let what = format!("table guard has rows of revocation {number}, which table revocation does not have");
    OpenError::Corrupt { path: path.to_owned(), what }
}

/// A column of another type than the table says, or text that is no UTF-8: with the row's place.
fn named(path: &Path, table: &str, row: impl std::fmt::Display, error: &rusqlite::Error) -> OpenError {
    match reading(path, error) {
        OpenError::Corrupt { path, what } => {
            OpenError::Corrupt { path, what: format!("table {table}, row {row}: {what}") }
        }
        other => other,
    }
}

/// In the order of their numbers.
fn lifted(db: &Connection, path: &Path) -> Result<Vec<u64>, OpenError> {
    let sql = |error: rusqlite::Error| reading(path, &error);
    let mut all = db.prepare(&format!("{} ORDER BY number", tables::LIFTED)).map_err(sql)?;
    let mut all = all.query([]).map_err(sql)?;
    let mut numbers = Vec::new();
    while let Some(row) = all.next().map_err(sql)? {
        let number: i64 = row.get(0).map_err(sql)?;
        let read = tables::lifted(row).map_err(|error| named(path, "lifted", number, &error))?;
        numbers.push(read.map_err(|why| bad_row(path, "lifted", number, &why))?);
    }
    Ok(numbers)
}

/// In the order of their keys.
fn sessions(db: &Connection, path: &Path) -> Result<Vec<SessionRecord>, OpenError> {
    let sql = |error: rusqlite::Error| reading(path, &error);
    let mut all = db.prepare(&format!("{} ORDER BY key", tables::SESSIONS)).map_err(sql)?;
    let mut all = all.query([]).map_err(sql)?;
    let mut sessions = Vec::new();
    while let Some(row) = all.next().map_err(sql)? {
        let key: i64 = row.get(0).map_err(sql)?;
        let row = tables::session(row).map_err(|error| named(path, "session", key, &error))?;
        sessions.push(session_of(&row).map_err(|why| bad_row(path, "session", key, &why))?);
    }
    Ok(sessions)
}

/// In the order in which they were written.
fn letters(db: &Connection, path: &Path) -> Result<Vec<Letter>, OpenError> {
    let sql = |error: rusqlite::Error| reading(path, &error);
    let mut all = db.prepare(&format!("{LETTERS} ORDER BY generation")).map_err(sql)?;
    let mut all = all.query([]).map_err(sql)?;
    let mut letters = Vec::new();
    while let Some(row) = all.next().map_err(sql)? {
        let place: i64 = row.get(0).map_err(sql)?;
        let row = letter::letter(row).map_err(|error| named(path, "letter", place, &error))?;
        letters.push(letter_of(&row).map_err(|why| bad_row(path, "letter", place, &why))?);
    }
    Ok(letters)
}

/// In the order in which they were written.
fn admissions(db: &Connection, path: &Path) -> Result<Vec<Admission>, OpenError> {
    let sql = |error: rusqlite::Error| reading(path, &error);
    let mut all = db.prepare(&format!("{ADMISSIONS} ORDER BY generation")).map_err(sql)?;
    let mut all = all.query([]).map_err(sql)?;
    let mut admissions = Vec::new();
    while let Some(row) = all.next().map_err(sql)? {
        let place: i64 = row.get(0).map_err(sql)?;
        let row = admission::admission(row).map_err(|error| named(path, "admission", place, &error))?;
        admissions.push(admission_of(&row).map_err(|why| bad_row(path, "admission", place, &why))?);
    }
    Ok(admissions)
}
