//! Explicit addresses, flows and tokens, and lifts.

use super::super::*;
use super::harness::*;
use crate::session::{Entry, Netns, Stands, Token, TokenKind};

fn for_a(target: Target, stands: Duration) -> Order {
    Order { stands: Some(stands), ..World::order(target) }
}

#[test]
fn an_explicit_address_is_answered_at_once_and_stands_until_it_is_lifted() {
    let mut world = World::new();
    let receipt = world.receipt(Target::Address(ip(7)));
    assert!(receipt.is_complete());
    let entry = Entry::Address(NETNS, ip(7));
    assert_eq!(world.kernel[&entry].stands, Stands::Forever);
    world.pass(3_600 * SECOND);
    assert!(world.drops(&entry));
    assert!(matches!(world.lift(receipt.number), Answer::Receipt(_)));
    assert!(!world.drops(&entry));
    assert!(matches!(world.lift(receipt.number), Answer::Nothing(_)));
}

#[test]
fn an_explicit_entry_with_a_time_expires_by_itself_and_not_before() {
    let mut world = World::new();
    for kind in TokenKind::ALL {
        let token = Token::new(kind, vec![1; 8]).unwrap();
        let request = world.ask(for_a(Target::Token(token.clone()), 90 * SECOND));
        let Answer::Receipt(receipt) = world.answered(request) else { panic!("no receipt") };
        world.pass(89 * SECOND);
        assert!(world.drops(&Entry::Token(token.clone())));
        world.pass(SECOND);
        assert!(!world.drops(&Entry::Token(token)));
        let state = world.registry.revocations().find(|r| r.number == receipt.number).unwrap().state;
        assert_eq!(state, RevocationState::Expired);
    }
}

#[test]
fn a_token_of_one_kind_is_none_of_another_with_the_same_bytes() {
    let mut world = World::new();
    let [dtls, openvpn] = TokenKind::ALL.map(|kind| Token::new(kind, vec![7; 8]).unwrap());
    let holds = |world: &World| TokenKind::ALL.map(|kind| world.registry.holdings().has_token_of(kind));
    assert_eq!(holds(&world), [false, false]);
    let first = world.receipt(Target::Token(dtls.clone())).number;
    assert_eq!(holds(&world), [true, false]);
    assert!(world.drops(&Entry::Token(dtls.clone())) && !world.drops(&Entry::Token(openvpn.clone())));
    world.receipt(Target::Token(openvpn.clone()));
    assert_eq!(holds(&world), [true, true]);
    world.lift(first);
    assert_eq!(holds(&world), [false, true]);
    assert!(!world.drops(&Entry::Token(dtls)) && world.drops(&Entry::Token(openvpn)));
}

#[test]
fn an_explicit_flow_takes_its_socket_and_no_other() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let (alice, bob) = (world.up(alices), world.up(bobs));
    let receipt = world.receipt(Target::Flow(world.workers[&alice].flow));
    assert_eq!(layer(&receipt, Layer::Sockets).done, 1);
    assert!(world.is_hit(alice) && !world.is_hit(bob));
}

#[test]
fn an_explicit_address_is_dropped_in_every_namespace_also_in_one_that_comes_later() {
    let mut world = World::new();
    world.ask(for_a(Target::Address(ip(7)), 60 * SECOND));
    world.receipt(Target::Address(ip(8)));
    let later = Netns(2);
    world.handle(Event::NetnsAdded { netns: later });
    assert!(world.drops(&Entry::Address(later, ip(7))) && world.drops(&Entry::Address(later, ip(8))));
    world.pass(61 * SECOND);
    assert!(!world.drops(&Entry::Address(later, ip(7))) && world.drops(&Entry::Address(later, ip(8))));
}

#[test]
fn r5_lifting_one_of_two_revocations_of_a_session_takes_nothing_from_the_other() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    let first = world.revoke_user("alice").number;
    let second = world.receipt(Target::Session(cookie)).number;
    let entries = world.kernel.len();
    world.lift(first);
    assert_eq!(world.kernel.keys().filter(|e| !matches!(e, Entry::Flow(..))).count(), entries - 1);
    assert!(world.kernel.values().all(|it| it.number == second), "{:?}", world.kernel);
    assert!(!world.is_let_in(cookie));
    world.lift(second);
    assert_eq!(world.kernel.len(), 0);
    assert!(world.is_let_in(cookie));
}

#[test]
fn r5_an_explicit_revocation_of_a_sessions_address_outlives_the_session_and_the_other_way_round() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    let entry = Entry::Address(NETNS, world.workers[&id].address);
    world.ask(for_a(Target::Address(world.workers[&id].address), 10 * SECOND));
    world.revoke_user("alice");
    assert!(matches!(world.kernel[&entry].stands, Stands::Until(_)));
    world.pass(11 * SECOND);
    assert_eq!(world.kernel[&entry].stands, Stands::Leased, "the session is still there");
    let explicit = world.receipt(Target::Address(world.workers[&id].address)).number;
    world.exit(id);
    assert_eq!(world.kernel[&entry].stands, Stands::Forever);
    world.lift(explicit);
    assert!(!world.drops(&entry));
}

#[test]
fn r3_the_next_owner_of_an_explicitly_revoked_address_is_hit_since_that_was_asked_for() {
    let mut world = World::new();
    let cookie = world.login("bob");
    world.receipt(Target::Address(ip(7)));
    let worker = Worker { address: ip(7), ..world.worker(cookie) };
    let (id, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    assert!(world.is_hit(id));
}

#[test]
fn r4_a_lift_lets_the_cookie_in_again_that_ocserv_still_holds() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    let number = world.revoke_user("alice").number;
    assert!(!world.is_let_in(cookie));
    world.lift(number);
    assert!(world.is_let_in(cookie));
}

#[test]
fn a_lift_of_a_number_that_was_never_given_changes_nothing() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    assert!(matches!(world.lift(99), Answer::Nothing(_)));
    assert!(!world.is_let_in(cookie));
}

#[test]
fn a_command_whose_revocation_is_lifted_before_its_answer_is_answered_all_the_same() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    let request = world.ask(World::order(Target::User("alice".into())));
    world.lift(1);
    assert!(matches!(world.answers.remove(&request), Some(Answer::Nothing(_))));
    world.run();
    world.pass(10 * SECOND);
    assert!(world.is_let_in(cookie));
}

#[test]
fn a_login_that_waits_for_the_list_is_let_in_when_the_revocation_is_lifted() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.vpn().lists_cookies = false;
    let number = world.revoke_user("alice").number;
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    let ask = world.ask_gate(id, true);
    world.lift(number);
    world.handle(Event::Tick);
    assert_eq!(world.verdicts.get(&ask), Some(&Verdict::Admit));
}

#[test]
fn r7_entries_that_expired_are_forgotten_in_the_end_and_those_in_force_are_not() {
    let mut world = World::new();
    world.receipt(Target::Address(ip(7)));
    for port in 1..=1_000 {
        world.ask(for_a(Target::Flow(outer(port)), SECOND));
    }
    assert_eq!(world.registry.revocations().count(), 1_001);
    world.pass(2 * SECOND);
    assert_eq!(world.kernel.len(), 1);
    assert!(world.registry.revocations().count() <= MAX_FINISHED + 1);
    assert!(world.registry.revocations().any(|r| r.number == 1));
}

#[test]
fn r7_at_the_bound_a_revocation_is_refused_and_none_in_force_is_dropped_and_finished_ones_do_not_count() {
    let mut world = World::new();
    for port in 1..=300 {
        world.ask(for_a(Target::Flow(outer(port)), SECOND));
    }
    world.pass(2 * SECOND);
    for port in 1..=MAX_REVOCATIONS as u16 {
        world.receipt(Target::Flow(outer(port)));
    }
    let request = world.ask(World::order(Target::Flow(outer(60_000))));
    assert!(matches!(world.answers.remove(&request), Some(Answer::Refused(_))));
    assert_eq!(world.kernel.len(), MAX_REVOCATIONS);
    let number = world.registry.revocations().last().unwrap().number;
    world.lift(number);
    assert!(world.receipt(Target::Flow(outer(60_000))).is_complete());
}

#[test]
fn r4_a_session_that_lives_on_without_its_cookie_after_a_lift_keeps_nobodys_fresh_login_out() {
    let mut world = World::newest_ocserv();
    let (carols, _) = (world.login("carol"), world.login("bob"));
    let worker = world.worker(carols);
    let id = world.connect(worker);
    let request = world.ask(World::order(Target::Session(carols)));
    world.lift(1);
    world.run();
    assert!(world.answers.contains_key(&request) && !world.vpn().cookies.contains_key(&carols));
    assert_eq!(world.look(id, true), Verdict::Admit);
    world.come_up(id);
    world.pass(SECOND);
    assert!(world.revoke_user("bob").is_complete());
    let fresh = world.login("bob");
    assert!(world.is_let_in(fresh));
}
