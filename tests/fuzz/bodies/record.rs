//! Rows of the durable state: any columns, with a checksum that fits, so that the parser behind it is reached.
use arbitrary::{Arbitrary, Unstructured};
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
enum Row<'a> {
    Revocation(Revocation<'a>),
    Session(Session<'a>),
}

pub fn body(input: &[u8]) {
    match Row::arbitrary_take_rest(Unstructured::new(input)) {
        Ok(Row::Revocation(input)) => revocation(input),
        Ok(Row::Session(input)) => session(input),
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
