//! R2: a revoked session never comes back.

use super::harness::*;
use crate::registry::*;
use crate::session::{Cookie, CutoffKey, Entry, Process};

#[test]
fn r2_a_revocation_during_a_connect_script_of_10_s_is_refused_at_its_end() {
    let mut world = World::new();
    let first = world.look(at_gate("alice", 7, 1), false);
    assert_eq!(world.verdicts[&first], Verdict::Admit);
    let request = world.revoke(user("alice"));
    assert!(world.has(&Entry::Device(device(7))), "nothing passes on its device in the meantime");
    assert_eq!(
        world.asked(|e| matches!(e, Effect::Disconnect { .. } | Effect::End { .. })),
        0,
        "it would be lost"
    );
    world.list(vec![at_gate("alice", 7, 1)]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    assert!(world.answers.contains_key(&request));
    for _ in 0..50 {
        world.pass(200);
        world.list(vec![at_gate("alice", 7, 1)]);
        world.cookies(vec![cookie("alice", 1, 900)]);
    }
    assert!(
        world.registry.revocations().any(Revocation::is_busy),
        "it is looked after until the script has ended"
    );
    let last = world.look(at_gate("alice", 7, 1), true);
    assert!(world.refuses(last));
    // its miss twin
    assert!(world.admitted(at_gate("bob", 8, 2)));
}

#[test]
fn r2_one_that_came_up_all_the_same_is_ended_when_it_is_seen() {
    let mut world = World::new();
    world.look(at_gate("alice", 7, 1), false);
    world.revoke(user("alice"));
    world.effects.clear();
    world.see(sighting("alice", 7, 1));
    assert_eq!(world.asked(|e| matches!(e, Effect::Disconnect { id: 7, .. })), 1);
    assert_eq!(world.asked(|e| matches!(e, Effect::End { .. })), 1);
}

#[test]
fn r2_every_cookie_of_the_user_is_refused_also_one_whose_client_is_offline() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully(
        "alice",
        7,
        vec![cookie("alice", 1, 900), cookie("alice", 2, 800), cookie("bob", 3, 800)],
    );
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    assert!(!world.admitted(at_gate("alice", 18, 2)));
    assert!(world.admitted(at_gate("bob", 19, 3)));
}

#[test]
fn r2_an_automatic_reconnect_is_refused_while_the_revocation_is_still_acting() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.end(key, 7);
    assert!(!world.admitted(at_gate("alice", 17, 1)));
}

#[test]
fn r2_the_refusal_outlasts_the_hours_that_refused_attempts_add_to_the_cookies_life() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    for hour in 0..48 {
        world.pass(3_600_000);
        world.cookies(vec![cookie("alice", 1, 900)]);
        let id = 20 + hour;
        assert!(!world.admitted(at_gate("alice", id, 1)));
        let key = world.key(id);
        world.give(Event::WorkerGone { key });
        world.give(Event::DeviceGone { device: device(u32::try_from(id).unwrap()) });
    }
    // only a complete list without it ends the refusal, once nobody is at the door with it
    world.cookies(vec![]);
    assert!(world.has(&Entry::SafeId(safe_id(1))), "who came before it was gone?");
    world.list(vec![]);
    world.cookies(vec![]);
    assert!(world.kernel.is_empty(), "{:?}", world.kernel);
}

#[test]
fn r2_a_list_that_was_asked_for_before_the_revocation_ends_no_refusal() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    let before = world.now.mono;
    world.now.mono += std::time::Duration::from_millis(5);
    world.revoke(user("alice"));
    world.give(Event::Cookies { server: server(), asked: before, outcome: Ok(vec![]) });
    assert!(world.has(&Entry::SafeId(safe_id(1))));
    assert!(world.has(&Entry::Cutoff(CutoffKey::new(&server(), "alice"))));
}

#[test]
fn r2_while_ocserv_cannot_list_its_cookies_the_users_old_ones_are_refused_ties_too() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.silence();
    let ask = world.look(at_gate("alice", 17, 2), true);
    assert!(!world.verdicts.contains_key(&ask), "it hangs on the cookie's age");
    let revoked_at = world.now.wall;
    world.now.wall += 2;
    world.cookies(vec![cookie("alice", 2, revoked_at), cookie("alice", 3, revoked_at + 1)]);
    assert!(world.refuses(ask));
    assert!(world.admitted(at_gate("alice", 18, 3)), "R4: the one that was made after it");
}

#[test]
fn r2_a_question_that_cannot_be_decided_is_refused_and_another_users_is_not_held_up() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.silence();
    let ask = world.look(at_gate("alice", 17, 2), true);
    assert!(world.admitted(at_gate("bob", 18, 3)));
    world.pass(1_500);
    assert!(world.refuses(ask));
}

#[test]
fn r2_a_cookie_from_the_future_was_made_before_the_clock_was_set_back() {
    let mut world = World::new();
    world.revoke(user("alice"));
    world.list(vec![]);
    world.cookies(vec![cookie("alice", 2, world.now.wall + 3_600)]);
    assert!(world.has(&Entry::SafeId(safe_id(2))));
}

#[test]
fn r2_a_list_that_lacks_a_connected_user_is_not_taken_for_complete() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.connect("bob", 8, 2);
    world.pass(10);
    world.revoke(user("alice"));
    world.list(vec![sighting("bob", 8, 2)]);
    world.cookies(vec![]);
    assert!(world.has(&Entry::Cutoff(CutoffKey::new(&server(), "alice"))), "a sec-mod that did not answer");
    world.cookies(vec![cookie("bob", 2, 900), cookie("alice", 3, 900)]);
    assert!(world.has(&Entry::SafeId(safe_id(3))));
}

#[test]
fn r2_the_refusal_survives_the_daemon_and_its_sessions_are_ended_by_the_next_one() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.restart();
    world.effects.clear();
    world.up(1, false);
    world.list(vec![sighting("alice", 7, 1)]);
    assert_eq!(world.asked(|e| matches!(e, Effect::End { .. })), 1);
    world.cookies(vec![cookie("alice", 1, 900), cookie("alice", 2, 950)]);
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    assert!(!world.admitted(at_gate("alice", 18, 2)), "by the cutoff that the earlier run left");
}

#[test]
fn r2_a_new_ocserv_has_no_old_cookies_and_nothing_is_refused_for_them() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    assert!(world.has(&Entry::SafeId(safe_id(1))));
    world.up(2, false);
    world.cookies(vec![]);
    world.list(vec![]);
    world.pass(4_000);
    world.cookies(vec![]);
    assert!(world.kernel.is_empty(), "{:?}", world.kernel);
}

#[test]
fn r2_where_ocserv_has_terminate_each_cookie_is_terminated_until_the_list_lacks_it() {
    let mut world = World::with(true, Rules::default());
    let key = world.connect("alice", 7, 1);
    let request = world.revoke(user("alice"));
    assert_eq!(world.asked(|e| matches!(e, Effect::Terminate { .. })), 1);
    world.list(vec![]);
    world.cookies(vec![cookie("alice", 1, 900), cookie("alice", 2, 900)]);
    assert_eq!(world.asked(|e| matches!(e, Effect::Terminate { .. })), 2);
    world.end(key, 7);
    for id in [1, 2] {
        assert!(world.answers.is_empty());
        world.give(Event::Terminated { server: server(), safe_id: safe_id(id), outcome: Ok(true) });
    }
    world.cookies(vec![]);
    let receipt = world.receipt(request);
    assert!(receipt.is_complete());
    assert_eq!(receipt.layers.iter().find(|l| l.layer == Layer::Cookie).unwrap().done, 2);
}

#[test]
fn r2_an_admin_s_stock_disconnect_becomes_a_revocation_where_configured() {
    let rules = Rules { invalidate_on_disconnect: [server()].into(), ..Rules::default() };
    let told = |world: &mut World, reason| {
        let (id, safe_id, user) = (7, Some(safe_id(1)), "alice".to_owned());
        world.give(Event::FeedDisconnected { server: server(), id, safe_id, user, reason });
    };
    let revoked = |world: &World| world.has(&Entry::SafeId(safe_id(1)));
    let connected = |rules: Rules| {
        let mut world = World::with(false, rules);
        world.connect("alice", 7, 1);
        world
    };
    let mut world = connected(rules.clone());
    told(&mut world, 3);
    world.list(vec![]);
    assert!(revoked(&world));
    // not configured; the user's own doing; asked for by us; roamed; ocserv shuts down
    let mut world = connected(Rules::default());
    told(&mut world, 3);
    world.list(vec![]);
    assert!(!revoked(&world));
    let mut world = connected(rules.clone());
    told(&mut world, 2);
    world.list(vec![]);
    assert!(!revoked(&world));
    let mut world = connected(rules.clone());
    world.give(Event::PlainDisconnect { server: server(), ids: vec![7] });
    told(&mut world, 3);
    world.list(vec![]);
    assert!(!revoked(&world));
    let mut world = connected(rules.clone());
    told(&mut world, 3);
    world.list(vec![sighting("alice", 9, 1)]);
    assert!(!revoked(&world));
    let mut world = connected(rules);
    told(&mut world, 3);
    world.give(Event::ServerDown { server: server(), gone: true });
    world.give(Event::ServerUp { server: server(), main: Process { pid: 2, start: 2 }, terminate: false });
    world.list(vec![]);
    assert!(!revoked(&world));
}

#[test]
fn r2_a_client_whose_cookie_was_deleted_is_refused_although_the_next_daemon_hears_of_cookies_first() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    world.silence();
    world.restart();
    world.up(1, false);
    // a revocation of its own had its cookie deleted, and was lifted; it is in its connect-script
    world.cookies(vec![]);
    world.list(vec![at_gate("alice", 17, 2)]);
    let ask = world.look(at_gate("alice", 17, 2), true);
    world.cookies(vec![]);
    assert!(world.refuses(ask), "{:?}", world.verdicts);
    // and then the cutoff goes, and a fresh login is let in
    world.cookies(vec![]);
    assert!(world.admitted(at_gate("alice", 18, 3)), "R4");
}

#[test]
fn r2_a_refusal_is_not_taken_back_before_it_is_known_who_is_at_the_door() {
    let mut world = World::with(true, Rules::default());
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    world.restart();
    world.up(1, true);
    world.pass(4_000);
    // its cookie is deleted by now, but not its client at the door
    world.cookies(vec![]);
    assert!(world.has(&Entry::SafeId(safe_id(1))));
    world.list(vec![at_gate("alice", 17, 1)]);
    world.cookies(vec![]);
    assert!(!world.admitted(at_gate("alice", 17, 1)));
}

#[test]
fn r1_who_connected_before_the_clock_was_set_back_is_not_taken_for_a_later_one() {
    let connected = |since: u64| {
        let mut world = World::new();
        world.now.wall = 1_000;
        world.revoke(user("alice"));
        world.restart();
        world.now.wall = 1_020;
        world.up(1, false);
        let mut hers = sighting("alice", 7, 1);
        hers.observed.since = since;
        world.list(vec![hers]);
        world.has(&Entry::Device(device(7)))
    };
    // no daemon was there when it was set back from 1 340
    assert!(connected(1_340), "it says nothing of whether she came before the revocation");
    assert!(connected(990));
    // R4: with no daemon there, the gate alone has let her in with a fresh cookie
    assert!(!connected(1_010));
}

#[test]
fn r2_who_came_to_the_door_before_the_cookie_was_deleted_is_refused_although_the_host_slept_meanwhile() {
    let slept = |arrives: bool| {
        let mut world = World::with(true, Rules::default());
        let request = world.revoke(user("alice"));
        world.cookies(vec![cookie("alice", 1, 900)]);
        world.list(vec![]);
        // a client comes with it, and nobody has told yet; then it is deleted, and then the host sleeps
        world.give(Event::Terminated { server: server(), safe_id: safe_id(1), outcome: Ok(true) });
        let asked = world.now.mono;
        world.pass(3_600_000);
        world.receipt(request);
        world.give(Event::Cookies { server: server(), asked, outcome: Ok(vec![]) });
        world.pass(50);
        world.give(Event::Cookies { server: server(), asked, outcome: Ok(vec![]) });
        world.list(if arrives { vec![at_gate("alice", 17, 1)] } else { vec![] });
        world.cookies(vec![]);
        world.cookies(vec![]);
        world
    };
    let mut world = slept(true);
    assert!(world.has(&Entry::Device(device(17))));
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    // R7: and where nobody came, nothing is refused for ever
    let world = slept(false);
    assert!(!world.has(&Entry::SafeId(safe_id(1))), "{:?}", world.kernel);
}

#[test]
fn r2_a_deleted_cookie_at_the_door_is_refused_by_what_a_list_told_of_its_age() {
    let deleted = |created: u64| {
        let mut world = World::new();
        let asked = world.now.mono;
        world.pass(10);
        world.revoke(user("alice"));
        world.see(at_gate("alice", 7, 1));
        // this list is of before the revocation, and says nothing of whom there is now; but it tells the age
        world.now.wall += 10;
        let outcome = Ok(vec![cookie("alice", 1, created)]);
        world.give(Event::Cookies { server: server(), asked, outcome });
        world.list(vec![at_gate("alice", 7, 1)]);
        world.cookies(vec![]);
        (world.has(&Entry::SafeId(safe_id(1))), world.has(&Entry::Device(device(7))))
    };
    assert_eq!(deleted(900), (true, true), "also by the gate alone, if the daemon dies now");
    // R3: it is known to be a fresh one
    assert_eq!(deleted(1_005), (false, false));
}

#[test]
fn r2_also_a_list_from_before_the_revocation_tells_which_of_the_users_cookies_are_older() {
    let mut world = World::new();
    let asked = world.now.mono;
    world.pass(10);
    world.revoke(user("alice"));
    let revoked_at = world.now.wall;
    world.now.wall += 10;
    let listed = vec![cookie("alice", 1, 900), cookie("alice", 2, revoked_at + 1), cookie("bob", 3, 900)];
    world.give(Event::Cookies { server: server(), asked, outcome: Ok(listed) });
    assert!(world.has(&Entry::SafeId(safe_id(1))), "nothing that deletes it now takes that back");
    assert!(!world.has(&Entry::SafeId(safe_id(2))) && !world.has(&Entry::SafeId(safe_id(3))), "R3");
    assert!(world.has(&Entry::Cutoff(CutoffKey::new(&server(), "alice"))), "there may be others");
}

#[test]
fn r2_who_was_first_seen_while_the_cookies_were_listed_is_decided_by_the_next_list() {
    let seen = |listed: Vec<Cookie>| {
        let mut world = World::new();
        world.revoke(user("alice"));
        let asked = world.now.mono;
        world.pass(10);
        // it was in its connect-script before the revocation. Before the list is answered its cookie is deleted, for
        // another revocation
        world.see(at_gate("alice", 17, 1));
        world.effects.clear();
        world.give(Event::Cookies { server: server(), asked, outcome: Ok(vec![]) });
        assert!(world.has(&Entry::Cutoff(CutoffKey::new(&server(), "alice"))));
        assert_eq!(world.asked(|e| matches!(e, Effect::AskCookies { .. })), 1);
        world.now.wall += 10;
        world.cookies(listed);
        assert!(!world.has(&Entry::Cutoff(CutoffKey::new(&server(), "alice"))));
        world.has(&Entry::Device(device(17)))
    };
    assert!(seen(vec![]));
    // R4: a fresh one that was made while they were listed
    assert!(!seen(vec![cookie("alice", 1, 1_001)]));
}

#[test]
fn r2_a_deleted_cookie_at_the_door_is_refused_also_when_the_time_of_its_users_lock_is_over() {
    let refused = |listed: Vec<Cookie>| {
        let mut world = World::new();
        let stands = Some(std::time::Duration::from_secs(1));
        world.revoke(Order { stands, ..order(Target::Lock(identity("alice"))) });
        world.see(at_gate("alice", 17, 1));
        world.now.wall += 10;
        world.cookies(listed);
        assert!(!world.has(&Entry::Cutoff(CutoffKey::new(&server(), "alice"))));
        world.pass(1_000);
        assert_eq!(world.has(&Entry::Device(device(17))), !world.admitted(at_gate("alice", 17, 1)));
        world.has(&Entry::Device(device(17)))
    };
    assert!(refused(vec![]), "its session is one that the lock has ended");
    assert!(!refused(vec![cookie("alice", 1, 1_001)]), "R4: a fresh one");
}
