//! What the other gateways are told of a decision here, and what is done here of theirs.

use std::collections::BTreeSet;

use super::super::*;
use super::harness::*;
use crate::session::{Author, Decision, GatewayId, Identity, Origin, Over, SessionId};

const ME: GatewayId = GatewayId::from_bytes([1; 16]);
const OTHER: Author = Author::Gateway(GatewayId::from_bytes([2; 16]));

fn person(realm: &str, name: &str) -> Identity {
    Identity { realm: realm.into(), name: name.into() }
}

fn alice() -> Identity {
    person("default", "alice")
}

fn clustered(realms: &[&str]) -> World {
    let rules = Rules {
        replicates: Some(realms.iter().map(|realm| (*realm).to_owned()).collect()),
        author: Some(Author::Gateway(ME)),
        ..Rules::default()
    };
    World::with(&["vpn"], rules)
}

fn theirs(target: Target, revision: u64) -> Order {
    Order { origin: Some(Origin { author: OTHER, revision }), ..World::order(target) }
}

fn decided(world: &World) -> Vec<(Number, Vec<Over>, Decision)> {
    (world.replicated.iter())
        .filter_map(|effect| match effect {
            Effect::Decided { number, over, decision, .. } => Some((*number, over.clone(), decision.clone())),
            _ => None,
        })
        .collect()
}

fn taken_back(world: &World) -> Vec<(Option<Origin>, Vec<Over>)> {
    (world.replicated.iter())
        .filter_map(|effect| match effect {
            Effect::TakenBack { origin, over, .. } => Some((*origin, over.clone())),
            _ => None,
        })
        .collect()
}

fn give(world: &mut World, orders: Vec<Order>) -> Vec<Request> {
    let orders: Vec<(Request, Order)> =
        orders.into_iter().map(|order| (Request::from(world.count()), order)).collect();
    let requests = orders.iter().map(|(request, _)| *request).collect();
    world.handle(Event::RevokeMany { orders });
    world.run();
    requests
}

fn take_back(world: &mut World, author: Author, over: Over, up_to: u64) -> Answer {
    let request = Request::from(world.count());
    let lift = TakeBack { author, over, up_to, by: "root at vpn-2".into() };
    world.handle(Event::TakeBack { request, lift });
    world.run();
    world.answers.remove(&request).expect("answered")
}

#[test]
fn what_is_decided_here_is_told_by_person_and_once() {
    let mut world = clustered(&["default", "partners"]);
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    let told = decided(&world);
    let over = vec![Over::User(alice()), Over::User(person("partners", "alice"))];
    assert_eq!(told.iter().map(|(_, over, _)| over.clone()).collect::<Vec<_>>(), [over]);
    assert_eq!((told[0].2.number, told[0].2.until), (told[0].0, None));
    // nobody has anything of it here: another gateway may
    world.ask(World::order(Target::User("bob".into())));
    world.run();
    assert_eq!(decided(&world).len(), 2);
}

#[test]
fn what_means_something_here_alone_is_not_told() {
    let mut world = clustered(&["default"]);
    let cookie = world.login("alice");
    let id = world.up(cookie);
    let here = Order { server: Some(vpn()), ..World::order(Target::User("alice".into())) };
    for order in [here, World::order(Target::Id(id)), World::order(Target::Address(ip(9)))] {
        world.ask(order);
        world.run();
    }
    assert_eq!(decided(&world), []);
    // and its twin: with no other gateways nobody is told of anything
    let mut alone = World::newest_ocserv();
    alone.ask(World::order(Target::User("alice".into())));
    alone.run();
    assert_eq!(alone.replicated, []);
}

#[test]
fn r2_what_another_gateway_has_decided_ends_the_session_and_its_cookie_and_is_not_told_on() {
    let mut world = clustered(&["default"]);
    let cookie = world.login("alice");
    let id = world.up(cookie);
    let requests = give(&mut world, vec![theirs(Target::Person(alice()), 7)]);
    assert!(
        matches!(world.answers.get(&requests[0]), Some(Answer::Receipt(receipt)) if receipt.is_complete())
    );
    assert!(!world.workers.contains_key(&id) && !world.is_let_in(cookie));
    assert_eq!(decided(&world), []);
    let origin = Origin { author: OTHER, revision: 7 };
    assert!(world.registry.carries_out(origin, &Over::User(alice())));
    assert!(!world.registry.carries_out(Origin { revision: 8, ..origin }, &Over::User(alice())));
    // R4
    let fresh = world.login("alice");
    assert!(world.is_let_in(fresh));
}

#[test]
fn r3_of_the_same_name_in_another_realm_nothing_is_touched() {
    let mut world = clustered(&["default", "partners"]);
    let cookie = world.login("alice");
    let id = world.up(cookie);
    give(&mut world, vec![theirs(Target::Person(person("partners", "alice")), 7)]);
    assert!(world.workers.contains_key(&id) && !world.is_hit(id));
}

#[test]
fn r3_who_was_admitted_after_the_record_is_spared() {
    let mut world = clustered(&["default"]);
    let (old, new) = (world.login("alice"), world.login("alice"));
    let (before, after) = (world.up(old), world.up(new));
    let order = Order { spare: BTreeSet::from([SessionId::Vpn(new)]), ..theirs(Target::Person(alice()), 7) };
    give(&mut world, vec![order]);
    assert!(!world.workers.contains_key(&before) && !world.is_let_in(old));
    assert!(world.workers.contains_key(&after) && !world.is_hit(after) && world.is_let_in(new));
}

#[test]
fn many_at_once_are_each_answered() {
    let mut world = clustered(&["default"]);
    let cookies: Vec<_> = (0..5).map(|n| world.login(&format!("user{n}"))).collect();
    let ids: Vec<_> = cookies.iter().map(|cookie| world.up(*cookie)).collect();
    let orders =
        (0..5).map(|n| theirs(Target::Person(person("default", &format!("user{n}"))), 7 + n)).collect();
    let requests = give(&mut world, orders);
    assert!(requests.iter().all(|request| world.answers.contains_key(request)));
    assert!(ids.iter().all(|id| !world.workers.contains_key(id)));
}

#[test]
fn a_lift_takes_back_up_to_its_revision_and_nothing_newer() {
    let mut world = clustered(&["default"]);
    let target = || Target::Lock(alice());
    give(&mut world, vec![theirs(target(), 7), theirs(target(), 9)]);
    assert!(matches!(take_back(&mut world, OTHER, Over::Lock(alice()), 7), Answer::Receipt(_)));
    let cookie = world.login("alice");
    assert!(!world.is_let_in(cookie), "the newer one stands");
    assert!(matches!(take_back(&mut world, Author::Admin, Over::Lock(alice()), 9), Answer::Nothing(_)));
    assert!(!world.is_let_in(cookie), "it is another author's");
    assert!(matches!(take_back(&mut world, OTHER, Over::Lock(alice()), 9), Answer::Receipt(_)));
    assert!(world.is_let_in(cookie));
    assert_eq!(taken_back(&world), [], "whoever has lifted it knows");
}

#[test]
fn what_is_taken_back_here_is_told_with_whose_it_was() {
    let mut world = clustered(&["default"]);
    give(&mut world, vec![theirs(Target::Lock(alice()), 7)]);
    let request = world.ask(World::order(Target::Lock(alice())));
    world.run();
    world.answers.remove(&request);
    let number = decided(&world)[0].0;
    let mine = Origin { author: Author::Gateway(ME), revision: 8 };
    world.handle(Event::Told { number, origin: mine });
    world.run();
    let request = Request::from(world.count());
    world.handle(Event::Unlock { request, identity: alice(), by: "root".into() });
    world.run();
    let over = || vec![Over::Lock(alice())];
    let other = Origin { author: OTHER, revision: 7 };
    assert_eq!(taken_back(&world), [(Some(other), over()), (Some(mine), over())]);
}

#[test]
fn another_gateway_takes_back_what_was_decided_here_once_it_was_told() {
    let mut world = clustered(&["default"]);
    world.ask(World::order(Target::Lock(alice())));
    world.run();
    let number = decided(&world)[0].0;
    let origin = Origin { author: Author::Gateway(ME), revision: 5 };
    assert!(matches!(take_back(&mut world, origin.author, Over::Lock(alice()), 5), Answer::Nothing(_)));
    world.handle(Event::Told { number, origin });
    world.run();
    assert!(matches!(take_back(&mut world, origin.author, Over::Lock(alice()), 5), Answer::Receipt(_)));
    let cookie = world.login("alice");
    assert!(world.is_let_in(cookie));
}

#[test]
fn r5_whose_record_it_carries_out_outlives_the_daemon() {
    let mut world = clustered(&["default"]);
    give(&mut world, vec![theirs(Target::Lock(alice()), 7)]);
    world.restart_daemon();
    world.run();
    let origin = Origin { author: OTHER, revision: 7 };
    assert!(world.registry.carries_out(origin, &Over::Lock(alice())));
    assert!(matches!(take_back(&mut world, OTHER, Over::Lock(alice()), 7), Answer::Receipt(_)));
}

/// R2: of two of one gateway's, whichever is lifted first, the other one stands elsewhere too.
#[test]
fn r2_what_stands_besides_keeps_the_others_from_being_told() {
    let me = Author::Gateway(ME);
    let nothing = BTreeSet::new();
    for told in [false, true] {
        let mut world = clustered(&["default"]);
        let mut numbers = Vec::new();
        for revision in [5, 9] {
            let cookie = world.login("alice");
            world.up(cookie);
            world.revoke_user("alice");
            numbers.push(decided(&world).last().unwrap().0);
            if told {
                world.handle(Event::Told {
                    number: numbers[numbers.len() - 1],
                    origin: Origin { author: me, revision },
                });
                world.run();
            }
        }
        let over = Over::User(alice());
        let untold = if told { nothing.clone() } else { numbers.iter().copied().collect() };
        for number in numbers.iter().copied() {
            assert!(world.registry.stands_besides(number, &over, &untold, me), "{told} {number}");
        }
        world.lift(numbers[1]);
        assert!(!world.registry.stands_besides(numbers[0], &over, &untold, me), "{told}");
    }
}

/// R2, R5: the same of locks; another gateway's stands by itself.
#[test]
fn r2_r5_of_two_locks_the_other_stands() {
    let me = Author::Gateway(ME);
    let (over, nothing) = (Over::Lock(alice()), BTreeSet::new());
    let mut world = clustered(&["default"]);
    world.ask(World::order(Target::Lock(alice())));
    world.run();
    let first = decided(&world)[0].0;
    give(&mut world, vec![theirs(Target::Lock(alice()), 7)]);
    assert!(!world.registry.stands_besides(first, &over, &nothing, me));
    world.ask(World::order(Target::Lock(alice())));
    world.run();
    let second = decided(&world)[1].0;
    assert!(world.registry.stands_besides(first, &over, &nothing, me));
    assert!(world.registry.stands_besides(second, &over, &nothing, me));
    world.lift(first);
    assert!(!world.registry.stands_besides(second, &over, &nothing, me));
}

/// R2: the others keep the newest one's time alone: a shorter lock does not let her in sooner there.
#[test]
fn r2_a_lock_is_told_to_last_as_long_as_the_longest() {
    let lasts = |world: &mut World, stands: Option<u64>| {
        let stands = stands.map(Duration::from_secs);
        world.ask(Order { stands, ..World::order(Target::Lock(alice())) });
        world.run();
        decided(world).last().unwrap().2.lasts
    };
    let mut world = clustered(&["default"]);
    assert_eq!(lasts(&mut world, Some(600)), Some(600));
    let shorter = lasts(&mut world, Some(60)).unwrap();
    assert!((590..=600).contains(&shorter), "{shorter}");
    assert_eq!(lasts(&mut world, Some(6_000)), Some(6_000));
    assert_eq!(lasts(&mut world, None), None);
    assert_eq!(lasts(&mut world, Some(60)), None, "one of them stands until it is lifted");
    // the twins: what was taken back, and what another gateway has decided, lengthens nothing
    let request = Request::from(world.count());
    world.handle(Event::Unlock { request, identity: alice(), by: "root".into() });
    world.run();
    assert_eq!(lasts(&mut world, Some(60)), Some(60));
    let mut world = clustered(&["default"]);
    give(&mut world, vec![theirs(Target::Lock(alice()), 7)]);
    assert_eq!(lasts(&mut world, Some(60)), Some(60));
}

#[test]
fn all_cookies_of_a_server_are_told_of_and_none_where_it_is_gone() {
    let mut world = clustered(&["default"]);
    let cookie = world.login("alice");
    world.handle(Event::WantCookies { server: vpn() });
    world.run();
    let listed = |world: &World| {
        (world.replicated.iter())
            .filter_map(|effect| match effect {
                Effect::CookiesListed { ids, .. } => Some(ids.clone()),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(&world).last(), Some(&vec![cookie]));
    world.stop_ocserv();
    world.start_ocserv();
    world.run();
    assert_eq!(listed(&world).last(), Some(&Vec::new()));
}
