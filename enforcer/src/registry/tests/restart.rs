//! The daemon ends at any moment, and takes over what stands in the kernel.

use super::super::*;
use super::harness::*;
use crate::session::{Device, Entry, Netns, ServerName, Stands};

#[test]
fn r2_a_revoked_cookie_is_refused_after_a_restart_and_another_is_not() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let (_, bob) = (world.up(alices), world.up(bobs));
    world.revoke_user("alice");
    world.restart_daemon();
    assert!(!world.is_let_in(alices));
    assert!(!world.is_hit(bob));
    world.exit(bob);
    assert!(world.is_let_in(bobs));
}

#[test]
fn r1_a_session_that_was_being_ended_when_the_daemon_died_is_ended_by_the_next_one() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.ask(World::order(Target::User("alice".into())));
    world.kill_daemon();
    assert!(world.stopped(id));
    world.adopt_kernel(false);
    assert!(world.stopped(id));
    world.servers_up();
    assert!(!world.workers.contains_key(&id));
    world.pass(SECOND);
    assert!(matches!(&world.kernel.keys().collect::<Vec<_>>()[..], [Entry::SafeId(_)]), "{:?}", world.kernel);
}

#[test]
fn r1_the_leases_of_a_session_that_is_still_there_never_leave_the_kernel_on_the_way() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    world.revoke_user("alice");
    let address = Entry::Address(NETNS, world.workers[&id].address);
    world.kill_daemon();
    world.adopt_kernel(true);
    let sighting = world.sighting(&world.workers[&id]);
    let list = Event::Listed { server: vpn(), asked: world.now.mono, outcome: Ok(vec![sighting]) };
    let up = Event::ServerUp { server: vpn(), main: world.vpn().main, terminate: false };
    world.handle(up);
    let effects = world.registry.handle(list, world.now);
    let removed = effects.iter().any(|e| matches!(e, Effect::Remove { entry, .. } if *entry == address));
    assert!(!removed, "{effects:?}");
}

#[test]
fn r3_leases_whose_session_ended_meanwhile_are_released_once_every_server_has_told() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    world.revoke_user("alice");
    world.kill_daemon();
    world.workers.remove(&id);
    world.adopt_kernel(true);
    assert!(world.kernel.values().any(|it| it.stands == Stands::Leased));
    world.servers_up();
    assert!(world.kernel.values().all(|it| it.stands != Stands::Leased));
}

#[test]
fn r3_leases_of_an_earlier_run_are_released_after_10_s_also_if_ocserv_never_tells() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    world.revoke_user("alice");
    world.kill_daemon();
    world.vpn().up = false;
    world.adopt_kernel(true);
    world.pass(9 * SECOND);
    assert!(world.kernel.values().any(|it| it.stands == Stands::Leased));
    world.pass(2 * SECOND);
    assert!(world.kernel.values().all(|it| it.stands != Stands::Leased));
    assert!(world.stopped(id) && world.refuses(cookie), "what can hit nobody else stands");
}

#[test]
fn r3_a_device_that_went_while_no_daemon_was_there_is_released() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.workers.get_mut(&id).unwrap().hangs = true;
    world.revoke_user("alice");
    let device = world.workers[&id].device;
    world.kill_daemon();
    world.workers.remove(&id);
    world.adopt_kernel(false);
    assert!(!world.drops(&Entry::Device(device)));
}

#[test]
fn an_explicit_entry_is_taken_over_with_its_time_and_can_be_lifted_by_its_number() {
    let mut world = World::new();
    let order = Order { stands: Some(60 * SECOND), ..World::order(Target::Address(ip(7))) };
    world.ask(order);
    let forever = world.receipt(Target::Address(ip(8))).number;
    world.pass(30 * SECOND);
    world.restart_daemon();
    world.handle(Event::NetnsAdded { netns: Netns(2) });
    world.pass(31 * SECOND);
    let left: Vec<_> = world.kernel.keys().cloned().collect();
    assert_eq!(left, [Entry::Address(NETNS, ip(8)), Entry::Address(Netns(2), ip(8))]);
    world.lift(forever);
    assert_eq!(world.kernel.len(), 0);
}

#[test]
fn r2_a_cutoff_is_taken_over_and_decides_by_its_own_moment() {
    let mut world = World::new();
    let old = world.login("alice");
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    world.pass(5 * SECOND);
    let fresh = world.login("alice");
    world.restart_daemon();
    assert!(world.cuts_off("alice"));
    assert!(!world.is_let_in(old) && !world.is_let_in(fresh), "nobody can tell them apart yet");
    world.vpn().lists_cookies = true;
    assert!(world.is_let_in(fresh) && !world.is_let_in(old));
}

#[test]
fn r7_a_cutoff_that_was_taken_over_is_resolved_although_nobody_comes_to_the_gate() {
    let mut world = World::new();
    let old = world.login("alice");
    world.vpn().lists_cookies = false;
    world.revoke_user("alice");
    world.restart_daemon();
    world.pass(60 * SECOND);
    world.vpn().lists_cookies = true;
    world.pass(60 * SECOND);
    assert!(!world.cuts_off("alice") && world.refuses(old));
}

#[test]
fn r2_a_safe_id_of_a_server_that_is_not_configured_any_more_stays_refused() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.receipt(Target::Session(cookie));
    world.kernel_server.insert(Entry::SafeId(cookie), None);
    for guard in world.disk.records.values_mut().flat_map(|record| &mut record.guards) {
        guard.server = Some(ServerName::new("another"));
    }
    world.vpn().cookies.clear();
    world.restart_daemon();
    world.pass(120 * SECOND);
    assert!(world.refuses(cookie));
}

#[test]
fn r7_a_cookie_whose_server_was_learned_later_is_not_refused_for_ever_after_a_restart() {
    let mut world = World::with(&["vpn", "west"], Rules::default());
    let cookie = world.login("alice");
    world.receipt(Target::Session(cookie));
    world.restart_daemon();
    world.vpn().cookies.clear();
    world.pass(60 * SECOND);
    assert!(!world.refuses(cookie));
}

#[test]
fn r2_a_cookie_that_ocserv_dropped_while_no_daemon_was_there_is_not_refused_for_ever() {
    let mut world = World::new();
    let cookie = world.login("alice");
    world.revoke_user("alice");
    world.kill_daemon();
    world.vpn().cookies.clear();
    world.adopt_kernel(false);
    world.servers_up();
    world.pass(60 * SECOND);
    assert!(!world.refuses(cookie));
}

#[test]
fn numbers_go_on_after_a_restart() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let first = world.revoke_user("alice").number;
    world.kill_daemon();
    world.registry = Registry::new([vpn()], NETNS, Rules::default());
    world.adopt_kernel(false);
    world.servers_up();
    assert!(world.receipt(Target::Session(cookie)).number > first);
}

#[test]
fn a_device_number_of_an_earlier_run_does_not_hit_a_new_client_with_that_number() {
    let mut world = World::new();
    let cookie = world.login("bob");
    let device = Device { netns: NETNS, index: 77 };
    world.kernel.insert(Entry::Device(device), InKernel { number: 5, stands: Stands::Forever, moment: 0 });
    world.restart_daemon();
    let worker = Worker { device, ..world.worker(cookie) };
    let (bob, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    assert!(!world.is_hit(bob));
}
