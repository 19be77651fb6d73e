//! What becomes of orders: one after the other, each answered once, and of two at once exactly one wins.

use std::collections::BTreeSet;

use enforcer::cluster::{
    Author, Condition, Holder, Key, Now, Op, Outcome, Over, Owners, SessionId, Txn, Value,
};
use enforcer::session::SafeId;

use crate::world::{Gateway, World, id, person, put, reason, session, swap, user};

fn owners(generation: u64, number: u8) -> Value {
    let holder = Holder { gateway: id(number), session: SessionId::Vpn(SafeId::from_bytes([number; 20])) };
    Value::Owners(Owners { generation, holders: vec![holder] })
}

/// R6: two gateways want to be the one at the same time, a hundred times: exactly one is, and the other one is told who.
#[test]
fn r6_of_two_swaps_at_once_exactly_one_holds() {
    let world = World::new("clu-swap", 1);
    let mut two: Vec<Gateway> = (1..=2).map(|number| world.up(number)).collect();
    let key = Key::Owners(person("alice"));
    let mut was = 0;
    let mut winners = [0, 0];
    for round in 1..=100 {
        let tickets: Vec<_> = (0..2)
            .map(|place| two[place].order(swap(key.clone(), owners(round, place as u8 + 1), was)))
            .collect();
        let answers: Vec<Outcome> = (0..2).map(|place| two[place].outcome(tickets[place])).collect();
        let holds = |answer: &Outcome| matches!(answer, Outcome::Done { held: true, .. });
        let winner = answers.iter().position(holds).expect("one of them holds");
        let (Outcome::Done { revision, .. }, Outcome::Done { held: false, got, .. }) =
            (&answers[winner], &answers[1 - winner])
        else {
            panic!("{answers:?}")
        };
        assert_eq!(got[0].now, Now::Is(owners(round, winner as u8 + 1)), "the loser sees the winner");
        assert_eq!(got[0].revision, *revision);
        was = *revision;
        winners[winner] += 1;
    }
    assert_eq!(winners[0] + winners[1], 100);
}

/// The revisions rise in the order in which it was asked; what is of one kind and waits shares one, what is of different
/// kinds never does; and the same key twice is written twice.
#[test]
fn orders_are_done_in_their_order_and_kinds_are_kept_apart() {
    let world = World::new("clu-order", 1);
    let mut gateway = world.up(1);
    let admission = |number: u32| {
        let Key::Record(_, Over::Session(safe_id)) = session(1, number) else { panic!() };
        put(Key::Admission(id(1), person("alice"), SessionId::Vpn(safe_id)), Value::Admission { at: 1 })
    };
    let mut tickets = Vec::new();
    for number in 0..300 {
        tickets.push(gateway.order(admission(number)));
        tickets.push(gateway.order(put(user(1, "alice"), reason(&number.to_string()))));
        tickets.push(gateway.order(put(session(1, number), reason("x"))));
        tickets.push(gateway.order(put(session(1, number + 1_000), reason("x"))));
    }
    let revisions: Vec<u64> = tickets
        .iter()
        .map(|ticket| match gateway.outcome(*ticket) {
            Outcome::Done { held: true, revision, .. } => revision,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(revisions.windows(2).all(|pair| pair[0] <= pair[1]), "the order was kept");
    for four in revisions.chunks(4) {
        assert!(four[0] < four[1], "admitted before it was revoked");
    }
    for eight in revisions.windows(5).step_by(4) {
        assert!(eight[1] < eight[4] && eight[3] < eight[4], "revoked before the next was admitted");
    }
    // many of one kind at once share transactions
    let tickets: Vec<_> =
        (0..1_000).map(|number| gateway.order(put(session(1, number + 5_000), reason("y")))).collect();
    let revisions: BTreeSet<u64> = tickets
        .iter()
        .map(|ticket| match gateway.outcome(*ticket) {
            Outcome::Done { revision, .. } => revision,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(revisions.len() < 500, "{} transactions for 1,000 orders", revisions.len());
    // and one that was put twice has the second value
    let tickets: Vec<_> =
        (0..50).map(|number| gateway.order(put(user(1, "bob"), reason(&number.to_string())))).collect();
    for ticket in tickets {
        gateway.outcome(ticket);
    }
    let mark = gateway.done(put(Key::Barrier(id(1)), Value::Barrier));
    gateway.has_read(mark);
    assert_eq!(gateway.view.value(&user(1, "bob")), Some(&reason("49")));
}

/// What cannot be is refused with a sentence, and the order behind it is done.
#[test]
fn r7_an_order_that_cannot_be_is_refused_and_harms_no_other() {
    let world = World::new("clu-bad", 1);
    let mut gateway = world.up(1);
    let many = |count: u32| Txn {
        then: (0..count).map(|number| Op::Put(session(1, number), reason("x"))).collect(),
        ..Txn::default()
    };
    let twice = Txn {
        then: vec![Op::Put(user(1, "a"), reason("x")), Op::Put(user(1, "a"), reason("y"))],
        ..Txn::default()
    };
    for (txn, says) in [
        (put(user(1, ""), reason("x")), "1 to 256"),
        (put(user(1, &"n".repeat(300)), reason("x")), "1 to 256"),
        (put(user(1, "alice"), reason(&"x".repeat(2_000))), "at most 1024"),
        (put(user(1, "alice"), Value::Barrier), "another key"),
        (put(user(2, "alice"), reason("x")), "not this gateway's"),
        (put(Key::Record(Author::Admin, Over::User(person("alice"))), reason("x")), "not this gateway's"),
        (Txn { then: vec![Op::Delete(Key::Gateway(id(2)))], ..Txn::default() }, "not this gateway's"),
        (
            Txn { otherwise: vec![Op::Put(user(2, "alice"), reason("x"))], ..Txn::default() },
            "not this gateway's",
        ),
        (Txn { only_if: vec![Condition::Absent(user(1, ""))], ..put(user(1, "a"), reason("x")) }, "1 to 256"),
        (Txn::default(), "nothing is done"),
        (many(129), "at most 128"),
        (twice, "duplicate key"),
    ] {
        let bad = gateway.order(txn.clone());
        let good = gateway.order(put(user(1, "bob"), reason("x")));
        match gateway.outcome(bad) {
            Outcome::Refused { why } => assert!(why.contains(says), "{why}"),
            other => panic!("{txn:?}: {other:?}"),
        }
        assert!(matches!(gateway.outcome(good), Outcome::Done { held: true, .. }));
    }
    assert!(matches!(gateway.commit(many(128)), Outcome::Done { .. }));
    let known = gateway.done(put(Key::Barrier(id(1)), Value::Barrier));
    gateway.has_read(known);
    assert!(gateway.view.value(&user(1, "alice")).is_none());
    gateway.undisturbed();
}

/// The sign of life is there while the gateway is, comes back when somebody ends its lease, goes at once when it is
/// stopped, and by itself when it is killed.
#[test]
fn a_gateway_is_alive_as_long_as_it_is() {
    let world = World::new("clu-alive", 1);
    let mut watching = world.quick(1);
    let (gateway, key) = (world.quick(2), Key::Alive(id(2)));
    watching.until("it is alive", |view| view.value(&key).is_some());
    let leases = world.etcd.ctl(&["lease", "list"]);
    for lease in leases.lines().filter(|line| line.len() == 16) {
        world.etcd.ctl(&["lease", "revoke", lease]);
    }
    watching.until("it is gone", |view| view.value(&key).is_none());
    watching
        .until("it is back", |view| view.value(&key).is_some() && view.value(&Key::Alive(id(1))).is_some());
    gateway.stop();
    watching.until("it was stopped", |view| view.value(&key).is_none());
    let killed = world.quick(3);
    watching.until("another one is alive", |view| view.value(&Key::Alive(id(3))).is_some());
    drop(killed);
    watching.until("it was killed", |view| view.value(&Key::Alive(id(3))).is_none());
}

/// The sign of life is shown anew with each connection: its lease may have outlived the last one without it.
#[test]
fn a_sign_of_life_that_was_lost_is_back_with_the_next_connection() {
    let mut world = World::new("clu-sign", 1);
    let (mut gateway, key) = (world.up(1), Key::Alive(id(1)));
    gateway.until("it is alive", |view| view.value(&key).is_some());
    world.etcd.ctl(&["del", &format!("/enforcer/v1/alive/{}", id(1))]);
    gateway.until("that is lost", |view| view.value(&key).is_none());
    world.etcd.kill(0);
    gateway.until("etcd is away", |view| !view.up);
    world.etcd.start_all();
    gateway.until("it is shown anew", |view| view.up && view.value(&key).is_some());
}

/// R6: an order of a connection whose sign of life is not the last one any more is not done (as with what an earlier
/// connection has left on its way, and with a second gateway of the same id); the next connection shows its own.
#[test]
fn r6_an_order_behind_anothers_sign_of_life_is_not_done() {
    let world = World::new("clu-fence", 1);
    let mut gateway = world.up(1);
    gateway.done(put(user(1, "alice"), reason("x")));
    for (round, words) in [["put", "{}"], ["del", ""]].into_iter().enumerate() {
        let key = format!("/enforcer/v1/alive/{}", id(1));
        let words: Vec<&str> =
            [words[0], &key, words[1]].into_iter().filter(|word| !word.is_empty()).collect();
        world.etcd.ctl(&words);
        let late = user(1, &format!("late{round}"));
        // both forms: with conditions of its own, and without
        let txn =
            if round == 0 { put(late.clone(), reason("x")) } else { swap(late.clone(), reason("x"), 0) };
        match gateway.commit(txn.clone()) {
            Outcome::NotSent { why } => assert!(why.contains("somebody else"), "{why}"),
            other => panic!("{other:?}"),
        }
        gateway.until("it is away", |view| !view.up);
        gateway.until("it is back", |view| view.up);
        let read = gateway.done(put(Key::Barrier(id(1)), Value::Barrier));
        gateway.has_read(read);
        assert!(gateway.view.value(&late).is_none(), "it was not done");
        gateway.done(txn);
    }
    assert!(gateway.view.value(&Key::Alive(id(1))).is_some());
}
