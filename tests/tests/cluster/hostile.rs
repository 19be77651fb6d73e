//! What others put into etcd: wrong keys, wrong values, huge ones, very many. Each is told, none harms.

use enforcer::cluster::{Author, Key, Now, Over, Record, Value};

use crate::world::{World, id, person, put, reason, user};

fn admin(name: &str) -> Key {
    Key::Record(Author::Admin, Over::User(person(name)))
}

const USERS: &str = "/enforcer/v1/from/admin/users/default";

/// R7: each thing that is no record of ours is told with its key and why; its revision counts as read; what is in order
/// beside it is in force; and the same is told to whoever comes later, of the state.
#[test]
fn r7_what_is_no_record_is_told_and_harms_nothing() {
    let world = World::new("clu-bad-put", 1);
    let mut gateway = world.up(1);
    let long = format!("{{\"reason\":\"{}\"}}", "x".repeat(5_000));
    let larger = "x".repeat(20_000);
    let bad = [
        (format!("{USERS}/nojson"), "not json", "JSON", true),
        (format!("{USERS}/empty"), " ", "JSON", true),
        (format!("{USERS}/list"), "[]", "JSON", true),
        (format!("{USERS}/long"), &long, "at most 1024", true),
        (format!("{USERS}/larger"), &larger, "no record is longer", true),
        ("/enforcer/v1/from/admin/locks/default/x".into(), "{\"forSeconds\":60}", "until when", true),
        (format!("{USERS}/a%2fb"), "{}", "spelt", false),
        (format!("{USERS}/a b"), "{}", "spelt", false),
        (format!("{USERS}/"), "{}", "1 to 256", false),
        ("/enforcer/v1/from/mallory/users/default/x".into(), "{}", "32 hexadecimal", false),
        ("/enforcer/v1/from/admin/barrier".into(), "{}", "32 hexadecimal", false),
        ("/enforcer/v1/elsewhere".into(), "{}", "no such key", false),
        ("/enforcer/v1/gateways/x/y".into(), "{}", "no such key", false),
    ];
    for (key, value, says, is_key) in &bad {
        let told = gateway.view.malformed.len();
        let before = gateway.view.read;
        world.etcd.put(key, value);
        world.etcd.put(&format!("{USERS}/good"), &format!("{{\"at\":{told}}}"));
        gateway.until("the good one beside it", |view| {
            view.value(&admin("good"))
                == Some(&Value::Record(Record { at: told as u64, ..Record::default() }))
        });
        let (which, revision, why, taken) = gateway.view.malformed.last().unwrap();
        assert_eq!((gateway.view.malformed.len(), which, *taken), (told + 1, key, false), "{why}");
        assert!(why.contains(says), "{key}: {why}");
        assert!(*revision > before);
        // it has counted, with what it has changed: a key of ours, of which is known that nobody can read it
        assert_eq!(gateway.view.sizes[revision], usize::from(*is_key), "{key}");
    }
    // elsewhere is elsewhere
    world.etcd.put("/enforcer/v2/from/admin/users/default/x", "not json");
    world.etcd.put("/other", "not json");
    // in force, and told: a word that nobody knows
    world.etcd.put(&format!("{USERS}/typo"), "{\"reson\":\"x\"}");
    gateway.until("the one with a typo", |view| view.value(&admin("typo")).is_some());
    let (_, _, why, taken) = gateway.view.malformed.last().unwrap().clone();
    assert!(taken && why.contains("reson"), "{why}");
    assert_eq!(gateway.view.malformed.len(), bad.len() + 1);
    // what was in force is known to be unreadable now, not to be gone
    world.etcd.put(&format!("{USERS}/typo"), "garbage");
    gateway.until("it is unreadable", |view| view.state[&admin("typo")].now == Now::Unreadable);
    let mut late = world.up(2);
    late.until("all of it", |view| view.malformed.len() > bad.len());
    gateway.until("the other is there", |view| view.value(&Key::Alive(id(2))).is_some());
    let mark = late.view.read;
    gateway.has_read(mark);
    assert_eq!(late.view.lasting(), gateway.view.lasting());
    gateway.undisturbed();
    late.undisturbed();
}

/// R7: values as large as etcd takes them do not keep anybody from reading the rest, and are never held.
#[test]
fn r7_huge_values_do_not_hide_what_is_beside_them() {
    let world = World::new("clu-huge", 1);
    let mut gateway = world.up(1);
    let huge = "x".repeat(1_400_000);
    for number in 10..40 {
        // more together than is taken in one answer
        world.etcd.put(&format!("{USERS}/huge{number}"), &huge);
        world.etcd.put(&format!("{USERS}/good{number}"), "{}");
    }
    gateway.until("the last one", |view| view.value(&admin("good39")).is_some());
    assert_eq!(gateway.view.malformed.len(), 30);
    let mut late = world.up(2);
    gateway.until("the other is there", |view| view.value(&Key::Alive(id(2))).is_some());
    late.has_read(gateway.view.read);
    assert_eq!(late.view.lasting(), gateway.view.lasting());
    assert_eq!(late.view.lasting().values().filter(|entry| entry.now == Now::Unreadable).count(), 30);
    gateway.undisturbed();
    late.undisturbed();
}

/// R7: a flood is told in part, and how many were not is told too.
#[test]
fn r7_a_flood_of_malformed_records_is_told_in_part() {
    let world = World::new("clu-flood", 1);
    let mut gateway = world.up(1);
    for number in 0..300 {
        world.etcd.put(&format!("{USERS}/x{number}"), "garbage");
    }
    let mut late = world.up(2);
    let mark = late.done(put(user(2, "mark"), reason("x")));
    for gateway in [&mut gateway, &mut late] {
        gateway.has_read(mark);
        let unreadable = gateway.view.state.values().filter(|entry| entry.now == Now::Unreadable).count();
        assert_eq!(unreadable, 300, "each is known");
    }
    assert!(late.view.malformed.len() <= 70, "{} were told at once", late.view.malformed.len());
    let mut number = 0;
    late.until("the others are counted", |view| {
        // word of it comes with something else that happens
        number += 1;
        world.etcd.put(&format!("{USERS}/y"), &format!("{{\"at\":{number}}}"));
        view.untold > 0 && view.malformed.len() as u64 + view.untold >= 300
    });
    assert_eq!(late.view.malformed.len() as u64 + late.view.untold, 300);
}
