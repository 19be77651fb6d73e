//! R7: what others write is bounded here, and nothing that they write breaks anything.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::super::Now;
use super::super::words::{
    Author, Change, ClusterEffect, ClusterEvent, ClusterRules, Condition, GatewayId, Holder, Key, Knock,
    LetterKey, Limit, Op, Outcome, Over, Owners, Record, Ticket, Trouble, Txn, Value, WhenAway, Yields,
};
use super::super::{Cluster, MOST_HOLDERS};
use super::gateways::{ONE, World};
use super::{cookie, person};

const ME: GatewayId = GatewayId::from_bytes([1; 16]);
const OTHER: GatewayId = GatewayId::from_bytes([2; 16]);
const NOW: Now = Now { mono: Duration::from_secs(1_000), wall: 0 };

fn cluster() -> Cluster {
    let rules = ClusterRules { me: ME, name: "gw1".into(), login_wait: Duration::from_secs(2), known: 0 };
    Cluster::new(rules, NOW)
}

/// Connected, and registered at revision 2.
fn connected() -> Cluster {
    let mut cluster = cluster();
    let out = cluster.handle(ClusterEvent::Up { revision: 1, state: Some(Vec::new()) }, NOW);
    answer(&mut cluster, &out, 2);
    changed(&mut cluster, 2, Key::Gateway(ME), Some(Value::Gateway { name: "gw1".into() }));
    cluster
}

fn commits(out: &[ClusterEffect]) -> Vec<(Ticket, Txn)> {
    let commit = |effect: &ClusterEffect| match effect {
        ClusterEffect::Commit { ticket, txn } => Some((*ticket, txn.clone())),
        _ => None,
    };
    out.iter().filter_map(commit).collect()
}

fn notes(out: &[ClusterEffect]) -> usize {
    out.iter().filter(|effect| matches!(effect, ClusterEffect::Note { .. })).count()
}

fn answer(cluster: &mut Cluster, out: &[ClusterEffect], revision: u64) -> Vec<ClusterEffect> {
    let answer = |(ticket, _)| {
        let outcome = Ok(Outcome { held: true, revision, got: Vec::new() });
        cluster.handle(ClusterEvent::Done { ticket, outcome }, NOW)
    };
    commits(out).into_iter().flat_map(answer).collect()
}

fn changed(cluster: &mut Cluster, revision: u64, key: Key, value: Option<Value>) -> Vec<ClusterEffect> {
    let changes = vec![Change { key, value, revision }];
    cluster.handle(ClusterEvent::Changed { revision, changes }, NOW)
}

fn record(number: u64) -> Record {
    Record { number, by: String::new(), reason: String::new(), at: 0, until: None, lasts: None }
}

fn login(cluster: &mut Cluster, ask: u64, limit: Option<Limit>) -> Vec<ClusterEffect> {
    let (who, session) = (person("alice"), cookie(u32::try_from(ask).unwrap()));
    cluster.handle(ClusterEvent::Asked { ask, who, session, limit, when_away: WhenAway::Closed }, NOW)
}

#[test]
fn r7_a_copy_of_this_gateway_is_told_of_once() {
    let mut cluster = connected();
    let name = || Some(Value::Gateway { name: "gw1".into() });
    let own = changed(&mut cluster, 2, Key::Gateway(ME), name());
    assert_eq!(notes(&own), 0, "its own word once more");
    let other = changed(&mut cluster, 3, Key::Gateway(OTHER), name());
    assert_eq!(notes(&other), 0, "another gateway of the same name");
    let copies: usize =
        (4..100).map(|revision| notes(&changed(&mut cluster, revision, Key::Gateway(ME), name()))).sum();
    assert_eq!(copies, 1);
    // and what the copy writes is read, lifted and gone without harm
    let over = Over::Lock(person("alice"));
    let mine = Author::Gateway(ME);
    changed(&mut cluster, 100, Key::Record(mine, over.clone()), Some(Value::Record(record(7))));
    let lift = Value::Lift { up_to: 100, by: String::new() };
    changed(&mut cluster, 101, Key::Lift(mine, mine, over.clone()), Some(lift));
    changed(&mut cluster, 102, Key::Record(mine, over.clone()), None);
    changed(&mut cluster, 103, Key::Lift(mine, mine, over), None);
    changed(&mut cluster, 104, Key::Acknowledged(ME), Some(Value::Acknowledged(u64::MAX)));
    assert_eq!((cluster.known(), cluster.untold()), (104, 0));
}

#[test]
fn r7_two_gateways_of_one_id_come_to_rest() {
    let mut world = World::new(3, Some(ONE), WhenAway::Closed);
    world.gateways[1] = super::gateways::Gateway::new(world.gateways[0].id);
    world.settle();
    let alice = person("alice");
    for _ in 0..3 {
        let (one, other) = (world.login(0, &alice), world.login(1, &alice));
        world.decide(0, Over::Lock(person("bob")));
        world.decide(1, Over::Lock(person("bob")));
        world.decide(1, Over::User(person("carol")));
        world.lift(0, 1, &person("bob"));
        world.settle();
        let _ = (world.decide(0, other.over()), world.decide(1, one.over()));
        world.settle();
    }
    let carol = world.login(2, &person("carol"));
    world.settle();
    assert!(world.gateways[2].cookies[&carol].tunnel, "the third one does not care");
    assert!(world.etcd.keys.len() < 20, "{:?}", world.etcd.keys.keys());
}

#[test]
fn r7_an_acknowledgement_of_what_is_to_come_is_none() {
    let mut cluster = connected();
    changed(&mut cluster, 3, Key::Gateway(OTHER), Some(Value::Gateway { name: "gw2".into() }));
    changed(&mut cluster, 4, Key::Acknowledged(OTHER), Some(Value::Acknowledged(u64::MAX)));
    let over = cookie(1).over();
    let out = cluster.handle(ClusterEvent::Decided { number: 1, over: over.clone(), record: record(1) }, NOW);
    answer(&mut cluster, &out, 5);
    let out =
        changed(&mut cluster, 5, Key::Record(Author::Gateway(ME), over), Some(Value::Record(record(1))));
    assert!(!cluster.delivery(1).unwrap().is_everywhere());
    assert_eq!(cluster.gateways().iter().find(|row| row.id == OTHER).map(|row| row.pending), Some(1));
    let deletes = |out: &[ClusterEffect]| {
        commits(out).iter().flat_map(|(_, txn)| &txn.then).filter(|op| matches!(op, Op::Delete(_))).count()
    };
    assert_eq!(deletes(&out), 0, "it is not taken out");
    // its twin: the word of now
    let out = changed(&mut cluster, 6, Key::Acknowledged(OTHER), Some(Value::Acknowledged(6)));
    assert_eq!((deletes(&out), cluster.delivery(1)), (1, None));
}

/// What becomes of a login that finds `value` where the places are written.
fn claims(value: Value) -> Vec<(Ticket, Txn)> {
    let mut cluster = connected();
    let out = login(&mut cluster, 1, Some(ONE));
    let [(ticket, _)] = commits(&out).try_into().unwrap();
    let outcome = Ok(Outcome { held: true, revision: 3, got: vec![Some((value, 2))] });
    let mut out = cluster.handle(ClusterEvent::Done { ticket, outcome }, NOW);
    out.extend(changed(&mut cluster, 3, Key::Barrier(ME), Some(Value::Barrier)));
    assert!(out.iter().any(|effect| matches!(effect, ClusterEffect::Look { .. })), "{out:?}");
    commits(&cluster.handle(ClusterEvent::Looked { knock: Knock::Gate(1), clear: true }, NOW))
}

fn holders(count: usize) -> Value {
    let holder = |n| Holder { gateway: OTHER, session: cookie(u32::try_from(n).unwrap() + 1_000) };
    Value::Owners(Owners { generation: u64::MAX, holders: (0..count).map(holder).collect() })
}

#[test]
fn r7_whatever_stands_where_the_places_are_a_login_writes_what_etcd_takes() {
    let displaced = |value: Value| {
        let [(_, txn)] = claims(value).try_into().unwrap();
        assert!(txn.then.len() < 128, "{}", txn.then.len());
        assert_eq!(
            txn.only_if,
            [Condition::Unchanged(Key::Owners(person("alice")), 2)],
            "it is written over"
        );
        let places = txn.then.iter().find_map(|op| match op {
            Op::Put(Key::Owners(_), Value::Owners(owners)) => Some(owners.holders.len()),
            _ => None,
        });
        assert_eq!(places, Some(1));
        txn.then
            .iter()
            .filter(|op| matches!(op, Op::Put(Key::Record(_, Over::Session(_) | Over::Web(_)), _)))
            .count()
    };
    assert_eq!(displaced(holders(1)), 1);
    assert_eq!(displaced(holders(MOST_HOLDERS)), MOST_HOLDERS);
    assert_eq!(displaced(holders(MOST_HOLDERS + 1)), 0, "no value of ours");
    assert_eq!(displaced(holders(100_000)), 0);
    assert_eq!(displaced(Value::Unreadable), 0);
    assert_eq!(displaced(Value::Barrier), 0, "another key's");
}

#[test]
fn r7_no_setting_allows_more_than_can_be_written() {
    let most = Limit { most: usize::MAX, yields: Yields::Newest };
    let Value::Owners(full) = holders(MOST_HOLDERS) else { unreachable!() };
    assert_eq!(super::super::claim(&full, ME, cookie(1), most), super::super::Claim::Full);
}

#[test]
fn r7_what_is_not_to_be_read_changes_nothing() {
    let mut cluster = connected();
    let over = Over::Lock(person("alice"));
    let author = Author::Gateway(OTHER);
    changed(&mut cluster, 3, Key::Gateway(OTHER), Some(Value::Gateway { name: "gw2".into() }));
    changed(&mut cluster, 4, Key::Record(author, over.clone()), Some(Value::Record(record(1))));
    let keys = [
        Key::Gateway(OTHER),
        Key::Alive(OTHER),
        Key::Acknowledged(OTHER),
        Key::Barrier(OTHER),
        Key::Record(author, over.clone()),
        Key::Lift(author, author, over.clone()),
        Key::Lift(author, Author::Gateway(ME), over),
        Key::Owners(person("alice")),
    ];
    for (revision, key) in (5..).zip(keys) {
        for value in [Value::Unreadable, Value::Lift { up_to: u64::MAX, by: String::new() }] {
            if matches!((&key, &value), (Key::Lift(..), Value::Lift { .. })) {
                continue;
            }
            let out = changed(&mut cluster, revision, key.clone(), Some(value));
            let acts = |effect: &ClusterEffect| {
                matches!(effect, ClusterEffect::Order { .. } | ClusterEffect::TakeBack { .. })
            };
            assert!(!out.iter().any(acts), "{key:?}: {out:?}");
        }
    }
    let names: Vec<_> = cluster.gateways().into_iter().map(|row| row.name).collect();
    assert_eq!(names, ["gw1", "gw2"], "whoever has to learn of records has to still");
}

#[test]
fn r7_what_etcd_refuses_is_said_once_and_not_tried_again_before_the_next_tick() {
    let mut cluster = connected();
    let event = ClusterEvent::Decided { number: 1, over: Over::User(person("bob")), record: record(1) };
    let mut out = cluster.handle(event, NOW);
    out.extend(login(&mut cluster, 1, None));
    let mut told = notes(&out);
    for _ in 0..50 {
        let refused = commits(&out);
        out = Vec::new();
        for (ticket, _) in refused {
            let outcome = Err(Trouble::Refused("mvcc: database space exceeded".into()));
            out.extend(cluster.handle(ClusterEvent::Done { ticket, outcome }, NOW));
        }
        assert!(commits(&out).is_empty(), "it waits for the tick");
        told += notes(&out);
        out.extend(cluster.handle(ClusterEvent::Tick, NOW));
    }
    assert_eq!(told, 2, "the revocation, and the login");
    assert_eq!(cluster.untold(), 1, "it is not forgotten");
    let tickets: BTreeSet<Ticket> = commits(&out).iter().map(|(ticket, _)| *ticket).collect();
    assert!(!tickets.is_empty(), "and it is tried again");
}

#[test]
fn r7_more_than_may_wait_is_told_and_what_waits_stays() {
    use super::super::outbox::MOST_LETTERS;
    let mut cluster = cluster();
    let decide = |cluster: &mut Cluster, n: usize| {
        let over = cookie(u32::try_from(n).unwrap()).over();
        let number = u64::try_from(n).unwrap();
        notes(&cluster.handle(ClusterEvent::Decided { number, over, record: record(number) }, NOW))
    };
    assert_eq!((1..=MOST_LETTERS).map(|n| decide(&mut cluster, n)).sum::<usize>(), 0);
    assert_eq!(decide(&mut cluster, 7), 0, "a key that waits already");
    assert_eq!((decide(&mut cluster, MOST_LETTERS + 1), cluster.untold()), (1, MOST_LETTERS));
    // R6: whoever asks before hears so
    let name = |n: usize| LetterKey::Decided(cookie(u32::try_from(n).unwrap()).over());
    assert!(cluster.has_room(&name(7)) && !cluster.has_room(&name(MOST_LETTERS + 1)));
    assert!(!cluster.has_room(&LetterKey::Lifted(Author::Admin, cookie(7).over())));
    // what is in etcd takes no place
    let mut out = cluster.handle(ClusterEvent::Up { revision: 1, state: Some(Vec::new()) }, NOW);
    for revision in 2..100 {
        out = answer(&mut cluster, &out, revision);
        let name = Value::Gateway { name: "gw1".into() };
        if revision == 2 {
            out.extend(changed(&mut cluster, 2, Key::Gateway(ME), Some(name)));
        }
    }
    assert!(cluster.has_room(&name(MOST_LETTERS + 2)));
    assert_eq!((cluster.untold(), decide(&mut cluster, MOST_LETTERS + 2)), (0, 0));
}

#[test]
fn r7_a_flood_of_acknowledgements_and_lifts_leaves_nothing() {
    let mut world = World::new(2, None, WhenAway::Closed);
    world.settle();
    let (mine, other) = (world.gateways[0].id, Author::Gateway(world.gateways[1].id));
    for n in 0..2_000 {
        let lift = Value::Lift { up_to: u64::MAX, by: String::new() };
        let over = Over::Lock(person(&format!("nobody{}", n % 50)));
        let then = vec![Op::Put(Key::Lift(other, Author::Gateway(mine), over), lift)];
        world.etcd.commit(&Txn { then, ..Txn::default() });
    }
    world.settle();
    assert_eq!(world.gateways[0].cluster.errands(), 0);
    assert!(world.gateways[0].cluster.outbox.is_empty(), "what it has not written it does not remember");
}

#[test]
fn r7_of_many_gateways_none_acknowledges_without_a_pause() {
    // how many acknowledgements come of a record every 10 ms for a second
    let count = |gateways: u8| {
        let mut cluster = connected();
        for n in 2..=gateways {
            let name = Value::Gateway { name: format!("gw{n}") };
            changed(&mut cluster, 3, Key::Gateway(GatewayId::from_bytes([n; 16])), Some(name));
        }
        let (mut count, mut revision, mut last) = (0, 3, 0);
        let mut wait = |cluster: &mut Cluster, time: u64, event: ClusterEvent| {
            let now = Now { mono: NOW.mono + Duration::from_millis(time), wall: 0 };
            let mut out = cluster.handle(event, now);
            while !out.is_empty() {
                let mut next = Vec::new();
                for effect in out {
                    next.extend(match effect {
                        ClusterEffect::Order { errand, .. } => {
                            cluster.handle(ClusterEvent::InForce { errand }, now)
                        }
                        ClusterEffect::Commit { ticket, txn } => {
                            if let Some(Op::Put(Key::Acknowledged(_), Value::Acknowledged(up_to))) =
                                txn.then.first()
                            {
                                (count, last) = (count + 1, *up_to);
                            }
                            let outcome = Ok(Outcome { held: true, revision: 0, got: Vec::new() });
                            cluster.handle(ClusterEvent::Done { ticket, outcome }, now)
                        }
                        _ => Vec::new(),
                    });
                }
                out = next;
            }
        };
        for turn in 0..100 {
            revision += 1;
            let key = Key::Record(Author::Gateway(OTHER), Over::User(person("alice")));
            let changes = vec![Change { key, value: Some(Value::Record(record(1))), revision }];
            wait(&mut cluster, turn * 10, ClusterEvent::Changed { revision, changes });
        }
        wait(&mut cluster, 10_000, ClusterEvent::Tick);
        assert_eq!(last, revision, "and what is in force is said in the end");
        count
    };
    assert_eq!(count(3), 100);
    assert_eq!(count(100), 5, "every 200 ms from its first word on, and once more in the end");
}
