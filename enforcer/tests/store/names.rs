//! A record of any names and numbers is the same after it was a row, and after it was in a file.

use std::net::{IpAddr, SocketAddr};

use enforcer::session::{
    Admission, Author, CutoffKey, Decision, Flow, GatewayId, Guard, Guarded, Identity, Letter, LockKey,
    Observed, Origin, Over, Process, Protocol, Record, SafeId, ServerName, SessionId, SessionRecord, Target,
    Token, TokenKind, WebKey,
};
use enforcer::store::Write;
use enforcer::store::admission::{admission_of, admission_row_of};
use enforcer::store::letter::{letter_of, letter_row_of};
use enforcer::store::row::{self, BadRow};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::world::Folder;

/// SQLite's integers are signed.
const TOP: u64 = i64::MAX as u64 - 1;

fn name() -> impl Strategy<Value = String> {
    // any characters, with what is special to SQL, to C and to our own lists more often
    prop_oneof![
        any::<String>(),
        "[ '\"\\\\;\u{0}\n,:%_-]{0,12}",
        Just(String::new()),
        Just("NULL".to_owned()),
        Just("ﬀ İ ß \u{feff}\u{202e}".to_owned())
    ]
}

fn server() -> impl Strategy<Value = ServerName> {
    name().prop_map(|name| ServerName::new(&name))
}

fn safe_id() -> impl Strategy<Value = SafeId> {
    any::<[u8; 20]>().prop_map(SafeId::from_bytes)
}

fn flow() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<SocketAddr>(), any::<SocketAddr>())
        .prop_filter_map("no flow", |(tcp, client, local)| {
            Flow::new(if tcp { Protocol::Tcp } else { Protocol::Udp }, client, local).ok()
        })
}

fn identity() -> impl Strategy<Value = Identity> {
    (name(), name()).prop_map(|(realm, name)| Identity { realm, name })
}

fn author() -> impl Strategy<Value = Author> {
    let gateway = any::<[u8; 16]>().prop_map(|id| Author::Gateway(GatewayId::from_bytes(id)));
    prop_oneof![gateway, Just(Author::Admin)]
}

fn origin() -> impl Strategy<Value = Option<Origin>> {
    option::of((author(), 0..=TOP).prop_map(|(author, revision)| Origin { author, revision }))
}

fn over() -> impl Strategy<Value = Over> {
    prop_oneof![
        identity().prop_map(Over::User),
        identity().prop_map(Over::Lock),
        safe_id().prop_map(Over::Session),
        any::<[u8; 16]>().prop_map(|key| Over::Web(WebKey::from_bytes(key))),
    ]
}

fn letter() -> impl Strategy<Value = Letter> {
    let decision = (0..=TOP, name(), name(), 0..=TOP, option::of(0..=TOP), option::of(0..=TOP))
        .prop_map(|(number, by, reason, at, until, lasts)| Decision { number, by, reason, at, until, lasts });
    prop_oneof![
        (over(), decision).prop_map(|(over, decision)| Letter::Decided { over, decision }),
        (author(), over(), option::of(0..=TOP), name(), 0..=TOP)
            .prop_map(|(author, over, up_to, by, at)| Letter::Lifted { author, over, up_to, by, at }),
    ]
}

fn admission() -> impl Strategy<Value = Admission> {
    let vpn = (safe_id(), server().prop_filter("a server has a name", |server| !server.as_str().is_empty()))
        .prop_map(|(id, server)| (SessionId::Vpn(id), Some(server)));
    let web = any::<[u8; 16]>().prop_map(|key| (SessionId::Web(WebKey::from_bytes(key)), None));
    (prop_oneof![vpn, web], identity(), name(), option::of(0..=TOP), any::<bool>()).prop_map(
        |((session, server), who, group, at, claimed)| Admission { session, server, who, group, at, claimed },
    )
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        name().prop_map(Target::User),
        any::<i32>().prop_map(Target::Id),
        safe_id().prop_map(Target::Session),
        any::<IpAddr>().prop_map(Target::Address),
        flow().prop_map(Target::Flow),
        vec(any::<u8>(), 1..=32).prop_map(|id| Target::Token(Token::new(TokenKind::Dtls, id).unwrap())),
        vec(any::<u8>(), 8).prop_map(|id| Target::Token(Token::new(TokenKind::Openvpn, id).unwrap())),
        identity().prop_map(Target::Lock),
        identity().prop_map(Target::Person),
        Just(Target::Adopted),
    ]
}

fn guard() -> impl Strategy<Value = Guard> {
    let what = prop_oneof![
        safe_id().prop_map(Guarded::SafeId),
        any::<[u8; 20]>().prop_map(|key| Guarded::Cutoff(CutoffKey::from_bytes(key))),
        any::<[u8; 20]>().prop_map(|key| Guarded::Lock(LockKey::from_bytes(key))),
    ];
    (what, option::of(server()), 0..=TOP).prop_map(|(what, server, moment)| Guard { what, server, moment })
}

fn record() -> impl Strategy<Value = Record> {
    let times = (0..=TOP, option::of(0..=TOP), option::of(0..=TOP));
    (0..=TOP, target(), option::of(server()), name(), name(), times, (vec(guard(), 0..5), origin())).prop_map(
        |(number, target, server, reason, by, (at, lasts, until), (guards, origin))| Record {
            number,
            target,
            server,
            reason,
            by,
            at,
            lasts,
            until,
            guards,
            origin,
        },
    )
}

fn session() -> impl Strategy<Value = SessionRecord> {
    let observed =
        (
            any::<i32>(),
            (name(), name(), name(), name()),
            option::of(name()),
            vec(any::<IpAddr>(), 0..4),
            option::of(safe_id()),
            0..=TOP,
        )
            .prop_map(|(id, (user, group, vhost, client), device, addresses, safe_id, since)| {
                Observed { id, user, group, vhost, device, addresses, client, safe_id, since }
            });
    let worker = option::of((any::<i32>(), 0..=TOP).prop_map(|(pid, start)| Process { pid, start }));
    (0..=TOP, server(), observed, worker).prop_map(|(key, server, observed, worker)| SessionRecord {
        key,
        server,
        observed,
        worker,
    })
}

proptest! {
    #[test]
    fn r5_any_record_survives_being_rows(record in record(), generation in 0..=TOP) {
        let (row, guards) = row::rows_of(&record, "a gateway", generation).unwrap();
        let guards = guards.iter().map(row::GuardRow::guard).collect::<Result<Vec<_>, _>>().unwrap();
        prop_assert_eq!(row::record_of(&row, guards).unwrap(), record);
    }

    #[test]
    fn any_session_survives_being_a_row(session in session()) {
        prop_assert_eq!(row::session_of(&row::session_row_of(&session, 3).unwrap()).unwrap(), session);
    }

    /// A checksum for each column: none can change, none can move into its neighbour.
    #[test]
    fn r5_a_row_that_changed_anywhere_is_no_record(record in record(), which in 0..15_usize, with in name()) {
        let (mut row, _) = row::rows_of(&record, "a gateway", 1).unwrap();
        let before = row.clone();
        match which {
            0 => row.number += 1,
            1 => row.gateway = with.into(),
            2 => row.generation ^= 1 << 40,
            3 => row.kind = "adopted".into(),
            4 => row.subject = with.into(),
            5 => row.realm = Some(with.into()),
            6 => row.server = if row.server.is_some() { None } else { Some(with.into()) },
            7 => (row.reason, row.asked_by) = (row.asked_by, row.reason),
            8 => row.at += 1,
            9 => (row.lasts, row.until) = (row.until, row.lasts),
            11 => row.user_realm = if row.user_realm.is_some() { None } else { Some(with.into()) },
            12 => row.author = if row.author.is_some() { None } else { Some(with.into()) },
            13 => row.revision = row.revision.map_or(Some(0), |revision| revision.checked_sub(1)),
            10 => row.until = if row.until.is_some() { None } else { Some(0) },
            _ => row.sum ^= 1,
        }
        prop_assume!(row != before);
        prop_assert_eq!(row::record_of(&row, record.guards.clone()), Err(BadRow::Sum));
    }

    #[test]
    fn r5_any_letter_survives_being_a_row_and_none_that_changed(letter in letter(), which in 0..14, with in name()) {
        let mut row = letter_row_of(&letter, 3).unwrap();
        prop_assert_eq!(letter_of(&row).unwrap(), letter.clone());
        let before = row.clone();
        let other = |number: Option<i64>| number.map_or(Some(0), |number| number.checked_sub(1));
        match which {
            0 => row.generation += 1,
            1 => row.what = with.into(),
            2 => row.author = with.into(),
            3 => row.kind = "user".into(),
            4 => (row.realm, row.subject) = (row.subject, row.realm),
            5 => row.subject = with.into(),
            6 => row.number = other(row.number),
            7 => row.revision = other(row.revision),
            8 => row.asked_by = with.into(),
            9 => row.reason = if row.reason.is_some() { None } else { Some(with.into()) },
            10 => row.at += 1,
            11 => (row.lasts, row.until) = (row.until, row.lasts),
            12 => row.until = other(row.until),
            _ => row.sum ^= 1,
        }
        prop_assume!(row != before);
        prop_assert_eq!(letter_of(&row), Err(BadRow::Sum));
    }

    #[test]
    fn r5_any_admission_survives_being_a_row_and_none_that_changed(one in admission(), which in 0..9, with in name()) {
        let mut row = admission_row_of(&one, 3).unwrap();
        prop_assert_eq!(admission_of(&row).unwrap(), one.clone());
        let before = row.clone();
        match which {
            0 => row.generation += 1,
            1 => row.session = with.into(),
            2 => row.server = with.into(),
            3 => (row.realm, row.username) = (row.username, row.realm),
            4 => row.username = with.into(),
            5 => row.groupname = with.into(),
            6 => row.revision = row.revision.map_or(Some(0), |revision| revision.checked_sub(1)),
            7 => row.claimed ^= 1,
            _ => row.sum ^= 1,
        }
        prop_assume!(row != before);
        prop_assert_eq!(admission_of(&row), Err(BadRow::Sum));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn r5_any_records_survive_the_file(
        records in vec(record(), 1..40),
        sessions in vec(session(), 0..10),
        letters in vec(letter(), 0..20),
        admissions in vec(admission(), 0..20),
    ) {
        let folder = Folder::new();
        let (mut run, _) = folder.open();
        run.done(records.iter().cloned().map(Write::Keep));
        run.done(sessions.iter().cloned().map(Write::Session));
        run.done(letters.iter().cloned().map(Write::KeepLetter));
        run.done(admissions.iter().cloned().map(Write::KeepAdmission));
        run.stop();
        let loaded = folder.load();
        // of one number the last one counts
        let last: std::collections::BTreeMap<_, _> = records.into_iter().map(|one| (one.number, one)).collect();
        prop_assert_eq!(loaded.records, last.into_values().collect::<Vec<_>>());
        let last: std::collections::BTreeMap<_, _> = sessions.into_iter().map(|one| (one.key, one)).collect();
        prop_assert_eq!(loaded.sessions, last.into_values().collect::<Vec<_>>());
        // in the order of writing, where each key's last one stands
        let last = letters.iter().enumerate().filter(|(place, one)| {
            letters[place + 1..].iter().all(|later| later.key() != one.key())
        });
        prop_assert_eq!(loaded.letters, last.map(|(_, one)| one.clone()).collect::<Vec<_>>());
        let last = admissions.iter().enumerate().filter(|(place, one)| {
            admissions[place + 1..].iter().all(|later| later.session != one.session)
        });
        prop_assert_eq!(loaded.admissions, last.map(|(_, one)| one.clone()).collect::<Vec<_>>());
    }
}

#[test]
fn r7_what_has_no_room_in_a_row_is_refused_and_said() {
    let with = |change: fn(&mut Record)| {
        let mut record = crate::world::sample(3);
        change(&mut record);
        row::rows_of(&record, "a gateway", 1).map(drop)
    };
    assert_eq!(with(|_| {}), Ok(()));
    assert_eq!(with(|record| record.reason = "x".repeat(row::MAX_TEXT)), Ok(()));
    assert_eq!(
        with(|record| record.reason = "x".repeat(row::MAX_TEXT + 1)),
        Err(BadRow::TooLong { column: "reason", found: 65_537 })
    );
    assert_eq!(
        with(|record| record.until = Some(1 << 63)),
        Err(BadRow::TooLarge { column: "until", found: 1 << 63 })
    );
    assert_eq!(
        with(|record| record.guards = vec![record.guards[0].clone(); row::MAX_GUARDS + 1]),
        Err(BadRow::TooManyGuards(row::MAX_GUARDS + 1))
    );
}

#[test]
fn r5_a_row_is_read_only_as_it_would_have_been_written() {
    let sample = crate::world::record(1, Target::Adopted);
    let with = |kind: &'static str, subject: &'static str, realm: Option<&'static str>| {
        let (mut row, _) = row::rows_of(&sample, "a gateway", 1).unwrap();
        (row.kind, row.subject, row.realm) = (kind.into(), subject.into(), realm.map(Into::into));
        row.sum = row.right_sum();
        row::record_of(&row, Vec::new()).map(|record| record.target)
    };
    assert_eq!(with("id", "-5", None), Ok(Target::Id(-5)));
    assert_eq!(with("user", "", None), Ok(Target::User(String::new())));
    for (kind, subject, realm) in [
        ("id", "+5", None),
        ("id", "05", None),
        ("id", "", None),
        ("address", "2001:DB8::1", None),
        ("address", "10.0.0.1 ", None),
        ("flow", "TCP 192.0.2.1:1 198.51.100.1:443", None),
        ("flow", "tcp 192.0.2.1:1  198.51.100.1:443", None),
        ("flow", "tcp [::ffff:192.0.2.1]:1 198.51.100.1:443", None),
        ("flow", "tcp 192.0.2.1:1 198.51.100.1:443 ", None),
        ("token", "dtls 0A", None),
        ("token", "dtls 0a0", None),
        ("token", "dtls ", None),
        ("token", "openvpn 0a0b0c0d0e0f10", None),
        ("token", "openvpn 0a0b0c0d0e0f101112", None),
        ("token", "openvpn 0A0B0C0D0E0F1011", None),
        ("token", "OpenVPN 0a0b0c0d0e0f1011", None),
        ("token", "quic 0a0b0c0d0e0f1011", None),
        ("session", "AAAA", None),
        ("lock", "alice", None),
        ("user", "alice", Some("default")),
        ("adopted", "x", None),
        ("User", "alice", None),
    ] {
        assert!(matches!(with(kind, subject, realm), Err(BadRow::Meaning { .. })), "{kind} {subject:?}");
    }
}

#[test]
fn r5_a_letter_and_an_admission_are_read_only_as_they_would_have_been_written() {
    type Change = fn(&mut enforcer::store::letter::LetterRow<'_>);
    let read = |number: u64, change: Change| {
        let letter = crate::world::letter(number);
        let mut row = letter_row_of(&letter, 1).unwrap();
        change(&mut row);
        row.sum = row.right_sum();
        letter_of(&row).map(drop)
    };
    assert_eq!(read(1, |_| {}), Ok(()));
    // of a session that ended (1, 5), of a web session (2), of a person (8), and what was lifted (5, 7)
    let changes: [(u64, Change); 17] = [
        (1, |row| row.what = "Decided".into()),
        (1, |row| row.what = "lifted".into()),
        (1, |row| row.author = "admin".into()),
        (1, |row| row.number = None),
        (1, |row| row.reason = None),
        (1, |row| row.revision = Some(1)),
        (1, |row| row.realm = "default".into()),
        (1, |row| row.subject = "AAAA".into()),
        (1, |row| row.kind = "id".into()),
        (1, |row| row.at = -1),
        (1, |row| row.generation = -1),
        (2, |row| row.subject = row.subject.to_uppercase().replace('0', "A").into()),
        (5, |row| row.author = "Admin".into()),
        (5, |row| row.author = "A7".repeat(16).into()),
        (5, |row| row.number = Some(1)),
        (5, |row| row.until = Some(1)),
        (7, |row| row.lasts = Some(1)),
    ];
    for (place, (number, change)) in changes.into_iter().enumerate() {
        assert!(matches!(read(number, change), Err(BadRow::Meaning { .. })), "change {place}");
    }
    type Other = fn(&mut enforcer::store::admission::AdmissionRow<'_>);
    let read = |change: Other| {
        let one = crate::world::admission(13);
        let mut row = admission_row_of(&one, 1).unwrap();
        change(&mut row);
        row.sum = row.right_sum();
        admission_of(&row).map(drop)
    };
    assert_eq!(read(|_| {}), Ok(()));
    // of the web gateway on a server, and of none on none
    let changes: [Other; 9] = [
        |row| row.server = "vpn".into(),
        |row| row.session = crate::world::safe_id(1).to_string().into(),
        |row| row.session = row.session.to_uppercase().into(),
        |row| row.session = "".into(),
        |row| row.claimed = 2,
        |row| row.claimed = -1,
        |row| row.revision = Some(-1),
        |row| row.generation = -1,
        |row| row.session = "AAAA".into(),
    ];
    for (place, change) in changes.into_iter().enumerate() {
        assert!(matches!(read(change), Err(BadRow::Meaning { .. })), "change {place}");
    }
}

#[test]
fn r5_whose_record_it_is_and_whose_realm_are_read_only_as_they_would_have_been_written() {
    let sample = crate::world::record(1, Target::User("alice".to_owned()));
    type Change = fn(&mut row::RevocationRow<'_>);
    let with = |change: Change| {
        let (mut row, _) = row::rows_of(&sample, "a gateway", 1).unwrap();
        change(&mut row);
        row.sum = row.right_sum();
        row::record_of(&row, Vec::new()).map(|record| (record.target, record.origin))
    };
    let alice = Identity { realm: "staff".to_owned(), name: "alice".to_owned() };
    assert_eq!(with(|row| row.user_realm = Some("staff".into())), Ok((Target::Person(alice), None)));
    let admin = Some(Origin { author: Author::Admin, revision: 5 });
    assert_eq!(
        with(|row| (row.author, row.revision) = (Some("admin".into()), Some(5))),
        Ok((sample.target.clone(), admin))
    );
    let changes: [Change; 7] = [
        |row| row.author = Some("admin".into()),
        |row| row.revision = Some(5),
        |row| (row.author, row.revision) = (Some("admin".into()), Some(-5)),
        |row| (row.author, row.revision) = (Some("".into()), Some(5)),
        |row| (row.author, row.revision) = (Some("A7".repeat(16).into()), Some(5)),
        |row| (row.kind, row.subject, row.user_realm) = ("id".into(), "5".into(), Some("staff".into())),
        |row| (row.kind, row.realm, row.user_realm) = ("lock".into(), Some("a".into()), Some("staff".into())),
    ];
    for (place, change) in changes.into_iter().enumerate() {
        assert!(matches!(with(change), Err(BadRow::Meaning { .. })), "change {place}");
    }
}
