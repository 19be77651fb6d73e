//! Locks: a person gets no session at all, until a time or until unlocked, and nobody else is touched.

use std::time::Duration;

use super::harness::*;
use crate::registry::*;
use crate::session::*;

fn world_with_realms(realms: Realms) -> World {
    World::with(false, Rules { realms, ..Rules::default() })
}

/// ocserv tells what it has, as often as it is asked.
fn settle(world: &mut World, cookies: &[Cookie]) {
    for _ in 0..20 {
        world.list(vec![]);
        world.cookies(cookies.to_vec());
        world.pass(200);
    }
}

#[test]
fn r2_a_locked_user_is_refused_also_with_a_fresh_login_and_nobody_else_is() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    let request = world.revoke(lock("alice", None));
    world.list(vec![]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    world.end(key, 7);
    world.cookies(vec![cookie("alice", 1, 900)]);
    assert!(world.receipt(request).is_complete(), "{:?}", world.receipt(request));
    settle(&mut world, &[cookie("alice", 1, 900), cookie("alice", 2, 2_000)]);
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    assert!(!world.admitted(at_gate("alice", 18, 2)), "a fresh login");
    assert!(world.admitted(at_gate("bob", 19, 3)));
}

#[test]
fn a_lock_of_somebody_who_has_nothing_is_done_all_the_same() {
    let mut world = World::new();
    let request = world.revoke(lock("carol", None));
    world.list(vec![]);
    world.cookies(vec![]);
    assert!(world.receipt(request).is_complete());
    assert!(!world.admitted(at_gate("carol", 7, 1)));
}

#[test]
fn r4_unlocked_a_fresh_login_works_at_once_and_what_the_lock_ended_stays_ended() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(lock("alice", None));
    world.list(vec![]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    world.end(key, 7);
    settle(&mut world, &[cookie("alice", 1, 900)]);
    let unlock = world.unlock("alice");
    assert!(world.receipt(unlock).is_complete());
    assert!(world.admitted(at_gate("alice", 18, 2)));
    assert!(!world.admitted(at_gate("alice", 19, 1)), "R2");
    world.restart();
    assert!(world.admitted(at_gate("alice", 20, 4)));
    assert!(!world.admitted(at_gate("alice", 21, 1)), "R2");
    let again = world.unlock("alice");
    assert!(matches!(&world.answers[&again], Answer::Nothing(_)));
}

#[test]
fn r4_a_client_at_the_door_passes_once_the_lock_is_over_and_so_do_its_packets() {
    for by_time in [false, true] {
        let mut world = World::new();
        world.revoke(lock("alice", by_time.then_some(Duration::from_secs(60))));
        world.list(vec![]);
        world.cookies(vec![]);
        let first = world.look(at_gate("alice", 7, 1), false);
        assert!(world.refuses(first));
        assert!(world.has(&Entry::Device(device(7))) && world.has(&on_address(7)), "R1");
        if by_time {
            settle(&mut world, &[cookie("alice", 1, 1_000)]);
            world.pass(60_000);
        } else {
            world.unlock("alice");
        }
        assert!(!world.has(&Entry::Device(device(7))) && !world.has(&on_address(7)), "{:?}", world.kernel);
        assert!(world.admitted(at_gate("alice", 7, 1)));
        world.see(sighting("alice", 7, 1));
        assert_eq!(world.asked(|e| matches!(e, Effect::End { .. })), 0);
    }
}

#[test]
fn a_lock_stands_for_its_time_over_restarts_and_reboots() {
    let mut world = World::new();
    world.revoke(lock("alice", Some(Duration::from_secs(3_600))));
    world.list(vec![]);
    world.cookies(vec![]);
    settle(&mut world, &[]);
    world.restart();
    assert!(!world.admitted(at_gate("alice", 7, 1)));
    world.pass(1_000_000);
    world.now.wall += 1_000;
    world.reboot();
    assert!(!world.admitted(at_gate("alice", 8, 2)));
    world.pass(1_500_000);
    assert!(!world.admitted(at_gate("alice", 9, 3)));
    world.pass(120_000);
    assert!(world.admitted(at_gate("alice", 10, 4)));
    assert!(world.disk.records.is_empty(), "{:?}", world.disk.records);
}

#[test]
fn a_lock_is_a_persons_whatever_server_and_whatever_case_the_realm_says() {
    let mut realms = Realms::default();
    realms.set_case(DEFAULT_REALM, Case::Fold);
    let mut world = world_with_realms(realms);
    world.revoke(lock("alice", None));
    world.list(vec![]);
    world.cookies(vec![]);
    assert!(!world.admitted(at_gate("ALICE", 7, 1)));
    assert!(world.admitted(at_gate("alicia", 8, 2)));

    let mut realms = Realms::default();
    realms.set_vhost(server(), "guests", "guests");
    let mut world = world_with_realms(realms);
    world.revoke(lock("alice", None));
    world.list(vec![]);
    world.cookies(vec![]);
    assert!(!world.admitted(at_gate("alice", 7, 1)));
    assert!(world.admitted(at_gate("Alice", 8, 2)), "case counts here");
    let mut guest = at_gate("alice", 9, 3);
    guest.observed.vhost = "guests".into();
    assert!(world.admitted(guest), "another alice");
}

#[test]
fn two_locks_of_one_person_are_taken_back_together() {
    let mut world = World::new();
    world.revoke(lock("alice", Some(Duration::from_secs(60))));
    world.revoke(lock("alice", None));
    settle(&mut world, &[]);
    world.pass(120_000);
    assert!(!world.admitted(at_gate("alice", 7, 1)), "the longer one stands");
    world.revoke(lock("alice", Some(Duration::from_secs(600))));
    settle(&mut world, &[]);
    let unlock = world.unlock("alice");
    assert!(world.receipt(unlock).is_complete());
    assert!(world.admitted(at_gate("alice", 8, 2)));
    assert_eq!(world.registry.locks_in_force(), 0);
    let locks = world.disk.records.values().flat_map(|record| &record.guards);
    assert_eq!(locks.filter(|guard| matches!(guard.what, Guarded::Lock(_))).count(), 0);
    assert!(world.disk.lifted.is_empty());
}

#[test]
fn r5_a_lock_of_which_only_the_kernel_knows_holds_and_can_be_taken_back_by_name() {
    let mut world = World::new();
    world.disk.full = true;
    world.revoke(lock("alice", None));
    settle(&mut world, &[]);
    world.disk.full = false;
    world.restart();
    assert!(!world.admitted(at_gate("alice", 7, 1)));
    world.reboot();
    assert!(!world.admitted(at_gate("alice", 8, 2)), "it was written down by its key");
    let unlock = world.unlock("alice");
    assert!(world.receipt(unlock).is_complete());
    assert!(world.admitted(at_gate("alice", 9, 3)));
}

#[test]
fn an_unlock_that_cannot_be_written_is_refused_and_the_lock_stands() {
    let mut world = World::new();
    world.revoke(lock("alice", None));
    settle(&mut world, &[]);
    world.disk.full = true;
    let unlock = world.unlock("alice");
    assert!(matches!(&world.answers[&unlock], Answer::Refused(_)));
    assert!(!world.admitted(at_gate("alice", 7, 1)));
    world.disk.full = false;
    let unlock = world.unlock("alice");
    assert!(world.receipt(unlock).is_complete());
    assert!(world.admitted(at_gate("alice", 8, 2)));
}

#[test]
fn r5_an_unlock_on_the_disk_is_finished_by_the_next_run() {
    let mut world = World::new();
    let key = world.connect("alice", 7, 1);
    world.revoke(lock("alice", None));
    world.list(vec![]);
    world.cookies(vec![cookie("alice", 1, 900)]);
    world.end(key, 7);
    settle(&mut world, &[cookie("alice", 1, 900)]);
    // it died between the disk and the kernel
    let record = world.disk.records.get_mut(&1).unwrap();
    record.guards.retain(|guard| !matches!(guard.what, Guarded::Lock(_)));
    assert!(!record.guards.is_empty());
    world.restart();
    assert!(world.admitted(at_gate("alice", 8, 2)));
    assert!(!world.admitted(at_gate("alice", 9, 1)), "R2");
}

#[test]
fn r5_a_lock_whose_clock_was_set_while_no_daemon_was_there_stays_on_the_disk_for_its_time() {
    let mut world = World::new();
    world.now.wall = 1_800_000_000;
    world.revoke(lock("alice", Some(Duration::from_secs(60))));
    settle(&mut world, &[]);
    world.now.wall += 1_000;
    world.restart();
    settle(&mut world, &[]);
    let left = world.disk.records[&1].until.unwrap() - world.now.wall;
    assert!((40..=60).contains(&left), "{left}");
    assert!(world.disk.records.contains_key(&1), "{:?}", world.disk);
    world.revoke(lock("alice", None));
    world.restart();
    settle(&mut world, &[]);
    assert!(world.disk.records.contains_key(&1), "{:?}", world.disk);
}

#[test]
fn r4_whom_the_gate_let_in_when_a_lock_had_ended_without_a_daemon_is_not_dropped_any_more() {
    let mut world = World::new();
    world.revoke(lock("alice", Some(Duration::from_secs(60))));
    world.revoke(user("bob"));
    settle(&mut world, &[cookie("bob", 3, 900)]);
    world.look(at_gate("alice", 7, 1), false);
    world.look(at_gate("bob", 8, 3), false);
    assert!(world.has(&Entry::Device(device(7))) && world.has(&Entry::Device(device(8))));
    world.now.mono += Duration::from_secs(120);
    world.now.wall += 120;
    world.restart();
    world.up(1, false);
    world.cookies(vec![cookie("alice", 1, 1_000), cookie("bob", 3, 900)]);
    world.list(vec![sighting("alice", 7, 1), sighting("bob", 8, 3)]);
    world.cookies(vec![cookie("alice", 1, 1_000), cookie("bob", 3, 900)]);
    assert!(!world.has(&Entry::Device(device(7))), "{:?}", world.kernel);
    assert!(world.has(&Entry::Device(device(8))), "R2");
}

#[test]
fn r4_a_client_at_the_door_passes_also_after_a_lock_of_which_only_the_kernel_knew() {
    let mut world = World::new();
    world.disk.full = true;
    world.revoke(lock("alice", Some(Duration::from_secs(60))));
    settle(&mut world, &[]);
    world.restart();
    world.up(1, false);
    world.list(vec![at_gate("alice", 7, 1)]);
    assert!(world.has(&Entry::Device(device(7))), "R1");
    settle(&mut world, &[cookie("alice", 1, 2_000)]);
    world.pass(60_000);
    assert!(!world.has(&Entry::Device(device(7))), "{:?}", world.kernel);
}

#[test]
fn r4_a_lock_of_which_only_the_kernel_knew_is_written_down_with_its_time_as_bound() {
    let mut world = World::new();
    world.disk.full = true;
    world.now.wall = 1_800_000_000;
    // with a cutoff beside it, which has no time
    world.revoke(lock("alice", Some(Duration::from_secs(60))));
    world.disk.full = false;
    world.restart();
    world.now.wall = 1_700_000_000;
    world.reboot();
    world.pass(61_000);
    assert!(!world.kernel.keys().any(|entry| matches!(entry, Entry::Lock(_))), "{:?}", world.kernel);
}

#[test]
fn r2_the_kernels_time_of_a_lock_counts_although_the_disk_does_not_know_this_boot() {
    let mut world = World::new();
    world.now.mono += Duration::from_millis(900);
    world.revoke(lock("alice", Some(Duration::from_secs(10))));
    world.now.mono += Duration::from_millis(9_200);
    world.now.wall += 10;
    world.start_as_after_a_reboot();
    assert!(world.kernel.keys().any(|entry| matches!(entry, Entry::Lock(_))), "{:?}", world.kernel);
}

#[test]
fn r4_a_lock_whose_time_was_over_at_a_reboot_is_not_back_when_the_clock_is_set_back() {
    let mut world = World::new();
    world.now.wall = 1_700_000_000;
    world.silence();
    world.revoke(lock("alice", Some(Duration::from_secs(20))));
    let entry = Entry::Lock(LockKey::new(&identity("alice")));
    assert!(world.has(&entry));
    // her cutoff stands, so that there still is a record
    world.now.wall += 30;
    world.reboot();
    assert!(!world.has(&entry) && world.disk.records.contains_key(&1));
    world.now.wall -= 15;
    world.restart();
    assert!(!world.has(&entry), "{:?}", world.disk.records);
}

#[test]
fn r3_when_a_locks_time_is_over_nothing_of_a_session_that_it_alone_meant_is_dropped() {
    let mut world = World::new();
    world.revoke(lock("alice", Some(Duration::from_secs(60))));
    settle(&mut world, &[]);
    // it came up all the same (the gate was not there), and its worker hangs
    world.list(vec![sighting("alice", 7, 1)]);
    let key = world.key(7);
    world.give(Event::Flows { key, outcome: Ok((NETNS, vec![flow(1)])) });
    world.give(Event::Ended { key, ended: Ended { left: vec!["it hangs".into()], ..Ended::default() } });
    assert!(world.has(&Entry::Flow(NETNS, flow(1))) && world.has(&Entry::Device(device(7))));
    world.pass(60_000);
    assert!(world.kernel.is_empty(), "{:?}", world.kernel);
}
