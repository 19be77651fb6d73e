//! What several gateways share: letters that wait for etcd, admissions, up to where all is known; whose record a
//! revocation carries out, and one person alone.

use enforcer::session::{
    Admission, Author, CutoffKey, Guard, Guarded, KnownEtcd, Letter, LetterKey, Origin, Over, Record, Target,
};
use enforcer::store::row::MAX_TEXT;
use enforcer::store::{OpenError, Reader, Write};

use crate::world::{Folder, admission, known, letter, look, person, record, safe_id, server};

fn keep_letters(numbers: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Write> {
    numbers.into_iter().map(|number| Write::KeepLetter(letter(number)))
}

fn keep_admissions(numbers: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Write> {
    numbers.into_iter().map(|number| Write::KeepAdmission(admission(number)))
}

/// The same key, told otherwise.
fn again(number: u64) -> Letter {
    let mut letter = letter(number);
    match &mut letter {
        Letter::Decided { decision, .. } => (decision.number, decision.until) = (77_000, None),
        Letter::Lifted { up_to, by, .. } => (*up_to, *by) = (Some(8_888), "uid 7".to_owned()),
    }
    letter
}

#[test]
fn r5_a_letter_is_there_until_it_is_told_and_the_last_of_one_key_counts() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done(keep_letters(1..=40));
    run.done([3, 8, 21, 999].map(|number| Write::LetterTold(letter(number).key())));
    // within one batch: each key ends as the last of it says
    run.done([
        Write::KeepLetter(again(5)),
        Write::LetterTold(letter(6).key()),
        Write::KeepLetter(again(6)),
        Write::KeepLetter(letter(6)),
        Write::KeepLetter(again(7)),
        Write::LetterTold(letter(7).key()),
        Write::KeepLetter(letter(50)),
        Write::LetterTold(letter(50).key()),
    ]);
    run.stop();
    let numbers = (1..=40).filter(|number| ![3, 5, 6, 7, 8, 21].contains(number));
    // in the order of writing
    let wanted: Vec<_> = numbers.map(letter).chain([again(5), letter(6)]).collect();
    assert_eq!(folder.load().letters, wanted);
    // and it goes on after opening again
    let (mut run, _) = folder.open();
    run.done([Write::KeepLetter(again(1)), Write::LetterTold(letter(2).key())]);
    run.stop();
    let loaded = folder.load().letters;
    assert_eq!(loaded.len(), wanted.len() - 1);
    assert_eq!(loaded.last(), Some(&again(1)));
}

/// One person's lock, its lift, and the same name elsewhere are different letters.
#[test]
fn r5_letters_of_different_keys_do_not_touch_each_other() {
    let who =
        |realm: &str, name: &str| enforcer::session::Identity { realm: realm.into(), name: name.into() };
    let decided = |over: Over| match letter(1) {
        Letter::Decided { decision, .. } => Letter::Decided { over, decision },
        Letter::Lifted { .. } => unreachable!(),
    };
    let lifted = |author: u64, over: Over| Letter::Lifted {
        author: crate::world::author(author),
        over,
        up_to: None,
        by: String::new(),
        at: 0,
    };
    let all = [
        decided(Over::User(who("default", "alice"))),
        decided(Over::User(who("staff", "alice"))),
        decided(Over::User(who("", "alice"))),
        decided(Over::User(who("default", "Alice"))),
        decided(Over::User(who("default", "alice\0"))),
        decided(Over::User(who("default", ""))),
        decided(Over::Lock(who("default", "alice"))),
        decided(Over::Session(safe_id(1))),
        // a name that looks like a session's
        decided(Over::User(who("", &safe_id(1).to_string()))),
        lifted(1, Over::User(who("default", "alice"))),
        lifted(2, Over::User(who("default", "alice"))),
        lifted(3, Over::User(who("default", "alice"))),
        lifted(1, Over::Lock(who("default", "alice"))),
        lifted(1, Over::Session(safe_id(1))),
    ];
    for gone in 0..all.len() {
        let folder = Folder::new();
        let (mut run, _) = folder.open();
        run.done(all.iter().cloned().map(Write::KeepLetter));
        run.done([Write::LetterTold(all[gone].key())]);
        run.stop();
        let mut wanted = all.to_vec();
        wanted.remove(gone);
        assert_eq!(folder.load().letters, wanted, "{gone}");
    }
}

#[test]
fn r5_an_admission_is_there_until_it_is_gone_and_the_last_word_counts() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done(keep_admissions(1..=40));
    let changed = Admission { at: Some(99_999), claimed: true, ..admission(3) };
    run.done([
        Write::AdmissionGone(admission(1).session),
        Write::AdmissionGone(admission(999).session),
        Write::KeepAdmission(Admission { at: None, ..admission(3) }),
        Write::KeepAdmission(changed.clone()),
        Write::AdmissionGone(admission(4).session),
        Write::KeepAdmission(admission(4)),
        Write::KeepAdmission(admission(50)),
        Write::AdmissionGone(admission(50).session),
    ]);
    run.stop();
    let wanted: Vec<_> = (2..=40)
        .filter(|number| ![3, 4].contains(number))
        .map(admission)
        .chain([changed, admission(4)])
        .collect();
    assert_eq!(folder.load().admissions, wanted);
}

#[test]
fn r5_the_last_word_of_what_is_known_of_an_etcd_is_there() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done([known(5), known(9)]);
    run.stop();
    let (mut run, loaded) = folder.open();
    assert_eq!(loaded.known, Some(KnownEtcd { cluster: 0xfedc_ba98_7654_3210, revision: 9 }));
    // another etcd, which begins anew
    let other = KnownEtcd { cluster: 1, revision: 2 };
    run.done([known(10), Write::KnownEtcd(other)]);
    run.stop();
    assert_eq!(folder.load().known, Some(other));
    let (mut run, _) = folder.open();
    run.done([Write::NextNumber(5)]);
    run.stop();
    assert_eq!(folder.load().known, Some(other));
}

/// R5: what was acknowledged is there after a crash, and only then.
#[test]
fn r5_a_letter_is_not_reported_before_it_is_on_the_disk() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done(keep_letters(1..=3).chain(keep_admissions(1..=3)).chain([known(3)]));
    let crashed = folder.crash_copy();
    run.stop();
    let found = crashed.load();
    assert_eq!(found.letters, (1..=3).map(letter).collect::<Vec<_>>());
    assert_eq!(found.admissions, (1..=3).map(admission).collect::<Vec<_>>());
    assert_eq!(found.known.map(|known| known.revision), Some(3));
}

fn of(target: Target, origin: Option<Origin>) -> Record {
    Record { origin, ..record(7, target) }
}

/// R3, R5: a person is not taken for everybody of that name, nor a record of another gateway's for one of ours.
#[test]
fn r3_r5_one_person_and_whose_record_it_is_survive_and_are_replaced() {
    let who = person(7);
    let origin = |author, revision| Some(Origin { author, revision });
    let states = [
        of(Target::Person(who.clone()), None),
        of(Target::User(who.name.clone()), None),
        of(Target::Person(who.clone()), origin(Author::Admin, 0)),
        of(Target::Lock(who.clone()), origin(crate::world::author(1), i64::MAX as u64)),
        of(Target::Session(safe_id(1)), origin(crate::world::author(3), 8)),
        of(Target::User(who.name.clone()), None),
    ];
    let folder = Folder::new();
    for state in &states {
        let (mut run, _) = folder.open();
        run.done([Write::Keep(state.clone())]);
        run.stop();
        assert_eq!(folder.load().records, std::slice::from_ref(state));
    }
}

/// R2: the gate finds a person's cutoff on the disk as it finds anybody's, and nobody else's.
#[test]
fn r2_the_gate_finds_a_persons_cutoff() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    let (staff, usual) = (person(1), person(3));
    assert_eq!((staff.realm.as_str(), usual.realm.as_str()), ("staff", "default"));
    let cutoff = |number: u64, who: &enforcer::session::Identity, moment| {
        let what = Guarded::Cutoff(CutoffKey::of(&server("vpn"), who));
        let guards = vec![Guard { what, server: Some(server("vpn")), moment }];
        let origin = Some(Origin { author: Author::Admin, revision: number });
        Write::Keep(Record { guards, origin, ..record(number, Target::Person(who.clone())) })
    };
    run.done([cutoff(1, &staff, 100), cutoff(2, &usual, 200)]);
    let reader = Reader::open(&folder.path()).unwrap().unwrap();
    let ask = |who| reader.cutoff(&CutoffKey::of(&server("vpn"), who)).unwrap();
    assert_eq!((ask(&staff), ask(&usual)), (Some((1, 100)), Some((2, 200))));
    let namesake = enforcer::session::Identity { realm: "guests".to_owned(), ..staff.clone() };
    assert_eq!(ask(&namesake), None);
    run.stop();
}

#[test]
fn r5_a_row_that_the_disk_changed_is_named() {
    let user = "number = (SELECT min(number) FROM revocation WHERE user_realm IS NOT NULL)";
    let theirs = "number = (SELECT min(number) FROM revocation WHERE author IS NOT NULL)";
    let letter = |column: &str, condition: &str| {
        format!(
            "PRAGMA ignore_check_constraints = ON; UPDATE letter SET {column} WHERE generation = \
             (SELECT min(generation) FROM letter WHERE {condition})"
        )
    };
    let changes = [
        ("revocation", format!("UPDATE revocation SET user_realm = 'other' WHERE {user}")),
        ("revocation", format!("UPDATE revocation SET user_realm = NULL WHERE {user}")),
        ("revocation", format!("UPDATE revocation SET author = NULL, revision = NULL WHERE {theirs}")),
        ("revocation", format!("UPDATE revocation SET author = 'admin' WHERE {theirs}")),
        ("revocation", format!("UPDATE revocation SET revision = revision + 1 WHERE {theirs}")),
        (
            "revocation",
            "UPDATE revocation SET user_realm = 'default' WHERE user_realm IS NULL AND kind = 'user'"
                .to_owned(),
        ),
        (
            "revocation",
            "UPDATE revocation SET author = 'admin', revision = 5 WHERE author IS NULL AND number = 1"
                .to_owned(),
        ),
        ("letter", letter("realm = 'other'", "kind = 'lock'")),
        ("letter", letter("subject = 'eve'", "kind = 'user'")),
        ("letter", letter("kind = 'user'", "kind = 'lock'")),
        ("letter", letter("author = 'admin'", "what = 'lifted' AND author <> 'admin'")),
        ("letter", letter("what = 'decided'", "what = 'lifted'")),
        ("letter", letter("number = 0", "what = 'decided'")),
        ("letter", letter("revision = NULL", "revision IS NOT NULL")),
        ("letter", letter("until = NULL", "until IS NOT NULL")),
        ("letter", letter("generation = 10000", "true")),
        ("letter", letter("subject = CAST(x'ff' AS TEXT)", "kind = 'user'")),
        ("admission", "UPDATE admission SET revision = 1 WHERE revision IS NULL".to_owned()),
        ("admission", "UPDATE admission SET claimed = 1 - claimed".to_owned()),
        (
            "admission",
            "UPDATE admission SET username = 'eve' WHERE rowid = (SELECT min(rowid) FROM admission)"
                .to_owned(),
        ),
        ("admission", "UPDATE admission SET generation = generation + 10000".to_owned()),
        ("meta", "UPDATE meta SET value = 'fedcba9876543210 99' WHERE key = 'known_etcd'".to_owned()),
        ("meta", "UPDATE meta SET key = 'known' WHERE key = 'known_etcd'".to_owned()),
        ("letter_key", "DROP INDEX letter_key".to_owned()),
        ("admission_session", "DROP INDEX admission_session".to_owned()),
    ];
    for (table, change) in changes {
        let folder = Folder::new();
        let (mut run, _) = folder.open();
        run.done((1..=32).map(crate::world::keep));
        run.done(keep_letters(1..=32).chain(keep_admissions(1..=12)).chain([known(9)]));
        run.done([Write::Keep(record(100, Target::User("alice".to_owned())))]);
        run.stop();
        let db = rusqlite::Connection::open(folder.file()).unwrap();
        let before = db.total_changes();
        db.execute_batch(&change).unwrap();
        assert!(change.starts_with("DROP") || db.total_changes() > before, "{change}");
        db.close().unwrap();
        let error = folder.refused();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{change}: {error}");
        assert!(error.to_string().contains(table), "{change}: {error}");
    }
}

/// A row that cannot be written is refused for itself, and takes nothing else with it.
#[test]
fn r7_what_is_too_large_is_refused_and_the_rest_is_written() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    let long = "x".repeat(MAX_TEXT + 1);
    let with_name = |name: &str| match letter(8) {
        Letter::Decided { decision, .. } => {
            let who = enforcer::session::Identity { name: name.to_owned(), ..person(8) };
            Letter::Decided { over: Over::User(who), decision }
        }
        Letter::Lifted { .. } => unreachable!(),
    };
    let mut reason = letter(1);
    if let Letter::Decided { decision, .. } = &mut reason {
        decision.reason = long.clone();
    }
    let mut late = letter(4);
    if let Letter::Lifted { up_to, .. } = &mut late {
        *up_to = Some(1 << 63);
    }
    let origin = Some(Origin { author: Author::Admin, revision: 1 << 63 });
    let realm = enforcer::session::Identity { realm: long.clone(), name: "alice".to_owned() };
    let bad = [
        Write::KeepLetter(with_name(&long)),
        Write::KeepLetter(reason),
        Write::KeepLetter(late),
        Write::KeepAdmission(Admission { at: Some(1 << 63), ..admission(1) }),
        Write::KeepAdmission(Admission { group: long.clone(), ..admission(2) }),
        Write::KnownEtcd(KnownEtcd { cluster: 1, revision: 1 << 63 }),
        Write::Keep(of(Target::User("alice".to_owned()), origin)),
        Write::Keep(of(Target::Person(realm), None)),
    ];
    let count = bad.len();
    let good = [
        Write::KeepLetter(with_name(&"x".repeat(MAX_TEXT))),
        Write::KeepLetter(letter(5)),
        Write::KeepAdmission(admission(3)),
        known(7),
    ];
    // one about a letter that there cannot be: nothing to do
    let told = Write::LetterTold(LetterKey::Decided(Over::User(enforcer::session::Identity {
        realm: String::new(),
        name: long,
    })));
    let results = run.write(bad.into_iter().chain(good).chain([told]));
    let (refused, taken) = results.split_at(count);
    assert!(
        refused.iter().all(|result| result.as_ref().is_err_and(|why| why.contains("stored"))),
        "{refused:?}"
    );
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    run.stop();
    let loaded = folder.load();
    assert_eq!(loaded.letters, [with_name(&"x".repeat(MAX_TEXT)), letter(5)]);
    assert_eq!((loaded.admissions, loaded.records), (vec![admission(3)], vec![]));
    assert_eq!(loaded.known.map(|known| known.revision), Some(7));
}

/// However large the tables grow, a write looks only at its own key.
#[test]
fn r7_writes_of_letters_and_admissions_use_an_index() {
    let folder = Folder::new();
    folder.open().0.stop();
    let db = rusqlite::Connection::open(folder.file()).unwrap();
    let plan = |sql: &str| {
        let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let lines = plan.query_map([], |row| row.get::<_, String>(3)).unwrap();
        lines.map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(
        plan(
            "DELETE FROM letter WHERE what = 'a' AND author = 'b' AND kind = 'c' AND realm = 'd' AND subject = 'e'"
        ),
        ["SEARCH letter USING INDEX letter_key (what=? AND author=? AND kind=? AND realm=? AND subject=?)"]
    );
    assert_eq!(
        plan("DELETE FROM admission WHERE session = 'a'"),
        ["SEARCH admission USING INDEX admission_session (session=?)"]
    );
    // and they are read in the order of the table itself, without sorting
    assert_eq!(plan("SELECT * FROM admission NOT INDEXED ORDER BY generation"), ["SCAN admission"]);
}

#[test]
fn an_administrator_sees_letters_and_admissions() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done(keep_letters([1]).chain(keep_admissions([2])));
    let text = |sql: &str| look::<String>(&folder.file(), sql);
    assert_eq!(
        text("SELECT what || ' ' || kind || ' ' || subject FROM letter"),
        format!("decided session {}", safe_id(1))
    );
    assert_eq!(text("SELECT session || ' ' || revision FROM admission"), format!("{} 7002", safe_id(2)));
    run.stop();
}
