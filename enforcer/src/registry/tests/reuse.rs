//! Addresses, device names, ports and pids are given to somebody else a moment later: R3.

use super::super::*;
use super::harness::*;
use crate::session::{Device, Entry};

#[test]
fn r3_the_next_owner_of_a_tunnel_address_is_not_hit_although_the_revoked_worker_still_hangs() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    world.workers.get_mut(&alice).unwrap().hangs = true;
    world.revoke_user("alice");
    let address = world.workers[&alice].address;
    assert!(world.drops(&Entry::Address(NETNS, address)));
    let worker = Worker { address, ..world.worker(bobs) };
    let (bob, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    assert!(!world.is_hit(bob));
    assert!(world.stopped(alice), "her device drops as long as it is there");
    // nor does a later list give it back to her
    world.pass(5 * SECOND);
    assert!(!world.is_hit(bob));
    assert!(world.stopped(alice));
}

#[test]
fn r1_an_address_that_is_still_the_revoked_sessions_own_is_dropped_until_it_is_gone() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let alice = world.up(cookie);
    world.workers.get_mut(&alice).unwrap().hangs = true;
    world.revoke_user("alice");
    world.pass(30 * SECOND);
    let address = world.workers[&alice].address;
    assert!(world.drops(&Entry::Address(NETNS, address)));
    world.exit(alice);
    assert!(!world.drops(&Entry::Address(NETNS, address)));
}

#[test]
fn r4_the_same_user_with_a_fresh_cookie_and_the_same_address_is_not_hit() {
    // predictable-ips
    let mut world = World::new();
    let cookie = world.login("alice");
    let old = world.up(cookie);
    world.workers.get_mut(&old).unwrap().hangs = true;
    world.revoke_user("alice");
    let fresh = world.login("alice");
    let worker = Worker { address: world.workers[&old].address, ..world.worker(fresh) };
    let (id, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    assert!(!world.is_hit(id));
}

#[test]
fn r3_a_device_number_that_was_reused_is_not_hit() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    world.workers.get_mut(&alice).unwrap().hangs = true;
    world.revoke_user("alice");
    let device = world.workers[&alice].device;
    // its end was missed: the namespace is another one with the same number
    world.workers.remove(&alice);
    let worker = Worker { device, ..world.worker(bobs) };
    let (bob, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    assert!(!world.is_hit(bob));
}

#[test]
fn r3_a_device_of_the_same_name_is_another_device() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    world.workers.get_mut(&alice).unwrap().hangs = true;
    world.revoke_user("alice");
    let old = world.workers[&alice].device;
    let bob = world.up(bobs);
    assert!(!world.is_hit(bob));
    world.handle(Event::DeviceGone { device: old });
    assert!(!world.is_hit(bob) && !world.drops(&Entry::Device(old)));
}

#[test]
fn r3_a_pid_that_was_reused_is_another_session() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    world.revoke_user("alice");
    let mut worker = world.worker(bobs);
    worker.process.pid = alice;
    let (bob, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    world.pass(5 * SECOND);
    assert!(!world.is_hit(bob));
    assert_eq!(world.row(bob).unwrap().user, "bob");
}

#[test]
fn r3_late_news_of_a_worker_whose_pid_was_reused_is_not_believed() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let late = world.workers[&alice].clone();
    world.exit(alice);
    let mut worker = world.worker(bobs);
    worker.process.pid = alice;
    let (bob, _) = world.try_in(worker);
    // a list from before: its id, user and cookie; the process is found by the pid, and is bob's
    let mut sighting = world.sighting(&world.workers[&bob]);
    sighting.observed.safe_id = Some(late.cookie);
    sighting.observed.user = "alice".into();
    world.handle(Event::Sighted { server: vpn(), sighting });
    world.revoke_user("alice");
    assert!(!world.is_hit(bob));
    assert!(world.workers.contains_key(&bob));
}

#[test]
fn r3_a_list_that_was_on_its_way_while_a_worker_ended_does_not_bring_it_back() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let bob = world.up(bobs);
    world.up(alices);
    let asked = world.now.mono;
    let mut sighting = world.sighting(&world.workers[&bob]);
    world.exit(bob);
    // its process is not found any more
    (sighting.worker, sighting.device, sighting.netns) = (None, None, None);
    world.handle(Event::Listed { server: vpn(), asked, outcome: Ok(vec![sighting]) });
    assert_eq!(world.row(bob), None);
    world.vpn().cookies.remove(&bobs);
    world.pass(SECOND);
    assert!(world.revoke_user("alice").is_complete(), "a ghost would make every list of cookies incomplete");
}

#[test]
fn r3_a_neighbour_who_is_given_the_same_outer_port_right_after_is_not_hit() {
    let mut world = World::new();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let flow = world.workers[&alice].flow;
    world.ask(World::order(Target::User("alice".into())));
    assert!(world.drops(&Entry::Flow(NETNS, flow)), "as long as her socket is there");
    world.run();
    assert!(!world.drops(&Entry::Flow(NETNS, flow)));
    let worker = Worker { flow, ..world.worker(bobs) };
    let (bob, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    world.pass(5 * SECOND);
    assert!(!world.is_hit(bob));
}

#[test]
fn r1_the_flow_of_a_worker_that_hangs_is_dropped_until_its_socket_is_gone() {
    let mut world = World::new();
    let cookie = world.login("alice");
    let alice = world.up(cookie);
    world.workers.get_mut(&alice).unwrap().hangs = true;
    let flow = world.workers[&alice].flow;
    let receipt = world.revoke_user("alice");
    assert!(!receipt.is_complete());
    assert!(world.drops(&Entry::Flow(NETNS, flow)));
    world.workers.get_mut(&alice).unwrap().hangs = false;
    world.pass(SECOND);
    assert!(!world.drops(&Entry::Flow(NETNS, flow)));
    assert!(world.registry.receipt_of(receipt.number, world.now).unwrap().is_complete());
}

#[test]
fn r3_a_late_disconnect_event_does_not_touch_the_next_session_under_that_id() {
    let rules = Rules { invalidate_on_disconnect: [vpn()].into(), ..Rules::default() };
    let mut world = World::with(&["vpn"], rules);
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    world.exit(alice);
    let mut worker = world.worker(bobs);
    worker.process.pid = alice;
    let (bob, _) = world.try_in(worker);
    world.handle(Event::FeedDisconnected {
        server: vpn(),
        id: alice,
        safe_id: Some(alices),
        user: "alice".into(),
        reason: 3,
    });
    world.pass(5 * SECOND);
    assert!(!world.is_hit(bob) && world.workers.contains_key(&bob));
    assert!(world.refuses(alices));
}

#[test]
fn an_older_session_of_the_same_cookie_keeps_nothing_of_what_the_newer_one_was_given() {
    // roaming: ocserv gives the newer worker the older one's address
    let mut world = World::new();
    let cookie = world.login("alice");
    let old = world.up(cookie);
    let worker = Worker { address: world.workers[&old].address, ..world.worker(cookie) };
    let (new, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    assert!(world.row(old).unwrap().addresses.is_empty());
    world.exit(old);
    world.revoke_user("alice");
    assert!(!world.workers.contains_key(&new));
    assert_eq!(world.kernel.keys().collect::<Vec<_>>(), [&Entry::SafeId(cookie)]);
}

#[test]
fn in_a_container_a_session_is_followed_by_lists_and_an_id_that_was_reused_is_another_session() {
    let mut world = World::new();
    world.blind = true;
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let receipt = world.receipt(Target::Session(alices));
    assert!(!receipt.is_complete(), "nobody can see its worker's end");
    world.pass(SECOND);
    assert!(!world.workers.contains_key(&alice));
    let mut worker = world.worker(bobs);
    worker.process.pid = alice;
    let (bob, verdict) = world.try_in(worker);
    assert_eq!(verdict, Verdict::Admit);
    world.acts.clear();
    world.pass(5 * SECOND);
    assert_eq!(world.acts, []);
    assert_eq!(world.registry.session(&vpn(), bob).unwrap().observed.user, "bob");
    assert_eq!(world.registry.sessions().count(), 1);
}

#[test]
fn a_list_that_was_on_its_way_does_not_end_a_session_that_came_meanwhile() {
    let mut world = World::new();
    world.blind = true;
    let cookie = world.login("alice");
    let asked = world.now.mono;
    world.pass_time(ms(1));
    let id = world.up(cookie);
    world.handle(Event::Listed { server: vpn(), asked, outcome: Ok(Vec::new()) });
    assert!(world.row(id).is_some());
    world.pass_time(ms(1));
    world.handle(Event::Listed { server: vpn(), asked: world.now.mono, outcome: Ok(Vec::new()) });
    assert!(world.row(id).is_none());
}

#[test]
fn a_device_that_is_nobodys_is_released_when_it_is_gone() {
    let mut world = World::new();
    world.handle(Event::DeviceGone { device: Device { netns: NETNS, index: 9 } });
    assert_eq!(world.kernel.len(), 0);
}
