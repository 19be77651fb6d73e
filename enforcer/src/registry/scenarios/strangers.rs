//! R3 and R4: nobody else is touched, and a fresh login works at once.

use super::harness::*;
use crate::registry::*;
use crate::session::{CutoffKey, Entry, Process};

#[test]
fn r4_a_fresh_login_is_let_in_as_soon_as_the_answer_is_there() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    // in the very same second
    assert!(world.admitted(at_gate("alice", 17, 2)));
}

#[test]
fn r3_another_device_of_the_same_user_goes_on_when_one_id_is_revoked() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.connect("alice", 8, 2);
    world.revoke(order(Target::Id(7)));
    assert!(world.has(&Entry::Device(device(7))) && world.has(&Entry::SafeId(safe_id(1))));
    assert!(!world.has(&Entry::Device(device(8))) && !world.has(&Entry::SafeId(safe_id(2))));
    assert_eq!(world.asked(|e| matches!(e, Effect::End { .. })), 1);
}

#[test]
fn r3_the_next_owner_of_a_tunnel_address_has_it_before_he_is_let_in() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    assert!(world.has(&on_address(7)));
    // her worker hangs, and ocserv gives her address to bob
    world.give(Event::Ended { key, ended: Ended { left: vec!["hangs".into()], ..Ended::default() } });
    let mut bobs = at_gate("bob", 8, 2);
    bobs.observed.addresses = vec![address(7)];
    assert!(world.admitted(bobs.clone()));
    assert!(!world.has(&on_address(7)));
    // and nothing puts it back while she hangs
    world.pass(200);
    world.list(vec![sighting("alice", 7, 1), Sighting { has_tun: true, ..bobs }]);
    world.pass(200);
    assert!(!world.has(&on_address(7)));
    assert!(world.has(&Entry::Device(device(7))), "hers stays dropped by its device");
}

#[test]
fn r3_a_reused_device_name_is_another_device() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.end(key, 7);
    let mut bobs = sighting("bob", 8, 2);
    bobs.observed.device = Some("vpns7".into());
    world.see(bobs);
    assert!(!world.has(&Entry::Device(device(8))) && !world.has(&Entry::Device(device(7))));
}

#[test]
fn r3_a_reused_pid_is_another_session_whatever_comes_late() {
    let mut world = World::new();
    let hers = world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    // before her end is seen, bob's worker has her number
    let mut bobs = sighting("bob", 7, 2);
    bobs.worker = Some(Process { pid: 7, start: 2 });
    bobs.device = Some(device(70));
    bobs.observed.addresses = vec![address(70)];
    world.see(bobs);
    let his = world.key(7);
    assert_ne!(hers, his);
    world.end(hers, 7);
    assert_eq!(world.key(7), his, "his is still known by the number");
    assert!(!world.has(&Entry::Device(device(70))) && !world.has(&on_address(70)));
    // a disconnect event of hers, late, under the number that is his now
    let late = Event::FeedDisconnected {
        server: server(),
        id: 7,
        safe_id: Some(safe_id(1)),
        user: "alice".into(),
        reason: 3,
    };
    world.give(late);
    assert!(world.registry.session(&server(), 7).is_some());
}

#[test]
fn r3_a_refused_login_is_forgotten_though_the_feed_never_tells_its_end() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    let key = world.key(17);
    world.give(Event::WorkerGone { key });
    world.give(Event::DeviceGone { device: device(17) });
    assert_eq!(world.registry.sessions().count(), 0);
    assert!(!world.has(&Entry::Device(device(17))) && !world.has(&on_address(17)));
}

#[test]
fn r3_a_neighbour_on_the_same_outer_port_is_not_hit_once_the_socket_is_gone() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.give(Event::Flows { key, outcome: Ok((NETNS, vec![flow(5_000)])) });
    world.give(Event::WorkerGone { key });
    assert!(!world.has(&Entry::Flow(NETNS, flow(5_000))));
    // flows that are told of too late
    world.give(Event::Flows { key, outcome: Ok((NETNS, vec![flow(5_000)])) });
    assert!(!world.has(&Entry::Flow(NETNS, flow(5_000))));
}

#[test]
fn r3_what_an_earlier_run_left_of_sessions_that_are_gone_goes_once_the_list_is_known() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.give(Event::Flows { key, outcome: Ok((NETNS, vec![flow(1)])) });
    world.restart();
    assert!(world.has(&on_address(7)) && world.has(&Entry::Flow(NETNS, flow(1))));
    world.up(1, false);
    world.list(vec![]);
    assert!(!world.has(&on_address(7)) && !world.has(&Entry::Flow(NETNS, flow(1))));
    assert!(world.has(&Entry::SafeId(safe_id(1))));
}

#[test]
fn r3_and_after_ten_seconds_although_ocserv_never_answers() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.restart();
    world.pass(9_999);
    assert!(world.has(&on_address(7)));
    world.pass(1);
    assert!(!world.has(&on_address(7)));
    assert!(world.has(&Entry::Device(device(7))));
}

#[test]
fn r4_a_fresh_login_is_let_in_although_the_gate_was_asked_before_by_the_revoked_cookie() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    for id in 20..25 {
        assert!(!world.admitted(at_gate("alice", id, 1)));
    }
    assert!(world.admitted(at_gate("alice", 30, 2)));
}

#[test]
fn r2_a_login_whose_safe_id_is_not_known_leaves_the_gate_blind() {
    let mut world = World::new();
    let mut unknown = at_gate("alice", 7, 1);
    unknown.observed.safe_id = None;
    let ask = world.look(unknown, true);
    assert!(matches!(world.verdicts[&ask], Verdict::Blind(_)));
}

#[test]
fn r4_a_fresh_login_that_the_gate_let_in_without_the_daemon_is_not_ended_by_the_next_one() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.silence();
    let cutoff = Entry::Cutoff(CutoffKey::new(&server(), "alice"));
    assert!(world.has(&cutoff));
    let revoked_at = world.now.wall;
    world.restart();
    world.now.wall += 2;
    world.up(1, false);
    let since = |id, cookie, since| {
        let mut seen = sighting("alice", id, cookie);
        seen.observed.since = since;
        seen
    };
    // one connected before, and one with a cookie that the gate knew to be younger
    world.list(vec![since(8, 2, revoked_at), since(9, 3, revoked_at + 1)]);
    assert!(world.has(&Entry::Device(device(8))) && !world.has(&Entry::Device(device(9))));
    world.cookies(vec![cookie("alice", 2, revoked_at), cookie("alice", 3, revoked_at + 1)]);
    assert!(world.has(&Entry::SafeId(safe_id(2))) && !world.has(&Entry::SafeId(safe_id(3))));
}

#[test]
fn r4_a_worker_that_was_gone_when_the_first_list_was_read_holds_up_no_fresh_login() {
    let mut world = World::new();
    world.connect("bob", 7, 1);
    world.revoke(user("alice"));
    world.restart();
    world.up(1, false);
    // ocserv said so just before it was started anew, without its cookies: no process of it is visible any more
    world.give(Event::ServerDown { server: server(), gone: true });
    world.up(2, false);
    let gone = Sighting { worker: None, device: None, netns: None, has_tun: false, ..sighting("bob", 7, 1) };
    let asked = world.now.mono;
    world.now.mono += Duration::from_millis(1);
    world.give(Event::Listed { server: server(), asked, outcome: Ok(vec![gone]) });
    // the next list was asked for in the moment in which that one came
    let asked = world.now.mono;
    world.give(Event::Listed { server: server(), asked, outcome: Ok(vec![]) });
    world.effects.clear();
    world.cookies(vec![cookie("alice", 3, 900)]);
    assert_eq!(
        world.asked(|e| matches!(e, Effect::AskList { .. })),
        1,
        "bob's cookie is not listed: is he there?"
    );
    world.list(vec![]);
    world.now.wall += 10;
    let ask = world.look(at_gate("alice", 18, 4), true);
    world.cookies(vec![cookie("alice", 3, 900), cookie("alice", 4, world.now.wall)]);
    assert_eq!(world.verdicts.get(&ask), Some(&Verdict::Admit));
    assert!(!world.admitted(at_gate("alice", 19, 3)), "R2: her old one is refused");
}

#[test]
fn r4_a_fresh_login_is_let_in_although_somebody_is_connected_whose_cookie_ocserv_deleted() {
    let mut world = World::new();
    world.connect("bob", 7, 1);
    // `occtl terminate session` leaves his session, and no list shows his cookie any more
    world.now.wall = 2_000;
    world.revoke(user("alice"));
    for _ in 0..10 {
        world.list(vec![sighting("bob", 7, 1)]);
        world.cookies(vec![cookie("alice", 2, 1_900)]);
        world.pass(300);
    }
    let cutoff = Entry::Cutoff(CutoffKey::new(&server(), "alice"));
    assert!(world.has(&cutoff), "R2: a part of ocserv may not have told of its cookies");
    world.now.wall = 2_010;
    let cookies = vec![cookie("alice", 2, 1_900), cookie("alice", 3, 2_005)];
    let fresh = world.look(at_gate("alice", 18, 3), true);
    world.cookies(cookies.clone());
    assert_eq!(world.verdicts.get(&fresh), Some(&Verdict::Admit), "it is listed, and its age is known");
    world.list(vec![sighting("bob", 7, 1), sighting("alice", 18, 3)]);
    assert!(!world.has(&Entry::Device(device(18))) && !world.has(&Entry::Device(device(7))));
    // R2: not her old one, and none of unknown age
    for (id, byte) in [(19, 2), (20, 4)] {
        let old = world.look(at_gate("alice", id, byte), true);
        world.cookies(cookies.clone());
        world.pass(1_600);
        assert!(world.refuses(old), "{:?}", world.verdicts);
    }
    // and not the same one after a further revocation
    world.revoke(user("alice"));
    assert!(world.has(&Entry::Device(device(18))));
    assert!(!world.has(&Entry::Device(device(7))));
}

#[test]
fn r7_ocserv_is_not_asked_again_and_again_while_its_list_is_not_complete() {
    let mut world = World::new();
    world.connect("bob", 7, 1);
    world.revoke(user("alice"));
    world.cookies(vec![cookie("bob", 1, 900)]);
    world.silence();
    world.revoke(user("alice"));
    let ask = world.look(at_gate("alice", 18, 3), true);
    world.effects.clear();
    let asked = |world: &World| world.asked(|e| matches!(e, Effect::AskCookies { .. }));
    for _ in 0..20 {
        world.cookies(vec![]);
    }
    let before = asked(&world);
    assert!(before <= 2, "asked {before} times within a moment");
    world.pass(50);
    assert_eq!(asked(&world), before + 1, "somebody waits");
    world.cookies(vec![cookie("bob", 1, 900), cookie("alice", 3, world.now.wall + 1)]);
    assert!(world.refuses(ask), "{:?}", world.verdicts);
}
