//! What is not ours, not whole or not for us is refused with a reason, and stays as it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use enforcer::store::{self, OpenError, Reader, Write};

use crate::world::{Folder, Run, keep, sample};

/// A state with something in it, closed.
fn filled() -> Folder {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done((1..=20).map(keep));
    run.stop();
    folder
}

pub fn change(folder: &Folder, sql: &str) {
    let db = rusqlite::Connection::open(folder.file()).unwrap();
    db.execute_batch(sql).unwrap();
    db.close().unwrap();
}

/// Refused by the daemon and by a reader, with these words; and not touched.
fn refused(folder: &Folder, words: &[&str]) -> OpenError {
    let before = fs::read(folder.file()).ok();
    let error = folder.refused();
    for word in words {
        assert!(error.to_string().contains(word), "{error}: no {word:?}");
    }
    assert_eq!(fs::read(folder.file()).ok(), before, "{error}: and yet it was changed");
    error
}

#[test]
fn r5_another_programs_database_is_refused() {
    let folder = filled();
    change(&folder, "PRAGMA application_id = 7");
    assert!(matches!(
        refused(&folder, &["another program", "0x7"]),
        OpenError::OtherApplication { found: 7, .. }
    ));
    assert!(matches!(Reader::open(&folder.path()), Err(OpenError::OtherApplication { .. })));
    // also one that tells nothing of itself
    let folder = Folder::new();
    folder.open().0.stop();
    fs::remove_file(folder.file()).unwrap();
    change(&folder, "CREATE TABLE bookmarks (x); PRAGMA journal_mode = WAL");
    assert!(matches!(refused(&folder, &["another program"]), OpenError::OtherApplication { found: 0, .. }));
}

#[test]
fn r5_a_newer_version_is_refused() {
    let folder = filled();
    change(&folder, "PRAGMA user_version = 99");
    assert!(matches!(refused(&folder, &["newer", "99"]), OpenError::Newer { found: 99, known: 5, .. }));
    assert!(matches!(Reader::open(&folder.path()), Err(OpenError::Newer { .. })));
    change(&folder, "PRAGMA user_version = 0");
    assert!(matches!(refused(&folder, &["version 0", "--repair"]), OpenError::Corrupt { .. }));
    change(&folder, "PRAGMA user_version = 5");
    assert_eq!(folder.load().records.len(), 20);
}

#[test]
fn r5_what_is_no_database_is_refused() {
    let folder = filled();
    fs::write(folder.file(), vec![b'x'; 8_192]).unwrap();
    assert!(matches!(refused(&folder, &["not a database", "--repair"]), OpenError::NotADatabase { .. }));
    assert!(matches!(Reader::open(&folder.path()), Err(OpenError::NotADatabase { .. })));
    for content in [&b""[..], b"SQLite format 3\0", b"SQLite"] {
        fs::write(folder.file(), content).unwrap();
        assert!(matches!(refused(&folder, &["damaged", "cut off", "--repair"]), OpenError::Corrupt { .. }));
        assert!(matches!(Reader::open(&folder.path()), Err(OpenError::Corrupt { .. })));
    }
    fs::write(folder.file(), "short").unwrap();
    assert!(matches!(refused(&folder, &[]), OpenError::NotADatabase { .. }));
    fs::remove_file(folder.file()).unwrap();
    fs::create_dir(folder.file()).unwrap();
    assert!(matches!(folder.refused(), OpenError::Folder { .. }));
}

#[test]
fn r5_a_log_without_its_database_is_refused() {
    let folder = filled();
    let (mut run, _) = folder.open();
    run.done([keep(21)]);
    let crashed = folder.crash_copy();
    run.stop();
    fs::remove_file(crashed.file()).unwrap();
    assert!(matches!(refused(&crashed, &["state.db-wal", "no state.db"]), OpenError::WithoutDatabase { .. }));
    assert!(matches!(Reader::open(&crashed.path()), Err(OpenError::WithoutDatabase { .. })));
    let aside = store::put_aside(&crashed.path()).unwrap();
    assert!(!aside.exists());
    let (run, loaded) = crashed.open();
    assert!(loaded.fresh);
    run.stop();
}

#[test]
fn r5_a_row_that_is_no_record_is_named() {
    for (sql, words) in [
        ("UPDATE revocation SET reason = 'edited' WHERE number = 7", ["table revocation, row 7", "checksum"]),
        ("DELETE FROM guard WHERE number = 7 AND position = 2", ["table revocation, row 7", "2 guards"]),
        (
            "UPDATE guard SET moment = 1 WHERE number = 7 AND position = 1",
            ["table guard, row 7/1", "checksum"],
        ),
        ("UPDATE meta SET value = '1' WHERE key = 'next_number'", ["table meta", "checksum"]),
        ("DELETE FROM meta WHERE key = 'gateway'", ["table meta", "no row \"gateway\""]),
        (
            "PRAGMA foreign_keys = OFF; DELETE FROM revocation WHERE number = 7",
            ["table guard", "of revocation 7"],
        ),
        (
            "PRAGMA ignore_check_constraints = ON; UPDATE revocation SET kind = 'x' WHERE number = 7",
            ["damaged", ""],
        ),
        ("INSERT INTO lifted VALUES (50, 'x', 1, 1, 1)", ["table lifted, row 50", "checksum"]),
        (
            "INSERT INTO session VALUES (5, 1, 's', 1, 'u', 'g', 'v', NULL, '', 'c', NULL, 1, NULL, NULL, 9)",
            ["table session, row 5", "checksum"],
        ),
        (
            "UPDATE revocation SET subject = CAST(x'ff' AS TEXT) WHERE number = 8",
            ["table revocation, row 8", ""],
        ),
        ("DROP VIEW lock", ["view lock", "missing"]),
        ("DROP INDEX guard_number", ["index guard_number", "missing"]),
        (
            "CREATE TRIGGER t AFTER INSERT ON revocation BEGIN DELETE FROM revocation; END",
            ["trigger", "\"t\""],
        ),
    ] {
        let folder = filled();
        change(&folder, sql);
        let error = refused(&folder, &words);
        assert!(matches!(error, OpenError::Corrupt { .. }), "{sql}: {error}");
        assert!(error.to_string().contains("enforcer check --repair"), "{error}");
    }
    // the twin: what an administrator adds beside ours is let be
    let folder = filled();
    change(&folder, "CREATE VIEW mine AS SELECT * FROM lock; ANALYZE; CREATE INDEX more ON audit (what)");
    assert_eq!(folder.load().records.len(), 20);
}

#[test]
fn a_directory_that_others_can_enter_or_own_is_refused() {
    let folder = filled();
    let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    for bad in [0o755, 0o710, 0o702] {
        mode(bad);
        assert!(matches!(refused(&folder, &["open to others", "chmod 0700"]), OpenError::Folder { .. }));
        assert!(matches!(Reader::open(&folder.path()), Err(OpenError::Folder { .. })));
        assert!(matches!(store::put_aside(&folder.path()), Err(OpenError::Folder { .. })));
    }
    mode(0o700);
    std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
    assert!(matches!(refused(&folder, &["uid 65534", "chown"]), OpenError::Folder { .. }));
    std::os::unix::fs::chown(folder.path(), Some(0), None).unwrap();
    assert_eq!(folder.load().records.len(), 20);

    let folder = Folder::new();
    fs::write(folder.path(), "a file").unwrap();
    assert!(matches!(folder.refused(), OpenError::Folder { .. }));
}

#[test]
fn what_cannot_be_made_is_said() {
    // nothing can be made in /proc, whoever asks
    let settings = crate::world::settings(std::path::Path::new("/proc/enforcer/state"));
    let error = store::open(&settings).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::CannotMake { .. }), "{error}");
}

#[test]
fn r5_one_writer_at_a_time() {
    let folder = filled();
    let (mut run, _) = folder.open();
    assert!(matches!(folder.refused(), OpenError::InUse { .. }));
    assert!(matches!(store::put_aside(&folder.path()), Err(OpenError::InUse { .. })));
    run.done([keep(30)]);
    run.stop();
    assert_eq!(folder.load().records.len(), 21);

    // and another process: flock(1) holds the lock that a second enforcer would
    let mut other = Command::new("flock")
        .arg("--nonblock")
        .arg(folder.path())
        .args(["sh", "-c", "echo held; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 5];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut word).unwrap();
    assert!(matches!(refused(&folder, &["in use", "another enforcer"]), OpenError::InUse { .. }));
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    assert_eq!(folder.load().records.len(), 21);
}

#[test]
fn r5_a_broken_state_is_put_aside_and_nothing_is_overwritten() {
    let folder = filled();
    let (mut run, _) = folder.open();
    run.done([keep(21)]);
    let crashed = folder.crash_copy();
    run.stop();
    let mut asides = Vec::new();
    for round in 0..3 {
        let aside = store::put_aside(&crashed.path()).unwrap();
        assert!(!asides.contains(&aside));
        let name = aside.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("state.db.broken-2"), "{name}");
        asides.push(aside);
        let (mut run, loaded) = crashed.open();
        assert!(loaded.fresh && loaded.records.is_empty());
        run.done([Write::NextNumber(round)]);
        run.stop();
    }
    // its log went with it
    let saved = store::salvage(&asides[0]).unwrap();
    assert_eq!(saved.records, (1..=21).map(sample).collect::<Vec<_>>());
    assert_eq!((saved.skipped, saved.next_number), (0, 22), "{:?}", saved.notes);
    // and is still there, to be looked at again
    assert_eq!(store::salvage(&asides[0]).unwrap(), saved);
    // nothing there: nothing to do, and no error
    let empty = Folder::new();
    assert!(store::put_aside(&empty.path()).is_err());
}

#[test]
fn r5_what_a_dying_maker_left_is_made_anew() {
    let folder = Folder::new();
    fs::create_dir(folder.path()).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for end in ["", "-wal", "-journal"] {
        fs::write(folder.path().join(format!("state.db.new{end}")), "half").unwrap();
    }
    let (run, loaded) = folder.open();
    assert!(loaded.fresh);
    run.stop();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn r6_a_file_that_is_taken_away_while_it_runs_is_no_success() {
    let folder = filled();
    let (mut run, _) = folder.open();
    run.done([keep(21)]);
    let elsewhere = folder.path().with_file_name("elsewhere.db");
    fs::rename(folder.file(), &elsewhere).unwrap();
    for number in [22, 23] {
        let result = run.write([keep(number)]).remove(0);
        assert!(result.as_ref().unwrap_err().contains("moved away"), "{result:?}");
    }
    // another one in its place is not it either
    fs::copy(&elsewhere, folder.file()).unwrap();
    assert!(run.write([keep(24)]).remove(0).is_err());
    // put back, it goes on
    fs::rename(&elsewhere, folder.file()).unwrap();
    run.done([keep(25)]);
    run.stop();
    let numbers: Vec<_> = folder.load().records.iter().map(|record| record.number).collect();
    assert!(numbers.starts_with(&(1..=21).collect::<Vec<_>>()) && numbers.contains(&25), "{numbers:?}");
}

#[test]
fn r6_somebody_elses_lock_delays_and_is_said() {
    let folder = filled();
    let (mut run, _) = folder.open();
    let db = rusqlite::Connection::open(folder.file()).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let result = run.write([keep(30)]).remove(0);
    assert!(result.as_ref().unwrap_err().contains("lock"), "{result:?}");
    db.execute_batch("ROLLBACK").unwrap();
    run.done([keep(31)]);
    drop(db);
    run.stop();
    let numbers: Vec<_> = folder.load().records.iter().map(|record| record.number).collect();
    assert_eq!(numbers, (1..=20).chain([31]).collect::<Vec<_>>());
}

#[test]
fn two_runs_use_one_folder_after_each_other() {
    let folder = filled();
    for _ in 0..3 {
        let (run, loaded) = Run::open(&folder.settings()).unwrap();
        assert_eq!(loaded.records.len(), 20);
        // without a word of goodbye: the thread ends by itself, and only then the lock is free
        drop(run);
        let start = std::time::Instant::now();
        while matches!(store::open(&folder.settings()), Err(OpenError::InUse { .. })) {
            assert!(start.elapsed().as_secs() < 60, "the thread never ended");
            std::thread::yield_now();
        }
    }
}
