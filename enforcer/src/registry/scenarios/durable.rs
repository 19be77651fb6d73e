//! R5: an answered revocation is never lost, an answered lift never undone. R6: what is not on the disk is said.

use std::time::Duration;

use super::harness::*;
use crate::registry::*;
use crate::session::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn disk(receipt: &Receipt) -> &LayerResult {
    receipt.layers.iter().find(|layer| layer.layer == Layer::Disk).unwrap()
}

fn explicit(byte: u8, stands: Option<Duration>) -> Order {
    Order { stands, ..order(Target::Address(address(byte))) }
}

#[test]
fn r5_an_answer_waits_for_the_disk() {
    let mut world = World::new();
    world.disk.hangs = true;
    let request = world.revoke(explicit(1, None));
    assert!(world.has(&on_address(1)), "the kernel does not wait");
    assert!(!world.answers.contains_key(&request));
    world.pass(3_900);
    assert!(!world.answers.contains_key(&request));
    world.pass(200);
    let receipt = world.receipt(request);
    assert!(!receipt.is_complete());
    assert!(disk(receipt).text.contains("NOT written yet"), "{receipt:?}");
    world.disk.hangs = false;
    let request = world.revoke(explicit(2, None));
    assert!(world.receipt(request).is_complete());
    assert_eq!(world.disk.records.len(), 2);
    assert_eq!(world.registry.unwritten(), (0, None));
}

#[test]
fn r6_one_whose_time_is_over_before_the_disk_has_told_is_answered_all_the_same() {
    let mut world = World::new();
    world.disk.hangs = true;
    let request = world.revoke(explicit(1, Some(Duration::from_secs(1))));
    world.pass(1_000);
    assert!(!world.has(&on_address(1)));
    world.pass(4_000);
    assert!(!world.receipt(request).is_complete());
    assert!(world.registry.revocations().all(|r| r.state == RevocationState::Expired));
}

#[test]
fn r5_with_the_disk_full_every_live_layer_acts_the_answer_is_partial_and_it_is_tried_again() {
    let mut world = World::new();
    world.disk.full = true;
    let request = world.revoke(explicit(1, None));
    let receipt = world.receipt(request).clone();
    assert!(!receipt.is_complete() && disk(&receipt).text.contains("lost at a reboot"), "{receipt:?}");
    assert!(receipt.notes.iter().any(|note| note.contains("the disk is full")));
    assert!(world.has(&on_address(1)));
    assert_eq!(world.registry.unwritten(), (1, Some("the disk is full")));
    world.disk.full = false;
    for _ in 0..40 {
        world.pass(100);
    }
    assert_eq!(world.disk.records.len(), 1);
    assert_eq!(world.registry.unwritten(), (0, None));
    let said = world.asked(|e| matches!(e, Effect::Note { kind: "disk", .. }));
    assert_eq!(said, 2, "once that it fails, once that it is over");
}

#[test]
fn r5_a_users_cookies_are_refused_after_a_reboot_and_anothers_are_not() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    let request = world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900), cookie("bob", 3, 800)]);
    assert_eq!(disk(world.receipt(request)).text, "written");
    world.reboot();
    assert!(world.kernel.keys().all(|entry| matches!(entry, Entry::SafeId(_))), "{:?}", world.kernel);
    assert!(!world.admitted(at_gate("alice", 17, 1)));
    assert!(world.admitted(at_gate("bob", 18, 3)));
}

#[test]
fn r3_after_a_reboot_nothing_of_a_session_is_in_force_whose_successor_would_be_hit() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke(user("alice"));
    assert!(world.has(&Entry::Device(device(7))) && world.has(&on_address(7)));
    world.reboot();
    assert!(!world.has(&Entry::Device(device(7))) && !world.has(&on_address(7)), "{:?}", world.kernel);
}

#[test]
fn r5_an_explicit_one_is_back_after_a_reboot_with_what_is_left_of_its_time() {
    let mut world = World::new();
    world.revoke(explicit(1, Some(HOUR)));
    world.revoke(explicit(2, Some(2 * HOUR)));
    world.revoke(explicit(3, None));
    world.now.wall += 5_400;
    world.reboot();
    assert!(!world.has(&on_address(1)), "its time was over while the host was down");
    assert!(world.has(&on_address(2)) && world.has(&on_address(3)));
    assert!(!world.disk.records.contains_key(&1), "{:?}", world.disk);
    world.pass(1_799_000);
    assert!(world.has(&on_address(2)));
    world.pass(2_000);
    assert!(!world.has(&on_address(2)) && world.has(&on_address(3)));
    assert_eq!(world.disk.records.keys().copied().collect::<Vec<_>>(), [3]);
}

#[test]
fn r5_a_clock_that_was_set_back_over_a_reboot_ends_nothing_early_and_keeps_nothing_longer() {
    let mut world = World::new();
    world.now.wall = 1_800_000_000;
    world.give(Event::Tick);
    world.revoke(explicit(1, Some(HOUR)));
    world.pass(1_800_000);
    world.disk.wall = world.now.wall;
    // its battery is empty
    world.now.wall = 1_000;
    world.reboot();
    world.pass(1_790_000);
    assert!(world.has(&on_address(1)));
    world.pass(20_000);
    assert!(!world.has(&on_address(1)));
}

#[test]
fn r4_a_clock_that_was_set_back_over_a_reboot_gives_no_new_time_at_each_further_one() {
    let mut world = World::new();
    world.now.wall = 1_800_000_000;
    world.give(Event::Tick);
    world.revoke(explicit(1, Some(HOUR)));
    world.disk.wall = world.now.wall;
    world.now.wall = 1_000;
    for _ in 0..3 {
        world.reboot();
        world.disk.wall = world.now.wall;
        world.pass(1_000_000);
        assert!(world.has(&on_address(1)));
    }
    world.reboot();
    world.pass(610_000);
    assert!(!world.has(&on_address(1)));
}

#[test]
fn r5_what_is_asked_for_after_the_clock_was_set_back_is_not_over_at_the_next_start() {
    let mut world = World::new();
    world.now.wall = 1_800_000_000;
    world.give(Event::Tick);
    world.registry.write(Write::Clock { wall: world.now.wall, boot_id: "b".into() });
    world.now.wall = 1_700_000_000;
    world.revoke(explicit(1, Some(HOUR)));
    world.reboot();
    assert!(world.has(&on_address(1)));
}

#[test]
fn r5_a_clock_that_is_set_while_the_daemon_runs_moves_the_expiry_on_the_disk_with_it() {
    for set in [-500_000_i64, 500_000] {
        let mut world = World::new();
        world.now.wall = 1_800_000_000;
        world.give(Event::Tick);
        world.revoke(explicit(1, Some(HOUR)));
        world.now.wall = world.now.wall.checked_add_signed(set).unwrap();
        for _ in 0..50 {
            world.pass(100);
        }
        let left = world.disk.records[&1].until.unwrap() - world.now.wall;
        assert!((3_590..=3_600).contains(&left), "{left}");
    }
}

#[test]
fn r5_a_clock_that_is_set_while_a_record_is_on_its_way_moves_its_expiry_too() {
    let mut world = World::new();
    world.now.wall = 1_800_000_000;
    world.give(Event::Tick);
    world.disk.hangs = true;
    world.revoke(explicit(1, Some(HOUR)));
    world.now.wall -= 500_000;
    world.give(Event::Tick);
    world.disk.hangs = false;
    for _ in 0..50 {
        world.pass(100);
    }
    let left = world.disk.records[&1].until.unwrap() - world.now.wall;
    assert!((3_590..=3_600).contains(&left), "{left}");
}

#[test]
fn r5_a_clock_that_was_set_back_while_the_disk_was_full_is_told_to_it_later() {
    let mut world = World::new();
    world.now.wall = 1_800_000_000;
    world.registry.write(Write::Clock { wall: world.now.wall, boot_id: "b".into() });
    world.revoke(explicit(1, Some(Duration::from_secs(300))));
    world.disk.full = true;
    world.now.wall -= 500;
    world.give(Event::Tick);
    world.disk.full = false;
    for _ in 0..50 {
        world.pass(100);
    }
    world.reboot();
    assert!(world.has(&on_address(1)), "by the clock of before it would be over");
}

#[test]
fn r5_a_lift_is_on_the_disk_before_anything_leaves_the_kernel() {
    let mut world = World::new();
    world.revoke(explicit(1, None));
    world.disk.hangs = true;
    let lift = world.lift(1);
    assert!(world.has(&on_address(1)) && !world.answers.contains_key(&lift));
    // the daemon dies, and the write never came to be
    world.disk.hangs = false;
    world.restart();
    assert!(world.has(&on_address(1)), "a lift that was not answered may as well not have been");
    let lift = world.lift(1);
    assert!(world.receipt(lift).is_complete());
    assert!(!world.has(&on_address(1)));
    assert_eq!((world.disk.records.len(), world.disk.lifted.len()), (0, 0));
    world.restart();
    assert!(!world.has(&on_address(1)));
}

#[test]
fn r5_a_lift_that_is_on_the_disk_is_finished_by_the_next_run() {
    let mut world = World::new();
    world.revoke(explicit(1, None));
    world.revoke(explicit(2, None));
    // it died between the disk and the kernel
    world.disk.records.remove(&1);
    world.disk.lifted.insert(1);
    world.restart();
    assert!(!world.has(&on_address(1)) && world.has(&on_address(2)));
    assert!(world.disk.lifted.is_empty(), "it need not be remembered for ever");
    let next = world.revoke(explicit(3, None));
    assert_eq!(world.receipt(next).number, 3, "no number is given twice");
}

#[test]
fn r5_a_lift_that_cannot_be_written_is_refused_and_the_revocation_stands() {
    let mut world = World::new();
    world.revoke(explicit(1, None));
    world.disk.full = true;
    let lift = world.lift(1);
    assert!(matches!(&world.answers[&lift], Answer::Refused(why) if why.contains("the disk is full")));
    assert!(world.has(&on_address(1)));
    world.disk.full = false;
    for _ in 0..40 {
        world.pass(100);
    }
    assert!(world.disk.records.contains_key(&1) && world.disk.lifted.is_empty());
    let lift = world.lift(1);
    assert!(world.receipt(lift).is_complete());
}

#[test]
fn r7_a_lift_that_is_on_the_disk_though_its_write_failed_is_not_remembered_for_ever() {
    for lasts in [None, Some(HOUR)] {
        let mut world = World::new();
        world.revoke(explicit(1, lasts));
        world.disk.late = true;
        let lift = world.lift(1);
        world.disk.lies = true;
        world.disk.batch(usize::MAX);
        let told = world.disk.tell().unwrap();
        world.give(told);
        assert!(matches!(&world.answers[&lift], Answer::Refused(_)));
        assert_eq!(world.disk.lifted.len(), 1);
        (world.disk.lies, world.disk.late) = (false, false);
        world.pass(if lasts.is_some() { 3_600_000 } else { 5_000 });
        world.pass(5_000);
        assert!(world.disk.lifted.is_empty(), "{:?}", world.disk);
        assert_eq!(world.disk.records.len(), usize::from(lasts.is_none()), "it stands: that was answered");
    }
}

#[test]
fn r7_what_was_lifted_is_forgotten_although_the_disk_was_full_when_it_was_to_be() {
    let mut world = World::new();
    world.revoke(explicit(1, None));
    world.disk.records.remove(&1);
    world.disk.lifted.insert(1);
    world.disk.full = true;
    world.restart();
    assert_eq!(world.disk.lifted.len(), 1);
    assert_eq!(world.registry.unwritten().0, 0, "nothing is lost at a reboot");
    world.disk.full = false;
    for _ in 0..40 {
        world.pass(100);
    }
    assert!(world.disk.lifted.is_empty());
}

#[test]
fn r7_what_was_lifted_is_forgotten_although_the_disk_was_full_for_that_write_alone() {
    let mut world = World::new();
    world.revoke(explicit(1, None));
    world.disk.late = true;
    let tell = |world: &mut World| {
        let told = world.disk.tell().unwrap();
        world.give(told);
    };
    let lift = world.lift(1);
    world.disk.batch(usize::MAX);
    tell(&mut world);
    assert!(world.receipt(lift).is_complete());
    world.disk.full = true;
    world.disk.batch(1);
    world.disk.full = false;
    // what was given to it together with that write is written
    world.disk.batch(usize::MAX);
    tell(&mut world);
    tell(&mut world);
    assert_eq!(world.disk.lifted.len(), 1);
    world.disk.late = false;
    for _ in 0..40 {
        world.pass(100);
    }
    assert!(world.disk.lifted.is_empty(), "{:?}", world.disk);
}

#[test]
fn r5_what_is_in_the_kernel_and_newer_than_the_disk_is_taken_over_and_written_down() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.disk.full = true;
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    world.revoke(explicit(9, Some(HOUR)));
    assert!(world.disk.records.is_empty());
    world.disk.full = false;
    world.restart();
    assert_eq!(world.disk.records.len(), 2, "{:?}", world.disk);
    world.reboot();
    assert!(world.has(&on_address(9)));
    assert!(!world.admitted(at_gate("alice", 17, 1)));
}

#[test]
fn r5_two_that_hold_one_entry_and_one_is_lifted() {
    let mut world = World::new();
    world.revoke(explicit(1, None));
    world.revoke(explicit(1, None));
    world.lift(1);
    assert!(world.has(&on_address(1)));
    world.restart();
    assert!(world.has(&on_address(1)));
    world.lift(2);
    assert!(!world.has(&on_address(1)));
    // the kernel tells of one of them alone
    world.revoke(explicit(2, None));
    world.revoke(explicit(2, None));
    world.restart();
    world.lift(4);
    assert!(world.has(&on_address(2)), "the other one is known from the disk");
    world.reboot();
    assert!(world.has(&on_address(2)));
}

#[test]
fn r7_what_nothing_could_bring_back_leaves_the_disk_too() {
    let mut world = World::new();
    world.connect("alice", 7, 1);
    world.revoke_fully("alice", 7, vec![cookie("alice", 1, 900)]);
    assert_eq!(world.disk.records.len(), 1);
    for _ in 0..400 {
        world.pass(200);
        world.list(vec![]);
        world.cookies(vec![]);
    }
    assert_eq!(world.disk.records.len(), 0, "{:?}", world.disk);
}

#[test]
fn a_receipt_of_each_command_is_in_the_audit_log_and_one_of_many_is_not() {
    let mut world = World::new();
    world.revoke(explicit(1, None));
    world.revoke(Order { bulk: true, ..explicit(2, None) });
    world.lift(1);
    let told: Vec<_> = world.disk.audit.iter().map(|audit| (audit.what, audit.number)).collect();
    assert_eq!(told, [("revoked", 1), ("lifted", 1)]);
}

#[test]
fn r7_a_disk_that_hangs_is_not_given_the_same_again_and_again() {
    let mut world = World::new();
    world.disk.full = true;
    for byte in 1..20 {
        world.revoke(Order { bulk: true, ..explicit(byte, None) });
    }
    (world.disk.full, world.disk.hangs) = (false, true);
    for _ in 0..10_000 {
        world.pass(2_000);
    }
    // it may be asked for them anew, but not without end
    assert!(world.registry.durable.sizes().1 <= 10_000 + 20, "{:?}", world.registry.durable.sizes());
}
