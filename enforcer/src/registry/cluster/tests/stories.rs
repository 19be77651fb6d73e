//! Told one by one, and at random.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use crate::session::{Identity, SessionId};

use super::super::words::{Author, Key, Limit, Over, Value, WhenAway, Yields};
use super::gateways::{LOGIN_WAIT, ONE, World};
use super::person;

fn three() -> World {
    let mut world = World::new(3, None, WhenAway::Closed);
    world.settle();
    world
}

#[test]
fn r1_r4_a_revocation_ends_what_is_there_on_every_gateway_and_a_fresh_login_is_let_in() {
    let mut world = three();
    let alice = person("alice");
    let (old, bob) = (world.login(0, &alice), world.login(1, &person("bob")));
    let other = world.login(1, &alice);
    world.settle();
    assert!(world.gateways[0].cookies[&old].tunnel && world.gateways[1].cookies[&other].tunnel);
    let number = world.decide(2, Over::User(alice.clone()));
    assert!(!world.gateways[2].cluster.delivery(number).unwrap().is_everywhere());
    world.settle();
    assert!(world.gateways[0].cookies[&old].dead && world.gateways[1].cookies[&other].dead);
    assert!(world.gateways[1].cookies[&bob].tunnel, "nobody else");
    let fresh = world.login(0, &alice);
    world.settle();
    assert!(world.gateways[0].cookies[&fresh].tunnel);
}

#[test]
fn r2_a_gateway_that_has_fallen_behind_lets_no_old_cookie_in() {
    let mut world = three();
    let alice = person("alice");
    let old = world.login(0, &alice);
    world.settle();
    world.leave(0, old);
    world.decide(1, Over::User(alice.clone()));
    while world.carry(1) {}
    // the first gateway has not read of it yet, and its client comes back
    world.knock(0, old);
    while world.carry(0) | world.answer(0) {}
    assert!(!world.gateways[0].cookies[&old].tunnel, "it waits");
    world.settle();
    assert!(!world.gateways[0].cookies[&old].tunnel && world.gateways[0].cookies[&old].dead);
}

#[test]
fn r5_a_gateway_that_was_away_learns_of_it_when_it_is_back() {
    let mut world = three();
    let alice = person("alice");
    let old = world.login(0, &alice);
    world.settle();
    world.cut(0);
    let number = world.decide(1, Over::User(alice.clone()));
    for _ in 0..20 {
        for at in 1..3 {
            let _ = world.carry(at) | world.answer(at) | world.read(at) | world.run_errand(at);
        }
    }
    let delivery = world.gateways[1].cluster.delivery(number).unwrap();
    assert!(delivery.revision.is_some() && !delivery.is_everywhere(), "{delivery:?}");
    world.crash(0);
    world.settle();
    assert!(world.gateways[0].cookies[&old].dead);
    assert_eq!(world.gateways[1].cluster.delivery(number), None, "it is everywhere");
}

#[test]
fn r5_what_was_decided_while_etcd_was_away_is_told_when_it_is_back() {
    let mut world = three();
    let alice = person("alice");
    let old = world.login(1, &alice);
    world.settle();
    (0..3).for_each(|at| world.cut(at));
    world.decide(0, Over::User(alice));
    world.crash(0);
    world.settle();
    assert!(world.gateways[1].cookies[&old].dead);
}

#[test]
fn a_login_while_etcd_is_away_goes_by_its_groups_rule() {
    for (when_away, passes) in [(WhenAway::Open, true), (WhenAway::Closed, false)] {
        let mut world = World::new(2, None, when_away);
        world.settle();
        world.cut(0);
        let id = world.login(0, &person("alice"));
        world.wait(LOGIN_WAIT / 2);
        assert!(!world.gateways[0].cookies[&id].tunnel, "it waits");
        world.wait(LOGIN_WAIT);
        assert_eq!(world.gateways[0].cookies[&id].tunnel, passes);
        world.settle();
        assert_eq!(world.gateways[0].cookies[&id].tunnel, passes);
    }
}

#[test]
fn r2_what_was_let_in_while_etcd_was_away_ends_with_what_was_decided_meanwhile() {
    let mut world = World::new(2, None, WhenAway::Open);
    world.settle();
    let alice = person("alice");
    world.cut(0);
    let id = world.login(0, &alice);
    world.wait(LOGIN_WAIT * 2);
    assert!(world.gateways[0].cookies[&id].tunnel);
    world.decide(1, Over::User(alice));
    world.settle();
    assert!(world.gateways[0].cookies[&id].dead);
}

#[test]
fn r2_a_cookie_that_was_let_in_twice_while_etcd_was_away_waits_for_all_that_came_before() {
    let mut world = World::new(2, None, WhenAway::Open);
    let alice = person("alice");
    let id = world.login(0, &alice);
    world.connect(0);
    while world.carry(0) {}
    world.wait(LOGIN_WAIT / 2);
    world.knock(0, id);
    // its first visit has waited long enough, and it goes the way of what was let in; then so has its second
    world.wait(LOGIN_WAIT / 2);
    while world.answer(0) {}
    world.wait(LOGIN_WAIT / 2);
    while world.carry(0) {}
    world.decide(1, Over::User(alice));
    world.connect(1);
    while world.carry(1) | world.answer(1) | world.read(1) {}
    while world.answer(0) | world.carry(0) {}
    world.settle();
    assert!(world.gateways[0].cookies[&id].dead);
}

#[test]
fn the_user_moves_and_never_wins_back_what_is_over() {
    let mut world = World::new(3, Some(ONE), WhenAway::Closed);
    world.settle();
    let (alice, bob) = (person("alice"), world.login(2, &person("bob")));
    let mut last = None;
    for turn in 0..50 {
        let at = turn % 3;
        let id = world.login(at, &alice);
        world.settle();
        assert!(world.gateways[at].cookies[&id].tunnel, "turn {turn}");
        if let Some((at, id)) = last {
            world.knock(at, id);
            world.settle();
            assert!(world.gateways[at].cookies[&id].dead, "turn {turn}");
        }
        last = Some((at, id));
    }
    assert!(world.gateways[2].cookies[&bob].tunnel);
}

#[test]
fn of_two_at_once_one_remains() {
    let mut world = World::new(2, Some(ONE), WhenAway::Closed);
    world.settle();
    let alice = person("alice");
    let both = [world.login(0, &alice), world.login(1, &alice)];
    world.settle();
    let alive = (0..2).filter(|at| world.gateways[*at].cookies[&both[*at]].tunnel).count();
    assert_eq!(alive, 1);
}

#[test]
fn a_new_one_is_refused_where_it_has_to_yield_until_the_place_is_free() {
    let refuse = Limit { most: 1, yields: Yields::Newest };
    let mut world = World::new(2, Some(refuse), WhenAway::Closed);
    world.settle();
    let alice = person("alice");
    let first = world.login(0, &alice);
    world.settle();
    let second = world.login(1, &alice);
    world.settle();
    assert!(world.gateways[0].cookies[&first].tunnel && !world.gateways[1].cookies[&second].tunnel);
    assert!(!world.gateways[1].cookies[&second].dead, "it may come again");
    world.decide(0, first.over());
    world.settle();
    world.knock(1, second);
    world.settle();
    assert!(world.gateways[1].cookies[&second].tunnel);
}

#[test]
fn a_lock_is_everywhere_and_so_is_its_lift() {
    let mut world = three();
    let alice = person("alice");
    let old = world.login(0, &alice);
    world.settle();
    world.decide(1, Over::Lock(alice.clone()));
    world.settle();
    assert!(world.gateways[0].cookies[&old].dead);
    let refused = world.login(2, &alice);
    world.settle();
    assert!(!world.gateways[2].cookies[&refused].tunnel);
    world.lift(1, 1, &alice);
    world.settle();
    world.knock(2, refused);
    world.settle();
    assert!(world.gateways[2].cookies[&refused].tunnel);
    assert!(
        !world.etcd.keys.keys().any(|key| matches!(key, Key::Lift(..) | Key::Record(..))),
        "nothing is left"
    );
}

#[test]
fn a_lock_that_is_made_anew_outlives_the_lift_of_the_one_before() {
    for (lifter, turns) in (0..2).flat_map(|lifter| (0..12).map(move |turns| (lifter, turns))) {
        let mut world = three();
        let alice = person("alice");
        world.decide(0, Over::Lock(alice.clone()));
        world.settle();
        world.lift(lifter, 0, &alice);
        for _ in 0..turns {
            for at in 0..3 {
                let _ = world.carry(at) | world.answer(at) | world.read(at) | world.run_errand(at);
            }
        }
        world.decide(0, Over::Lock(alice));
        // on its way, while its gateway learns that the lift is everywhere
        while world.read(0) | world.answer(0) | world.run_errand(0) {}
        world.settle();
        assert!(world.gateways.iter().all(|gateway| gateway.locks.len() == 1), "{lifter} {turns}");
        let records = world.etcd.keys.keys().filter(|key| matches!(key, Key::Record(..))).count();
        assert_eq!(records, 1, "{lifter} {turns}: whoever comes back needs it");
    }
}

#[test]
fn r4_who_came_in_after_a_record_is_spared_when_it_is_read_anew() {
    let mut world = three();
    let alice = person("alice");
    let old = world.login(0, &alice);
    world.settle();
    world.decide(1, Over::User(alice.clone()));
    while world.carry(1) | world.read(0) {}
    assert!(world.gateways[0].cookies[&old].dead, "ended, and not on the disk");
    let fresh = world.login(0, &alice);
    while world.carry(0) | world.answer(0) | world.read(0) {}
    assert!(world.gateways[0].cookies[&fresh].tunnel);
    world.crash(0);
    world.settle();
    assert!(world.gateways[0].cookies[&fresh].tunnel, "it came later");
}

#[test]
fn a_lift_that_comes_too_late_goes_and_what_was_made_anew_stays() {
    for lifts_first in [false, true] {
        let mut world = three();
        let alice = person("alice");
        world.decide(1, Over::Lock(alice.clone()));
        world.settle();
        // both at once: the lock is made anew, and another gateway lifts the one before
        world.decide(1, Over::Lock(alice.clone()));
        world.lift(2, 1, &alice);
        while lifts_first && world.carry(2) {}
        world.settle();
        assert!(world.gateways.iter().all(|gateway| gateway.locks.len() == 1), "{lifts_first}");
        let keys = |is: fn(&Key) -> bool| world.etcd.keys.keys().filter(|key| is(key)).count();
        assert_eq!(keys(|key| matches!(key, Key::Lift(..))), 0, "{lifts_first}: it lifts nothing");
        assert_eq!(
            keys(|key| matches!(key, Key::Record(..))),
            1,
            "{lifts_first}: whoever comes back needs it"
        );
    }
}

#[test]
fn a_lift_outlives_a_restart_before_the_lock_that_it_lifts_was_on_the_disk() {
    let mut world = three();
    let alice = person("alice");
    world.decide(1, Over::Lock(alice.clone()));
    while world.carry(1) | world.read(0) {}
    world.lift(0, 1, &alice);
    world.crash(0);
    world.settle();
    assert!(world.gateways.iter().all(|gateway| gateway.locks.is_empty()));
}

#[test]
fn r6_one_decision_of_several_persons_is_everywhere_when_all_of_it_is() {
    let mut world = three();
    let persons = ["alice", "bob"].map(person);
    world.cut(2);
    let number = world.decide_of(0, persons.clone().map(Over::User).into());
    let delivery = |world: &World| world.gateways[0].cluster.delivery(number);
    assert_eq!(delivery(&world).unwrap().revision, None);
    for _ in 0..20 {
        for at in 0..2 {
            let _ = world.carry(at) | world.answer(at) | world.read(at) | world.run_errand(at);
        }
    }
    let halfway = delivery(&world).unwrap();
    let place = |who: &Identity| Key::Record(Author::Gateway(world.gateways[0].id), Over::User(who.clone()));
    let at = persons.iter().map(|who| world.etcd.keys[&place(who)].1).max();
    assert_eq!((halfway.revision, halfway.is_everywhere()), (at, false));
    assert_eq!(halfway.gateways, [("gw2".into(), true, true), ("gw3".into(), false, true)]);
    let told: BTreeSet<_> = world.gateways[0].told.iter().cloned().collect();
    assert_eq!(told, persons.map(|who| (number, Over::User(who))).into());
    // the one who is away counts what it has to learn, and nobody else does
    let pending = |world: &World| {
        world.gateways[0].cluster.gateways().iter().map(|row| row.pending).collect::<Vec<_>>()
    };
    assert_eq!(pending(&world), [0, 0, 2]);
    world.settle();
    assert_eq!((delivery(&world), pending(&world)), (None, vec![0, 0, 0]));
}

#[test]
fn r5_what_is_told_or_needless_is_not_told_after_a_restart() {
    let mut world = three();
    let alice = person("alice");
    world.cut(0);
    // lifted before anybody has heard of it
    world.decide(0, Over::Lock(alice.clone()));
    world.lift(0, 0, &alice);
    assert_eq!((world.gateways[0].letters(), world.gateways[0].cluster.untold()), (1, 1), "the lift alone");
    world.crash(0);
    world.settle();
    assert_eq!(world.gateways[0].letters(), 0);
    assert!(!world.etcd.keys.keys().any(|key| matches!(key, Key::Record(..) | Key::Lift(..))));
    // a lock, its lift and a lock
    world.cut(0);
    world.decide(0, Over::Lock(alice.clone()));
    world.lift(0, 0, &alice);
    world.decide(0, Over::Lock(alice));
    assert_eq!(world.gateways[0].letters(), 1, "the last lock alone");
    world.crash(0);
    world.settle();
    assert!(world.gateways.iter().all(|gateway| gateway.locks.len() == 1 && gateway.letters() == 0));
}

#[test]
fn a_record_keeps_its_words() {
    let mut world = three();
    let over = Over::Lock(person("alice"));
    world.decide(0, over.clone());
    world.settle();
    let (value, _) = &world.etcd.keys[&Key::Record(Author::Gateway(world.gateways[0].id), over)];
    assert!(matches!(value, Value::Record(record) if record.lasts == Some(60) && record.reason == "test"));
}

#[test]
fn r7_what_every_gateway_has_is_not_kept() {
    let mut world = three();
    for _ in 0..300 {
        world.decide(0, super::cookie(77).over());
        world.decide(1, Over::User(person("alice")));
    }
    for n in 0..300 {
        world.decide(2, super::cookie(n).over());
    }
    world.settle();
    let records = world.etcd.keys.keys().filter(|key| matches!(key, Key::Record(..))).count();
    assert_eq!(records, 1, "the watermark of the one person");
    assert!((1..=300).all(|number| world.gateways[0].cluster.delivery(number).is_none()));
}

/// A login at a web gateway whose place is written, and whose gateway has not heard so: there is no session yet.
fn at_the_web_gateway(who: &Identity) -> (World, SessionId) {
    let mut world = World::new(3, Some(ONE), WhenAway::Closed);
    world.settle();
    let id = world.web_login(0, who);
    let place = Key::Owners(who.clone());
    while !world.etcd.keys.contains_key(&place) {
        while world.read(0) | world.answer(0) {}
        assert!(world.carry(0));
    }
    assert!(!world.gateways[0].cookies[&id].is_there);
    (world, id)
}

fn nobody_has_a_place(world: &World) -> bool {
    !world.etcd.keys.keys().any(|key| matches!(key, Key::Owners(_) | Key::Admission(..)))
}

#[test]
fn r2_a_web_login_with_a_place_is_ended_by_what_is_read_before_its_session_is_made() {
    let (alice, bob) = (person("alice"), person("bob"));
    for over in
        [Over::User(alice.clone()), Over::Lock(alice.clone()), Over::User(bob.clone()), Over::Lock(bob)]
    {
        let is_hers = over.person() == Some(&alice);
        let (mut world, id) = at_the_web_gateway(&alice);
        world.decide(1, over);
        while world.carry(1) {}
        while world.read(0) {}
        world.settle();
        assert_eq!(world.gateways[0].cookies[&id].is_there, !is_hers);
        assert_eq!(nobody_has_a_place(&world), is_hers);
    }
}

#[test]
fn r2_r4_a_web_login_is_ended_by_what_its_own_gateway_decides_while_it_waits() {
    let (alice, bob) = (person("alice"), person("bob"));
    // however far it has come
    for (steps, over) in (0..6).flat_map(|steps| [&alice, &bob].map(|who| (steps, Over::User(who.clone())))) {
        let is_hers = over.person() == Some(&alice);
        let mut world = World::new(3, Some(ONE), WhenAway::Closed);
        world.settle();
        let id = world.web_login(0, &alice);
        for _ in 0..steps {
            let _ = world.carry(0) || world.answer(0) || world.read(0);
        }
        if world.gateways[0].cookies[&id].is_there {
            continue;
        }
        world.decide(0, over);
        world.settle();
        assert_eq!(world.gateways[0].cookies[&id].is_there, !is_hers, "{steps}");
        let fresh = world.web_login(0, &alice);
        world.settle();
        assert!(world.gateways[0].cookies[&fresh].is_there, "{steps}");
    }
}

#[test]
fn r3_a_web_login_is_ended_by_a_login_elsewhere_that_comes_before_its_session_is_made() {
    let alice = person("alice");
    let (mut world, id) = at_the_web_gateway(&alice);
    let later = world.login(1, &alice);
    while world.carry(1) | world.answer(1) | world.read(1) {}
    while world.read(0) {}
    world.settle();
    assert!(world.gateways[1].cookies[&later].tunnel && !world.gateways[0].cookies[&id].is_there);
}

#[test]
fn r2_a_web_login_whose_claim_was_not_answered_is_ended_by_what_came_after_it() {
    let alice = person("alice");
    let (mut world, id) = at_the_web_gateway(&alice);
    world.cut(0);
    world.by_hand(Over::User(alice));
    world.resume(0);
    world.settle();
    assert!(!world.gateways[0].cookies[&id].is_there && nobody_has_a_place(&world));
}

#[test]
fn r4_a_web_login_after_a_revocation_is_let_in_also_where_that_is_read_while_it_waits() {
    let alice = person("alice");
    let mut world = World::new(3, Some(ONE), WhenAway::Closed);
    world.settle();
    world.decide(1, Over::User(alice.clone()));
    while world.carry(1) {}
    let id = world.web_login(0, &alice);
    world.settle();
    assert!(world.gateways[0].cookies[&id].is_there);
}

#[test]
fn r2_r4_who_is_let_in_while_etcd_is_away_is_ended_by_what_is_decided_here_and_not_by_what_is_read_anew() {
    for ends in [false, true] {
        let mut world = World::new(2, Some(ONE), WhenAway::Open);
        world.settle();
        let alice = person("alice");
        world.by_hand(Over::User(alice.clone()));
        world.settle();
        world.crash(0);
        let (vpn, web) = (world.login(0, &alice), world.web_login(0, &alice));
        // the old record is read with all the rest, and then etcd is gone again
        world.connect(0);
        world.cut(0);
        if ends {
            world.decide(0, Over::User(alice));
        }
        world.wait(LOGIN_WAIT * 2);
        let cookies = &world.gateways[0].cookies;
        assert_eq!((cookies[&vpn].tunnel, cookies[&web].tunnel), (!ends, !ends));
    }
}

#[test]
fn by_hand_is_as_good_as_by_a_gateway() {
    let mut world = three();
    let alice = person("alice");
    let old = world.login(0, &alice);
    world.settle();
    world.by_hand(Over::User(alice));
    world.settle();
    assert!(world.gateways[0].cookies[&old].dead);
}

#[derive(Debug, Clone)]
enum Step {
    Login(usize, usize),
    Knock(usize, usize),
    Leave(usize, usize),
    Revoke(usize, usize),
    /// Two persons by one decision.
    RevokeTwo(usize, usize, usize),
    End(usize, usize),
    ByHand(usize),
    Lock(usize, usize),
    /// Which gateway lifts whose lock of whom.
    Lift(usize, usize, usize),
    Cut(usize),
    Deafen(usize),
    Connect(usize),
    Resume(usize),
    Crash(usize),
    Carry(usize),
    CarryLate(usize),
    Answer(usize),
    Read(usize),
    Errand(usize),
    FindDead(usize),
    Wait,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let (at, who) = (0..3_usize, 0..3_usize);
    prop_oneof![
        6 => (at.clone(), who.clone()).prop_map(|(at, who)| Step::Login(at, who)),
        4 => (at.clone(), 0..40_usize).prop_map(|(at, which)| Step::Knock(at, which)),
        2 => (at.clone(), 0..40_usize).prop_map(|(at, which)| Step::Leave(at, which)),
        4 => (at.clone(), who.clone()).prop_map(|(at, who)| Step::Revoke(at, who)),
        1 => (at.clone(), who.clone(), who.clone()).prop_map(|(at, one, two)| Step::RevokeTwo(at, one, two)),
        2 => (at.clone(), 0..40_usize).prop_map(|(at, which)| Step::End(at, which)),
        1 => who.clone().prop_map(Step::ByHand),
        2 => (at.clone(), who.clone()).prop_map(|(at, who)| Step::Lock(at, who)),
        3 => (at.clone(), at.clone(), who).prop_map(|(at, author, who)| Step::Lift(at, author, who)),
        2 => at.clone().prop_map(Step::Cut),
        1 => at.clone().prop_map(Step::Deafen),
        3 => at.clone().prop_map(Step::Connect),
        2 => at.clone().prop_map(Step::Resume),
        1 => at.clone().prop_map(Step::Crash),
        12 => at.clone().prop_map(Step::Carry),
        2 => at.clone().prop_map(Step::CarryLate),
        12 => at.clone().prop_map(Step::Answer),
        12 => at.clone().prop_map(Step::Read),
        8 => at.clone().prop_map(Step::Errand),
        4 => at.prop_map(Step::FindDead),
        1 => Just(Step::Wait),
        1 => Just(Step::Settle),
    ]
}

fn policy() -> impl Strategy<Value = (Option<Limit>, WhenAway)> {
    let limit = prop_oneof![
        Just(None),
        (1..3_usize, prop_oneof![Just(Yields::Oldest), Just(Yields::Newest)])
            .prop_map(|(most, yields)| Some(Limit { most, yields })),
    ];
    (limit, prop_oneof![Just(WhenAway::Open), Just(WhenAway::Closed)])
}

const NAMES: [&str; 3] = ["alice", "bob", "carol"];

fn play(world: &mut World, step: &Step) {
    let nth = |world: &World, at: usize, which: usize| {
        let cookies = &world.gateways[at].cookies;
        cookies.keys().copied().nth(which % cookies.len().max(1))
    };
    match *step {
        Step::Login(at, who) => drop(world.login(at, &person(NAMES[who]))),
        Step::Knock(at, which) => {
            if let Some(id) = nth(world, at, which) {
                world.knock(at, id);
            }
        }
        Step::Leave(at, which) => {
            if let Some(id) = nth(world, at, which) {
                world.leave(at, id);
            }
        }
        Step::Revoke(at, who) => drop(world.decide(at, Over::User(person(NAMES[who])))),
        Step::RevokeTwo(at, one, two) => {
            let overs: BTreeSet<Over> = [one, two].map(|who| Over::User(person(NAMES[who]))).into();
            world.decide_of(at, overs.into_iter().collect());
        }
        Step::End(at, which) => {
            // it may be another gateway's
            if let Some(id) = (0..3).find_map(|other| nth(world, (at + other + 1) % 3, which)) {
                world.decide(at, id.over());
            }
        }
        Step::Lock(at, who) => drop(world.decide(at, Over::Lock(person(NAMES[who])))),
        Step::Lift(at, author, who) => world.lift(at, author, &person(NAMES[who])),
        Step::ByHand(who) => world.by_hand(Over::User(person(NAMES[who]))),
        Step::Cut(at) => world.cut(at),
        Step::Deafen(at) => world.gateways[at].deaf = true,
        Step::Connect(at) => world.connect(at),
        Step::Resume(at) => world.resume(at),
        Step::Crash(at) => world.crash(at),
        Step::Carry(at) => drop(world.carry(at)),
        Step::CarryLate(at) => world.carry_late(at),
        Step::Answer(at) => drop(world.answer(at)),
        Step::Read(at) => drop(world.read(at)),
        Step::Errand(at) => drop(world.run_errand(at)),
        Step::FindDead(at) => drop(world.find_dead(at)),
        Step::Wait => world.wait(Duration::from_millis(1_500)),
        Step::Settle => world.settle(),
    }
}

/// What has to hold once everything is healed and has come to rest.
fn check(world: &World) -> Result<(), TestCaseError> {
    for (revision, over, ids) in &world.ended {
        for gateway in &world.gateways {
            for id in ids {
                let lives = gateway.cookies.get(id).is_some_and(|cookie| !cookie.dead);
                prop_assert!(!lives, "{id} lives after {over:?} at {revision}");
            }
        }
    }
    let locks = |at: usize| world.gateways[at].locks.keys().cloned().collect::<Vec<_>>();
    prop_assert_eq!(locks(0), locks(1));
    prop_assert_eq!(locks(0), locks(2));
    for (key, (value, _)) in &world.etcd.keys {
        let Value::Owners(owners) = value else { continue };
        for holder in &owners.holders {
            let mut cookies = world.gateways.iter().flat_map(|gateway| gateway.alive());
            prop_assert!(cookies.any(|(id, _)| *id == holder.session), "{key:?}: {holder:?} is over");
        }
    }
    let lifts = world.etcd.keys.keys().filter(|key| matches!(key, Key::Lift(..))).count();
    prop_assert_eq!(lifts, 0, "a lift goes with what it lifts");
    for gateway in &world.gateways {
        prop_assert_eq!((gateway.cluster.untold(), gateway.letters(), gateway.cluster.errands()), (0, 0, 0));
        let rows = gateway.cluster.gateways();
        prop_assert!(rows.len() == 3 && rows.iter().all(|row| row.alive && row.pending == 0), "{:?}", rows);
        prop_assert!(gateway.cluster.read() == gateway.cluster.known() && !gateway.cluster.is_away());
    }
    if let Some(limit) = world.limit {
        let mut tunnels: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, cookie) in world.gateways.iter().flat_map(|gateway| gateway.alive()) {
            *tunnels.entry(&cookie.who.name).or_default() += usize::from(cookie.tunnel);
        }
        prop_assert!(tunnels.values().all(|n| *n <= limit.most), "{tunnels:?}");
    }
    prop_assert!(
        !world.etcd.keys.keys().any(|key| matches!(key, Key::Record(_, Over::Session(_) | Over::Web(_)))),
        "what is everywhere is not kept"
    );
    Ok(())
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    /// `PROPTEST_CASES=20000 cargo test -p enforcer --lib registry::cluster::tests::stories::r2_r5` searches further.
    #[test]
    fn r2_r5_whatever_is_cut_off_falls_behind_or_dies_in_between(
        (limit, when_away) in policy(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(3, limit, when_away);
        // each is known to the others: who never was is not waited for
        world.settle();
        for step in &steps {
            play(&mut world, step);
        }
        world.settle();
        check(&world)?;
        // and a fresh login works at once
        let alice = person("dora");
        let id = world.login(1, &alice);
        world.settle();
        prop_assert!(world.gateways[1].cookies[&id].tunnel);
    }
}
