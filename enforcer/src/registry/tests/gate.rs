//! The gate, and what happens while a connect-script runs.

use super::super::*;
use super::harness::*;
use crate::session::{Entry, Observed};

fn refused(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Refuse(_))
}

#[test]
fn r2_a_revocation_during_the_connect_script_is_not_lost() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    assert_eq!(world.look(id, false), Verdict::Admit);
    let receipt = world.revoke_user("alice");
    assert_eq!(layer(&receipt, Layer::Sockets).guarded, 1, "{receipt:?}");
    assert!(world.acts.is_empty(), "a disconnect would be lost there: {:?}", world.acts);
    assert!(refused(&world.look(id, true)));
    world.exit(id);
    assert!(!world.is_let_in(cookie));
}

#[test]
fn a_connect_script_of_another_user_is_not_touched_by_it() {
    let mut world = World::new();
    let (alice, bob) = (world.login("alice"), world.login("bob"));
    world.up(alice);
    let worker = world.worker(bob);
    let id = world.connect(worker);
    world.revoke_user("alice");
    assert!(!world.is_hit(id));
    assert_eq!(world.look(id, true), Verdict::Admit);
}

#[test]
fn r2_a_session_that_comes_up_without_a_gate_is_ended_as_soon_as_it_is_seen_with_its_tunnel() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    world.ask(World::order(Target::User("alice".into())));
    world.run();
    assert!(world.stopped(id), "its device drops from the first packet on");
    world.come_up(id);
    world.pass(SECOND);
    assert!(!world.workers.contains_key(&id));
}

#[test]
fn r2_a_revocation_in_the_middle_of_a_next_script_of_10_s_holds_and_is_looked_after_until_it_has_ended() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    assert_eq!(world.look(id, false), Verdict::Admit);
    world.pass(5 * SECOND);
    let number = world.revoke_user("alice").number;
    world.pass(5 * SECOND);
    let state = |world: &World| world.registry.revocations().find(|r| r.number == number).unwrap().state;
    assert_eq!(state(&world), RevocationState::Looking);
    assert!(refused(&world.look(id, true)));
    world.exit(id);
    world.pass(SECOND);
    assert_eq!(state(&world), RevocationState::Settled);
}

#[test]
fn a_next_script_of_10_s_without_a_revocation_ends_with_a_tunnel() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    assert_eq!(world.look(id, false), Verdict::Admit);
    world.pass(10 * SECOND);
    assert_eq!(world.look(id, true), Verdict::Admit);
}

#[test]
fn r2_an_automatic_reconnect_is_refused_and_counted() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    for _ in 0..20 {
        assert!(!world.is_let_in(cookie));
    }
    assert_eq!(world.refusals, vec![Entry::SafeId(cookie); 20]);
}

#[test]
fn r4_an_automatic_reconnect_without_a_revocation_is_let_in() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.exit(id);
    assert!(world.is_let_in(cookie));
}

#[test]
fn r2_a_reconnect_that_is_at_the_gate_while_its_predecessor_is_being_ended_is_refused() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.ask(World::order(Target::User("alice".into())));
    // nothing that takes time has happened yet
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    let ask = world.ask_gate(id, true);
    assert!(refused(&world.verdicts[&ask]));
}

#[test]
fn r2_a_refused_attempt_that_ends_without_a_word_leaves_nothing_behind() {
    // the feed tells connected=1 of it, and never connected=0
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    assert!(refused(&world.look(id, true)));
    assert!(world.is_hit(id));
    world.exit(id);
    let left: Vec<_> = world.kernel.keys().collect();
    assert_eq!(left, [&Entry::SafeId(cookie)]);
    assert_eq!(world.registry.sessions().count(), 0);
}

#[test]
fn a_client_whose_safe_id_ocserv_did_not_tell_is_left_to_when_blind() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = world.worker(cookie);
    let mut sighting = world.sighting(&worker);
    world.arrive(worker);
    sighting.observed.safe_id = None;
    world.handle(Event::GateAsked { ask: 1, server: vpn(), sighting, last: true });
    assert!(matches!(world.verdicts[&1], Verdict::Blind(_)));
}

#[test]
fn r2_a_revoked_session_whose_safe_id_is_not_known_is_refused_and_not_left_to_when_blind() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = world.worker(cookie);
    let mut sighting = world.sighting(&worker);
    let id = world.arrive(worker);
    sighting.observed.safe_id = None;
    world.handle(Event::GateAsked { ask: 1, server: vpn(), sighting: sighting.clone(), last: false });
    world.ask(World::order(Target::Id(id)));
    world.handle(Event::GateAsked { ask: 2, server: vpn(), sighting, last: true });
    assert!(refused(&world.verdicts[&2]), "{:?}", world.verdicts[&2]);
}

#[test]
fn r2_a_revoked_session_whose_safe_id_is_learned_later_is_refused_by_its_cookie() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = world.worker(cookie);
    let mut sighting = world.sighting(&worker);
    let id = world.arrive(worker);
    sighting.observed.safe_id = None;
    world.handle(Event::Sighted { server: vpn(), sighting });
    world.ask(World::order(Target::Id(id)));
    world.feed_connected(id);
    assert!(world.refuses(cookie));
    world.exit(id);
    world.run();
    assert!(!world.is_let_in(cookie));
}

#[test]
fn r2_a_revoked_user_is_refused_and_not_left_to_when_blind_while_ocserv_is_silent() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.vpn().up = false;
    world.revoke_user("alice");
    let worker = world.worker(cookie);
    let mut sighting = world.sighting(&worker);
    world.arrive(worker);
    sighting.observed.safe_id = None;
    world.handle(Event::GateAsked { ask: 1, server: vpn(), sighting, last: true });
    assert!(refused(&world.verdicts[&1]), "{:?}", world.verdicts[&1]);
}

#[test]
fn a_gate_of_no_configured_server_is_blind() {
    let mut world = World::new();
    let sighting = Sighting { observed: Observed { id: 5, ..Observed::default() }, ..Sighting::default() };
    world.handle(Event::GateAsked { ask: 1, server: ServerName::new("elsewhere"), sighting, last: true });
    assert!(matches!(world.verdicts[&1], Verdict::Blind(_)));
}

#[test]
fn what_ocserv_says_at_the_gate_overrides_what_a_late_list_said_of_the_same_worker() {
    let mut world = World::new();
    let (revoked, fresh) = (world.login("alice"), world.login("alice"));
    world.receipt(Target::Session(revoked));
    // a list that was asked for while the pid was the revoked session's
    let worker = world.worker(fresh);
    let mut late = world.sighting(&worker);
    late.observed.safe_id = Some(revoked);
    let id = world.arrive(worker);
    world.handle(Event::Sighted { server: vpn(), sighting: late });
    assert_eq!(world.look(id, true), Verdict::Admit);
    // and the other way round
    let worker = world.worker(revoked);
    let mut late = world.sighting(&worker);
    late.observed.safe_id = Some(fresh);
    let id = world.arrive(worker);
    world.handle(Event::Sighted { server: vpn(), sighting: late });
    assert!(refused(&world.look(id, true)));
}

#[test]
fn r7_a_client_that_knocks_for_days_does_not_fill_the_memory() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    let number = world.revoke_user("alice").number;
    for _ in 0..1_200 {
        assert!(!world.is_let_in(cookie));
    }
    let receipt = world.registry.receipt_of(number, world.now).unwrap();
    assert!(receipt.sessions.len() <= 1_000, "{}", receipt.sessions.len());
    assert_eq!(world.kernel.len(), 1);
}

#[test]
fn r7_too_many_logins_that_wait_for_ocservs_list_are_refused_and_not_forgotten() {
    let mut world = World::new();
    world.vpn().lists_cookies = false;
    let cookies: Vec<_> = (0..1_100).map(|_| world.login("alice")).collect();
    world.ask(World::order(Target::User("alice".into())));
    let mut asks = Vec::new();
    for cookie in cookies {
        let mut worker = world.worker(cookie);
        worker.flow = outer(1);
        let id = world.arrive(worker);
        asks.push(world.ask_gate(id, true));
    }
    assert!(world.verdicts.len() >= 76);
    world.run();
    assert!(asks.iter().all(|ask| refused(&world.verdicts[ask])));
}

#[test]
fn r7_where_no_more_sessions_can_be_remembered_a_revoked_one_is_refused_and_another_is_left_to_when_blind() {
    let mut world = World::new();
    let (revoked, alices) = (world.login("alice"), world.login("alice"));
    world.receipt(Target::Session(revoked));
    for _ in 0..MAX_SESSIONS {
        let worker = world.worker(alices);
        world.handle(Event::Sighted { server: vpn(), sighting: world.sighting(&worker) });
    }
    let ask = |world: &mut World, cookie| {
        let worker = world.worker(cookie);
        let id = world.arrive(worker);
        let ask = world.ask_gate(id, true);
        world.verdicts.remove(&ask).unwrap()
    };
    assert!(refused(&ask(&mut world, revoked)));
    assert!(matches!(ask(&mut world, alices), Verdict::Blind(_)));
}
