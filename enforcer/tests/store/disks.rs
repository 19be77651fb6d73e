//! Disks that are full or read-only: a thread with a mount namespace of its own, and small file systems in it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use enforcer::store::{self, OpenError, Reader, Write};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::upgrade;
use crate::world::{Folder, admission, copy_state, keep, known, letter, safe_id, sample};

/// Runs on a thread whose mounts nobody else sees, and which are gone with it. Threads of its own inherit them.
fn apart(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: this test needs root");
        mount::<_, _, str, str>(None::<&str>, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
            .unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn tmpfs(on: &Path, size: &str) {
    fs::create_dir_all(on).unwrap();
    let options = format!("mode=0700,size={size}");
    mount(Some("tmpfs"), on, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

fn bind_read_only(path: &Path) {
    mount::<_, _, str, str>(Some(path), path, None, MsFlags::MS_BIND, None).unwrap();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount::<str, _, str, str>(None, path, None, flags, None).unwrap();
}

/// Not one byte is left.
fn fill_up(directory: &Path) {
    let mut file = OpenOptions::new().create(true).append(true).open(directory.join("filler")).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

fn make_room(directory: &Path) {
    fs::remove_file(directory.join("filler")).unwrap();
}

#[test]
fn r5_a_full_disk_fails_the_tickets_and_later_ones_succeed() {
    apart(|| {
        let folder = Folder::new();
        tmpfs(&folder.path(), "4m");
        let (mut run, _) = folder.open();
        run.done((1..=10).map(keep));
        run.done([Write::KeepLetter(letter(1)), Write::KeepAdmission(admission(1)), known(1)]);
        let mut shared = (vec![letter(1)], vec![admission(1)]);
        for round in 0..3 {
            fill_up(&folder.path());
            // until what the log had left to itself is used up
            let first = 100 * (round + 1);
            let failed = (first..).find(|number| run.write([keep(*number)])[0].is_err()).unwrap();
            assert!(failed < first + 90);
            for number in failed..failed + 3 {
                let shared = [
                    Write::KeepLetter(letter(number)),
                    Write::LetterTold(letter(1).key()),
                    Write::KeepAdmission(admission(number)),
                    Write::AdmissionGone(admission(1).session),
                    known(number),
                ];
                let result = run.write([keep(number), Write::Lift(1)].into_iter().chain(shared));
                let why = result[0].as_ref().unwrap_err();
                assert!(why.contains("full") && why.contains("state.db"), "{why}");
                assert!(result.iter().all(|other| *other == result[0]), "{result:?}");
            }
            // a crash now finds no damage, and none of them
            assert!(folder.crash_copy().load().records.iter().all(|record| record.number != failed));
            // reading goes on
            assert!(Reader::open(&folder.path()).unwrap().unwrap().safe_id(&safe_id(20)).unwrap().is_some());
            make_room(&folder.path());
            run.done([keep(first + 99)]);
            // with the same generations again, as if those before had never been
            let (told, admitted) = (letter(first), admission(first));
            run.done([Write::KeepLetter(told.clone()), Write::KeepAdmission(admitted.clone()), known(first)]);
            shared.0.push(told);
            shared.1.push(admitted);
            // what a reboot would find now: what succeeded and nothing else
            let crashed = folder.crash_copy();
            let loaded = crashed.load();
            let numbers: Vec<_> = loaded.records.iter().map(|record| record.number).collect();
            assert!(numbers.starts_with(&(1..=10).collect::<Vec<_>>()) && loaded.lifted.is_empty());
            assert!(numbers.contains(&(first + 99)) && !numbers.contains(&failed), "{numbers:?}");
            assert!((first..failed).all(|number| numbers.contains(&number)));
            assert_eq!((&loaded.letters, &loaded.admissions), (&shared.0, &shared.1));
            assert_eq!(loaded.known.map(|known| known.revision), Some(first));
        }
        run.stop();
        for record in folder.load().records {
            assert_eq!(record, sample(record.number));
        }
    });
}

#[test]
fn r5_a_disk_that_is_full_at_the_start_is_read_and_written_when_there_is_room() {
    apart(|| {
        let source = Folder::new();
        let (mut run, _) = source.open();
        run.done((1..=30).map(keep));
        run.stop();
        let (mut run, _) = source.open();
        run.done([keep(31), Write::Lift(30)]);
        let expected: Vec<_> = (1..=29).chain([31]).map(sample).collect();
        // once with a log that a crash left, once without
        for crashed in [true, false] {
            let folder = Folder::new();
            tmpfs(&folder.path(), "4m");
            copy_state(&source.path(), &folder.path());
            if !crashed {
                folder.load();
                assert!(!folder.wal().exists());
            }
            fill_up(&folder.path());
            let (mut run, loaded) = folder.open();
            assert_eq!(loaded.records, expected, "crashed: {crashed}");
            assert_eq!(loaded.lifted, [30]);
            let why = loaded.unwritable.unwrap();
            assert!(why.contains("room") || why.contains("full"), "{why}");
            let result = run.write([keep(40)]).remove(0);
            assert!(result.as_ref().unwrap_err().contains("not stored"), "{result:?}");
            make_room(&folder.path());
            run.done([keep(41)]);
            run.stop();
            let loaded = folder.load();
            assert!(loaded.unwritable.is_none());
            assert_eq!(loaded.records.len(), 31);
            assert_eq!(loaded.records.last(), Some(&sample(41)));
        }
        run.stop();
    });
}

/// Without room for SQLite's shared index the gate reads past its locks: never while somebody writes, and never what
/// was true before.
#[test]
fn r2_the_gate_reads_on_a_full_disk_and_notices_a_daemon_that_begins_to_write() {
    apart(|| {
        let source = Folder::new();
        let (mut run, _) = source.open();
        run.done((1..=30).map(keep));
        let folder = Folder::new();
        tmpfs(&folder.path(), "4m");
        copy_state(&source.path(), &folder.path());
        run.stop();
        fill_up(&folder.path());
        let reader = Reader::open(&folder.path()).unwrap().unwrap();
        assert_eq!(reader.safe_id(&safe_id(20)).unwrap(), Some(2));
        assert_eq!(reader.safe_id(&safe_id(350)).unwrap(), None);
        make_room(&folder.path());
        let (mut run, _) = folder.open();
        assert!(reader.safe_id(&safe_id(350)).is_err());
        run.done([keep(35)]);
        run.stop();
        let error = reader.safe_id(&safe_id(350)).unwrap_err();
        assert!(error.to_string().contains("try again"), "{error}");
        let reader = Reader::open(&folder.path()).unwrap().unwrap();
        assert_eq!(reader.safe_id(&safe_id(350)).unwrap(), Some(35));
    });
}

#[test]
fn r6_on_a_disk_without_room_for_a_new_state_it_says_so_and_leaves_nothing() {
    apart(|| {
        let folder = Folder::new();
        tmpfs(&folder.path(), "1m");
        fill_up(&folder.path());
        let error = folder.refused();
        assert!(matches!(error, OpenError::CannotMake { .. }), "{error}");
        assert!(error.to_string().contains("full") || error.to_string().contains("No space"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        make_room(&folder.path());
        let (run, loaded) = folder.open();
        assert!(loaded.fresh);
        run.stop();
    });
}

#[test]
fn r5_a_read_only_file_system_is_read() {
    apart(|| {
        let source = Folder::new();
        let (mut run, _) = source.open();
        run.done((1..=30).map(keep));
        for crashed in [true, false] {
            let folder = Folder::new();
            copy_state(&source.path(), &folder.path());
            if !crashed {
                folder.load();
            }
            bind_read_only(&folder.path());
            let reader = Reader::open(&folder.path()).unwrap().unwrap();
            assert_eq!(reader.safe_id(&safe_id(20)).unwrap(), Some(2));
            let (mut run, loaded) = folder.open();
            assert_eq!(loaded.records, (1..=30).map(sample).collect::<Vec<_>>(), "crashed: {crashed}");
            assert!(loaded.unwritable.is_some());
            let result = run.write([keep(31)]).remove(0);
            assert!(result.as_ref().unwrap_err().contains("not stored"), "{result:?}");
            // also beside a daemon that cannot write either
            let reader = Reader::open(&folder.path()).unwrap().unwrap();
            assert_eq!(reader.safe_id(&safe_id(20)).unwrap(), Some(2));
            run.stop();
            assert!(store::put_aside(&folder.path()).is_err());
        }
        run.stop();
        // nothing at all, and no place for it
        let folder = Folder::new();
        fs::create_dir(folder.path()).unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        bind_read_only(&folder.path());
        assert!(matches!(folder.refused(), OpenError::CannotMake { .. }));
        assert!(Reader::open(&folder.path()).unwrap().is_none());
    });
}

#[test]
fn r5_a_read_only_file_is_read_and_said() {
    apart(|| {
        let folder = Folder::new();
        let (mut run, _) = folder.open();
        run.done((1..=30).map(keep));
        run.stop();
        bind_read_only(&folder.file());
        let (mut run, loaded) = folder.open();
        assert_eq!(loaded.records.len(), 30);
        let why = loaded.unwritable.unwrap();
        assert!(why.contains("read-only"), "{why}");
        let result = run.write([keep(31)]).remove(0);
        assert!(result.as_ref().unwrap_err().contains("read-only"), "{result:?}");
        nix::mount::umount(&folder.file()).unwrap();
        run.done([keep(32)]);
        run.stop();
        assert_eq!(folder.load().records.len(), 31);
    });
}

/// An upgrade finds no room: nothing is changed, it is said, and the gate goes on; with room it is as if nothing had been.
#[test]
fn r5_an_upgrade_without_room_leaves_the_version_before_it_whole() {
    apart(|| {
        for version in 1..=3 {
            let folder = Folder::new();
            tmpfs(&folder.path(), "1m");
            upgrade::old(&folder, version);
            let before = fs::read(folder.file()).unwrap();
            fill_up(&folder.path());
            let error = folder.refused();
            assert!(
                matches!(&error, OpenError::CannotMigrate { found, .. } if *found == i64::from(version)),
                "{error}"
            );
            assert!(error.to_string().contains("room"), "{error}");
            assert!(fs::read(folder.file()).unwrap() == before);
            let reader = Reader::open(&folder.path()).unwrap().unwrap();
            assert_eq!(reader.safe_id(&safe_id(20)).unwrap(), Some(2));
            drop(reader);
            make_room(&folder.path());
            let loaded = folder.load();
            assert_eq!((loaded.records.len(), loaded.lifted), (22, vec![23]));
            assert!(loaded.unwritable.is_none());
        }
    });
}
