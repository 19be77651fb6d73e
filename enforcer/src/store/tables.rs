//! The tables as rows of `row.rs`: one place for their columns and statements.

use rusqlite::types::{FromSqlError, ValueRef};
use rusqlite::{Connection, Row, params};

use std::borrow::Cow;

use super::row::{BadRow, GuardRow, RevocationRow, SessionRow, Sum, integer, natural};

pub(super) const REVOCATIONS: &str =
    "SELECT number, gateway, generation, kind, subject, realm, server, reason,
    asked_by, at, lasts, until, guards, user_realm, author, revision, sum FROM revocation NOT INDEXED";
/// The same of a file of before version 4.
pub(super) const REVOCATIONS_BEFORE_4: &str =
    "SELECT number, gateway, generation, kind, subject, realm, server, reason,
    asked_by, at, lasts, until, guards, NULL, NULL, NULL, sum FROM revocation NOT INDEXED";
pub(super) const GUARDS: &str = "SELECT kind, id, number, position, server, moment, sum FROM guard";
pub(super) const SESSIONS: &str = "SELECT key, generation, server, id, username, groupname, vhost, device,
    addresses, client, safe_id, since, worker_pid, worker_start, sum FROM session";
pub(super) const LIFTED: &str = "SELECT number, gateway, generation, at, sum FROM lifted";

pub(super) fn text<'r>(row: &'r Row<'_>, at: usize) -> rusqlite::Result<Cow<'r, str>> {
    maybe(row, at)?.ok_or_else(|| wrong(at, FromSqlError::InvalidType))
}

pub(super) fn maybe<'r>(row: &'r Row<'_>, at: usize) -> rusqlite::Result<Option<Cow<'r, str>>> {
    match row.get_ref(at)? {
        ValueRef::Null => Ok(None),
        value => value.as_str().map(|text| Some(Cow::Borrowed(text))).map_err(|error| wrong(at, error)),
    }
}

fn wrong(at: usize, error: FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, Box::new(error))
}

pub(super) fn revocation<'r>(row: &'r Row<'_>) -> rusqlite::Result<RevocationRow<'r>> {
    Ok(RevocationRow {
        number: row.get(0)?,
        gateway: text(row, 1)?,
        generation: row.get(2)?,
        kind: text(row, 3)?,
        subject: text(row, 4)?,
        realm: maybe(row, 5)?,
        server: maybe(row, 6)?,
        reason: text(row, 7)?,
        asked_by: text(row, 8)?,
        at: row.get(9)?,
        lasts: row.get(10)?,
        until: row.get(11)?,
        guards: row.get(12)?,
        user_realm: maybe(row, 13)?,
        author: maybe(row, 14)?,
        revision: row.get(15)?,
        sum: row.get(16)?,
    })
}

pub(super) fn guard<'r>(row: &'r Row<'_>) -> rusqlite::Result<GuardRow<'r>> {
    Ok(GuardRow {
        kind: text(row, 0)?,
        id: text(row, 1)?,
        number: row.get(2)?,
        position: row.get(3)?,
        server: maybe(row, 4)?,
        moment: row.get(5)?,
        sum: row.get(6)?,
    })
}

pub(super) fn session<'r>(row: &'r Row<'_>) -> rusqlite::Result<SessionRow<'r>> {
    Ok(SessionRow {
        key: row.get(0)?,
        generation: row.get(1)?,
        server: text(row, 2)?,
        id: row.get(3)?,
        username: text(row, 4)?,
        groupname: text(row, 5)?,
        vhost: text(row, 6)?,
        device: maybe(row, 7)?,
        addresses: text(row, 8)?,
        client: text(row, 9)?,
        safe_id: maybe(row, 10)?,
        since: row.get(11)?,
        worker_pid: row.get(12)?,
        worker_start: row.get(13)?,
        sum: row.get(14)?,
    })
}

/// The number of a row of [`LIFTED`].
pub(super) fn lifted(row: &Row<'_>) -> rusqlite::Result<Result<u64, BadRow>> {
    let (number, gateway): (i64, _) = (row.get(0)?, text(row, 1)?);
    let (generation, at): (i64, i64) = (row.get(2)?, row.get(3)?);
    let sum = lifted_sum(number, &gateway, generation, at);
    Ok(if row.get::<_, i64>(4)? == sum { natural("number", number) } else { Err(BadRow::Sum) })
}

fn lifted_sum(number: i64, gateway: &str, generation: i64, at: i64) -> i64 {
    Sum::of("lifted").number(number).text(gateway).number(generation).number(at).end()
}

fn meta_sum(key: &str, value: &str) -> i64 {
    Sum::of("meta").text(key).text(value).end()
}

/// All of `meta`, or what is wrong with which key.
pub(super) fn meta(db: &Connection) -> rusqlite::Result<Vec<(String, Result<String, BadRow>)>> {
    let mut all = db.prepare("SELECT key, value, sum FROM meta")?;
    let rows = all.query_map([], |row| {
        let (key, value): (String, String) = (row.get(0)?, row.get(1)?);
        let right = row.get::<_, i64>(2)? == meta_sum(&key, &value);
        Ok((key, if right { Ok(value) } else { Err(BadRow::Sum) }))
    })?;
    rows.collect()
}

pub(super) fn set_meta(db: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value, sum) VALUES (?1, ?2, ?3)")?
        .execute(params![key, value, meta_sum(key, value)])
        .map(drop)
}

/// Adds or replaces a revocation and all its guards.
pub(super) fn keep(
    db: &Connection,
    row: &RevocationRow<'_>,
    guards: &[GuardRow<'_>],
) -> rusqlite::Result<()> {
    // the old guards go first: fewer rows would be orphans, more would be surplus
    db.prepare_cached("DELETE FROM guard WHERE number = ?1")?.execute([row.number])?;
    // not INSERT OR REPLACE, which would be a deletion and an insertion to SQLite's foreign keys
    db.prepare_cached(
        "INSERT INTO revocation (number, gateway, generation, kind, subject, realm, server, reason, asked_by, at,
             lasts, until, guards, user_realm, author, revision, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
         ON CONFLICT (number) DO UPDATE SET gateway = ?2, generation = ?3, kind = ?4, subject = ?5, realm = ?6,
             server = ?7, reason = ?8, asked_by = ?9, at = ?10, lasts = ?11, until = ?12, guards = ?13,
             user_realm = ?14, author = ?15, revision = ?16, sum = ?17",
    )?
    .execute(params![
        row.number,
        row.gateway,
        row.generation,
        row.kind,
        row.subject,
        row.realm,
        row.server,
        row.reason,
        row.asked_by,
        row.at,
        row.lasts,
        row.until,
        row.guards,
        row.user_realm,
        row.author,
        row.revision,
        row.sum
    ])?;
    let mut insert = db.prepare_cached(
        "INSERT INTO guard (kind, id, number, position, server, moment, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for guard in guards {
        insert.execute(params![
            guard.kind,
            guard.id,
            guard.number,
            guard.position,
            guard.server,
            guard.moment,
            guard.sum
        ])?;
    }
    Ok(())
}

/// Takes a revocation away; its guards go with it, by the foreign key.
pub(super) fn drop_revocation(db: &Connection, number: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM revocation WHERE number = ?1")?.execute([number]).map(drop)
}

pub(super) fn is_lifted(db: &Connection, number: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM lifted WHERE number = ?1")?.exists([number])
}

/// A second lift of one number changes nothing.
pub(super) fn lift(
    db: &Connection,
    number: i64,
    gateway: &str,
    generation: u64,
    at: u64,
) -> rusqlite::Result<()> {
    // both are this program's own and far below the bound
    let (generation, at) = (generation as i64, at as i64);
    db.prepare_cached(
        "INSERT INTO lifted (number, gateway, generation, at, sum) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (number) DO NOTHING",
    )?
    .execute(params![number, gateway, generation, at, lifted_sum(number, gateway, generation, at)])
    .map(drop)
}

pub(super) fn forget(db: &Connection, number: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM lifted WHERE number = ?1")?.execute([number]).map(drop)
}

pub(super) fn put_session(db: &Connection, row: &SessionRow<'_>) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO session (key, generation, server, id, username, groupname, vhost, device, addresses,
             client, safe_id, since, worker_pid, worker_start, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?
    .execute(params![
        row.key,
        row.generation,
        row.server,
        row.id,
        row.username,
        row.groupname,
        row.vhost,
        row.device,
        row.addresses,
        row.client,
        row.safe_id,
        row.since,
        row.worker_pid,
        row.worker_start,
        row.sum
    ])
    .map(drop)
}

pub(super) fn drop_session(db: &Connection, key: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM session WHERE key = ?1")?.execute([key]).map(drop)
}

pub(super) fn drop_sessions(db: &Connection) -> rusqlite::Result<()> {
    db.execute("DELETE FROM session", []).map(drop)
}

/// A number out of a column, or out of a request.
pub(super) fn key(column: &'static str, value: u64) -> Result<i64, BadRow> {
    integer(column, value)
}
