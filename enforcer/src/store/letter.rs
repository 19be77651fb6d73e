//! What other gateways have yet to be told, as rows: columns, checksum, statements. As strict as `row.rs`: a row that is
//! not exactly what this module would have written is none.

use std::borrow::Cow;

use rusqlite::{Connection, Row, params};

use super::row::{BadRow, Sum, author_of, integer, maybe_natural, natural, odd, safe_id, text, whole};
use super::tables;
use crate::session::{Author, Decision, Identity, Letter, LetterKey, Over, WebKey};

pub(super) const LETTERS: &str =
    "SELECT generation, what, author, kind, realm, subject, number, revision, asked_by,
    reason, at, lasts, until, sum FROM letter NOT INDEXED";

/// One row of the table `letter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterRow<'a> {
    /// This gateway's count of changes, as it was when this row was written: a later letter has a higher one.
    pub generation: i64,
    /// `decided` or `lifted`
    pub what: Cow<'a, str>,
    /// Of what was lifted: whose record it is, a gateway's id or `admin`. Of what was decided nothing: it was this gateway.
    pub author: Cow<'a, str>,
    /// `user`, `session`, `web` or `lock`
    pub kind: Cow<'a, str>,
    /// Of a user and of a lock; otherwise nothing.
    pub realm: Cow<'a, str>,
    /// The name, exactly; a safe_id in base64; a web session's key in hexadecimal.
    pub subject: Cow<'a, str>,
    /// Of what was decided; 0: it has none here.
    pub number: Option<i64>,
    /// Up to which revision of etcd it was lifted, where that is known.
    pub revision: Option<i64>,
    pub asked_by: Cow<'a, str>,
    /// Of what was decided.
    pub reason: Option<Cow<'a, str>>,
    /// Unix seconds.
    pub at: i64,
    /// Of what was decided, in seconds.
    pub lasts: Option<i64>,
    /// Of what was decided, in unix seconds.
    pub until: Option<i64>,
    pub sum: i64,
}

impl LetterRow<'_> {
    /// What `sum` has to be.
    pub fn right_sum(&self) -> i64 {
        Sum::of("letter")
            .number(self.generation)
            .text(&self.what)
            .text(&self.author)
            .text(&self.kind)
            .text(&self.realm)
            .text(&self.subject)
            .maybe_number(self.number)
            .maybe_number(self.revision)
            .text(&self.asked_by)
            .maybe_text(self.reason.as_deref())
            .number(self.at)
            .maybe_number(self.lasts)
            .maybe_number(self.until)
            .end()
    }
}

/// The columns that name a letter: `what`, `author`, `kind`, `realm`, `subject`.
type Columns<'a> = (&'static str, Cow<'a, str>, &'static str, &'a str, Cow<'a, str>);

fn columns_of(author: Option<Author>, over: &Over) -> Columns<'_> {
    let what = if author.is_some() { "lifted" } else { "decided" };
    let author = author.map_or_else(Cow::default, |author| author.to_string().into());
    let (kind, realm, subject): (_, _, Cow<'_, str>) = match over {
        Over::User(Identity { realm, name }) => ("user", realm.as_str(), name.into()),
        Over::Session(id) => ("session", "", id.to_string().into()),
        Over::Web(key) => ("web", "", key.to_string().into()),
        Over::Lock(Identity { realm, name }) => ("lock", realm.as_str(), name.into()),
    };
    (what, author, kind, realm, subject)
}

/// A letter as a row. `generation`: the how manieth change of this gateway it is.
pub fn letter_row_of(letter: &Letter, generation: u64) -> Result<LetterRow<'_>, BadRow> {
    let (author, over) = match letter {
        Letter::Decided { over, .. } => (None, over),
        Letter::Lifted { author, over, .. } => (Some(*author), over),
    };
    let (what, author, kind, realm, subject) = columns_of(author, over);
    // a name is the one subject that may be too long
    text("subject", &subject)?;
    let mut row = LetterRow {
        generation: integer("generation", generation)?,
        what: what.into(),
        author,
        kind: kind.into(),
        realm: text("realm", realm)?,
        subject,
        number: None,
        revision: None,
        asked_by: Cow::default(),
        reason: None,
        at: 0,
        lasts: None,
        until: None,
        sum: 0,
    };
    match letter {
        Letter::Decided { decision, .. } => {
            let Decision { number, by, reason, at, until, lasts } = decision;
            row.number = Some(integer("number", *number)?);
            row.asked_by = text("asked_by", by)?;
            row.reason = Some(text("reason", reason)?);
            row.at = integer("at", *at)?;
            row.lasts = lasts.map(|seconds| integer("lasts", seconds)).transpose()?;
            row.until = until.map(|moment| integer("until", moment)).transpose()?;
        }
        Letter::Lifted { up_to, by, at, .. } => {
            row.revision = up_to.map(|revision| integer("revision", revision)).transpose()?;
            row.asked_by = text("asked_by", by)?;
            row.at = integer("at", *at)?;
        }
    }
    row.sum = row.right_sum();
    Ok(row)
}

/// The letter that a row is. Refuses a wrong `sum`, a column that its kind does not have, and every text that is not
/// written as we write it.
pub fn letter_of(row: &LetterRow<'_>) -> Result<Letter, BadRow> {
    if row.sum != row.right_sum() {
        return Err(BadRow::Sum);
    }
    natural("generation", row.generation)?;
    let over = over(&row.kind, &row.realm, &row.subject)?;
    let by = whole("asked_by", &row.asked_by)?.to_owned();
    let at = natural("at", row.at)?;
    match (&*row.what, row.number, &row.reason) {
        ("decided", Some(number), Some(reason)) => {
            nothing("author", Some(&*row.author).filter(|author| !author.is_empty()), "nothing")?;
            nothing("revision", row.revision, "nothing, of what was decided")?;
            let decision = Decision {
                number: natural("number", number)?,
                by,
                reason: whole("reason", reason)?.to_owned(),
                at,
                until: maybe_natural("until", row.until)?,
                lasts: maybe_natural("lasts", row.lasts)?,
            };
            Ok(Letter::Decided { over, decision })
        }
        ("lifted", None, None) => {
            nothing("lasts", row.lasts, "nothing, of what was lifted")?;
            nothing("until", row.until, "nothing, of what was lifted")?;
            let up_to = maybe_natural("revision", row.revision)?;
            Ok(Letter::Lifted { author: author_of("author", &row.author)?, over, up_to, by, at })
        }
        (what, ..) => Err(odd("what", what, "decided with a number and a reason, or lifted without them")),
    }
}

fn nothing(column: &'static str, found: Option<impl ToString>, wanted: &'static str) -> Result<(), BadRow> {
    found.map_or(Ok(()), |found| Err(odd(column, &found.to_string(), wanted)))
}

fn over(kind: &str, realm: &str, subject: &str) -> Result<Over, BadRow> {
    let person = || {
        let (realm, name) = (whole("realm", realm)?, whole("subject", subject)?);
        Ok(Identity { realm: realm.to_owned(), name: name.to_owned() })
    };
    if matches!(kind, "session" | "web") && !realm.is_empty() {
        return Err(odd("realm", realm, "empty, as it has to be of one session"));
    }
    match kind {
        "user" => Ok(Over::User(person()?)),
        "lock" => Ok(Over::Lock(person()?)),
        "session" => Ok(Over::Session(safe_id("subject", subject)?)),
        "web" => {
            let key = subject.parse::<WebKey>().ok().filter(|key| key.to_string() == subject);
            Ok(Over::Web(key.ok_or_else(|| odd("subject", subject, "32 hexadecimal digits"))?))
        }
        _ => Err(odd("kind", kind, "user, session, web or lock")),
    }
}

/// A row of [`LETTERS`].
pub(super) fn letter<'r>(row: &'r Row<'_>) -> rusqlite::Result<LetterRow<'r>> {
    Ok(LetterRow {
        generation: row.get(0)?,
        what: tables::text(row, 1)?,
        author: tables::text(row, 2)?,
        kind: tables::text(row, 3)?,
        realm: tables::text(row, 4)?,
        subject: tables::text(row, 5)?,
        number: row.get(6)?,
        revision: row.get(7)?,
        asked_by: tables::text(row, 8)?,
        reason: tables::maybe(row, 9)?,
        at: row.get(10)?,
        lasts: row.get(11)?,
        until: row.get(12)?,
        sum: row.get(13)?,
    })
}

/// Adds a letter; the one with the same key goes.
pub(super) fn put(db: &Connection, row: &LetterRow<'_>) -> rusqlite::Result<()> {
    delete(db, &row.what, &row.author, &row.kind, &row.realm, &row.subject)?;
    db.prepare_cached(
        "INSERT INTO letter (generation, what, author, kind, realm, subject, number, revision, asked_by, reason, at,
             lasts, until, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?
    .execute(params![
        row.generation,
        row.what,
        row.author,
        row.kind,
        row.realm,
        row.subject,
        row.number,
        row.revision,
        row.asked_by,
        row.reason,
        row.at,
        row.lasts,
        row.until,
        row.sum
    ])
    .map(drop)
}

pub(super) fn drop_letter(db: &Connection, key: &LetterKey) -> rusqlite::Result<()> {
    let (what, author, kind, realm, subject) = match key {
        LetterKey::Decided(over) => columns_of(None, over),
        LetterKey::Lifted(author, over) => columns_of(Some(*author), over),
    };
    delete(db, what, &author, kind, realm, &subject)
}

fn delete(
    db: &Connection,
    what: &str,
    author: &str,
    kind: &str,
    realm: &str,
    subject: &str,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "DELETE FROM letter WHERE what = ?1 AND author = ?2 AND kind = ?3 AND realm = ?4 AND subject = ?5",
    )?
    .execute([what, author, kind, realm, subject])
    .map(drop)
}
