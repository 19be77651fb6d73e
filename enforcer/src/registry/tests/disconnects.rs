//! Disconnects that are no revocation, and those that become one (`invalidate-on-disconnect`).

use super::super::*;
use super::harness::*;
use crate::session::SafeId;

const USER: u32 = 2;
const SERVER: u32 = 3;

fn world() -> World {
    World::with(&["vpn"], Rules { invalidate_on_disconnect: [vpn()].into(), ..Rules::default() })
}

/// ocserv ends the worker, and tells of it.
fn disconnected(world: &mut World, id: i32, reason: u32) {
    let worker = world.workers[&id].clone();
    world.exit(id);
    told(world, id, worker.cookie, reason);
}

fn told(world: &mut World, id: i32, cookie: SafeId, reason: u32) {
    world.handle(Event::FeedDisconnected {
        server: vpn(),
        id,
        safe_id: Some(cookie),
        user: "alice".into(),
        reason,
    });
    world.pass(SECOND);
}

#[test]
fn r2_a_disconnect_by_the_stock_occtl_becomes_a_revocation() {
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    disconnected(&mut world, id, SERVER);
    assert!(!world.is_let_in(cookie));
    let by: Vec<_> = world.registry.revocations().map(|r| r.order.by.clone()).collect();
    assert_eq!(by, ["ocserv's occtl"]);
}

#[test]
fn a_disconnect_by_the_user_does_not() {
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    disconnected(&mut world, id, USER);
    assert!(world.is_let_in(cookie));
}

#[test]
fn without_the_setting_a_disconnect_by_the_stock_occtl_does_not() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    disconnected(&mut world, id, SERVER);
    assert!(world.is_let_in(cookie));
}

#[test]
fn a_plain_disconnect_through_us_does_not_whichever_of_its_worker_and_the_feed_is_first() {
    for feed_first in [true, false] {
        let mut world = world();
        let cookie = world.login("alice");
        let id = world.up(cookie);
        world.handle(Event::PlainDisconnect { server: vpn(), ids: vec![id] });
        if feed_first {
            told(&mut world, id, cookie, SERVER);
            world.exit(id);
        } else {
            disconnected(&mut world, id, SERVER);
        }
        assert!(world.is_let_in(cookie), "feed first: {feed_first}");
    }
}

#[test]
fn r2_a_plain_disconnect_that_was_lost_does_not_cover_a_later_one_by_the_stock_occtl() {
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.handle(Event::PlainDisconnect { server: vpn(), ids: vec![id] });
    world.pass(60 * SECOND);
    disconnected(&mut world, id, SERVER);
    assert!(!world.is_let_in(cookie));
}

#[test]
fn the_disconnect_of_our_own_revocation_does_not_become_another_one() {
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.revoke_user("alice");
    told(&mut world, id, cookie, SERVER);
    assert_eq!(world.registry.revocations().count(), 1);
}

#[test]
fn r3_roaming_is_no_disconnect_a_newer_worker_holds_the_cookie() {
    let mut world = world();
    let cookie = world.login("alice");
    let old = world.up(cookie);
    let new = world.up(cookie);
    disconnected(&mut world, old, SERVER);
    assert!(!world.is_hit(new));
    world.exit(new);
    assert!(world.is_let_in(cookie));
}

#[test]
fn r3_roaming_is_no_disconnect_also_if_the_newer_worker_is_seen_only_by_the_list() {
    let mut world = world();
    let cookie = world.login("alice");
    let old = world.up(cookie);
    let worker = Worker { tun: true, ..world.worker(cookie) };
    let new = world.arrive(worker);
    disconnected(&mut world, old, SERVER);
    assert!(!world.is_hit(new));
}

#[test]
fn r2_after_roaming_a_disconnect_of_the_newer_worker_is_one() {
    let mut world = world();
    let cookie = world.login("alice");
    let old = world.up(cookie);
    let new = world.up(cookie);
    disconnected(&mut world, old, SERVER);
    disconnected(&mut world, new, SERVER);
    assert!(!world.is_let_in(cookie));
}

#[test]
fn a_shutdown_of_ocserv_is_no_disconnect() {
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.exit(id);
    world.handle(Event::FeedDisconnected {
        server: vpn(),
        id,
        safe_id: Some(cookie),
        user: "alice".into(),
        reason: SERVER,
    });
    world.stop_ocserv();
    world.run();
    world.start_ocserv();
    world.pass(SECOND);
    assert_eq!(world.registry.revocations().count(), 0);
}

#[test]
fn a_restart_of_ocserv_that_was_not_seen_to_stop_is_no_disconnect() {
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.exit(id);
    world.handle(Event::FeedDisconnected {
        server: vpn(),
        id,
        safe_id: Some(cookie),
        user: "alice".into(),
        reason: SERVER,
    });
    world.tasks.clear();
    world.start_ocserv();
    world.pass(SECOND);
    assert_eq!(world.registry.revocations().count(), 0);
}

#[test]
fn r2_a_stock_disconnect_is_not_forgotten_because_a_list_failed() {
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.vpn().up = false;
    disconnected(&mut world, id, SERVER);
    world.vpn().up = true;
    world.pass(5 * SECOND);
    assert!(!world.is_let_in(cookie));
}

#[test]
fn a_stock_disconnect_whose_cookie_is_gone_leaves_nothing_behind() {
    // persistent-cookies = false
    let mut world = world();
    let cookie = world.login("alice");
    let id = world.up(cookie);
    world.vpn().cookies.clear();
    disconnected(&mut world, id, SERVER);
    world.pass(5 * SECOND);
    assert_eq!((world.kernel.len(), world.registry.revocations().count()), (0, 0));
}
