//! Nothing is missed: whoever was there from the beginning, came later or was away knows the same as etcd.

use std::collections::BTreeMap;

use enforcer::cluster::{Author, Key, Lift, Listing, Now, Op, Outcome, Over, Owners, SessionId, Txn, Value};
use enforcer::session::WebKey;

use crate::world::{Dice, Gateway, World, id, person, put, reason, session, user};

/// Something that this gateway may write.
fn random_op(dice: &mut Dice, number: u8) -> Op {
    let name = format!("user{} /%é", dice.below(6));
    let own = Author::Gateway(id(number));
    let key = match dice.below(6) {
        0 => user(number, &name),
        1 => session(number, dice.below(8) as u32),
        2 => Key::Record(own, Over::Web(WebKey::from_bytes([dice.below(4) as u8; 16]))),
        3 => Key::Record(own, Over::Lock(person(&name))),
        4 => Key::Lift(own, Author::Admin, Over::User(person(&name))),
        _ => Key::Acknowledged(id(number)),
    };
    if dice.below(3) == 0 {
        return Op::Delete(key);
    }
    let value = match &key {
        Key::Lift(..) => Value::Lift(Lift { up_to: 1 + dice.below(100), ..Lift::default() }),
        Key::Acknowledged(_) => Value::Acknowledged(dice.below(1_000)),
        _ => reason(&format!("{}", dice.below(1_000_000))),
    };
    Op::Put(key, value)
}

/// R5: several gateways write at random, one at a time or several together. Whoever was there from the beginning, came
/// in the middle or comes at the end has the same state, with the same revisions; the writers' own model has it too.
#[test]
fn r5_state_and_watch_agree_with_a_model_under_random_writes_by_several() {
    let world = World::new("clu-agree", 1);
    let mut writers: Vec<Gateway> = (1..=3).map(|number| world.up(number)).collect();
    let mut dice = Dice(7);
    // key, value and revision at which it was last written, or gone
    let mut model: BTreeMap<Key, (Option<Value>, u64)> = BTreeMap::new();
    let mut late = None;
    let mut last = 0;
    for round in 0..200 {
        let place = dice.below(3) as usize;
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..=dice.below(4) {
            let op = random_op(&mut dice, place as u8 + 1);
            // no key twice in one transaction
            if !ops.iter().any(|other| other.key() == op.key()) {
                ops.push(op);
            }
        }
        let revision = writers[place].done(Txn { then: ops.clone(), ..Txn::default() });
        // one that only deletes what is not there has no revision of its own
        for op in ops {
            let value = if let Op::Put(_, value) = &op { Some(value.clone()) } else { None };
            model.insert(op.key().clone(), (value, revision));
        }
        last = revision;
        if round == 100 {
            late = Some(world.gateway(4));
        }
    }
    let mark = writers[0].done(put(Key::Barrier(id(1)), Value::Barrier));
    assert!(mark > last);
    let mut all = writers;
    all.extend(late);
    all.push(world.gateway(5));
    for gateway in &mut all {
        gateway.has_read(mark);
        for (key, (value, revision)) in &model {
            let has = gateway.view.state.get(key);
            assert_eq!(gateway.view.value(key), value.as_ref(), "{key:?}");
            assert!(has.is_none_or(|has| has.revision == *revision), "{key:?}: {has:?} {revision}");
        }
        let known = gateway.view.lasting();
        assert!(known.keys().all(|key| model.contains_key(*key) || **key == Key::Barrier(id(1))));
        assert!(gateway.view.malformed.is_empty(), "{:?}", gateway.view.malformed);
    }
    let first = all[0].view.lasting();
    for other in &all[1..] {
        assert_eq!(other.view.lasting(), first);
    }
}

/// What is not watched is in nobody's state, and is listed by whoever asks.
#[test]
fn sessions_and_owners_are_listed_and_not_watched() {
    let world = World::new("clu-list", 1);
    let mut gateway = world.up(1);
    let admitted = |name: &str, number: u8| {
        Key::Admission(id(1), person(name), SessionId::Web(WebKey::from_bytes([number; 16])))
    };
    let keys = [admitted("alice", 1), admitted("alice", 2), admitted("alicex", 3)];
    let revisions: Vec<u64> =
        keys.iter().map(|key| gateway.done(put(key.clone(), Value::Admission { at: 1 }))).collect();
    gateway.done(put(Key::Owners(person("alice")), Value::Owners(Owners::default())));
    let mark = gateway.done(put(Key::Barrier(id(1)), Value::Barrier));
    gateway.has_read(mark);
    let state: Vec<&Key> = gateway.view.state.keys().collect();
    assert_eq!(state, [&Key::Alive(id(1)), &Key::Barrier(id(1))]);
    let mut listed = |what| match gateway.list(what) {
        Outcome::Listed { found, revision } => {
            assert_eq!(revision, mark);
            found.into_iter().map(|entry| (entry.key, entry.created)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let all: Vec<_> = keys.iter().cloned().zip(revisions).collect();
    assert_eq!(listed(Listing::Sessions(id(1))), all);
    assert_eq!(listed(Listing::SessionsOf(id(1), person("alice"))), all[..2]);
    assert_eq!(listed(Listing::Sessions(id(2))), []);
    assert_eq!(listed(Listing::Owners).len(), 1);
    // put again, it keeps its place in the order
    let again = gateway.done(put(keys[0].clone(), Value::Admission { at: 2 }));
    let Outcome::Done { got, .. } =
        gateway.commit(Txn { then: vec![Op::Get(keys[0].clone())], ..Txn::default() })
    else {
        panic!()
    };
    assert_eq!((got[0].created, got[0].revision), (all[0].1, again));
    assert_eq!(got[0].now, Now::Is(Value::Admission { at: 2 }));
}

/// R7: a hundred thousand keys are read as they are, and told in the order of their keys; with more than are allowed the
/// connection is of no use, and says why.
#[test]
fn r7_a_state_of_a_hundred_thousand_keys() {
    const MANY: u32 = 100_000;
    let world = World::new("clu-many", 1);
    let mut writer = world.up(1);
    let mut tickets = Vec::new();
    for first in (0..MANY).step_by(100) {
        let then = (first..first + 100).map(|number| Op::Put(session(1, number), reason("many"))).collect();
        tickets.push(writer.order(Txn { then, ..Txn::default() }));
    }
    for ticket in tickets {
        assert!(matches!(writer.outcome(ticket), Outcome::Done { held: true, .. }));
    }
    writer.until("all of it is read", |view| view.state.len() >= MANY as usize);
    let mut reader = world.up(2);
    let sessions = |gateway: &Gateway| -> Vec<Key> {
        gateway.view.state.keys().filter(|key| matches!(key, Key::Record(..))).cloned().collect()
    };
    assert_eq!(sessions(&reader).len(), MANY as usize);
    assert!(sessions(&reader) == sessions(&writer));
    let mark = writer.done(put(user(1, "alice"), reason("one more")));
    reader.has_read(mark);
    let few = enforcer::cluster::Settings { most: MANY as usize, ..world.settings(3) };
    let mut bounded = Gateway::start(&world.namespace(3), few);
    bounded.until("it says why", |view| view.down.as_ref().is_some_and(|why| why.contains("max-records")));
    assert!(!bounded.view.up);
}
