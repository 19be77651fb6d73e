//! Writes into transactions: all of a batch, or none.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::admission::{self, admission_row_of};
use super::chain::AuditLine;
use super::known::known_text;
use super::letter::{self, letter_row_of};
use super::load::Meta;
use super::row::{BadRow, rows_of, session_row_of};
use super::trouble::{Kind, kind};
use super::{Settings, Write, tables, web};
use crate::session::Audit;

/// The longest text of a line of the audit log, in bytes.
const AUDIT_TEXT: usize = 16 * 1024;
/// How often a batch is begun anew without a row that the database refused. Rows are checked before they are
/// given to it, so that it takes a fault of this program to come to that.
const REFUSALS: usize = 16;

/// Why one write failed, by its place in the batch.
pub(super) type Refused = (usize, String);

/// Why one write did.
enum Fault {
    /// It can never be written; nothing was.
    Refused(String),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<BadRow> for Fault {
    fn from(why: BadRow) -> Self {
        Self::Refused(format!("cannot be stored: {why}"))
    }
}

/// Writes a batch and returns when it is on the disk, with the writes that it had to leave out (in their order).
/// `meta` is brought up to date. After an error nothing of the batch is in the database, and `meta` is as before;
/// only if it was the commit itself that failed it may yet turn out to have been done.
pub(super) fn commit<'b>(
    db: &Connection,
    meta: &mut Meta,
    settings: &Settings,
    batch: impl Iterator<Item = &'b Write> + Clone,
) -> rusqlite::Result<Vec<Refused>> {
    let mut refused: Vec<Refused> = Vec::new();
    for _ in 0..=REFUSALS {
        let mut after = meta.clone();
        db.execute_batch("BEGIN IMMEDIATE")?;
        match fill(db, &mut after, settings, batch.clone(), &refused).and_then(|now| {
            // the commit is part of it: it is where a full disk shows
            db.execute_batch("COMMIT").map_err(|error| (None, error)).map(|()| now)
        }) {
            Ok(now) => {
                *meta = after;
                refused.extend(now);
                refused.sort();
                return Ok(refused);
            }
            Err((place, error)) => {
                if !db.is_autocommit() {
                    db.execute_batch("ROLLBACK")?;
                }
                match place {
                    Some(place) if kind(&error) == Kind::Row => {
                        refused.push((place, format!("the database refuses it: {error}")));
                    }
                    _ => return Err(error),
                }
            }
        }
    }
    Err(rusqlite::Error::InvalidQuery)
}

/// The rows of a transaction. Those in `without` are left out; returns which others were.
fn fill<'b>(
    db: &Connection,
    meta: &mut Meta,
    settings: &Settings,
    batch: impl Iterator<Item = &'b Write>,
    without: &[Refused],
) -> Result<Vec<Refused>, (Option<usize>, rusqlite::Error)> {
    let before = meta.clone();
    let mut refused = Vec::new();
    let mut newest_line = None;
    for (place, write) in batch.enumerate() {
        if without.iter().any(|(other, _)| *other == place) {
            continue;
        }
        match apply(db, meta, write) {
            Ok(()) => {}
            Err(Fault::Refused(why)) => refused.push((place, why)),
            Err(Fault::Sql(error)) => return Err((Some(place), error)),
        }
        if let Write::Audit(line) = write {
            newest_line = newest_line.max(Some(line.at));
        }
    }
    let rest = |error| (None, error);
    if let Some(now) = newest_line {
        prune(db, settings, now).map_err(rest)?;
    }
    write_meta(db, &before, meta).map_err(rest)?;
    Ok(refused)
}

fn write_meta(db: &Connection, before: &Meta, after: &Meta) -> rusqlite::Result<()> {
    let numbers = [
        ("generation", before.generation, after.generation),
        ("next_number", before.next_number, after.next_number),
        ("wall", before.wall, after.wall),
    ];
    for (key, before, after) in numbers {
        if before != after {
            tables::set_meta(db, key, &after.to_string())?;
        }
    }
    match &after.web_gateways {
        Some(gateways) if before.web_gateways != after.web_gateways => {
            tables::set_meta(db, "web_gateways", &web::gateways_text(gateways.as_deref()))?;
        }
        _ => {}
    }
    match &after.known {
        Some(known) if before.known != after.known => {
            // that it can be written was seen when it was taken
            let text =
                known_text(known).map_err(|why| rusqlite::Error::ToSqlConversionFailure(why.into()))?;
            tables::set_meta(db, "known_etcd", &text)?;
        }
        _ => {}
    }
    match &after.boot_id {
        Some(id) if before.boot_id != after.boot_id => tables::set_meta(db, "boot_id", id),
        _ => Ok(()),
    }
}

fn apply(db: &Connection, meta: &mut Meta, write: &Write) -> Result<(), Fault> {
    match write {
        Write::Keep(record) => {
            let (row, guards) = rows_of(record, &meta.gateway, meta.generation + 1)?;
            tables::key("number", record.number.saturating_add(1))?;
            if tables::is_lifted(db, row.number)? {
                let number = record.number;
                return Err(Fault::Refused(format!("revocation {number} was lifted, and stays so")));
            }
            tables::keep(db, &row, &guards)?;
            meta.generation += 1;
            meta.next_number = meta.next_number.max(record.number + 1);
        }
        Write::Over(number) => tables::drop_revocation(db, tables::key("number", *number)?)?,
        Write::Lift(number) => {
            let key = tables::key("number", *number)?;
            tables::key("number", number.saturating_add(1))?;
            tables::drop_revocation(db, key)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
            tables::lift(db, key, &meta.gateway, meta.generation + 1, now)?;
            meta.generation += 1;
            meta.next_number = meta.next_number.max(number + 1);
        }
        Write::Forget(number) => tables::forget(db, tables::key("number", *number)?)?,
        Write::Session(session) => {
            tables::put_session(db, &session_row_of(session, meta.generation + 1)?)?;
            meta.generation += 1;
        }
        Write::SessionGone(key) => tables::drop_session(db, tables::key("key", *key)?)?,
        Write::NoSessions => tables::drop_sessions(db)?,
        Write::KeepWeb { record, .. } => {
            web::put(db, &web::rows_of(record, &meta.gateway, meta.generation + 1)?)?;
            meta.generation += 1;
        }
        Write::WebGone(key) => web::drop_session(db, key)?,
        Write::WebGateways(gateways) => meta.web_gateways = Some(gateways.clone()),
        Write::KeepLetter(letter) => {
            letter::put(db, &letter_row_of(letter, meta.generation + 1)?)?;
            meta.generation += 1;
        }
        Write::LetterTold(key) => letter::drop_letter(db, key)?,
        Write::KnownEtcd(etcd) => {
            known_text(etcd)?;
            meta.known = Some(*etcd);
        }
        Write::KeepAdmission(one) => {
            admission::put(db, &admission_row_of(one, meta.generation + 1)?)?;
            meta.generation += 1;
        }
        Write::AdmissionGone(session) => admission::drop_admission(db, session)?,
        Write::Audit(line) => audit(db, line)?,
        Write::Clock { wall, boot_id } => {
            tables::key("wall", *wall)?;
            super::row::text("boot_id", boot_id)?;
            meta.wall = *wall;
            meta.boot_id = Some(boot_id.clone());
        }
        Write::NextNumber(number) => {
            tables::key("next_number", *number)?;
            meta.next_number = meta.next_number.max(*number);
        }
    }
    Ok(())
}

fn audit(db: &Connection, line: &Audit) -> Result<(), Fault> {
    let (at, number) = (tables::key("at", line.at)?, tables::key("number", line.number)?);
    let (target, asked_by) = (cut(&line.target), cut(&line.by));
    let (reason, text) = (cut(&line.reason), cut(&line.text));
    db.prepare_cached(
        "INSERT INTO audit (at, what, number, target, asked_by, reason, complete, text)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![at, line.what, number, target, asked_by, reason, line.complete, text])?;
    let place = db.last_insert_rowid();
    let chained = AuditLine {
        line: u64::try_from(place).unwrap_or_default(),
        at: line.at,
        what: line.what.to_owned(),
        number: line.number,
        target: target.into_owned(),
        asked_by: asked_by.into_owned(),
        reason: reason.into_owned(),
        complete: line.complete,
        text: text.into_owned(),
        before: last_link(db, place)?,
        chain: None,
    };
    db.prepare_cached("UPDATE audit SET chain = ?1 WHERE line = ?2")?
        .execute(params![chained.link(), place])?;
    Ok(())
}

/// The digest of the line before that one.
fn last_link(db: &Connection, place: i64) -> rusqlite::Result<Option<String>> {
    db.prepare_cached("SELECT CAST(chain AS BLOB) FROM audit WHERE line < ?1 ORDER BY line DESC LIMIT 1")?
        .query_row([place], |row| row.get::<_, Option<Vec<u8>>>(0))
        .optional()
        .map(|chain| chain.flatten().map(readable))
}

/// A text that decides nothing, whatever a disk has made of it: what is no UTF-8 stops nobody, and is found by who verifies.
pub(super) fn readable(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The audit log within its bounds; `now`: the time of its newest line. The oldest lines go, up to the first one that is
/// young enough: what is left has no gaps, whatever the clock said between them, and what it follows from is noted. The
/// newest one stays.
fn prune(db: &Connection, settings: &Settings, now: u64) -> rusqlite::Result<()> {
    let days = u64::from(settings.audit_days) * 86_400;
    let oldest =
        if days > 0 { i64::try_from(now.saturating_sub(days)).unwrap_or(i64::MAX) } else { i64::MIN };
    let keep_from: Option<i64> = db
        .prepare_cached(
            "SELECT max(max(line) - ?1 + 1, coalesce((SELECT line FROM audit WHERE +at >= ?2 ORDER BY line LIMIT 1), 0))
             FROM audit",
        )?
        .query_row(params![settings.audit_rows.max(1), oldest], |row| row.get(0))?;
    let Some(keep_from) = keep_from else { return Ok(()) };
    let last: Option<(i64, Option<Vec<u8>>)> = db
        .prepare_cached(
            "SELECT line, CAST(chain AS BLOB) FROM audit WHERE line < ?1 ORDER BY line DESC LIMIT 1",
        )?
        .query_row([keep_from], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((line, chain)) = last else { return Ok(()) };
    tables::set_meta(db, AUDIT_BEFORE, &pruned_text(line, chain.map(readable).as_deref()))?;
    db.prepare_cached("DELETE FROM audit WHERE line < ?1")?.execute([keep_from])?;
    Ok(())
}

/// The key of `meta` that has the last line that was pruned.
pub(super) const AUDIT_BEFORE: &str = "audit_before";

/// Its number, and after a blank its digest, where it has one.
fn pruned_text(line: i64, chain: Option<&str>) -> String {
    chain.map_or_else(|| line.to_string(), |chain| format!("{line} {chain}"))
}

/// `None`: it is not what [`pruned_text`] writes.
pub(super) fn pruned_of(text: &str) -> Option<(u64, Option<String>)> {
    let (line, chain) = text.split_once(' ').map_or((text, None), |(line, chain)| (line, Some(chain)));
    Some((line.parse().ok()?, chain.map(str::to_owned)))
}

/// At most [`AUDIT_TEXT`] bytes of it; that it was cut is said.
fn cut(text: &str) -> std::borrow::Cow<'_, str> {
    const MARK: &str = " … (cut)";
    if text.len() <= AUDIT_TEXT {
        return text.into();
    }
    let end = text.floor_char_boundary(AUDIT_TEXT - MARK.len());
    format!("{}{MARK}", &text[..end]).into()
}
