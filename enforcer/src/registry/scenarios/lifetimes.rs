//! How long what is said in the kernel stands: lifts, expiries, and entries that several revocations want.

use std::time::Duration;

use super::harness::*;
use crate::registry::*;
use crate::session::{Entry, Stands};

/// Where there is no gate, nobody tells of the script's end.
#[test]
fn r1_a_session_that_came_up_without_a_gate_is_seen_to_be_live() {
    let mut world = World::new();
    world.see(at_gate("alice", 7, 1));
    world.pass(499);
    assert_eq!(world.asked(|e| matches!(e, Effect::Probe { .. })), 0);
    world.pass(1);
    assert_eq!(world.asked(|e| matches!(e, Effect::Probe { .. })), 1);
    world.see(sighting("alice", 7, 1));
    assert_eq!(world.registry.session(&server(), 7).unwrap().phase, Phase::Live);
}

fn lift(world: &mut World, number: Number) -> Answer {
    world.give(Event::Lift { request: 1_000_000 + number, number, by: "b".into() });
    world.answers[&(1_000_000 + number)].clone()
}

#[test]
fn a_lift_lets_the_cookie_in_again_and_a_second_one_is_told() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    assert!(matches!(lift(&mut world, 1), Answer::Receipt(_)));
    assert!(world.kernel.is_empty());
    assert!(world.admitted(at_gate("alice", 17, 1)));
    assert!(matches!(lift(&mut world, 1), Answer::Nothing(_)));
    assert!(matches!(lift(&mut world, 99), Answer::Nothing(_)));
}

#[test]
fn r2_a_cookie_that_two_revocations_refuse_is_refused_until_both_are_lifted() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    world.revoke(user("alice"));
    world.list(vec![]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    lift(&mut world, 1);
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    lift(&mut world, 2);
    assert!(world.admitted(at_gate("alice", 18, 1)));
}

#[test]
fn r2_lifting_the_later_of_two_revocations_leaves_the_earlier_one_in_force() {
    let mut world = World::with(true, Rules::default());
    world.connect("alice", 7, 1);
    world.revoke(order(Target::Session(safe_id(1))));
    world.revoke(user("alice"));
    lift(&mut world, 2);
    assert!(world.has(&Entry::SafeId(safe_id(1))) && world.has(&Entry::Device(device(7))));
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    assert!(world.has(&Entry::Device(device(17))));
    world.see(sighting("alice", 18, 1));
    assert!(world.has(&Entry::Device(device(18))));
}

#[test]
fn an_explicit_address_stands_for_its_time_and_not_longer() {
    let mut world = World::new();
    let stands = Some(Duration::from_secs(60));
    let request = world.revoke(Order { stands, ..order(Target::Address(address(9))) });
    assert!(world.receipt(request).is_complete());
    assert!(matches!(world.kernel[&on_address(9)].1, Stands::Until(_)));
    world.pass(59_999);
    assert!(world.has(&on_address(9)));
    world.pass(1);
    assert!(!world.has(&on_address(9)));
    assert!(world.registry.revocations().all(|r| r.state == RevocationState::Expired));
}

#[test]
fn an_explicit_address_outlasts_the_session_that_had_it() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(order(Target::Address(address(7))));
    world.revoke(user("alice"));
    world.list(vec![]);
    world.cookies(vec![]);
    world.end(key, 7);
    assert_eq!(world.kernel[&on_address(7)].1, Stands::Forever);
    // also for its next owner, since somebody asked for just that
    let mut bobs = at_gate("bob", 8, 2);
    bobs.observed.addresses = vec![address(7)];
    assert!(world.admitted(bobs));
    assert!(world.has(&on_address(7)));
    lift(&mut world, 1);
    assert!(!world.has(&on_address(7)));
}

#[test]
fn an_explicit_flow_waits_for_its_socket_and_says_what_became_of_it() {
    let mut world = World::new();
    let request = world.revoke(order(Target::Flow(flow(1))));
    assert!(world.has(&Entry::Flow(NETNS, flow(1))));
    assert!(world.answers.is_empty());
    world.give(Event::FlowDestroyed { number: 1, outcome: Ok(1) });
    assert!(world.receipt(request).is_complete());
    let request = world.revoke(order(Target::Flow(flow(2))));
    world.give(Event::FlowDestroyed { number: 2, outcome: Err("no".into()) });
    assert!(!world.receipt(request).is_complete());
}

#[test]
fn r7_when_everything_is_over_nothing_is_left_in_the_kernel() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.connect("bob", 8, 2);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900), cookie("bob", 2, 900)]);
    world.pass(4_000);
    world.cookies(vec![cookie("bob", 2, 900)]);
    world.list(vec![sighting("bob", 8, 2)]);
    world.pass(60_000);
    world.cookies(vec![cookie("bob", 2, 900)]);
    assert!(world.kernel.is_empty(), "{:?}", world.kernel);
    assert!(world.registry.revocations().all(|r| r.state == RevocationState::Settled));
}

#[test]
fn an_unknown_server_is_named_with_those_that_there_are() {
    let mut world = World::new();
    let request = world.revoke(Order { server: Some(crate::session::ServerName::new("x")), ..user("alice") });
    assert!(
        matches!(&world.answers[&request], Answer::Refused(why) if why.contains("the configuration has s"))
    );
}
