//! What is written is there after it was opened again; what shares a commit; what an administrator sees.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use enforcer::store::{self, Settings, Write};

use crate::world::{Folder, Run, admission, keep, known, letter, line, look, record, sample, session};
use enforcer::session::{Guard, Guarded, Identity, LockKey, Target};

#[test]
fn r5_every_kind_of_record_is_there_after_opening_again() {
    let folder = Folder::new();
    let (mut run, loaded) = folder.open();
    assert!(loaded.fresh && loaded.records.is_empty() && loaded.unwritable.is_none());
    assert_eq!((loaded.next_number, loaded.wall, loaded.boot_id), (1, 0, None));
    assert!(loaded.letters.is_empty() && loaded.admissions.is_empty() && loaded.known.is_none());
    assert_eq!(loaded.gateway.len(), 32);
    run.done((1..=64).map(keep));
    run.done((1..=6).map(|key| Write::Session(session(key))));
    run.done((1..=16).map(|number| Write::KeepLetter(letter(number))));
    run.done((1..=16).map(|number| Write::KeepAdmission(admission(number))));
    run.done([known(4_711)]);
    run.done([Write::Clock { wall: 1_700_000_123, boot_id: "a-boot".to_owned() }, Write::NextNumber(1_000)]);
    run.stop();

    let again = folder.load();
    assert!(!again.fresh && again.unwritable.is_none());
    assert_eq!(again.records, (1..=64).map(sample).collect::<Vec<_>>());
    assert_eq!(again.sessions, (1..=6).map(session).collect::<Vec<_>>());
    assert_eq!(again.letters, (1..=16).map(letter).collect::<Vec<_>>());
    assert_eq!(again.admissions, (1..=16).map(admission).collect::<Vec<_>>());
    assert_eq!(
        again.known.map(|known| (known.cluster, known.revision)),
        Some((0xfedc_ba98_7654_3210, 4_711))
    );
    assert_eq!(again.gateway, loaded.gateway);
    assert_eq!(
        (again.wall, again.boot_id.as_deref(), again.next_number),
        (1_700_000_123, Some("a-boot"), 1_000)
    );
}

#[test]
fn r5_a_record_is_replaced_whole_and_goes_when_it_is_over() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    let mut changed = sample(3);
    run.done([keep(3), keep(7), keep(11)]);
    changed.guards.truncate(1);
    changed.reason = "another".to_owned();
    run.done([Write::Keep(changed.clone()), Write::Over(7), Write::Over(999)]);
    run.done([Write::Session(session(1)), Write::Session(session(2)), Write::SessionGone(1)]);
    run.stop();
    let loaded = folder.load();
    assert_eq!(loaded.records, [changed, sample(11)]);
    assert_eq!(loaded.sessions, [session(2)]);
    // the twin of what is over: its number is not given again
    assert_eq!(loaded.next_number, 12);
    assert_eq!(look::<i64>(&folder.file(), "SELECT count(*) FROM guard"), 1 + 3);

    let (mut run, _) = folder.open();
    run.done([Write::NoSessions, Write::Over(3), Write::Over(11)]);
    run.stop();
    let loaded = folder.load();
    assert!(loaded.records.is_empty() && loaded.sessions.is_empty());
    assert_eq!(loaded.next_number, 12);
}

#[test]
fn r5_what_was_lifted_stays_lifted() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done([keep(1), keep(2), keep(3), Write::Lift(2), Write::Lift(2), Write::Lift(9)]);
    let results = run.write([keep(4), keep(2), keep(5)]);
    assert!(results[0].is_ok() && results[2].is_ok());
    assert_eq!(results[1], Err("revocation 2 was lifted, and stays so".to_owned()));
    run.stop();
    let loaded = folder.load();
    assert_eq!(loaded.lifted, [2, 9]);
    assert_eq!(loaded.records, [sample(1), sample(3), sample(4), sample(5)]);
    assert_eq!(loaded.next_number, 10);

    let (mut run, _) = folder.open();
    run.done([Write::Forget(2), Write::Forget(77)]);
    run.stop();
    assert_eq!(folder.load().lifted, [9]);
}

#[test]
fn r5_each_ticket_is_told_once_in_order_and_a_bad_row_fails_alone() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    let long = Write::Keep(record(50, Target::User("x".repeat(70_000))));
    let mut writes: Vec<_> = (1..=20).map(keep).collect();
    writes.insert(5, long);
    writes.insert(9, Write::Keep(record(u64::MAX, Target::Adopted)));
    writes.insert(10, Write::Clock { wall: u64::MAX, boot_id: String::new() });
    let results = run.write(writes);
    let bad: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).collect();
    assert_eq!(bad.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [5, 9, 10]);
    assert!(bad[0].1.as_ref().unwrap_err().contains("65536"), "{bad:?}");
    let mut next = 1;
    for outcome in run.outcomes() {
        assert_eq!(*outcome.tickets.start(), next);
        next = outcome.tickets.end() + 1;
    }
    assert_eq!(next, 24);
    run.stop();
    assert_eq!(folder.load().records, (1..=20).map(sample).collect::<Vec<_>>());
}

#[test]
fn r7_a_full_queue_says_so_and_takes_nothing() {
    let folder = Folder::new();
    let (store, _) = store::open(&folder.settings()).unwrap();
    // the thread is held in its first answer, so that the queue fills
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (told, outcomes) = std::sync::mpsc::channel();
    let writer = store
        .start(move |outcome| {
            let _ = wait.lock().unwrap().recv();
            told.send(outcome).unwrap();
        })
        .unwrap();
    let mut ticket = 0;
    let full = loop {
        match writer.write(ticket, Write::NextNumber(ticket)) {
            Ok(()) => ticket += 1,
            Err(full) => break full,
        }
        assert!(ticket < 3 * store::QUEUE as u64);
    };
    assert!(full.to_string().contains("try again"));
    assert_eq!(writer.waiting(), store::QUEUE);
    drop(go);
    writer.stop().unwrap();
    let mut next = 0;
    for outcome in outcomes {
        assert_eq!((*outcome.tickets.start(), &outcome.result), (next, &Ok(())));
        next = outcome.tickets.end() + 1;
    }
    assert_eq!(next, ticket);
}

#[test]
fn stopping_writes_what_is_queued_lazy_or_not_and_leaves_one_file() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    let tickets = run.give([Write::Session(session(1)), Write::Audit(line(5, "last words"))]);

    let results = run.results(tickets);
    assert!(results.iter().all(Result::is_ok));
    run.give((1..=5_000).map(keep));
    run.stop();
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, [store::FILE]);
    assert_eq!(folder.load().records.len(), 5_000);
}

#[test]
fn the_directory_and_its_files_are_for_their_owner_alone() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done([keep(1)]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&folder.path()), 0o700);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    run.stop();
}

#[test]
fn an_administrator_looks_with_sqlite3_while_the_daemon_runs() {
    let folder = Folder::new();
    let (mut run, loaded) = folder.open();
    let identity = Identity { realm: "staff".to_owned(), name: "O'Neil".to_owned() };
    let what = Guarded::Lock(LockKey::new(&identity));
    let mut lock = record(2, Target::Lock(identity));
    lock.guards = vec![Guard { what, server: None, moment: 1 }];
    run.done([keep(1), Write::Keep(lock)]);
    let sqlite3 = |sql: &str| {
        let output = Command::new("sqlite3").arg("-readonly").arg(folder.file()).arg(sql).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(sqlite3("SELECT number, realm, name FROM lock"), "2|staff|O'Neil");
    assert_eq!(
        sqlite3("SELECT gateway, generation FROM revocation WHERE number = 1"),
        format!("{}|1", loaded.gateway)
    );
    run.done([Write::Lift(2), keep(1)]);
    assert_eq!(sqlite3("SELECT generation FROM lifted WHERE number = 2"), "3");
    assert_eq!(sqlite3("SELECT generation FROM revocation WHERE number = 1"), "4");
    assert_eq!(sqlite3("PRAGMA integrity_check"), "ok");
    run.stop();
    // the count of changes goes on where it was
    let (mut run, _) = folder.open();
    run.done([keep(5)]);
    assert_eq!(sqlite3("SELECT generation FROM revocation WHERE number = 5"), "5");
    run.stop();
}

#[test]
fn r7_the_audit_log_is_bounded_by_count_age_and_length() {
    let folder = Folder::new();
    let settings = Settings { audit_days: 2, audit_rows: 10, ..folder.settings() };
    let lines = |sql: &str| look::<i64>(&folder.file(), &format!("SELECT count(*) FROM audit WHERE {sql}"));
    let (mut run, _) = Run::open(&settings).unwrap();
    let day = 86_400;
    run.done((0..25).map(|number| Write::Audit(line(10 * day + number, &format!("line {number}")))));
    assert_eq!(lines("true"), 10);
    assert_eq!(lines("text IN ('line 15', 'line 24')"), 2);
    assert_eq!(lines("text = 'line 14'"), 0);
    // two days later: what is older than that goes; one at the edge stays
    run.done([Write::Audit(line(12 * day + 20, "later"))]);
    assert_eq!(lines("true"), 6);
    assert_eq!(lines("text = 'line 20'"), 1);
    assert_eq!(lines("text = 'line 19'"), 0);
    run.done([Write::Audit(line(12 * day + 20, &"ä".repeat(40_000)))]);
    assert_eq!(lines("length(CAST(text AS BLOB)) > 16384"), 0);
    assert_eq!(lines("text LIKE '%(cut)' AND length(CAST(text AS BLOB)) > 16300"), 1);
    run.stop();
    assert_eq!(lines("true"), 7);
}

/// Not a test of speed: it prints what this machine does. `cargo test --release -p enforcer --test store rate --
/// --nocapture`
#[test]
fn the_rate_of_durable_revocations_is_printed() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    let many = 40_000_u64;
    let writes: Vec<_> = (1..=many)
        .map(|number| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number as u32).into();
            Write::Keep(record(number, Target::Address(address)))
        })
        .collect();
    let start = std::time::Instant::now();
    run.done(writes);
    let all = start.elapsed();
    let start = std::time::Instant::now();
    let single = 200;
    for number in 1..=single {
        run.done([Write::Over(number)]);
    }
    let one = start.elapsed() / single as u32;
    println!(
        "{:.0} durable revocations a second in bulk; one alone: {one:?}",
        many as f64 / all.as_secs_f64()
    );
    run.stop();
    assert_eq!(folder.load().records.len() as u64, many - single);
}
