//! How long a cookie is refused, and what is done while ocserv cannot list its cookies.

use super::super::*;
use super::harness::*;
use crate::session::Entry;

#[test]
fn r2_a_second_cookie_of_the_same_user_whose_client_is_offline_is_refused() {
    let mut world = World::new();
    let (first, second) = (world.login("alice"), world.login("alice"));
    world.up(first);
    let receipt = world.revoke_user("alice");
    assert_eq!(layer(&receipt, Layer::Cookie).guarded, 2);
    assert!(!world.is_let_in(first) && !world.is_let_in(second));
}

#[test]
fn r3_a_second_cookie_of_the_same_user_is_let_in_where_one_session_was_named() {
    let mut world = World::new();
    let (first, second) = (world.login("alice"), world.login("alice"));
    let (phone, laptop) = (world.up(first), world.up(second));
    world.receipt(Target::Id(phone));
    assert!(!world.workers.contains_key(&phone));
    assert!(!world.is_hit(laptop));
    world.exit(laptop);
    assert!(world.is_let_in(second) && !world.is_let_in(first));
}

#[test]
fn r4_a_fresh_cookie_is_let_in_at_once() {
    let mut world = World::new();
    let old = world.login("alice");
    world.up(old);
    world.revoke_user("alice");
    // in the very same second
    let fresh = world.login("alice");
    assert!(world.is_let_in(fresh) && !world.is_let_in(old));
}

#[test]
fn r2_a_refused_attempt_that_refreshes_the_cookies_life_is_refused_as_long_as_ocserv_lists_it() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    for _ in 0..12 {
        world.pass(600 * SECOND);
        assert!(!world.is_let_in(cookie));
    }
    // the client gives up, and the cookie times out: one list lacks it, and the next one after a list of workers
    world.vpn().cookies.clear();
    world.pass(61 * SECOND);
    assert_eq!(world.kernel.len(), 0);
}

#[test]
fn a_cookie_that_one_list_lacks_is_refused_while_a_client_with_it_is_at_the_door() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    world.pass(10 * SECOND);
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    world.vpn().cookies.clear();
    world.pass(60 * SECOND);
    assert!(world.refuses(cookie));
    assert!(matches!(world.look(id, true), Verdict::Refuse(_)));
    world.exit(id);
    world.pass(60 * SECOND);
    assert!(!world.refuses(cookie));
}

#[test]
fn r2_a_list_that_was_asked_for_before_the_revocation_takes_no_mark_away() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    let before = world.now.mono;
    world.pass_time(ms(1));
    world.ask(World::order(Target::User("alice".into())));
    world.handle(Event::Cookies { server: vpn(), asked: before, outcome: Ok(Vec::new()) });
    world.pass(10 * SECOND);
    assert!(world.refuses(cookie));
}

#[test]
fn r2_where_ocserv_has_terminate_the_cookie_is_gone_before_the_answer() {
    let mut world = World::newest_ocserv();
    let (first, second) = (world.login("alice"), world.login("alice"));
    world.up(first);
    let receipt = world.revoke_user("alice");
    let cookie = layer(&receipt, Layer::Cookie);
    assert_eq!((cookie.done, cookie.guarded, cookie.failed), (2, 0, 0), "{receipt:?}");
    assert!(world.vpn().cookies.is_empty());
    world.pass(60 * SECOND);
    assert_eq!(world.kernel.len(), 0);
    let _ = second;
}

#[test]
fn r6_a_cookie_that_terminate_did_not_take_is_guarded_and_not_called_gone() {
    let mut world = World::newest_ocserv();
    let cookie = world.login("alice");
    let request = world.ask(World::order(Target::User("alice".into())));
    while let Some(task) = world.tasks.pop_front() {
        match task.what {
            // it says yes, and its other sec-mod instance keeps the cookie
            Effect::Terminate { server, safe_id } => {
                world.handle(Event::Terminated { server, safe_id, outcome: Ok(true) });
            }
            _ => world.carry_out(task),
        }
    }
    let Some(Answer::Receipt(receipt)) = world.answers.remove(&request) else { panic!("no receipt") };
    let layer = layer(&receipt, Layer::Cookie);
    assert_eq!((layer.done, layer.guarded), (0, 1));
    // it is tried again, and is gone then
    world.pass(2 * SECOND);
    assert!(!world.vpn().cookies.contains_key(&cookie));
}

#[test]
fn r2_after_ocservs_restart_nothing_is_refused_any_more() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    world.pass(10 * SECOND);
    world.stop_ocserv();
    assert_eq!(world.kernel.len(), 0);
    world.start_ocserv();
    let fresh = world.login("alice");
    assert!(world.is_let_in(fresh));
}

#[test]
fn r2_a_new_main_process_that_was_not_seen_to_stop_loses_no_mark_that_it_still_lists() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    world.pass(10 * SECOND);
    // the new one has made a cookie, and it was revoked, before anybody noticed that it is new
    world.vpn().cookies.clear();
    let newer = world.login("alice");
    world.revoke_user("alice");
    world.start_ocserv();
    assert!(!world.is_let_in(newer));
    world.pass(60 * SECOND);
    assert!(!world.refuses(cookie) && world.refuses(newer));
}

#[test]
fn r6_while_ocserv_is_silent_the_packets_stop_and_the_answer_is_partial_and_completes_by_itself() {
    let mut world = World::new();
    let (first, offline) = (world.login("alice"), world.login("alice"));
    let id = world.up(first);
    world.vpn().up = false;
    let asked = world.now.mono;
    let request = world.ask(World::order(Target::User("alice".into())));
    assert!(world.stopped(id));
    let Answer::Receipt(receipt) = world.answered(request) else { panic!("no receipt") };
    assert!(!receipt.is_complete());
    assert!(world.now.mono - asked <= 5 * SECOND);
    assert!(!world.workers.contains_key(&id), "its sockets go without ocserv");
    assert!(world.cuts_off("alice"));
    world.vpn().up = true;
    world.pass(5 * SECOND);
    assert!(!world.cuts_off("alice") && world.refuses(offline));
    assert!(world.registry.receipt_of(receipt.number, world.now).unwrap().is_complete());
    let state = world.registry.revocations().find(|r| r.number == receipt.number).unwrap().state;
    assert_eq!(state, RevocationState::Settled);
}

#[test]
fn r2_while_ocserv_cannot_list_its_cookies_the_old_ones_are_refused_and_other_users_are_not() {
    let mut world = World::new();
    let (old, bobs) = (world.login("alice"), world.login("bob"));
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    assert!(!world.is_let_in(old));
    assert!(world.is_let_in(bobs));
}

#[test]
fn r4_a_fresh_cookie_waits_at_the_gate_for_the_list_and_is_let_in() {
    let mut world = World::new();
    let old = world.login("alice");
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    world.pass(2 * SECOND);
    let fresh = world.login("alice");
    world.vpn().lists_cookies = true;
    assert!(world.is_let_in(fresh));
    assert!(!world.is_let_in(old));
}

#[test]
fn r2_a_cookie_of_the_same_second_as_the_revocation_counts_as_old_and_one_of_the_next_as_fresh() {
    let mut world = World::new();
    world.vpn().lists_cookies = false;
    world.ask(World::order(Target::User("alice".into())));
    let tie = world.login("alice");
    world.pass_time(SECOND);
    let fresh = world.login("alice");
    world.vpn().lists_cookies = true;
    world.run();
    assert!(!world.is_let_in(tie));
    assert!(world.is_let_in(fresh));
}

#[test]
fn r2_with_the_clock_set_back_after_the_revocation_a_cookie_from_the_future_is_not_a_fresh_one() {
    let mut world = World::new();
    world.now.wall += 3_600;
    let old = world.login("alice");
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    world.now.wall -= 7_200;
    world.vpn().lists_cookies = true;
    world.pass(SECOND);
    assert!(!world.is_let_in(old));
    let fresh = world.login("alice");
    assert!(world.is_let_in(fresh));
}

#[test]
fn r2_with_the_clock_set_back_before_the_revocation_an_older_cookie_with_a_later_time_is_not_a_fresh_one() {
    let mut world = World::new();
    world.pass(SECOND);
    let old = world.login("alice");
    world.now.wall -= 10;
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    // by then the old cookie's time is neither before the revocation nor in the future
    world.pass(20 * SECOND);
    let fresh = world.login("alice");
    world.vpn().lists_cookies = true;
    world.pass(SECOND);
    assert!(!world.is_let_in(old));
    assert!(world.is_let_in(fresh));
}

#[test]
fn with_the_clock_set_forward_after_the_revocation_a_fresh_cookie_is_let_in() {
    let mut world = World::new();
    let old = world.login("alice");
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    world.now.wall += 86_400;
    let fresh = world.login("alice");
    world.vpn().lists_cookies = true;
    world.pass(SECOND);
    assert!(world.is_let_in(fresh) && !world.is_let_in(old));
}

#[test]
fn r2_a_list_that_lacks_a_connected_session_is_not_complete_and_decides_nothing() {
    let mut world = World::new();
    let (hidden, bobs) = (world.login("alice"), world.login("bob"));
    world.up(bobs);
    world.vpn().hidden.extend([hidden, bobs]);
    world.pass(SECOND);
    let receipt = world.revoke_user("alice");
    assert!(!receipt.is_complete());
    assert!(receipt.notes.iter().any(|note| note.contains("bob")), "{:?}", receipt.notes);
    assert!(world.cuts_off("alice") && !world.is_let_in(hidden));
    world.vpn().hidden.clear();
    world.pass(5 * SECOND);
    assert!(!world.cuts_off("alice") && world.refuses(hidden));
}

#[test]
fn a_session_that_has_just_ended_does_not_make_the_list_incomplete() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    world.up(alices);
    let bob = world.up(bobs);
    world.pass(SECOND);
    world.vpn().cookies.remove(&bobs);
    let request = world.ask(World::order(Target::User("alice".into())));
    world.run();
    world.exit(bob);
    let Answer::Receipt(receipt) = world.answered(request) else { panic!("no receipt") };
    assert!(receipt.is_complete(), "{receipt:?}");
}

#[test]
fn r1_a_session_that_was_up_before_anybody_knew_is_ended_also_while_its_cookie_cannot_be_listed() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let mut worker = world.worker(cookie);
    worker.tun = true;
    let id = world.arrive(worker);
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    assert!(world.stopped(id));
}

#[test]
fn r7_after_a_silence_during_which_nothing_was_asked_ocserv_is_asked_again() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    world.revoke_user("alice");
    world.pass(10 * SECOND);
    world.vpn().up = false;
    world.pass(60 * SECOND);
    world.vpn().up = true;
    world.vpn().cookies.clear();
    world.pass(60 * SECOND);
    assert_eq!(world.kernel.len(), 0);
}

#[test]
fn r7_a_safe_id_that_nobody_knows_is_not_refused_for_ever_once_every_server_has_told() {
    let mut world = World::with(&["vpn", "west"], Rules::default());
    let cookie = world.login("alice");
    world.vpn().cookies.clear();
    world.ocservs.get_mut(&ServerName::new("west")).unwrap().up = false;
    let answer = world.revoke(Target::Session(cookie));
    assert!(matches!(answer, Answer::Receipt(ref receipt) if !receipt.is_complete()), "{answer:?}");
    world.pass(60 * SECOND);
    assert!(world.refuses(cookie));
    world.ocservs.get_mut(&ServerName::new("west")).unwrap().up = true;
    world.pass(60 * SECOND);
    assert!(!world.refuses(cookie));
}

#[test]
fn r6_without_a_gate_a_cookie_that_is_left_is_called_open() {
    let mut world = World::new();
    world.handle(Event::GateConfigured { server: vpn(), configured: false });
    let cookie = world.login("alice");
    let receipt = world.revoke_user("alice");
    assert!(!receipt.is_complete());
    assert!(world.drops(&Entry::SafeId(cookie)));
}

#[test]
fn r2_a_client_that_waits_at_the_door_with_a_cookie_that_was_deleted_meanwhile_is_refused() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    let worker = world.worker(cookie);
    let id = world.connect(worker);
    assert!(matches!(world.look(id, false), Verdict::Refuse(_)));
    world.pass_time(ms(1));
    world.vpn().cookies.remove(&cookie);
    world.vpn().lists_cookies = true;
    assert!(matches!(world.look(id, true), Verdict::Refuse(_)));
    // the cutoff is gone: if the daemon dies now, and the gate alone lets it in, its device is dropped all the same
    assert!(!world.cuts_off("alice") && world.workers.contains_key(&id) && world.stopped(id));
    world.exit(id);
    world.pass(60 * SECOND);
    assert_eq!(world.kernel.len(), 0);
}

#[test]
fn r6_a_second_terminate_of_a_cookie_that_the_first_has_just_deleted_is_not_nothing() {
    let mut world = World::newest_ocserv();
    let cookie = world.login("alice");
    assert!(world.receipt(Target::Session(cookie)).is_complete());
    let receipt = world.receipt(Target::Session(cookie));
    assert!(receipt.is_complete());
    assert_eq!(layer(&receipt, Layer::Cookie).done, 1);
    // also when the first is long settled and holds nothing any more
    world.pass(60 * SECOND);
    assert!(!world.refuses(cookie));
    assert!(world.receipt(Target::Session(cookie)).is_complete());
}

#[test]
fn r6_a_cookie_that_one_server_deleted_is_nothing_on_another() {
    let mut world = World::with(&["vpn", "other"], Rules::default());
    world.vpn().terminate = true;
    world.servers_up();
    let cookie = world.login("alice");
    world.receipt(Target::Session(cookie));
    let order = Order { server: Some(ServerName::new("other")), ..World::order(Target::Session(cookie)) };
    let request = world.ask(order);
    assert!(matches!(world.answered(request), Answer::Nothing(_)));
}

#[test]
fn r6_a_cookie_whose_client_is_offline_and_that_terminate_took_is_called_done_and_not_nothing() {
    let mut world = World::newest_ocserv();
    let cookie = world.login("alice");
    let receipt = world.receipt(Target::Session(cookie));
    assert_eq!(layer(&receipt, Layer::Cookie).done, 1);
    assert!(matches!(
        world.revoke(Target::Session(crate::session::SafeId::from_bytes([9; 20]))),
        Answer::Nothing(_)
    ));
}
