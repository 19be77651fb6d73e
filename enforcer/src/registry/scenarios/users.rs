//! The list of users: in parts, each once, and no part is large.

use std::time::Duration;

use super::harness::*;
use crate::registry::*;
use crate::session::*;

/// The whole list, by parts of so many.
fn all(world: &World, most: usize) -> Vec<UserRow> {
    let (mut rows, mut from) = (Vec::new(), Some(UsersFrom::Name(None)));
    while let Some(at) = from {
        let (some, next) = world.registry.users_after(&at, most);
        assert!(some.len() <= most && next.as_ref() != Some(&at), "{at:?}");
        rows.extend(some);
        from = next;
    }
    rows
}

fn login(world: &mut World, user: &str, number: u8) {
    let token = WebTokenRecord {
        digest: WebDigest::from_bytes([number; 32]),
        host: "app.example".into(),
        wrapped: vec![1],
    };
    let new = Box::new(NewWebSession {
        key: WebKey::from_bytes([number; 16]),
        realm: DEFAULT_REALM.into(),
        user: user.into(),
        peer: String::new(),
        agent: String::new(),
        idle: Duration::from_secs(600),
        lasts: Duration::from_secs(600),
        token,
    });
    world.give(Event::WebCreate { request: number.into(), new });
}

/// Name, sessions, those of the web gateway, those that are revoked, and whether it is locked.
fn told(row: &UserRow) -> (&str, u32, u32, u32, bool) {
    (&row.user, row.sessions, row.web, row.revoked, row.lock.is_some())
}

/// Everybody once, whatever a part has: by name, whose case is told apart and comes together; then who is locked and has no
/// session.
#[test]
fn users_in_parts_are_what_they_are_in_one() {
    let mut world = World::new();
    world.connect("bob", 1, 1);
    world.connect("alice", 2, 2);
    world.connect("Alice", 3, 3);
    login(&mut world, "alice", 1);
    login(&mut world, "Zoe", 2);
    login(&mut world, "bob", 3);
    for name in ["dave", "carol", "bob"] {
        world.revoke(lock(name, None));
    }
    let whole = all(&world, usize::MAX);
    let expected = [
        ("Alice", 1, 0, 0, false),
        ("alice", 2, 1, 0, false),
        // its worker has not ended yet
        ("bob", 1, 0, 1, true),
        ("Zoe", 1, 1, 0, false),
        ("dave", 0, 0, 0, true),
        ("carol", 0, 0, 0, true),
    ];
    assert_eq!(whole.iter().map(told).collect::<Vec<_>>(), expected);
    assert!(whole[1].servers.contains(&server()) && whole[3].servers.is_empty());
    for most in 1..8 {
        assert_eq!(all(&world, most), whole, "{most}");
    }
    // one that ends is not there any more, and what is locked still is
    let key = world.key(1);
    world.end(key, 1);
    let names: Vec<String> = all(&world, 3).into_iter().map(|row| row.user).collect();
    assert_eq!(names, ["Alice", "alice", "Zoe", "dave", "carol", "bob"]);
}

/// A lock is told with the sessions of the person whom it locks, however the name was typed; in another realm it is another
/// person's.
#[test]
fn a_lock_is_told_once_and_of_its_own_person() {
    let mut realms = Realms::default();
    realms.set_case(DEFAULT_REALM, Case::Fold);
    let mut world = World::with(false, Rules { realms, ..Rules::default() });
    world.connect("ALICE", 1, 1);
    login(&mut world, "bob", 1);
    world.revoke(lock("alice", Some(Duration::from_secs(60))));
    let elsewhere = Identity { realm: "staff".into(), name: "bob".into() };
    world.revoke(order(Target::Lock(elsewhere.clone())));
    let rows = all(&world, 1);
    let expected = [("ALICE", 1, 0, 1, true), ("bob", 1, 1, 0, false), ("bob", 0, 0, 0, true)];
    assert_eq!(rows.iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!(rows[2].lock.as_ref().unwrap().identity, Some(elsewhere));
    assert!(rows[0].lock.as_ref().unwrap().until.is_some());
}

/// R7: no part goes through more than it has room for, whatever there is.
#[test]
fn r7_a_part_of_the_list_of_users_is_bounded() {
    let mut world = World::new();
    // names that differ in case alone as well: whoever chooses them must not make a part large
    for number in 0..100_u8 {
        let name = "abcdefgh".char_indices();
        let name = name.map(|(at, c)| if number >> at & 1 == 1 { c.to_ascii_uppercase() } else { c });
        login(&mut world, &name.collect::<String>(), number);
    }
    for number in 0..50 {
        world.revoke(lock(&format!("locked{number}"), None));
    }
    let (mut from, mut parts, mut rows) = (Some(UsersFrom::Name(None)), 0, 0);
    while let Some(at) = from {
        let (some, next) = world.registry.users_after(&at, 500);
        assert!(some.len() <= 30, "{}", some.len());
        (from, parts, rows) = (next, parts + 1, rows + some.len());
    }
    // thirty sessions are looked at for each, and thirty revocations
    assert_eq!((rows, parts), (150, 6));
}
