//! R5: states of older versions are brought up to date with all they hold, whatever stops it on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use enforcer::session::{Guarded, Process, Record, Target};
use enforcer::store::{self, Loaded, OpenError, Reader, Write};

use crate::world::{
    Dice, Folder, admission, keep, known, letter, look, safe_id, sample, session, settings, web,
};

/// Tells the child which state to open.
const DIRECTORY: &str = "ENFORCER_STORE_TEST_UPGRADE";
/// How many times to kill; the test alone does 25.
const KILLS: &str = "ENFORCER_STORE_KILLS";

/// A state as that version left it: the genuine one of version 3, without what was not there before.
pub fn old(folder: &Folder, version: u32) {
    if !folder.path().exists() {
        fs::create_dir(folder.path()).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let db = rusqlite::Connection::open(folder.file()).unwrap();
    db.execute_batch(include_str!("version-3.sql")).unwrap();
    let back = match version {
        3 => "",
        2 => "CREATE TABLE web_learned (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, sum INTEGER NOT NULL) STRICT,
                WITHOUT ROWID;
              INSERT INTO web_learned (key, value, sum) VALUES ('01', '02', 3)",
        _ => "DROP TABLE web_token; DROP TABLE web_session; DELETE FROM meta WHERE key = 'web_gateways'",
    };
    db.execute_batch(&format!("{back}; PRAGMA user_version = {version}")).unwrap();
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    db.close().unwrap();
}

/// What version 3 was given.
fn records() -> Vec<Record> {
    let numbers = (1..=24).filter(|number| ![17, 23].contains(number));
    let as_it_was = |number: u64| {
        let name = format!("Zoë 'x' {number}");
        let record = sample(number);
        let target = if number.is_multiple_of(8) { Target::User(name) } else { record.target };
        Record { target, origin: None, ..record }
    };
    numbers.map(as_it_was).collect()
}

fn check(loaded: &Loaded, version: u32) {
    assert_eq!(loaded.records, records());
    assert_eq!(loaded.lifted, [23]);
    assert_eq!(loaded.sessions, [session(1), session(2), session(3)]);
    let (sessions, gateways) = match version {
        1 => (vec![], None),
        _ => (vec![web(1), web(2), web(3)], Some(vec![Process { pid: 7, start: 4_711 }])),
    };
    assert_eq!((&loaded.web, &loaded.web_gateways), (&sessions, &gateways));
    let meta = (loaded.gateway.as_str(), loaded.boot_id.as_deref(), loaded.wall, loaded.next_number);
    assert_eq!(meta, ("210a75c5f5eab829cd258419a0715adc", Some("a-boot"), 1_700_000_123, 1_000));
    assert!(loaded.unwritable.is_none() && !loaded.fresh);
}

#[test]
fn r5_states_of_older_versions_are_taken_over_with_all_they_hold() {
    for version in 1..=3 {
        let folder = Folder::new();
        old(&folder, version);
        let (mut run, loaded) = folder.open();
        check(&loaded, version);
        assert!(loaded.letters.is_empty() && loaded.admissions.is_empty() && loaded.known.is_none());
        assert_eq!(look::<i64>(&folder.file(), "PRAGMA user_version"), 5);
        assert_eq!(look::<String>(&folder.file(), "SELECT text FROM audit"), "a line");
        // and it takes what is new, beside the old and in its place
        run.done([Write::KeepLetter(letter(1)), Write::KeepAdmission(admission(1)), known(5)]);
        run.done([keep(8), keep(40), Write::Lift(10)]);
        run.stop();
        let loaded = folder.load();
        let mut wanted = records();
        wanted.retain(|record| ![8, 10].contains(&record.number));
        wanted.extend([sample(8), sample(40)]);
        wanted.sort_by_key(|record| record.number);
        assert_eq!(loaded.records, wanted);
        assert!(matches!(sample(8).target, Target::Person(_)) && sample(40).origin.is_some());
        assert_eq!((loaded.letters, loaded.admissions), (vec![letter(1)], vec![admission(1)]));
        assert_eq!(loaded.known.map(|known| known.revision), Some(5));
    }
}

/// R2: the gate of a new enforcer reads what the daemon of an older one has left, also before the new one was started.
#[test]
fn r2_a_reader_reads_every_older_version() {
    for version in 1..=3 {
        let folder = Folder::new();
        old(&folder, version);
        let reader = Reader::open(&folder.path()).unwrap().unwrap();
        assert_eq!(reader.safe_id(&safe_id(20)).unwrap(), Some(2));
        assert_eq!(reader.safe_id(&safe_id(1)).unwrap(), None);
        let cutoff = records()[1].guards.iter().find_map(|guard| match &guard.what {
            Guarded::Cutoff(key) => Some((*key, guard.moment)),
            _ => None,
        });
        let (key, moment) = cutoff.unwrap();
        assert_eq!(reader.cutoff(&key).unwrap(), Some((2, moment)));
        drop(reader);
        check(&folder.load(), version);
    }
}

/// However much of the log came to the disk: the version before it, or the new one, and everything in it.
#[test]
fn r5_an_upgrade_that_a_power_cut_tears_anywhere_loses_nothing() {
    const FRAME: usize = 24 + 4_096;
    for version in 1..=3 {
        let folder = Folder::new();
        old(&folder, version);
        let (store, loaded) = store::open(&settings(&folder.path())).unwrap();
        check(&loaded, version);
        // as it is before the log is brought into the database
        let (file, wal) = (fs::read(folder.file()).unwrap(), fs::read(folder.wal()).unwrap());
        drop(store);
        let frames = (wal.len() - 32) / FRAME;
        assert!(frames >= 5, "{frames}");
        let mut dice = Dice::new(u64::from(version));
        let edges = (0..=frames).map(|frame| 32 + frame * FRAME);
        let inside = (0..frames).map(|_| dice.roll(wal.len() as u64) as usize).collect::<Vec<_>>();
        let mut found = [0; 6];
        for length in edges.chain(inside).chain([0]) {
            let torn = Folder::new();
            fs::create_dir(torn.path()).unwrap();
            fs::set_permissions(torn.path(), fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(torn.file(), &file).unwrap();
            fs::write(torn.wal(), &wal[..length]).unwrap();
            let looked = torn.crash_copy();
            found[look::<i64>(&looked.file(), "PRAGMA user_version") as usize] += 1;
            check(&torn.load(), version);
            assert_eq!(look::<i64>(&torn.file(), "PRAGMA user_version"), 5);
        }
        assert!(found[version as usize] > 0 && found[5] > 0, "{found:?}");
    }
}

/// Not a test by itself: the process that is killed while it brings a state up to date.
#[test]
fn child_that_upgrades() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    // a sign of life, so that it is not killed before it began
    println!("begins");
    let _ = store::open(&settings(Path::new(&directory))).unwrap();
    println!("has ended");
}

#[test]
fn r5_kill_9_while_a_state_is_brought_up_to_date_loses_nothing() {
    use std::io::{BufRead as _, BufReader};
    let kills: u64 = std::env::var(KILLS).map_or(25, |many| many.parse().unwrap());
    let seed = u64::from(std::process::id()) << 20 | 0xab1e;
    println!("{kills} kills, seed {seed}");
    let mut dice = Dice::new(seed);
    let mut found = [0; 6];
    for round in 0..kills {
        let version = 1 + (round % 3) as u32;
        let folder = Folder::new();
        old(&folder, version);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "upgrade::child_that_upgrades", "--nocapture"])
            .env(DIRECTORY, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(out.any(|line| line.unwrap().contains("begins")), "round {round}: the child did not begin");
        // some milliseconds of work, on a fast machine or a slow one: at any instruction of it
        let longest = 1 << (6 + dice.roll(15));
        let spin = dice.roll(longest);
        (0..spin).for_each(|_| std::hint::spin_loop());
        child.kill().unwrap();
        child.wait().unwrap();
        let looked = folder.crash_copy();
        found[look::<i64>(&looked.file(), "PRAGMA user_version") as usize] += 1;
        check(&folder.load(), version);
    }
    println!("found after the kill, by version: {found:?}");
}

/// A state of before version 4 that is broken: what it held is saved, and that it has no newer tables is no loss.
#[test]
fn r5_what_can_be_read_of_an_older_version_is_saved() {
    for version in 1..=3 {
        let folder = Folder::new();
        old(&folder, version);
        let saved = store::salvage(&folder.file()).unwrap();
        assert_eq!((saved.records, saved.lifted), (records(), vec![23]));
        assert_eq!((saved.skipped, saved.notes), (0, vec![]));
        assert_eq!((saved.letters, saved.admissions, saved.known), (vec![], vec![], None));
    }
    // the twin: a newer one that has lost its tables has lost something
    let folder = Folder::new();
    folder.open().0.stop();
    let db = rusqlite::Connection::open(folder.file()).unwrap();
    db.execute_batch("DROP TABLE letter").unwrap();
    db.close().unwrap();
    assert!(matches!(folder.refused(), OpenError::Corrupt { .. }));
    let saved = store::salvage(&folder.file()).unwrap();
    assert!(saved.skipped > 0 && saved.notes[0].contains("letter"), "{:?}", saved.notes);
}

/// A repair keeps who this gateway is: the others know it by its id.
#[test]
fn r5_a_state_that_is_made_anew_may_be_the_same_gateways() {
    let id = "210a75c5f5eab829cd258419a0715adc";
    let folder = Folder::new();
    let (store, loaded) = store::open_again(&folder.settings(), Some(id)).unwrap();
    drop(store);
    assert_eq!((loaded.gateway.as_str(), loaded.fresh), (id, true));
    assert_eq!(folder.load().gateway, id);
    // the twins: what is there stays whose it is, and what is not known is made
    let (store, loaded) = store::open_again(&folder.settings(), Some(&"0".repeat(32))).unwrap();
    drop(store);
    assert_eq!(loaded.gateway, id);
    let fresh = Folder::new();
    let (store, loaded) = store::open_again(&fresh.settings(), None).unwrap();
    drop(store);
    assert!(loaded.gateway.len() == 32 && loaded.gateway != id);
}
