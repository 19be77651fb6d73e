//! Rows of the durable state: any columns, with a checksum that fits, so that the parser behind it is reached.
use arbitrary::{Arbitrary, Unstructured};
use enforcer::session::{Author, GatewayId, SafeId, WebKey};
use enforcer::store::admission::{AdmissionRow, admission_of, admission_row_of};
use enforcer::store::letter::{LetterRow, letter_of, letter_row_of};
use enforcer::store::row::{
    GuardRow, RevocationRow, SessionRow, record_of, rows_of, session_of, session_row_of,
};

#[derive(Arbitrary, Debug)]
struct Revocation<'a> {
    number: i64,
    gateway: &'a str,
    generation: i64,
    kind: Kind<'a>,
    subject: &'a str,
    realm: Option<&'a str>,
    server: Option<&'a str>,
    reason: &'a str,
    asked_by: &'a str,
    times: (i64, Option<i64>, Option<i64>),
    user_realm: Option<&'a str>,
    author: Option<Whose<'a>>,
    revision: Option<i64>,
    guards: Vec<Guard<'a>>,
    surplus: i8,
}

#[derive(Arbitrary, Debug)]
enum Kind<'a> {
    User,
    Id,
    Session,
    Address,
    Flow,
    Token,
    Lock,
    Adopted,
    Other(&'a str),
}

#[derive(Arbitrary, Debug)]
struct Guard<'a> {
    kind: Option<bool>,
    id: &'a str,
    server: Option<&'a str>,
    moment: i64,
}

#[derive(Arbitrary, Debug)]
struct Session<'a> {
    key: i64,
    generation: i64,
    server: &'a str,
    id: i64,
    names: [&'a str; 4],
    device: Option<&'a str>,
    addresses: &'a str,
    safe_id: Option<&'a str>,
    since: i64,
    worker: (Option<i64>, Option<i64>),
}

#[derive(Arbitrary, Debug)]
enum Whose<'a> {
    Admin,
    Gateway([u8; 16]),
    Other(&'a str),
}

impl Whose<'_> {
    fn text(&self) -> String {
        match self {
            Self::Admin => Author::Admin.to_string(),
            Self::Gateway(id) => GatewayId::from_bytes(*id).to_string(),
            Self::Other(text) => (*text).to_owned(),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Subject<'a> {
    User { realm: &'a str, name: &'a str },
    Lock { realm: &'a str, name: &'a str },
    Session([u8; 20]),
    Web([u8; 16]),
    Other { kind: &'a str, realm: &'a str, subject: &'a str },
}

impl Subject<'_> {
    /// Kind, realm, subject.
    fn columns(&self) -> (&str, &str, String) {
        match self {
            Self::User { realm, name } => ("user", realm, (*name).to_owned()),
            Self::Lock { realm, name } => ("lock", realm, (*name).to_owned()),
            Self::Session(id) => ("session", "", SafeId::from_bytes(*id).to_string()),
            Self::Web(key) => ("web", "", WebKey::from_bytes(*key).to_string()),
            Self::Other { kind, realm, subject } => (kind, realm, (*subject).to_owned()),
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Letter<'a> {
    generation: i64,
    what: Option<bool>,
    author: Option<Whose<'a>>,
    subject: Subject<'a>,
    number: Option<i64>,
    revision: Option<i64>,
    asked_by: &'a str,
    reason: Option<&'a str>,
    times: (i64, Option<i64>, Option<i64>),
}

#[derive(Arbitrary, Debug)]
struct Admission<'a> {
    generation: i64,
    safe_id: Result<[u8; 20], &'a str>,
    names: [&'a str; 4],
    revision: Option<i64>,
    claimed: Result<bool, i64>,
}

#[derive(Arbitrary, Debug)]
enum Row<'a> {
    Revocation(Revocation<'a>),
    Session(Session<'a>),
    Letter(Letter<'a>),
    Admission(Admission<'a>),
}

pub fn body(input: &[u8]) {
    match Row::arbitrary_take_rest(Unstructured::new(input)) {
        Ok(Row::Revocation(input)) => revocation(input),
        Ok(Row::Session(input)) => session(input),
        Ok(Row::Letter(input)) => letter(input),
        Ok(Row::Admission(input)) => admission(input),
        // too short for any row
        Err(_) => {}
    }
}

fn revocation(input: Revocation<'_>) {
    let kind = match input.kind {
        Kind::User => "user",
        Kind::Id => "id",
        Kind::Session => "session",
        Kind::Address => "address",
        Kind::Flow => "flow",
        Kind::Token => "token",
        Kind::Lock => "lock",
        Kind::Adopted => "adopted",
        Kind::Other(text) => text,
    };
    let mut guards = Vec::new();
    for (position, guard) in input.guards.iter().enumerate() {
        let mut row = GuardRow {
            kind: guard.kind.map_or("", |cutoff| if cutoff { "cutoff" } else { "safe_id" }).into(),
            id: guard.id.into(),
            number: input.number,
            position: position as i64,
            server: guard.server.map(Into::into),
            moment: guard.moment,
            sum: 0,
        };
        row.sum = row.right_sum();
        if let Ok(guard) = row.guard() {
            guards.push((guard, row));
        }
    }
    for (index, (_, row)) in guards.iter_mut().enumerate() {
        row.position = index as i64;
        row.sum = row.right_sum();
    }
    let mut row = RevocationRow {
        number: input.number,
        gateway: input.gateway.into(),
        generation: input.generation,
        kind: kind.into(),
        subject: input.subject.into(),
        realm: input.realm.map(Into::into),
        server: input.server.map(Into::into),
        reason: input.reason.into(),
        asked_by: input.asked_by.into(),
        at: input.times.0,
        lasts: input.times.1,
        until: input.times.2,
        // mostly right
        guards: guards.len() as i64 + i64::from(input.surplus / 100),
        user_realm: input.user_realm.map(Into::into),
        author: input.author.map(|author| author.text().into()),
        revision: input.revision,
        sum: 0,
    };
    row.sum = row.right_sum();
    let (meanings, rows): (Vec<_>, Vec<_>) = guards.into_iter().unzip();
    let Ok(record) = record_of(&row, meanings) else { return };
    // what is taken would be written just so
    let generation = u64::try_from(row.generation).unwrap();
    assert_eq!(rows_of(&record, &row.gateway, generation).unwrap(), (row.clone(), rows));
    // and without its sum it is not taken
    row.sum ^= 1;
    assert!(record_of(&row, record.guards).is_err());
}

fn session(input: Session<'_>) {
    let [username, groupname, vhost, client] = input.names.map(Into::into);
    let mut row = SessionRow {
        key: input.key,
        generation: input.generation,
        server: input.server.into(),
        id: input.id,
        username,
        groupname,
        vhost,
        device: input.device.map(Into::into),
        addresses: input.addresses.into(),
        client,
        safe_id: input.safe_id.map(Into::into),
        since: input.since,
        worker_pid: input.worker.0,
        worker_start: input.worker.1,
        sum: 0,
    };
    row.sum = row.right_sum();
    let Ok(session) = session_of(&row) else { return };
    let generation = u64::try_from(row.generation).unwrap();
    assert_eq!(session_row_of(&session, generation).unwrap(), row);
    row.sum ^= 1;
    assert!(session_of(&row).is_err());
}

fn letter(input: Letter<'_>) {
    let (kind, realm, subject) = input.subject.columns();
    let mut row = LetterRow {
        generation: input.generation,
        what: input.what.map_or("", |lifted| if lifted { "lifted" } else { "decided" }).into(),
        author: input.author.map(|author| author.text()).unwrap_or_default().into(),
        kind: kind.into(),
        realm: realm.into(),
        subject: subject.into(),
        number: input.number,
        revision: input.revision,
        asked_by: input.asked_by.into(),
        reason: input.reason.map(Into::into),
        at: input.times.0,
        lasts: input.times.1,
        until: input.times.2,
        sum: 0,
    };
    row.sum = row.right_sum();
    let Ok(letter) = letter_of(&row) else { return };
    let generation = u64::try_from(row.generation).unwrap();
    assert_eq!(letter_row_of(&letter, generation).unwrap(), row);
    row.sum ^= 1;
    assert!(letter_of(&row).is_err());
}

fn admission(input: Admission<'_>) {
    let [server, realm, username, groupname] = input.names.map(Into::into);
    let mut row = AdmissionRow {
        generation: input.generation,
        session: input.safe_id.map_or_else(Into::into, |id| SafeId::from_bytes(id).to_string().into()),
        server,
        realm,
        username,
        groupname,
        revision: input.revision,
        claimed: input.claimed.map_or_else(|odd| odd, i64::from),
        sum: 0,
    };
    row.sum = row.right_sum();
    let Ok(admission) = admission_of(&row) else { return };
    let generation = u64::try_from(row.generation).unwrap();
    assert_eq!(admission_row_of(&admission, generation).unwrap(), row);
    row.sum ^= 1;
    assert!(admission_of(&row).is_err());
}
