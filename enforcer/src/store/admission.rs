//! Sessions that passed where several gateways have to agree, as rows: columns, checksum, statements. As strict
//! as `row.rs`. There may be a million: each is written by its key alone.

use std::borrow::Cow;

use rusqlite::{Connection, Row, params};

use super::row::{BadRow, Sum, integer, maybe_natural, natural, odd, text, whole};
use super::tables;
use crate::session::{Admission, Identity, ServerName, SessionId};

pub(super) const ADMISSIONS: &str =
    "SELECT generation, session, server, realm, username, groupname, revision, claimed, sum
    FROM admission NOT INDEXED";

/// One row of the table `admission`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionRow<'a> {
    /// This gateway's count of changes, as it was when this row was written: a later one has a higher one.
    pub generation: i64,
    /// A safe_id in base64, or a web session's key in hexadecimal.
    pub session: Cow<'a, str>,
    /// Empty: it is a web session.
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
            .text(&self.session)
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
        session: admission.session.to_string().into(),
        server: text("server", admission.server.as_ref().map_or("", |server| server.as_str()))?,
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
    let session = session("session", &row.session)?;
    let server = whole("server", &row.server)?;
    // a VPN session has one, a web session has none
    if server.is_empty() != matches!(session, SessionId::Web(_)) {
        return Err(odd("server", server, "one of a VPN session alone"));
    }
    Ok(Admission {
        session,
        server: (!server.is_empty()).then(|| ServerName::new(server)),
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
        session: tables::text(row, 1)?,
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
    delete(db, &row.session)?;
    db.prepare_cached(
        "INSERT INTO admission (generation, session, server, realm, username, groupname, revision, claimed, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        row.generation,
        row.session,
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

pub(super) fn drop_admission(db: &Connection, id: &SessionId) -> rusqlite::Result<()> {
    delete(db, &id.to_string())
}

fn delete(db: &Connection, session: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM admission WHERE session = ?1")?.execute([session]).map(drop)
}

/// In its one spelling.
fn session(column: &'static str, text: &str) -> Result<SessionId, BadRow> {
    let id = text.parse::<SessionId>().ok().filter(|id| id.to_string() == text);
    id.ok_or_else(|| odd(column, text, "a safe_id or a web session's key"))
}
