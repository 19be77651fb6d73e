//! Sends to a lane what another program has to drop, and says what all of it cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

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
    inside(lane.sender.as_fd(), || {
        cpu::stay();
        let before = softirqs.and_thread();
        run(limits, &lane.frame, packets);
        (softirqs.and_thread() - before) as f64 / f64::from(packets)
    })
}

fn run(limits: &Ebpf, frame: &[u8], packets: u32) {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat: packets,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::new()
    };
    objects::xdp(limits, "bench_send").test_run(options).unwrap();
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

/// Packets of others, from random sources, which nobody drops before the receiver's routes do. Dropped: it ends.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Packets a second.
    rate: AtomicU32,
    sent: AtomicU64,
    stop: AtomicBool,
}

/// Where they go, and where they come from.
const ELSEWHERE: [u8; 4] = [10, 0, 0, 3];
const OTHERS: u32 = 0x4000_0000;
/// Bursts a second.
const BURSTS: u32 = 500;

impl Load {
    /// Sends nothing yet.
    pub fn new(lane: &Lane) -> Self {
        lane.here(|| crate::lane::run("ip", &["route", "replace", "blackhole", "10.0.0.3"], ""));
        let (ifindex, sender) = (lane.ifindex, lane.sender.try_clone().unwrap());
        let macs = |at: usize| <[u8; 6]>::try_from(&lane.frame[at..at + 6]).unwrap();
        let frame = objects::frame(NEIGHBOUR, ELSEWHERE, [macs(6), macs(0)]);
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            inside(sender.as_fd(), || {
                cpu::stay();
                let mut limits = objects::limits(1);
                objects::draw(&mut limits, OTHERS, 1 << 29, ifindex);
                let mut due = Instant::now();
                while !told.stop.load(Ordering::Relaxed) {
                    let each = told.rate.load(Ordering::Acquire) / BURSTS;
                    if each != 0 {
                        run(&limits, &frame, each);
                        told.sent.fetch_add(each.into(), Ordering::Release);
                    }
                    // what a busy machine has missed is caught up with, within some milliseconds
                    due = (due + Duration::from_secs(1) / BURSTS)
                        .max(Instant::now() - Duration::from_millis(20));
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            });
        });
        Self { shared, thread: Some(thread) }
    }

    /// Sends so many packets a second from now on, as far as a CPU can; returns once it does.
    pub fn sends(&self, rate: u32) -> Sending<'_> {
        self.shared.rate.store(rate, Ordering::Release);
        let first = self.shared.sent.load(Ordering::Acquire);
        while rate != 0 && self.shared.sent.load(Ordering::Acquire) == first {
            assert!(!self.thread.as_ref().is_some_and(JoinHandle::is_finished), "the load has ended");
            thread::sleep(Duration::from_millis(1));
        }
        let first = self.shared.sent.load(Ordering::Acquire);
        Sending { load: self, first, since: Instant::now() }
    }
}

/// A load while it sends. Dropped: it sends nothing any more.
pub struct Sending<'a> {
    load: &'a Load,
    first: u64,
    since: Instant,
}

impl Sending<'_> {
    /// Packets a second so far.
    pub fn rate(&self) -> f64 {
        let sent = self.load.shared.sent.load(Ordering::Acquire) - self.first;
        sent as f64 / self.since.elapsed().as_secs_f64()
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.load.shared.rate.store(0, Ordering::Release);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
