//! etcd is away, in part or as a whole, or it is another one.

use std::net::TcpListener;
use std::time::Duration;

use enforcer::cluster::{Key, Now, Op, Order, Outcome, Settings, Txn, Value};

use crate::world::{Gateway, View, World, id, put, reason, session, swap, user};

/// Writes so many records and gives the revision of the last one.
#[track_caller]
fn write(gateway: &mut Gateway, name: &str, count: u32) -> u64 {
    (0..count)
        .map(|number| insist(gateway, &put(user(1, &format!("{name}{number}")), reason(name))))
        .max()
        .unwrap()
}

/// As often as it takes: of what is not answered in time nobody knows, and whoever ordered it gives it again.
#[track_caller]
fn insist(gateway: &mut Gateway, txn: &Txn) -> u64 {
    loop {
        match gateway.commit(txn.clone()) {
            Outcome::Done { held: true, revision, .. } => return revision,
            Outcome::NotSent { .. } | Outcome::NotKnown { .. } => gateway.until("it is up", |view| view.up),
            other => panic!("{other:?}"),
        }
    }
}

#[track_caller]
fn agree(one: &Gateway, other: &Gateway) {
    assert_eq!(one.view.lasting(), other.view.lasting());
}

/// R5: who was away while etcd was compacted is told the whole state anew and has missed nothing, deletions neither; who
/// was away without that goes on where he was, and his twin who was never away knows the same.
#[test]
fn r5_who_was_away_misses_nothing_whether_etcd_was_compacted_or_not() {
    let world = World::new("clu-compact", 1);
    let (mut writer, mut away) = (world.up(1), world.quick(2));
    let mut before = write(&mut writer, "before", 20);
    away.has_read(before);
    for compacted in [false, true] {
        let wholes = away.view.wholes;
        away.cut(true, true);
        away.until("it notices", |view| !view.up);
        before = write(&mut writer, &format!("while {compacted} "), 20);
        for number in 0..10 {
            let key = user(1, &format!("before{}", number + 10 * u32::from(compacted)));
            before = writer.done(Txn { then: vec![Op::Delete(key)], ..Txn::default() });
        }
        if compacted {
            // exactly at a deletion
            world.etcd.ctl(&["compact", &before.to_string()]);
        }
        away.heal();
        away.until("it is back", |view| view.up);
        assert_eq!(away.view.wholes > wholes, compacted, "{:?}", away.view.downs);
        away.has_read(before);
        writer.has_read(before);
        agree(&away, &writer);
        let after = write(&mut writer, "after", 1);
        away.has_read(after);
        writer.has_read(after);
        agree(&away, &writer);
    }
    writer.undisturbed();
    assert_eq!(writer.view.wholes, 1);
}

/// R5: etcd up to 3.5 leaves a deletion out of a watch that begins at it where that revision was compacted as well. Who
/// has read everything before it, and nothing since, learns of it all the same.
#[test]
fn r5_a_deletion_at_the_very_revision_that_was_compacted_is_not_missed() {
    let world = World::new("clu-tomb", 1);
    let (mut writer, mut away) = (world.up(1), world.quick(2));
    let last = write(&mut writer, "user", 3);
    away.has_read(last);
    away.cut(true, true);
    // the very next revision: also the lease of the one who is away ends later
    let deleted = writer.done(Txn { then: vec![Op::Delete(user(1, "user1"))], ..Txn::default() });
    assert_eq!(deleted, last + 1);
    world.etcd.ctl(&["compact", &deleted.to_string(), "--physical=true"]);
    away.until("it notices", |view| !view.up);
    away.heal();
    away.until("it is back", |view| view.up);
    away.has_read(deleted);
    writer.has_read(deleted);
    assert!(away.view.value(&user(1, "user1")).is_none());
    assert!(away.view.value(&user(1, "user2")).is_some());
}

/// R5, R6: etcd is killed and started again. Meanwhile orders are answered at once with what is known; what was answered
/// as done is there afterwards, and the order of revisions goes on.
#[test]
fn r5_etcd_killed_and_back() {
    let mut world = World::new("clu-kill", 1);
    let (mut one, mut other) = (world.up(1), world.up(2));
    let mut last = write(&mut one, "done", 10);
    for _ in 0..3 {
        world.etcd.kill(0);
        one.until("it is away", |view| view.down.is_some());
        other.until("it is away", |view| view.down.is_some());
        let ticket = one.order(put(user(1, "away"), reason("x")));
        assert!(
            matches!(one.outcome(ticket), Outcome::NotSent { .. }),
            "nothing was done, and that is known"
        );
        world.etcd.start_all();
        for gateway in [&mut one, &mut other] {
            gateway.until("it is back", |view| view.up);
        }
        let next = one.done(put(user(1, "back"), reason("x")));
        assert!(next > last);
        last = next;
        other.has_read(last);
        one.has_read(last);
        agree(&one, &other);
        assert!(other.view.value(&user(1, "done9")).is_some());
        assert!(other.view.value(&user(1, "away")).is_none());
    }
    assert_eq!(other.view.wholes, 1, "nothing had to be read anew");
}

/// R5: of three members one is killed, then the leader, then all; the gateways go on with those that are left, and with
/// all of them back nothing is missing.
#[test]
fn r5_a_member_the_leader_and_all_of_three_killed() {
    let mut world = World::new("clu-three", 3);
    let (mut one, mut other) = (world.up(1), world.up(2));
    write(&mut one, "all three", 5);
    let leader = world.etcd.leader();
    for victim in [(leader + 1) % 3, leader] {
        world.etcd.kill(victim);
        // done at once, or after having looked for another member: an order that is not known is given again
        let txn = put(user(1, &format!("without {victim}")), reason("x"));
        let last = loop {
            match one.commit(txn.clone()) {
                Outcome::Done { revision, .. } => break revision,
                Outcome::NotSent { .. } | Outcome::NotKnown { .. } => one.until("it is up", |view| view.up),
                refused => panic!("{refused:?}"),
            }
        };
        other.has_read(last);
        one.has_read(last);
        agree(&one, &other);
        world.etcd.start_member(victim);
        world.etcd.healthy();
        world.etcd.leader();
    }
    world.etcd.kill_all();
    one.until("all are away", |view| !view.up);
    other.until("all are away", |view| !view.up);
    world.etcd.start_all();
    one.until("all are back", |view| view.up);
    let last = write(&mut one, "all back", 5);
    other.has_read(last);
    one.has_read(last);
    agree(&one, &other);
    assert_eq!((one.view.wholes, other.view.wholes), (1, 1));
}

/// R5: a member that has lost the others is still there for its clients, and of no use: whoever was connected to it goes to
/// another one, and what was written meanwhile is known to all once it is back.
#[test]
fn r5_a_member_that_has_lost_the_others_is_left() {
    let world = World::new("clu-alone", 3);
    let (mut one, mut other) = (world.quick(1), world.quick(2));
    write(&mut one, "together", 5);
    let alone = world.etcd.endpoints()[0].clone();
    assert_eq!(one.view.endpoint, alone);
    world.etcd.isolate(0);
    let txn = put(user(1, "meanwhile"), reason("x"));
    let last = insist(&mut one, &txn);
    one.until("it has read that elsewhere", |view| view.up && view.read >= last && view.endpoint != alone);
    other.until("the other one too", |view| view.up && view.read >= last && view.endpoint != alone);
    world.etcd.rejoin(0);
    let last = write(&mut one, "back", 3);
    let mut late = world.up(3);
    for gateway in [&mut one, &mut other, &mut late] {
        gateway.has_read(last);
    }
    agree(&one, &other);
    agree(&one, &late);
    assert_eq!((one.view.wholes, other.view.wholes), (1, 1));
}

/// R6: cut off one way or both, it is noticed; what was sent and not answered is told as not known, and given again it
/// is there once. A swap that was done and not answered does not hold the second time, and what is there is one's own.
#[test]
fn r6_cut_off_one_way_and_both_ways() {
    let world = World::new("clu-cut", 1);
    let (mut one, mut other) = (world.quick(1), world.up(2));
    for (place, (incoming, outgoing)) in [(true, false), (false, true), (true, true)].into_iter().enumerate()
    {
        let key = user(1, &format!("cut{place}"));
        let txn = swap(key.clone(), reason("mine"), 0);
        one.cut(incoming, outgoing);
        let ticket = one.order(txn.clone());
        assert!(matches!(one.outcome(ticket), Outcome::NotKnown { .. }));
        one.until("it is noticed", |view| !view.up);
        one.heal();
        one.until("it is back", |view| view.up);
        match one.commit(txn) {
            // it had not arrived
            Outcome::Done { held: true, .. } => assert!(outgoing),
            Outcome::Done { held: false, got, .. } => {
                assert!(!outgoing, "what was not sent cannot be there");
                assert_eq!(got[0].now, Now::Is(reason("mine")));
            }
            other => panic!("{other:?}"),
        }
        let last = one.done(put(Key::Barrier(id(1)), Value::Barrier));
        one.has_read(last);
        other.has_read(last);
        agree(&one, &other);
        assert_eq!(other.view.value(&key), Some(&reason("mine")));
    }
    other.undisturbed();
}

/// R6: whatever breaks first, no answer says what is not so: an order that was not sent is not there, one that was done is,
/// and neither is guessed. Answers are lost on the way, from a moment before the order to a while after.
#[test]
fn r6_no_answer_says_what_is_not_so() {
    let world = World::new("clu-true", 1);
    let (mut one, other) = (world.quick(1), world.up(2));
    let mut answers = Vec::new();
    for round in 0..6 {
        one.cut(true, false);
        // not waited for: it only makes one or the other notice first
        std::thread::sleep(Duration::from_millis(350) * round);
        let key = session(1, round);
        let answer = one.commit(put(key.clone(), reason("x")));
        one.until("it is noticed", |view| !view.up);
        one.heal();
        one.until("it is back", |view| view.up);
        let last = one.done(put(Key::Barrier(id(1)), Value::Barrier));
        one.has_read(last);
        let is_there = one.view.value(&key).is_some();
        match &answer {
            Outcome::Done { .. } => assert!(is_there),
            Outcome::NotSent { .. } => assert!(!is_there),
            Outcome::NotKnown { .. } => {}
            refused => panic!("{refused:?}"),
        }
        answers.push((answer, is_there));
    }
    let known = |(answer, there): &(Outcome, bool)| matches!(answer, Outcome::NotKnown { .. }) && *there;
    assert!(answers.iter().any(known), "done, and not known: {answers:?}");
    other.undisturbed();
}

/// R6: an empty etcd at the same place is not taken for the one that was known, also after a restart of the gateway; it
/// is once that was ordered. A gateway that knows none takes what it finds.
#[test]
fn r6_another_etcd_is_noticed_and_not_used_until_it_is_adopted() {
    let mut world = World::new("clu-other", 1);
    let mut gateway = world.up(1);
    write(&mut gateway, "first", 5);
    let was = gateway.view.known.unwrap();
    world.etcd.replace();
    world.etcd.put("/enforcer/v1/from/admin/users/default/mallory", "{}");
    gateway.until("it is noticed", |view| !view.replaced.is_empty());
    let (told, is) = gateway.view.replaced[0];
    assert_eq!(told.cluster, was.cluster);
    assert_ne!(is.cluster, was.cluster);
    assert!(!gateway.view.up && gateway.view.down.is_some());
    assert!(
        matches!(gateway.commit(put(user(1, "x"), reason("x"))), Outcome::NotSent { .. }),
        "nothing is written there"
    );
    // one that was started anew, and remembers
    let remembers = Settings { known: Some(was), ..world.settings(2) };
    let mut started = Gateway::start(&world.namespace(2), remembers);
    started.until("it is noticed", |view| !view.replaced.is_empty());
    assert!(!started.view.up);
    // the wrong one is not adopted either
    gateway.give(Order::Adopt { cluster: is.cluster ^ 1 });
    gateway.give(Order::Adopt { cluster: is.cluster });
    gateway.until("it is adopted", |view| view.up);
    assert_eq!((gateway.view.known.unwrap().cluster, gateway.view.wholes), (is.cluster, 2));
    assert!(gateway.view.value(&user(1, "first0")).is_none());
    let last = gateway.done(put(user(1, "second"), reason("x")));
    gateway.has_read(last);
    let mut new = world.up(3);
    new.has_read(last);
    agree(&new, &gateway);
    assert!(!started.view.up);
}

/// R6: an etcd whose disk is that of yesterday has the same id, and its revision went back.
#[test]
fn r6_an_etcd_restored_from_a_backup_is_noticed() {
    let mut world = World::new("clu-backup", 1);
    let mut gateway = world.up(1);
    write(&mut gateway, "kept", 5);
    world.etcd.keep_data("backup");
    gateway.until("it is away", |view| !view.up);
    world.etcd.start_all();
    gateway.until("it is back", |view| view.up);
    let last = write(&mut gateway, "lost", 50);
    gateway.has_read(last);
    world.etcd.restore_data("backup");
    world.etcd.start_all();
    gateway.until("it is noticed", |view| !view.replaced.is_empty());
    let (was, is) = gateway.view.replaced[0];
    assert_eq!(was.cluster, is.cluster);
    assert!(is.revision < was.revision && was.revision >= last);
    let of_backup = |view: &View| view.down.as_ref().is_some_and(|why| why.contains("backup"));
    gateway.until("it says why", of_backup);
    // also when that one has come further than the other one was
    let mut other = world.up(2);
    while other.done(put(session(2, 1), reason("x"))) <= was.revision {}
    world.etcd.kill_all();
    gateway.until("it looks again", |view| !of_backup(view));
    world.etcd.start_all();
    gateway.until("it is the same one", of_backup);
    assert!(matches!(gateway.commit(put(user(1, "x"), reason("x"))), Outcome::NotSent { .. }));
    assert!(gateway.view.replaced.len() == 1 && !gateway.view.up);
    gateway.give(Order::Adopt { cluster: is.cluster });
    gateway.until("it is adopted", |view| view.up);
    assert!(gateway.view.value(&user(1, "kept0")).is_some());
    assert!(gateway.view.value(&user(1, "lost0")).is_none());
}

/// R7: an endpoint that takes connections and says nothing is passed over; while there is no other, orders are answered.
#[test]
fn r7_an_endpoint_that_says_nothing_is_passed_over() {
    let world = World::new("clu-silent", 1);
    let namespace = world.namespace(1);
    // never accepted, and so never closed
    let silent = namespace.within(|| TcpListener::bind("127.0.0.1:2379").unwrap());
    let mut settings = world.quick_settings(1);
    settings.endpoints.insert(0, "http://127.0.0.1:2379".into());
    settings.endpoints.insert(0, "http://127.0.0.1:1".into());
    let mut gateway = Gateway::start(&namespace, settings);
    let early = gateway.order(put(session(1, 1), reason("too early")));
    assert!(matches!(gateway.outcome(early), Outcome::NotSent { .. }));
    gateway.until("the one that speaks is found", |view| view.up);
    assert!(!gateway.view.downs.is_empty());
    gateway.done(put(session(1, 1), reason("now")));
    drop(silent);
}

/// R6, R7: one who does not read what he is told holds up nobody, stays alive, and has every order answered once, though
/// etcd was killed meanwhile; and where etcd has compacted what he has not read he is told the whole state, without having
/// been away.
#[test]
fn r7_one_who_does_not_read_for_a_while() {
    let mut world = World::new("clu-slow", 1);
    let (mut slow, mut other) = (world.up(2), world.up(1));
    slow.pause(true);
    let tickets: Vec<_> = (0..400).map(|number| slow.order(put(session(2, number), reason("x")))).collect();
    let last = write(&mut other, "meanwhile", 50);
    other.has_read(last);
    world.etcd.kill(0);
    other.until("etcd is away", |view| !view.up);
    world.etcd.start_all();
    other.until("etcd is back", |view| view.up);
    slow.pause(false);
    for ticket in tickets {
        // done, not sent or not known; and not twice, as every view checks
        slow.outcome(ticket);
    }
    slow.until("it is up again", |view| view.up && !view.downs.is_empty());
    let downs = slow.view.downs.len();
    let last = slow.done(put(user(2, "mark"), reason("x")));
    slow.has_read(last);
    slow.pause(true);
    // more than etcd holds for a watcher, and what lies between here and there
    let mut last = 0;
    for round in 0..400 {
        let value = reason(&format!("{round} {}", "x".repeat(900)));
        let then = (0..128).map(|number| Op::Put(session(1, number), value.clone())).collect();
        last = other.done(Txn { then, ..Txn::default() });
    }
    other.has_read(last);
    assert!(other.view.value(&Key::Alive(id(2))).is_some(), "it is alive all the while");
    world.etcd.ctl(&["compact", &last.to_string(), "--physical=true"]);
    slow.pause(false);
    slow.has_read(last);
    assert_eq!(slow.view.downs.len(), downs, "it was not away: {:?}", slow.view.downs);
    agree(&slow, &other);
    assert!(slow.view.wholes > 1, "what it had not read was compacted");
}
