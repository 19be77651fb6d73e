//! The gate's questions to the disk, with and without a daemon beside it.

use std::process::Command;

use enforcer::session::{CutoffKey, Guard, Guarded, Identity, LockKey, Target};
use enforcer::store::{Reader, Write};

use crate::world::{Folder, keep, record, safe_id, server};

fn lock(number: u64, name: &str, until: Option<u64>) -> Write {
    let identity = Identity { realm: "default".to_owned(), name: name.to_owned() };
    let what = Guarded::Lock(LockKey::new(&identity));
    let mut record = record(number, Target::Lock(identity));
    record.guards = vec![Guard { what, server: None, moment: 1 }];
    (record.until, record.lasts) = (until, until.map(|_| 60));
    Write::Keep(record)
}

fn guarded(number: u64, guards: Vec<Guard>) -> Write {
    let mut record = record(number, Target::User("alice".to_owned()));
    record.guards = guards;
    Write::Keep(record)
}

fn ask(reader: &Reader, name: &str, now: u64) -> Option<u64> {
    reader.lock(&LockKey::new(&Identity { realm: "default".to_owned(), name: name.to_owned() }), now).unwrap()
}

fn fill(folder: &Folder) -> crate::world::Run {
    let (mut run, _) = folder.open();
    let cutoff = |user: &str, moment| Guard {
        what: Guarded::Cutoff(CutoffKey::new(&server("vpn"), user)),
        server: Some(server("vpn")),
        moment,
    };
    let cookie = |number, moment| Guard { what: Guarded::SafeId(safe_id(number)), server: None, moment };
    run.done([
        guarded(1, vec![cookie(1, 10), cookie(2, 10), cutoff("alice", 100)]),
        guarded(2, vec![cutoff("alice", 300)]),
        guarded(3, vec![cutoff("alice", 200), cookie(2, 50)]),
        lock(4, "alice", None),
        lock(5, "bob", Some(1_000)),
        guarded(6, vec![cookie(6, 1)]),
    ]);
    run
}

fn check(reader: &Reader) {
    assert_eq!(reader.safe_id(&safe_id(1)).unwrap(), Some(1));
    assert_eq!(reader.safe_id(&safe_id(2)).unwrap(), Some(3));
    assert_eq!(reader.safe_id(&safe_id(3)).unwrap(), None);
    let key = |server_name: &str, user: &str| CutoffKey::new(&server(server_name), user);
    assert_eq!(reader.cutoff(&key("vpn", "alice")).unwrap(), Some((2, 300)));
    assert_eq!(reader.cutoff(&key("other", "alice")).unwrap(), None);
    assert_eq!(reader.cutoff(&key("vpn", "bob")).unwrap(), None);
    assert_eq!(ask(reader, "alice", u64::MAX), Some(4));
    assert_eq!(ask(reader, "Alice", 0), None);
    assert_eq!(ask(reader, "bob", 999), Some(5));
    assert_eq!(ask(reader, "bob", 1_000), None);
    let elsewhere = Identity { realm: "staff".to_owned(), name: "alice".to_owned() };
    assert_eq!(reader.lock(&LockKey::new(&elsewhere), 0).unwrap(), None);
}

#[test]
fn r2_the_gate_reads_beside_the_daemon_and_sees_each_answered_write() {
    let folder = Folder::new();
    assert!(Reader::open(&folder.path()).unwrap().is_none());
    let mut run = fill(&folder);
    let reader = Reader::open(&folder.path()).unwrap().unwrap();
    check(&reader);
    let gateway = reader.gateway().unwrap();
    assert!(gateway.len() == 32 && gateway.bytes().all(|byte| byte.is_ascii_hexdigit()), "{gateway}");
    run.done([
        Write::Lift(6),
        guarded(7, vec![Guard { what: Guarded::SafeId(safe_id(7)), server: None, moment: 1 }]),
    ]);
    assert_eq!(reader.safe_id(&safe_id(6)).unwrap(), None);
    assert_eq!(reader.safe_id(&safe_id(7)).unwrap(), Some(7));
    run.done([Write::Over(4)]);
    assert_eq!(ask(&reader, "alice", 0), None);
    // the daemon is not disturbed by an open reader, nor by its end
    run.done((100..3_000).map(keep));
    drop(reader);
    run.done([keep(3_001)]);
    run.stop();
    assert_eq!(folder.load().gateway, gateway, "who it is stays");
}

#[test]
fn r2_the_gate_reads_what_a_stopped_and_what_a_dead_daemon_left() {
    let folder = Folder::new();
    let run = fill(&folder);
    let dead = folder.crash_copy();
    run.stop();
    check(&Reader::open(&folder.path()).unwrap().unwrap());
    assert!(std::fs::metadata(dead.wal()).unwrap().len() > 0, "this is to be about the log");
    for _ in 0..2 {
        check(&Reader::open(&dead.path()).unwrap().unwrap());
    }
    // it changed nothing: the daemon finds all of it
    assert_eq!(dead.load().records.len(), 6);
}

#[test]
fn r6_a_guard_that_the_disk_changed_is_an_error_and_not_an_answer() {
    let folder = Folder::new();
    fill(&folder).stop();
    let db = rusqlite::Connection::open(folder.file()).unwrap();
    db.execute_batch("UPDATE guard SET moment = moment + 1 WHERE number = 2").unwrap();
    db.close().unwrap();
    let reader = Reader::open(&folder.path()).unwrap().unwrap();
    let error = reader.cutoff(&CutoffKey::new(&server("vpn"), "alice")).unwrap_err();
    assert!(error.to_string().contains("table guard, row 2/0"), "{error}");
    assert_eq!(reader.safe_id(&safe_id(1)).unwrap(), Some(1));
}

#[test]
fn the_gates_questions_use_an_index() {
    let folder = Folder::new();
    fill(&folder).stop();
    let plan = |sql: &str| {
        let output =
            Command::new("sqlite3").arg(folder.file()).arg(format!("EXPLAIN QUERY PLAN {sql}")).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let guard = plan("SELECT * FROM guard WHERE kind = 'safe_id' AND id = 'x' ORDER BY moment DESC");
    assert!(guard.contains("SEARCH guard USING PRIMARY KEY (kind=? AND id=?)"), "{guard}");
    let lock = plan(
        "SELECT number FROM guard JOIN revocation USING (number) WHERE guard.kind = 'lock' AND id = 'x' ORDER BY number",
    );
    assert!(lock.contains("SEARCH guard USING PRIMARY KEY (kind=? AND id=?)"), "{lock}");
    assert!(lock.contains("SEARCH revocation USING INTEGER PRIMARY KEY"), "{lock}");
}
