//! Sends to a lane what another program has to drop, and says what all of it cost.

use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions};

use crate::cpu::{self, Softirqs};
use crate::honest::FIRST;
use crate::lab::inside;
use crate::lane::{Lane, NEIGHBOUR};
use crate::objects;
use std::os::fd::AsFd as _;

/// Frames that are sent at once, before the receiver's softirq runs.
const BATCH: u32 = 64;

/// Sends `packets` frames through the lane's device, as a driver would receive them: BPF_PROG_TEST_RUN with live
/// frames of a program that writes a source address and redirects. The receiver's softirq runs on this CPU, between
/// two batches. Gives CPU ns for a packet, of sender and receiver together.
fn send(lane: &Lane, limits: &mut Ebpf, softirqs: &Softirqs, first: u32, count: u32, packets: u32) -> f64 {
    objects::draw(limits, first, count, lane.ifindex);
    let program = objects::xdp(limits, "bench_send");
    inside(lane.sender.as_fd(), || {
        cpu::stay();
        let before = softirqs.and_thread();
        let options = TestRunOptions {
            data_in: Some(&lane.frame),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        program.test_run(options).unwrap();
        (softirqs.and_thread() - before) as f64 / f64::from(packets)
    })
}

/// One turn of a contender that has to drop all of them.
pub fn turn(lane: &Lane, limits: &mut Ebpf, softirqs: &Softirqs, sources: u32) -> f64 {
    send(lane, limits, softirqs, FIRST, sources, PACKETS / 8);
    let before = lane.received();
    let cost = send(lane, limits, softirqs, FIRST, sources, PACKETS);
    // else they were dropped for something else
    assert_eq!(lane.received(), before, "packets of revoked sources were malformed, or have come through");
    cost
}

const PACKETS: u32 = 400_000;

/// A neighbour's packets come through: what is dropped is dropped for its source, and everything is received.
pub fn neighbour_passes(lane: &Lane, limits: &mut Ebpf, softirqs: &Softirqs) {
    let [_, before] = lane.received();
    send(lane, limits, softirqs, u32::from_be_bytes(NEIGHBOUR), 1, 640);
    let [_, after] = lane.received();
    assert!(after - before >= 640, "only {} of 640 packets of a neighbour have come through", after - before);
}
