//! A revocation from the order to its end: what comes before what, and what the answer says.

use super::super::*;
use super::harness::*;
use crate::session::Entry;

#[test]
fn r1_the_kernel_drops_all_of_the_users_sessions_before_anybody_is_told_to_go() {
    let mut world = World::newest_ocserv();
    let (first, second) = (world.login("alice"), world.login("alice"));
    let ids = [world.up(first), world.up(second)];
    let order = World::order(Target::User("alice".into()));
    let effects = world.registry.handle(Event::Revoke { request: Some(1), order }, world.now);
    let at = |which: fn(&Effect) -> bool| effects.iter().position(which).unwrap();
    let last_insert = effects.iter().rposition(|e| matches!(e, Effect::Insert { .. })).unwrap();
    assert!(last_insert < at(|e| matches!(e, Effect::FindFlows { .. })));
    let last_look = effects.iter().rposition(|e| matches!(e, Effect::FindFlows { .. })).unwrap();
    assert!(last_look < at(|e| matches!(e, Effect::Disconnect { .. })));
    assert!(last_look < at(|e| matches!(e, Effect::Terminate { .. })));
    assert!(last_look < at(|e| matches!(e, Effect::End { .. })));
    for id in ids {
        let device = Entry::Device(world.workers[&id].device);
        assert!(effects.iter().any(|e| matches!(e, Effect::Insert { entry, .. } if *entry == device)));
    }
}

#[test]
fn the_disconnect_goes_out_before_the_sockets_are_ended() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.revoke_user("alice");
    assert!(
        matches!(&world.acts[..], [Effect::Disconnect { id: told, .. }, Effect::End { .. }] if *told == id)
    );
}

#[test]
fn r6_the_answer_comes_only_after_the_sockets_are_gone_and_the_cookies_are_listed() {
    // in whatever order the parts come
    for first in 0..4 {
        let mut world = World::new();
        let cookie = world.login("alice");
        let id = world.up(cookie);
        let request = world.ask(World::order(Target::User("alice".into())));
        world.tasks.rotate_left(first);
        while let Some(task) = world.tasks.pop_front() {
            assert!(!world.answers.contains_key(&request));
            world.carry_out(task);
        }
        let Some(Answer::Receipt(receipt)) = world.answers.remove(&request) else { panic!("no receipt") };
        assert!(receipt.is_complete(), "{receipt:?}");
        assert!(!world.workers.contains_key(&id) && world.refuses(cookie));
    }
}

#[test]
fn r6_a_worker_that_hangs_makes_the_answer_partial_at_once_and_is_ended_later() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    let receipt = world.revoke_user("alice");
    assert_eq!(layer(&receipt, Layer::Sockets).failed, 1);
    assert!(receipt.notes.iter().any(|note| note.contains("it hangs")));
    world.workers.get_mut(&id).unwrap().hangs = false;
    world.pass(SECOND);
    assert!(!world.workers.contains_key(&id));
}

#[test]
fn r6_what_does_not_answer_at_all_is_answered_for_at_the_deadline_as_partial() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.up(cookie);
    let request = world.ask(World::order(Target::User("alice".into())));
    world.tasks.clear();
    world.pass_time(ms(3_999));
    world.handle(Event::Tick);
    assert!(!world.answers.contains_key(&request));
    world.pass_time(ms(1));
    world.handle(Event::Tick);
    let Some(Answer::Receipt(receipt)) = world.answers.remove(&request) else { panic!("no receipt") };
    assert!(!receipt.is_complete());
}

#[test]
fn a_user_whom_nobody_knows_is_answered_with_nothing_and_leaves_nothing() {
    let mut world = World::new();
    let bobs = world.login("bob");
    let bob = world.up(bobs);
    assert!(matches!(world.revoke(Target::User("alice".into())), Answer::Nothing(_)));
    assert!(matches!(world.revoke(Target::Id(4_000)), Answer::Nothing(_)));
    let unknown = crate::session::SafeId::from_bytes([9; 20]);
    assert!(matches!(world.revoke(Target::Session(unknown)), Answer::Nothing(_)));
    assert!(!world.is_hit(bob));
    assert_eq!((world.kernel.len(), world.registry.revocations().count()), (0, 0));
}

#[test]
fn a_session_that_only_the_list_knows_is_found_by_its_id() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let worker = Worker { tun: true, ..world.worker(cookie) };
    let id = world.arrive(worker);
    let receipt = world.receipt(Target::Id(id));
    assert_eq!(receipt.sessions.len(), 1);
    assert!(!world.workers.contains_key(&id) && !world.is_let_in(cookie));
}

#[test]
fn an_id_that_stands_for_a_session_on_several_servers_is_refused_and_one_server_may_be_named() {
    let west = ServerName::new("west");
    let mut world = World::with(&["vpn", "west"], Rules::default());
    let (alices, bobs) = (world.login("alice"), world.login_at(&west, "bob"));
    let id = world.up(alices);
    let mut twin = world.worker(bobs);
    twin.process.pid = id;
    twin.tun = true;
    // two containers: the same pid in each
    world.handle(Event::Sighted { server: west.clone(), sighting: world.sighting(&twin) });
    let request = world.ask(World::order(Target::Id(id)));
    assert!(
        matches!(world.answers.remove(&request), Some(Answer::Refused(why)) if why.contains("vpn, west"))
    );
    assert!(!world.is_hit(id) && world.hit(&twin).is_none());
    let order = Order { server: Some(west), ..World::order(Target::Id(id)) };
    world.ask(order);
    assert!(!world.is_hit(id) && world.hit(&twin).is_some());
}

#[test]
fn r3_a_user_of_the_same_name_on_a_server_that_was_not_named_is_not_touched() {
    let west = ServerName::new("west");
    let mut world = World::with(&["vpn", "west"], Rules::default());
    let (here, there) = (world.login("alice"), world.login_at(&west, "alice"));
    let (gone, stays) = (world.up(here), world.up(there));
    let order = Order { server: Some(vpn()), ..World::order(Target::User("alice".into())) };
    let request = world.ask(order);
    world.answered(request);
    assert!(!world.workers.contains_key(&gone) && !world.is_hit(stays));
    // without a server named it is one person
    world.revoke_user("alice");
    assert!(!world.workers.contains_key(&stays));
}

#[test]
fn a_server_that_is_not_configured_is_refused_by_name() {
    let mut world = World::new();
    let order = Order { server: Some(ServerName::new("east")), ..World::order(Target::User("alice".into())) };
    let request = world.ask(order);
    assert!(matches!(world.answers.remove(&request), Some(Answer::Refused(why)) if why.contains("vpn")));
    assert_eq!(world.kernel.len(), 0);
}

#[test]
fn a_second_revocation_of_a_session_that_is_over_but_for_its_device_is_answered_completely() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    let worker = world.workers.remove(&id).unwrap();
    let key = *world.watched.iter().find(|(_, process)| **process == worker.process).unwrap().0;
    world.handle(Event::WorkerGone { key });
    // the kernel has not told of its device's end yet
    for _ in 0..2 {
        let receipt = world.revoke_user("alice");
        assert!(receipt.is_complete(), "{receipt:?}");
    }
    world.handle(Event::DeviceGone { device: worker.device });
    assert_eq!(world.registry.sessions().count(), 0);
}

#[test]
fn r6_a_full_table_makes_the_answer_partial_and_costs_no_older_revocation_its_entry() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let (alice, bob) = (world.up(alices), world.up(bobs));
    for id in [alice, bob] {
        world.workers.get_mut(&id).unwrap().hangs = true;
    }
    world.revoke_user("alice");
    let before = world.kernel.clone();
    world.full = true;
    let receipt = world.revoke_user("bob");
    assert!(layer(&receipt, Layer::Packets).failed > 0, "{receipt:?}");
    assert!(receipt.notes.iter().any(|note| note.contains("full")));
    assert_eq!(world.kernel, before);
    // the daemon itself refuses him at the gate all the same
    assert!(!world.is_let_in(bobs));
    // once there is room it is written, and the receipt is complete but for the worker that hangs
    world.full = false;
    world.pass(SECOND);
    assert!(world.refuses(bobs) && world.stopped(bob));
    let receipt = world.registry.receipt_of(receipt.number, world.now).unwrap();
    assert_eq!(layer(&receipt, Layer::Packets).failed, 0, "{receipt:?}");
}

#[test]
fn r2_a_cutoff_that_could_not_be_written_is_kept_by_the_daemon_itself() {
    let mut world = World::new();
    let old = world.login("alice");
    world.vpn().lists_cookies = false;
    world.full = true;
    let receipt = world.revoke_user("alice");
    assert!(!receipt.is_complete());
    assert!(!world.is_let_in(old));
    world.vpn().lists_cookies = true;
    world.pass(SECOND);
    assert!(!world.is_let_in(old));
}

#[test]
fn r5_a_stronger_hold_that_could_not_be_written_does_not_take_the_weaker_one_away() {
    let mut world = World::new();
    let timed = Order { stands: Some(60 * SECOND), ..World::order(Target::Address(ip(7))) };
    let request = world.ask(timed);
    assert!(matches!(world.answered(request), Answer::Receipt(receipt) if receipt.is_complete()));
    let entry = Entry::Address(NETNS, ip(7));
    let before = world.kernel[&entry];
    world.broken = true;
    let request = world.ask(World::order(Target::Address(ip(7))));
    assert!(matches!(world.answered(request), Answer::Receipt(receipt) if !receipt.is_complete()));
    assert_eq!(world.kernel.get(&entry), Some(&before));
    world.pass(61 * SECOND);
    assert!(!world.drops(&entry), "nobody is left who holds it");
}

#[test]
fn a_preview_tells_whom_it_would_touch_and_touches_nobody() {
    let mut world = World::new();
    let (online, offline, bobs) = (world.login("alice"), world.login("alice"), world.login("bob"));
    let id = world.up(online);
    world.up(bobs);
    let before = world.kernel.clone();
    let cookies = vec![(vpn(), world.list_cookies(&vpn()).unwrap())];
    let preview = |world: &World, target| {
        let rows = world.registry.preview(&World::order(target), &cookies).sessions;
        rows.iter().map(|row| (row.id, row.safe_id)).collect::<Vec<_>>()
    };
    assert_eq!(preview(&world, Target::User("alice".into())), [(id, Some(online)), (0, Some(offline))]);
    assert_eq!(preview(&world, Target::Id(id)), [(id, Some(online))]);
    assert_eq!(preview(&world, Target::Session(offline)), [(0, Some(offline))]);
    assert_eq!(preview(&world, Target::User("carol".into())), []);
    assert_eq!((world.kernel, world.tasks.len()), (before, 0));
}

#[test]
fn a_session_whose_worker_is_gone_is_neither_shown_nor_disconnected_again() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    let process = world.workers[&id].process;
    let key = *world.watched.iter().find(|(_, its)| **its == process).unwrap().0;
    world.handle(Event::WorkerGone { key });
    assert!(world.row(id).is_none());
    assert_eq!(world.registry.ids_of(&World::order(Target::User("alice".into()))), []);
}

#[test]
fn r7_a_hundred_revocations_of_one_user_are_one_entry() {
    let mut world = World::new();
    let cookie = world.login("alice");
    for _ in 0..100 {
        world.revoke_user("alice");
    }
    world.pass(10 * SECOND);
    assert_eq!(world.kernel.len(), 1);
    world.vpn().cookies.remove(&cookie);
    world.pass(60 * SECOND);
    assert_eq!(world.kernel.len(), 0);
}

#[test]
fn r6_a_worker_that_hangs_over_ocservs_end_is_still_ended_and_its_revocation_comes_to_rest() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    let number = world.revoke_user("alice").number;
    world.vpn().up = false;
    world.handle(Event::ServerDown { server: vpn(), gone: true });
    assert!(!world.refuses(cookie), "ocserv has forgotten it");
    world.pass(SECOND);
    assert!(world.stopped(id));
    world.workers.get_mut(&id).unwrap().hangs = false;
    world.pass(5 * SECOND);
    assert!(!world.workers.contains_key(&id));
    assert_eq!(world.kernel.len(), 0);
    let state = world.registry.revocations().find(|r| r.number == number).unwrap().state;
    assert_eq!(state, RevocationState::Settled);
}

#[test]
fn r6_a_second_revocation_of_a_session_whose_worker_cannot_be_seen_hears_so_and_comes_to_rest() {
    let mut world = World::new();
    world.blind = true;
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.pass_time(ms(1));
    let requests =
        [Target::Session(cookie), Target::User("alice".into())].map(|t| world.ask(World::order(t)));
    // before anybody has looked again the worker is gone, of which a list tells
    world.exit(id);
    world.vpn().cookies.clear();
    let asked = world.now.mono;
    for request in requests {
        let Answer::Receipt(receipt) = world.answered(request) else { panic!("no receipt") };
        assert!(receipt.is_complete(), "{receipt:?}");
    }
    assert!(world.now.mono < asked + world.rules.answer_within, "it waits for nobody");
    world.pass(60 * SECOND);
    assert!(world.registry.revocations().all(|r| r.state == RevocationState::Settled));
    assert_eq!(world.kernel.len(), 0);
}

#[test]
fn r2_what_a_lifted_revocation_had_deleted_stays_under_a_later_one_of_the_same_user() {
    let mut world = World::newest_ocserv();
    let cookie = world.login("carol");
    world.run();
    let worker = world.worker(cookie);
    let id = world.arrive(worker);
    let carry_out = |world: &mut World, wanted: fn(&Effect) -> bool| {
        let at = world.tasks.iter().position(|task| wanted(&task.what)).unwrap();
        let task = world.tasks.remove(at).unwrap();
        world.carry_out(task);
        world.pass_time(ms(1));
    };
    world.ask(World::order(Target::User("carol".into())));
    carry_out(&mut world, |what| matches!(what, Effect::AskCookies { .. }));
    let later = world.ask(World::order(Target::User("carol".into())));
    carry_out(&mut world, |what| matches!(what, Effect::Terminate { .. }));
    // no list shows that cookie any more, and nobody has seen its worker, which is in its connect-script
    world.lift(1);
    carry_out(&mut world, |what| matches!(what, Effect::AskCookies { .. }));
    assert!(matches!(world.look(id, true), Verdict::Refuse(_)));
    world.exit(id);
    assert!(matches!(world.answered(later), Answer::Receipt(_)));
    world.pass(60 * SECOND);
    assert_eq!(world.kernel.len(), 0);
}
