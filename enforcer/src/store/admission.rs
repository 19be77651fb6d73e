//! Sessions that passed the gate where several gateways have to agree, as rows: columns, checksum, statements. As strict
//! as `row.rs`. There may be a million: each is written by its key alone.

use std::borrow::Cow;

use rusqlite::{Connection, Row, params};

use super::row::{BadRow, Sum, integer, maybe_natural, natural, odd, safe_id, text, whole};
use super::tables;
use crate::session::{Admission, Identity, SafeId, ServerName};

pub(super) const ADMISSIONS: &str =
    "SELECT generation, safe_id, server, realm, username, groupname, revision, claimed, sum
    FROM admission NOT INDEXED";

/// One row of the table `admission`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionRow<'a> {
    /// This gateway's count of changes, as it was when this row was written: a later one has a higher one.
    pub generation: i64,
    /// In base64.
    pub safe_id: Cow<'a, str>,
    pub server: Cow<'a, str>,
    pub realm: Cow<'a, str>,
    pub username: Cow<'a, str>,
    pub groupname: Cow<'a, str>,
    /// etcd's, where it stands in the order.
    pub revision: Option<i64>,
    /// 0 or 1
    pub claimed: i64,
    pub sum: i64,
}

impl AdmissionRow<'_> {
    /// What `sum` has to be.
    pub fn right_sum(&self) -> i64 {
        Sum::of("admission")
            .number(self.generation)
            .text(&self.safe_id)
            .text(&self.server)
            .text(&self.realm)
            .text(&self.username)
            .text(&self.groupname)
            .maybe_number(self.revision)
            .number(self.claimed)
            .end()
    }
}

/// An admission as a row. `generation`: the how manieth change of this gateway it is.
pub fn admission_row_of(admission: &Admission, generation: u64) -> Result<AdmissionRow<'_>, BadRow> {
    let mut row = AdmissionRow {
        generation: integer("generation", generation)?,
        safe_id: admission.safe_id.to_string().into(),
        server: text("server", admission.server.as_str())?,
        realm: text("realm", &admission.who.realm)?,
        username: text("username", &admission.who.name)?,
        groupname: text("groupname", &admission.group)?,
        revision: admission.at.map(|revision| integer("revision", revision)).transpose()?,
        claimed: admission.claimed.into(),
        sum: 0,
    };
    row.sum = row.right_sum();
    Ok(row)
}

/// The admission that a row is. Refuses a wrong `sum`, and every column that is not written as we write it.
pub fn admission_of(row: &AdmissionRow<'_>) -> Result<Admission, BadRow> {
    if row.sum != row.right_sum() {
        return Err(BadRow::Sum);
    }
    natural("generation", row.generation)?;
    let own = |column, value: &str| Ok::<_, BadRow>(whole(column, value)?.to_owned());
    Ok(Admission {
        safe_id: safe_id("safe_id", &row.safe_id)?,
        server: ServerName::new(whole("server", &row.server)?),
        who: Identity { realm: own("realm", &row.realm)?, name: own("username", &row.username)? },
        group: own("groupname", &row.groupname)?,
        at: maybe_natural("revision", row.revision)?,
        claimed: match row.claimed {
            0 => false,
            1 => true,
            other => return Err(odd("claimed", &other.to_string(), "0 or 1")),
        },
    })
}

/// A row of [`ADMISSIONS`].
pub(super) fn admission<'r>(row: &'r Row<'_>) -> rusqlite::Result<AdmissionRow<'r>> {
    Ok(AdmissionRow {
        generation: row.get(0)?,
        safe_id: tables::text(row, 1)?,
        server: tables::text(row, 2)?,
        realm: tables::text(row, 3)?,
        username: tables::text(row, 4)?,
        groupname: tables::text(row, 5)?,
        revision: row.get(6)?,
        claimed: row.get(7)?,
        sum: row.get(8)?,
    })
}

/// Adds an admission, or replaces it whole.
pub(super) fn put(db: &Connection, row: &AdmissionRow<'_>) -> rusqlite::Result<()> {
    delete(db, &row.safe_id)?;
    db.prepare_cached(
        "INSERT INTO admission (generation, safe_id, server, realm, username, groupname, revision, claimed, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        row.generation,
        row.safe_id,
        row.server,
        row.realm,
        row.username,
        row.groupname,
        row.revision,
        row.claimed,
        row.sum
    ])
    .map(drop)
}

pub(super) fn drop_admission(db: &Connection, id: &SafeId) -> rusqlite::Result<()> {
    delete(db, &id.to_string())
}

fn delete(db: &Connection, safe_id: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM admission WHERE safe_id = ?1")?.execute([safe_id]).map(drop)
}
