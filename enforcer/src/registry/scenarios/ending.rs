//! R1 and R6: what a revocation does, in which order, and what its receipt says.

use super::harness::*;
use crate::registry::*;
use crate::session::{Entry, Token, TokenKind};

#[test]
fn r1_the_kernel_is_marked_before_ocserv_is_asked_for_anything() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    let effects = world.registry.handle(Event::Revoke { request: None, order: user("alice") }, world.now);
    let place = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted).unwrap();
    let last_insert = effects.iter().rposition(|e| matches!(e, Effect::Insert { .. })).unwrap();
    for asked in [
        place(|e| matches!(e, Effect::Disconnect { .. })),
        place(|e| matches!(e, Effect::End { .. })),
        place(|e| matches!(e, Effect::AskCookies { .. })),
    ] {
        assert!(last_insert < asked, "{effects:?}");
    }
    for entry in [Entry::Device(device(7)), on_address(7), Entry::SafeId(safe_id(1))] {
        assert!(effects.iter().any(|e| matches!(e, Effect::Insert { entry: there, .. } if *there == entry)));
    }
}

#[test]
fn r1_flows_are_dropped_before_the_disconnect_and_only_while_the_sockets_are_there() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.give(Event::Flows { key, outcome: Ok((NETNS, vec![flow(1), flow(2)])) });
    assert!(world.has(&Entry::Flow(NETNS, flow(1))) && world.has(&Entry::Flow(NETNS, flow(2))));
    world.give(Event::Ended { key, ended: Ended { destroyed: 2, ..Ended::default() } });
    assert!(!world.has(&Entry::Flow(NETNS, flow(1))) && !world.has(&Entry::Flow(NETNS, flow(2))));
}

#[test]
fn r1_what_its_flows_have_shown_is_dropped_from_anywhere_until_nothing_of_it_is_left() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    let token = |n: u8| Token::new(TokenKind::Dtls, vec![n; 32]).unwrap();
    // what is told of a session that nobody has revoked is no reason to drop anything
    world.give(Event::Tokens { key, tokens: vec![token(1)] });
    assert!(!world.has(&Entry::Token(token(1))));
    world.revoke(user("alice"));
    world.give(Event::Flows { key, outcome: Ok((NETNS, vec![flow(1)])) });
    world.give(Event::Tokens { key, tokens: vec![token(1), token(2)] });
    assert!(world.has(&Entry::Token(token(1))) && world.has(&Entry::Token(token(2))));
    world.give(Event::Ended { key, ended: Ended { destroyed: 1, ..Ended::default() } });
    assert!(world.has(&Entry::Token(token(1))) && !world.has(&Entry::Flow(NETNS, flow(1))));
    world.give(Event::WorkerGone { key });
    world.give(Event::DeviceGone { device: device(7) });
    assert!(!world.has(&Entry::Token(token(1))) && !world.has(&Entry::Token(token(2))));
    // too late: nothing of it is left
    world.give(Event::Tokens { key, tokens: vec![token(3)] });
    assert!(!world.has(&Entry::Token(token(3))));
}

#[test]
fn r1_the_answer_waits_for_the_sockets_and_for_the_cookies() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    let request = world.revoke(user("alice"));
    world.list(vec![]);
    assert!(world.answers.is_empty());
    world.cookies(vec![cookie("alice", 1, 900)]);
    assert!(world.answers.is_empty(), "the worker is there");
    world.end(key, 7);
    assert!(world.answers.is_empty(), "whether the cookie is gone was not looked at");
    world.cookies(vec![cookie("alice", 1, 900)]);
    let receipt = world.receipt(request);
    assert!(receipt.is_complete());
    assert_eq!(receipt.layers.iter().find(|l| l.layer == Layer::Cookie).unwrap().guarded, 1);
}

#[test]
fn r6_a_cookie_is_called_gone_only_when_it_was_seen_to_be() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    let request = world.revoke_fully("alice", 7, vec![]);
    let cookie_layer = world.receipt(request).layers.iter().find(|l| l.layer == Layer::Cookie).unwrap();
    assert_eq!((cookie_layer.done, cookie_layer.guarded), (1, 0));
}

#[test]
fn r6_without_the_gate_a_cookie_is_not_called_refused() {
    let mut world = World::new();
    world.give(Event::ServerUp {
        server: server(),
        main: crate::session::Process { pid: 2, start: 2 },
        terminate: false,
    });
    world.list(vec![sighting("alice", 7, 1)]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    let request = world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    assert!(!world.receipt(request).is_complete());
}

#[test]
fn r6_a_silent_ocserv_is_answered_in_part_and_completed_when_it_speaks_again() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    let request = world.revoke(user("alice"));
    world.give(Event::Ended { key, ended: Ended { destroyed: 2, ..Ended::default() } });
    world.silence();
    assert!(!world.receipt(request).is_complete());
    assert!(
        world.kernel.keys().any(|entry| matches!(entry, Entry::Cutoff(_))),
        "her other cookies are refused"
    );
    world.pass(250);
    world.list(vec![]);
    world.cookies(vec![cookie("alice", 1, 900), cookie("alice", 2, 950)]);
    assert!(world.has(&Entry::SafeId(safe_id(2))));
    assert!(!world.kernel.keys().any(|entry| matches!(entry, Entry::Cutoff(_))));
    assert!(world.registry.receipt_of(1, world.now).unwrap().is_complete());
}

#[test]
fn r6_an_answer_comes_within_its_bound_whatever_hangs() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    let request = world.revoke(user("alice"));
    world.pass(3_999);
    assert!(world.answers.is_empty());
    world.pass(1);
    assert!(!world.receipt(request).is_complete());
}

#[test]
fn r6_nothing_matched_changes_nothing() {
    let mut world = World::new();
    world.connect("bob", 8, 2);
    for order in [user("alice"), order(Target::Id(99)), order(Target::Session(safe_id(9)))] {
        let request = world.revoke(order);
        world.list(vec![sighting("bob", 8, 2)]);
        world.cookies(vec![cookie("bob", 2, 900)]);
        assert!(matches!(world.answers[&request], Answer::Nothing(_)), "{:?}", world.answers);
        assert!(world.kernel.is_empty(), "{:?}", world.kernel);
    }
    assert!(world.admitted(at_gate("alice", 9, 3)));
}

#[test]
fn r7_a_full_table_is_said_and_the_other_layers_act() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    let request = world.revoke(user("alice"));
    let (entry, number) = (Entry::Device(device(7)), 1);
    world.kernel.remove(&entry);
    world.give(Event::InsertFailed { entry, number, error: "the table devices is full".into() });
    world.list(vec![]);
    world.cookies(vec![]);
    world.give(Event::Ended { key, ended: Ended::default() });
    world.cookies(vec![]);
    let receipt = world.receipt(request);
    assert!(!receipt.is_complete());
    assert!(receipt.notes.iter().any(|note| note.contains("full")), "{:?}", receipt.notes);
}

#[test]
fn r6_a_worker_that_cannot_be_seen_is_said() {
    let mut world = World::new();
    world.list(vec![Sighting { worker: None, device: None, ..sighting("alice", 7, 1) }]);
    let request = world.revoke(user("alice"));
    assert_eq!(world.asked(|e| matches!(e, Effect::Disconnect { id: 7, .. })), 1);
    world.list(vec![Sighting { worker: None, device: None, ..sighting("alice", 7, 1) }]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    assert!(!world.receipt(request).is_complete());
}

#[test]
fn r1_a_session_that_connected_by_a_clock_that_was_set_back_since_is_dropped_as_soon_as_it_is_seen() {
    let mut world = World::new();
    world.restart();
    world.up(1, false);
    world.revoke(user("alice"));
    let mut hers = sighting("alice", 7, 1);
    hers.observed.since = world.now.wall + 10;
    world.list(vec![hers]);
    assert!(world.has(&Entry::Device(device(7))), "whatever the list of cookies will tell");
}
