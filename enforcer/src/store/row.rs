//! What a row of the database means: the columns of a record, and back. Pure, and strict: a row that is not
//! exactly what this module would have written is no record.
//!
//! Every row that decides something carries a `sum` over all its other columns, so that a byte that the disk
//! changed is seen; SQLite itself sees only what breaks the shape of a page. It is no protection against somebody
//! who writes it on purpose: who can write the file can do everything. A row that was edited by hand is refused.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use sha2::{Digest as _, Sha256};

use crate::session::{
    Author, CutoffKey, Flow, Guard, Guarded, Identity, LockKey, Observed, Origin, Process, Protocol, Record,
    SafeId, ServerName, SessionRecord, Target, Token, TokenKind,
};

/// The longest text that a column takes, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// The most guards of one record: as many as the kernel's table of safe_ids has room for.
pub const MAX_GUARDS: usize = 262_144;

/// Why a row is no record, or a record cannot be a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRow {
    #[error("its checksum does not fit its columns")]
    Sum,
    #[error("its column {column} holds {found:?}, which is not {wanted}")]
    Meaning { column: &'static str, found: String, wanted: &'static str },
    #[error("it has {found} guards and should have {wanted}")]
    Guards { found: usize, wanted: i64 },
    #[error("{column} is {found}, and no number above 9223372036854775807 can be stored")]
    TooLarge { column: &'static str, found: u64 },
    #[error("{column} has {found} bytes, and no text of more than 65536 can be stored")]
    TooLong { column: &'static str, found: usize },
    #[error("it has {0} guards, and no more than 262144 can be stored")]
    TooManyGuards(usize),
    #[error("the end of a web session has no row: the session's own is taken away")]
    WebTarget,
}

/// One row of the table `revocation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationRow<'a> {
    pub number: i64,
    /// The id of the gateway that decided it: 32 hexadecimal digits.
    pub gateway: Cow<'a, str>,
    /// That gateway's count of changes, as it was when this row last changed.
    pub generation: i64,
    /// `user`, `id`, `session`, `address`, `flow`, `token`, `lock` or `adopted`
    pub kind: Cow<'a, str>,
    /// As people write it: the name, exactly; the number; base64; `192.0.2.1`; `tcp 192.0.2.1:4000
    /// 198.51.100.1:443`; `dtls 0a0b`; `openvpn 0a0b0c0d0e0f1011`; of a lock the name; nothing.
    pub subject: Cow<'a, str>,
    /// Of a lock.
    pub realm: Option<Cow<'a, str>>,
    pub server: Option<Cow<'a, str>>,
    pub reason: Cow<'a, str>,
    pub asked_by: Cow<'a, str>,
    /// Unix seconds.
    pub at: i64,
    /// Seconds.
    pub lasts: Option<i64>,
    /// Unix seconds.
    pub until: Option<i64>,
    /// How many rows of `guard` belong to it.
    pub guards: i64,
    /// Of a user, where one person alone is meant: his realm.
    pub user_realm: Option<Cow<'a, str>>,
    /// Of what another gateway or an administrator at etcd has decided: whose record it carries out, a gateway's id or
    /// `admin`; and where that stands in etcd's order.
    pub author: Option<Cow<'a, str>>,
    pub revision: Option<i64>,
    pub sum: i64,
}

/// One row of the table `guard`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardRow<'a> {
    /// `safe_id` or `cutoff`
    pub kind: Cow<'a, str>,
    /// A safe_id in base64; the 20 bytes of a cutoff's key in hexadecimal.
    pub id: Cow<'a, str>,
    /// Of which revocation.
    pub number: i64,
    /// The how manieth of it, from 0.
    pub position: i64,
    pub server: Option<Cow<'a, str>>,
    /// Unix seconds.
    pub moment: i64,
    pub sum: i64,
}

/// One row of the table `session`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow<'a> {
    pub key: i64,
    pub generation: i64,
    pub server: Cow<'a, str>,
    pub id: i64,
    pub username: Cow<'a, str>,
    pub groupname: Cow<'a, str>,
    pub vhost: Cow<'a, str>,
    pub device: Option<Cow<'a, str>>,
    /// With a blank between two.
    pub addresses: Cow<'a, str>,
    pub client: Cow<'a, str>,
    pub safe_id: Option<Cow<'a, str>>,
    /// Unix seconds.
    pub since: i64,
    pub worker_pid: Option<i64>,
    /// Clock ticks after boot.
    pub worker_start: Option<i64>,
    pub sum: i64,
}

/// The first 8 bytes of SHA-256 over all columns, each with its type and length, so that nothing can move from
/// one column into the next.
pub(super) struct Sum(Sha256);

impl Sum {
    pub(super) fn of(table: &str) -> Self {
        Self(Sha256::new()).text(table)
    }

    pub(super) fn number(mut self, value: i64) -> Self {
        self.0.update([1]);
        self.0.update(value.to_be_bytes());
        self
    }

    pub(super) fn text(mut self, value: &str) -> Self {
        self.0.update([2]);
        self.0.update((value.len() as u64).to_be_bytes());
        self.0.update(value);
        self
    }

    fn nothing(mut self) -> Self {
        self.0.update([0]);
        self
    }

    pub(super) fn maybe_number(self, value: Option<i64>) -> Self {
        match value {
            Some(value) => self.number(value),
            None => self.nothing(),
        }
    }

    pub(super) fn maybe_text(self, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(value),
            None => self.nothing(),
        }
    }

    pub(super) fn end(self) -> i64 {
        let digest = self.0.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        i64::from_be_bytes(first)
    }
}

impl RevocationRow<'_> {
    /// What `sum` has to be. The columns of version 4 are part of it where one of them holds something: what was
    /// written before there were any keeps its sum, and none of them can come or go unseen.
    pub fn right_sum(&self) -> i64 {
        let sum = Sum::of("revocation")
            .number(self.number)
            .text(&self.gateway)
            .number(self.generation)
            .text(&self.kind)
            .text(&self.subject)
            .maybe_text(self.realm.as_deref())
            .maybe_text(self.server.as_deref())
            .text(&self.reason)
            .text(&self.asked_by)
            .number(self.at)
            .maybe_number(self.lasts)
            .maybe_number(self.until)
            .number(self.guards);
        if self.user_realm.is_none() && self.author.is_none() && self.revision.is_none() {
            return sum.end();
        }
        sum.maybe_text(self.user_realm.as_deref())
            .maybe_text(self.author.as_deref())
            .maybe_number(self.revision)
            .end()
    }
}

impl GuardRow<'_> {
    /// What `sum` has to be.
    pub fn right_sum(&self) -> i64 {
        Sum::of("guard")
            .text(&self.kind)
            .text(&self.id)
            .number(self.number)
            .number(self.position)
            .maybe_text(self.server.as_deref())
            .number(self.moment)
            .end()
    }

    /// The guard that this row is. Refuses a wrong `sum` and every text that is not written as we write it.
    pub fn guard(&self) -> Result<Guard, BadRow> {
        if self.sum != self.right_sum() {
            return Err(BadRow::Sum);
        }
        let what = match &*self.kind {
            "safe_id" => Guarded::SafeId(safe_id("id", &self.id)?),
            "cutoff" => Guarded::Cutoff(CutoffKey::from_bytes(digest(&self.id)?)),
            "lock" => Guarded::Lock(LockKey::from_bytes(digest(&self.id)?)),
            kind => return Err(odd("kind", kind, "safe_id, cutoff or lock")),
        };
        natural("position", self.position)?;
        Ok(Guard { what, server: server(self.server.as_deref())?, moment: natural("moment", self.moment)? })
    }
}

fn digest(id: &str) -> Result<[u8; 20], BadRow> {
    bytes_of(id)
        .and_then(|bytes| <[u8; 20]>::try_from(bytes).ok())
        .ok_or_else(|| odd("id", id, "40 hexadecimal digits"))
}

impl SessionRow<'_> {
    /// What `sum` has to be.
    pub fn right_sum(&self) -> i64 {
        Sum::of("session")
            .number(self.key)
            .number(self.generation)
            .text(&self.server)
            .number(self.id)
            .text(&self.username)
            .text(&self.groupname)
            .text(&self.vhost)
            .maybe_text(self.device.as_deref())
            .text(&self.addresses)
            .text(&self.client)
            .maybe_text(self.safe_id.as_deref())
            .number(self.since)
            .maybe_number(self.worker_pid)
            .maybe_number(self.worker_start)
            .end()
    }
}

/// A revocation as rows: one of `revocation`, and its guards in their order. `gateway` and `generation`: whose
/// change it is, and the how manieth.
pub fn rows_of<'a>(
    record: &'a Record,
    gateway: &'a str,
    generation: u64,
) -> Result<(RevocationRow<'a>, Vec<GuardRow<'a>>), BadRow> {
    if record.guards.len() > MAX_GUARDS {
        return Err(BadRow::TooManyGuards(record.guards.len()));
    }
    let number = integer("number", record.number)?;
    let (kind, subject, realm): (_, Cow<'a, str>, _) = match &record.target {
        Target::User(name) => ("user", name.into(), None),
        Target::Person(identity) => ("user", (&identity.name).into(), None),
        Target::Id(id) => ("id", id.to_string().into(), None),
        Target::Session(safe_id) => ("session", safe_id.to_string().into(), None),
        Target::Web(_) => return Err(BadRow::WebTarget),
        Target::Address(address) => ("address", address.to_string().into(), None),
        Target::Flow(flow) => ("flow", flow.to_string().into(), None),
        Target::Token(token) => ("token", token.to_string().into(), None),
        Target::Lock(identity) => ("lock", (&identity.name).into(), Some(&identity.realm)),
        Target::Adopted => ("adopted", "".into(), None),
    };
    let user_realm = match &record.target {
        Target::Person(identity) => Some(text("user_realm", &identity.realm)?),
        _ => None,
    };
    let mut row = RevocationRow {
        number,
        gateway: text("gateway", gateway)?,
        generation: integer("generation", generation)?,
        kind: kind.into(),
        subject: bounded("subject", subject)?,
        realm: realm.map(|realm| text("realm", realm)).transpose()?,
        server: record.server.as_ref().map(|server| text("server", server.as_str())).transpose()?,
        reason: text("reason", &record.reason)?,
        asked_by: text("asked_by", &record.by)?,
        at: integer("at", record.at)?,
        lasts: record.lasts.map(|seconds| integer("lasts", seconds)).transpose()?,
        until: record.until.map(|moment| integer("until", moment)).transpose()?,
        guards: record.guards.len() as i64,
        user_realm,
        author: record.origin.map(|origin| origin.author.to_string().into()),
        revision: record.origin.map(|origin| integer("revision", origin.revision)).transpose()?,
        sum: 0,
    };
    row.sum = row.right_sum();
    let guards = record
        .guards
        .iter()
        .enumerate()
        .map(|(position, guard)| {
            let (kind, id) = match &guard.what {
                Guarded::SafeId(id) => ("safe_id", id.to_string()),
                Guarded::Cutoff(key) => ("cutoff", hex(key.as_bytes())),
                Guarded::Lock(key) => ("lock", hex(key.as_bytes())),
            };
            let mut row = GuardRow {
                kind: kind.into(),
                id: id.into(),
                number,
                position: position as i64,
                server: guard.server.as_ref().map(|server| text("server", server.as_str())).transpose()?,
                moment: integer("moment", guard.moment)?,
                sum: 0,
            };
            row.sum = row.right_sum();
            Ok(row)
        })
        .collect::<Result<_, BadRow>>()?;
    Ok((row, guards))
}

/// The record that a row of `revocation` is, with the guards that were read for it (in their order; each by
/// [`GuardRow::guard`]). Refuses a wrong `sum`, another count of guards than the row tells, and every text that is
/// not written as we write it.
pub fn record_of(row: &RevocationRow<'_>, guards: Vec<Guard>) -> Result<Record, BadRow> {
    let mut record = bare_record_of(row)?;
    if row.guards != guards.len() as i64 {
        return Err(BadRow::Guards { found: guards.len(), wanted: row.guards });
    }
    record.guards = guards;
    Ok(record)
}

/// The record without its guards.
pub(super) fn bare_record_of(row: &RevocationRow<'_>) -> Result<Record, BadRow> {
    if row.sum != row.right_sum() {
        return Err(BadRow::Sum);
    }
    natural("generation", row.generation)?;
    whole("gateway", &row.gateway)?;
    Ok(Record {
        number: natural("number", row.number)?,
        target: target(&row.kind, &row.subject, row.realm.as_deref(), row.user_realm.as_deref())?,
        server: server(row.server.as_deref())?,
        reason: whole("reason", &row.reason)?.to_owned(),
        by: whole("asked_by", &row.asked_by)?.to_owned(),
        at: natural("at", row.at)?,
        lasts: maybe_natural("lasts", row.lasts)?,
        until: maybe_natural("until", row.until)?,
        guards: Vec::new(),
        origin: origin(row.author.as_deref(), row.revision)?,
    })
}

/// An author as it is written: a gateway's id in lower case, or `admin`.
pub(super) fn author_of(column: &'static str, found: &str) -> Result<Author, BadRow> {
    if found == Author::Admin.to_string() {
        return Ok(Author::Admin);
    }
    let id = found.parse().map_err(|_| odd(column, found, "a gateway's id, or admin"))?;
    Ok(Author::Gateway(id))
}

fn origin(author: Option<&str>, revision: Option<i64>) -> Result<Option<Origin>, BadRow> {
    match (author, revision) {
        (None, None) => Ok(None),
        (Some(author), Some(revision)) => Ok(Some(Origin {
            author: author_of("author", author)?,
            revision: natural("revision", revision)?,
        })),
        (author, _) => Err(odd("author", author.unwrap_or_default(), "there together with revision")),
    }
}

fn target(
    kind: &str,
    subject: &str,
    realm: Option<&str>,
    user_realm: Option<&str>,
) -> Result<Target, BadRow> {
    whole("subject", subject)?;
    if let (Some(realm), true) = (realm, kind != "lock") {
        return Err(odd("realm", realm, "empty, as it has to be of everything but a lock"));
    }
    if let (Some(realm), true) = (user_realm, kind != "user") {
        return Err(odd("user_realm", realm, "empty, as it has to be of everything but a user"));
    }
    Ok(match kind {
        "user" => match user_realm {
            None => Target::User(subject.to_owned()),
            Some(realm) => {
                let realm = whole("user_realm", realm)?.to_owned();
                Target::Person(Identity { realm, name: subject.to_owned() })
            }
        },
        "lock" => {
            let realm = realm.ok_or_else(|| odd("realm", "", "the name of a realm"))?;
            Target::Lock(Identity { realm: whole("realm", realm)?.to_owned(), name: subject.to_owned() })
        }
        "id" => Target::Id(as_written(subject, "an id of ocserv")?),
        "session" => Target::Session(safe_id("subject", subject)?),
        "address" => Target::Address(as_written(subject, "an address")?),
        "flow" => {
            let flow = flow(subject).filter(|flow| flow.to_string() == subject);
            Target::Flow(flow.ok_or_else(|| odd("subject", subject, "a flow"))?)
        }
        "token" => Target::Token(token(subject).ok_or_else(|| odd("subject", subject, "a wire token"))?),
        "adopted" if subject.is_empty() => Target::Adopted,
        "adopted" => return Err(odd("subject", subject, "empty, as it is of kind adopted")),
        _ => return Err(odd("kind", kind, "a kind of revocation")),
    })
}

fn token(text: &str) -> Option<Token> {
    let (kind, id) = text.split_once(' ')?;
    Token::new(TokenKind::from_name(kind)?, bytes_of(id)?).ok()
}

fn flow(text: &str) -> Option<Flow> {
    let mut words = text.split(' ');
    let protocol = words.next()?.parse::<Protocol>().ok()?;
    let client = words.next()?.parse::<SocketAddr>().ok()?;
    let local = words.next()?.parse::<SocketAddr>().ok()?;
    if words.next().is_some() {
        return None;
    }
    Flow::new(protocol, client, local).ok()
}

/// A session as a row.
pub fn session_row_of(session: &SessionRecord, generation: u64) -> Result<SessionRow<'_>, BadRow> {
    let seen = &session.observed;
    let mut addresses = String::new();
    for address in &seen.addresses {
        let gap = if addresses.is_empty() { "" } else { " " };
        // writing to a String cannot fail
        let _ = write!(addresses, "{gap}{address}");
    }
    let mut row = SessionRow {
        key: integer("key", session.key)?,
        generation: integer("generation", generation)?,
        server: text("server", session.server.as_str())?,
        id: seen.id.into(),
        username: text("username", &seen.user)?,
        groupname: text("groupname", &seen.group)?,
        vhost: text("vhost", &seen.vhost)?,
        device: seen.device.as_deref().map(|device| text("device", device)).transpose()?,
        addresses: bounded("addresses", addresses.into())?,
        client: text("client", &seen.client)?,
        safe_id: seen.safe_id.map(|id| id.to_string().into()),
        since: integer("since", seen.since)?,
        worker_pid: session.worker.map(|worker| worker.pid.into()),
        worker_start: session.worker.map(|worker| integer("worker_start", worker.start)).transpose()?,
        sum: 0,
    };
    row.sum = row.right_sum();
    Ok(row)
}

/// The session that a row is; refuses as [`record_of`] does.
pub fn session_of(row: &SessionRow<'_>) -> Result<SessionRecord, BadRow> {
    if row.sum != row.right_sum() {
        return Err(BadRow::Sum);
    }
    natural("generation", row.generation)?;
    let small = |column, value: i64| {
        i32::try_from(value).map_err(|_| odd(column, &value.to_string(), "a number of 32 bits"))
    };
    let words = whole("addresses", &row.addresses)?;
    let addresses = match words {
        "" => Vec::new(),
        words => words
            .split(' ')
            .map(|word| as_written::<IpAddr>(word, "an address"))
            .collect::<Result<Vec<_>, _>>()?,
    };
    let worker = match (row.worker_pid, row.worker_start) {
        (None, None) => None,
        (Some(pid), Some(start)) => {
            Some(Process { pid: small("worker_pid", pid)?, start: natural("worker_start", start)? })
        }
        _ => return Err(odd("worker_start", "", "there together with worker_pid")),
    };
    let own = |column, value: &str| Ok::<_, BadRow>(whole(column, value)?.to_owned());
    Ok(SessionRecord {
        key: natural("key", row.key)?,
        server: ServerName::new(whole("server", &row.server)?),
        observed: Observed {
            id: small("id", row.id)?,
            user: own("username", &row.username)?,
            group: own("groupname", &row.groupname)?,
            vhost: own("vhost", &row.vhost)?,
            device: row.device.as_deref().map(|device| own("device", device)).transpose()?,
            addresses,
            client: own("client", &row.client)?,
            safe_id: row.safe_id.as_deref().map(|id| safe_id("safe_id", id)).transpose()?,
            since: natural("since", row.since)?,
        },
        worker,
    })
}

/// What is neither negative nor (on the way in) too large for SQLite's integer.
pub(super) fn natural(column: &'static str, value: i64) -> Result<u64, BadRow> {
    u64::try_from(value).map_err(|_| odd(column, &value.to_string(), "a natural number"))
}

pub(super) fn maybe_natural(column: &'static str, value: Option<i64>) -> Result<Option<u64>, BadRow> {
    value.map(|value| natural(column, value)).transpose()
}

pub(super) fn integer(column: &'static str, value: u64) -> Result<i64, BadRow> {
    i64::try_from(value).map_err(|_| BadRow::TooLarge { column, found: value })
}

fn bounded<'a>(column: &'static str, value: Cow<'a, str>) -> Result<Cow<'a, str>, BadRow> {
    if value.len() > MAX_TEXT { Err(BadRow::TooLong { column, found: value.len() }) } else { Ok(value) }
}

pub(super) fn text<'a>(column: &'static str, value: &'a str) -> Result<Cow<'a, str>, BadRow> {
    bounded(column, Cow::Borrowed(value))
}

pub(super) fn whole<'a>(column: &'static str, value: &'a str) -> Result<&'a str, BadRow> {
    if value.len() > MAX_TEXT { Err(BadRow::TooLong { column, found: value.len() }) } else { Ok(value) }
}

fn server(name: Option<&str>) -> Result<Option<ServerName>, BadRow> {
    name.map(|name| whole("server", name).map(ServerName::new)).transpose()
}

/// What parses, and would be written just so.
fn as_written<T: std::str::FromStr + ToString>(text: &str, wanted: &'static str) -> Result<T, BadRow> {
    let value = text.parse::<T>().ok().filter(|value| value.to_string() == text);
    value.ok_or_else(|| odd("subject", text, wanted))
}

pub(super) fn safe_id(column: &'static str, text: &str) -> Result<SafeId, BadRow> {
    let id = text.parse::<SafeId>().ok().filter(|id| id.to_string() == text);
    id.ok_or_else(|| odd(column, text, "a safe_id"))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Lower-case hexadecimal digits alone, an even count of them.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// At most 80 characters of what was found: it ends up in a message.
pub(super) fn odd(column: &'static str, found: &str, wanted: &'static str) -> BadRow {
    BadRow::Meaning { column, found: found.chars().take(80).collect(), wanted }
}
