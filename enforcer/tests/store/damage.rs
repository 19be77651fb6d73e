//! R5: what the disk did to the file is noticed, or did not matter. Never fewer records without a word.

use std::fs;

use enforcer::session::{Guard, Guarded, Record, Target};
use enforcer::store::{self, Loaded, OpenError, Write};

use crate::world::{
    Dice, Folder, admission, keep, keep_web, known, letter, load, record, safe_id, sample, server, session,
    settings, web,
};

const RECORDS: u64 = 300;
const LETTERS: u64 = 120;
const ADMISSIONS: u64 = 200;

/// A closed state of many pages, in which some were freed.
fn filled() -> Folder {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done((1..=RECORDS + 60).map(keep));
    run.done((1..=20).map(|key| Write::Session(session(key))));
    run.done((1..=40).map(keep_web));
    run.done((1..=LETTERS).map(|number| Write::KeepLetter(letter(number))));
    run.done((1..=ADMISSIONS).map(|number| Write::KeepAdmission(admission(number))));
    run.done(
        (1..=LETTERS).filter(|number| number % 7 == 0).map(|number| Write::LetterTold(letter(number).key())),
    );
    run.done([known(4_711)]);
    run.done((RECORDS + 1..=RECORDS + 50).map(Write::Over));
    run.done((RECORDS + 51..=RECORDS + 60).map(Write::Lift));
    run.done([Write::Clock { wall: 7, boot_id: "boot".to_owned() }]);
    run.stop();
    folder
}

fn plant(file: &[u8], wal: Option<&[u8]>) -> Folder {
    let folder = Folder::new();
    fs::create_dir(folder.path()).unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::write(folder.file(), file).unwrap();
    if let Some(wal) = wal {
        fs::write(folder.wal(), wal).unwrap();
    }
    folder
}

/// What the file says now, if it says anything.
fn opened(file: &[u8], wal: Option<&[u8]>) -> Result<Loaded, OpenError> {
    let folder = plant(file, wal);
    let result = store::open(&settings(&folder.path())).map(|(_, loaded)| loaded);
    if let Err(error) = &result {
        assert!(
            matches!(
                error,
                OpenError::Corrupt { .. }
                    | OpenError::NotADatabase { .. }
                    | OpenError::Newer { .. }
                    | OpenError::OtherApplication { .. }
            ),
            "{error:?}"
        );
    }
    result
}

#[test]
fn r5_a_file_that_was_cut_off_is_refused() {
    let file = fs::read(filled().file()).unwrap();
    let mut dice = Dice::new(77);
    let pages = file.len() as u64 / 4_096;
    let edges = (0..pages).map(|page| page * 4_096);
    let inside = (0..60).map(|_| dice.roll(file.len() as u64)).collect::<Vec<_>>();
    for length in edges.chain(inside).chain([1, 99, 100, 512, file.len() as u64 - 1]) {
        let result = opened(&file[..length as usize], None);
        assert!(result.is_err(), "cut off at {length} of {}", file.len());
    }
    assert_eq!(opened(&file, None).unwrap().records.len() as u64, RECORDS);
}

#[test]
fn r5_a_changed_byte_is_noticed_or_did_not_matter() {
    let folder = filled();
    let file = fs::read(folder.file()).unwrap();
    let whole = load(&folder.path());
    let mut dice = Dice::new(4_711);
    let (mut noticed, mut harmless) = (0, 0);
    // each byte of the header, and places all over
    let places: Vec<_> = (0..100).chain((0..500).map(|_| dice.roll(file.len() as u64) as usize)).collect();
    for place in places {
        let mut file = file.clone();
        file[place] ^= 1 << dice.roll(8);
        match opened(&file, None) {
            Err(_) => noticed += 1,
            Ok(loaded) => {
                // not assert_eq, which would print all of it
                assert!(loaded == whole, "byte {place}: {:?}", loaded.unwritable);
                harmless += 1;
            }
        }
    }
    println!("{noticed} noticed, {harmless} harmless");
    assert!(noticed > 100);
}

/// A log as a crash leaves it: each record a commit of its own.
fn with_log(records: u64) -> (Vec<u8>, Vec<u8>) {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    for number in 1..=records {
        run.done([keep(number)]);
    }
    let (file, wal) = (fs::read(folder.file()).unwrap(), fs::read(folder.wal()).unwrap());
    run.stop();
    (file, wal)
}

#[test]
fn r5_damage_in_the_log_is_noticed_but_for_its_last_commit() {
    let records = 12;
    let (file, wal) = with_log(records);
    assert_eq!(opened(&file, Some(&wal)).unwrap().records.len() as u64, records);
    let mut dice = Dice::new(99);
    let places: Vec<_> = (0..32).chain((0..500).map(|_| dice.roll(wal.len() as u64) as usize)).collect();
    let mut noticed = 0;
    for place in places {
        let mut wal = wal.clone();
        wal[place] ^= 1 << dice.roll(8);
        match opened(&file, Some(&wal)) {
            Err(_) => noticed += 1,
            Ok(loaded) => {
                assert!(loaded.records.len() as u64 >= records - 1, "byte {place}: {}", loaded.records.len());
                assert_eq!(loaded.records, (1..=loaded.records.len() as u64).map(sample).collect::<Vec<_>>());
            }
        }
    }
    assert!(noticed > 300, "{noticed}");
}

/// A record of very many guards.
fn large(number: u64) -> Record {
    let guard = |index| Guard {
        what: Guarded::SafeId(safe_id(number * 10_000 + index)),
        server: Some(server("vpn")),
        moment: 1_700_000_000,
    };
    Record { guards: (0..2_000).map(guard).collect(), ..record(number, Target::User("alice".to_owned())) }
}

/// A power cut tears the last commit, and only that: it is no damage, and must not keep a gateway from starting.
#[test]
fn r5_a_commit_that_a_power_cut_tore_is_as_if_it_never_was() {
    const FRAME: usize = 24 + 4_096;
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    for number in 1..=5 {
        run.done([keep(number)]);
    }
    let before = fs::read(folder.wal()).unwrap().len();
    // many pages and one commit for certain: a write is never divided, while a batch of several may be
    run.done([Write::Keep(large(6))]);
    let (file, wal) = (fs::read(folder.file()).unwrap(), fs::read(folder.wal()).unwrap());
    run.stop();
    let frames = (wal.len() - before) / FRAME;
    assert!(frames > 4, "{frames}");
    // any of its pages came to the disk, the rest did not: zeroes, since the file grew
    let mut dice = Dice::new(5);
    for _ in 0..60 {
        let mut wal = wal.clone();
        let mut lost = 0;
        for frame in 0..frames {
            if dice.roll(2) == 0 || (frame + 1 == frames && lost == 0) {
                wal[before + frame * FRAME..][..FRAME].fill(0);
                lost += 1;
            }
        }
        wal.truncate(wal.len() - dice.roll(FRAME as u64) as usize);
        let records = opened(&file, Some(&wal)).unwrap().records;
        // not assert_eq, which would print all of the large one
        assert!(records == (1..=5).map(sample).collect::<Vec<_>>(), "{} records", records.len());
    }
    // untorn it is there, all of it
    let records = opened(&file, Some(&wal)).unwrap().records;
    assert!(records.last() == Some(&large(6)), "{} records", records.len());
}

#[test]
fn r5_what_can_be_read_of_a_broken_file_is_saved() {
    let folder = filled();
    let file = fs::read(folder.file()).unwrap();
    let whole = load(&folder.path());
    // whole files give all, and nothing of what was lifted
    let saved = store::salvage(&plant(&file, None).file()).unwrap();
    assert_eq!((saved.records.clone(), saved.lifted.clone()), (whole.records.clone(), whole.lifted.clone()));
    assert_eq!((saved.skipped, saved.next_number), (0, whole.next_number));
    assert_eq!(whole.web, (1..=40).map(web).collect::<Vec<_>>());
    let letters: Vec<_> = (1..=LETTERS).filter(|number| number % 7 != 0).map(letter).collect();
    assert_eq!((&whole.letters, &saved.letters), (&letters, &letters));
    let admissions: Vec<_> = (1..=ADMISSIONS).map(admission).collect();
    assert_eq!((&whole.admissions, &saved.admissions), (&admissions, &admissions));
    assert!(whole.known.is_some() && saved.known == whole.known);
    assert_eq!(saved.gateway.as_deref(), Some(whole.gateway.as_str()));

    // each page in turn is lost
    let pages = file.len() / 4_096;
    let mut best = 0;
    let mut fewest = (letters.len(), admissions.len());
    for page in 1..pages {
        let mut broken = file.clone();
        broken[page * 4_096..(page + 1) * 4_096].fill(0xa5);
        let planted = plant(&broken, None);
        let Ok(saved) = store::salvage(&planted.file()) else { continue };
        for record in &saved.records {
            let full = sample(record.number);
            assert!(record.guards.iter().all(|guard| full.guards.contains(guard)));
            assert_eq!(record.target, full.target, "page {page}");
            assert!(record.number <= RECORDS, "page {page}: {} is over", record.number);
        }
        assert!(saved.letters.iter().all(|one| letters.contains(one)), "page {page}");
        assert!(saved.admissions.iter().all(|one| admissions.contains(one)), "page {page}");
        let all = (saved.letters.len(), saved.admissions.len()) == (letters.len(), admissions.len());
        assert!(all || saved.skipped > 0, "page {page}");
        fewest = (fewest.0.min(saved.letters.len()), fewest.1.min(saved.admissions.len()));
        // what was lost has to be learned again: then nothing says that all is known
        assert!(saved.known.is_none() || saved.skipped == 0, "page {page}");
        if saved.records.len() as u64 == RECORDS {
            continue;
        }
        assert!(saved.skipped > 0 && !saved.notes.is_empty());
        best = best.max(saved.records.len() as u64);
        // a leaf: all but its rows; and the file stays as it was
        assert_eq!(fs::read(planted.file()).unwrap(), broken);
    }
    assert!(best > RECORDS * 3 / 4, "{best} of {RECORDS}");
    // the twin: pages of theirs were among those that were lost
    assert!(fewest.0 < letters.len() && fewest.1 < admissions.len(), "{fewest:?}");

    // one row: it alone is skipped
    let changed = plant(&file, None);
    let db = rusqlite::Connection::open(changed.file()).unwrap();
    db.execute_batch("UPDATE revocation SET at = 1 WHERE number = 40").unwrap();
    db.close().unwrap();
    let saved = store::salvage(&changed.file()).unwrap();
    assert_eq!((saved.records.len() as u64, saved.skipped), (RECORDS - 1, 1));
    assert!(saved.notes[0].contains("revocation, row 40"), "{:?}", saved.notes);
    assert!(saved.known.is_none() && whole.known.is_some());
    for (table, row) in [("letter", 3), ("admission", 5)] {
        let changed = plant(&file, None);
        let db = rusqlite::Connection::open(changed.file()).unwrap();
        let row = format!("(SELECT generation FROM {table} ORDER BY generation LIMIT 1 OFFSET {row})");
        db.execute_batch(&format!("UPDATE {table} SET revision = 1 WHERE generation = {row}")).unwrap();
        db.close().unwrap();
        let saved = store::salvage(&changed.file()).unwrap();
        let counts = (saved.records.len(), saved.letters.len(), saved.admissions.len(), saved.skipped);
        let lost = |which: &str| usize::from(table == which);
        let wanted =
            (whole.records.len(), letters.len() - lost("letter"), admissions.len() - lost("admission"), 1);
        assert_eq!(counts, wanted, "{:?}", saved.notes);
        assert!(saved.notes[0].contains(&format!("table {table}, row")), "{:?}", saved.notes);
    }

    // no database: nothing to be saved, and said
    assert!(store::salvage(&plant(b"nothing of the kind", None).file()).is_err());
}
