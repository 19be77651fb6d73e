//! A wire between two namespaces that can be cut, slow or lossy, each direction by itself.
//!
//! The kernel has something of the kind (netem), and not every kernel has that. So this is a tap device at either end, and
//! threads that carry frames between them.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::namespace::Namespace;
use crate::tun::Tun;

/// How many frames are on their way in one direction at most; more are lost, as on a real line.
const MOST_ON_THE_WAY: usize = 4_096;
/// How long a thread sleeps at most before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Which way frames go, seen from the wire's near end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Out,
    In,
}

impl Way {
    pub const BOTH: [Way; 2] = [Way::Out, Way::In];
}

/// How one direction is.
#[derive(Default)]
struct Lane {
    cut: AtomicBool,
    delay_us: AtomicU64,
    /// Of a thousand frames so many are lost.
    loss: AtomicU32,
    carried: AtomicU64,
    lost: AtomicU64,
}

/// A wire. Dropped: both devices are gone.
pub struct Wire {
    lanes: [Arc<Lane>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// From a device of one namespace to a device of the other; both are up and have no address.
    pub fn lay(near: (&Namespace, &str), far: (&Namespace, &str)) -> Self {
        let ends = [Arc::new(Tun::tap(near.0, near.1)), Arc::new(Tun::tap(far.0, far.1))];
        let lanes = [Arc::new(Lane::default()), Arc::new(Lane::default())];
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [(0, 1), (1, 0)]
            .map(|(from, to)| {
                let (from, to, lane) =
                    (Arc::clone(&ends[from]), Arc::clone(&ends[to]), Arc::clone(&lanes[from]));
                let stop = Arc::clone(&stop);
                thread::spawn(move || carry(&from, &to, &lane, &stop))
            })
            .into();
        Self { lanes, stop, threads }
    }

    fn lane(&self, way: Way) -> &Lane {
        match way {
            Way::Out => &self.lanes[0],
            Way::In => &self.lanes[1],
        }
    }

    /// Nothing comes through these ways any more, neither what is on its way.
    pub fn cut(&self, ways: &[Way]) {
        ways.iter().for_each(|way| self.lane(*way).cut.store(true, Ordering::SeqCst));
    }

    /// Whole again, quick and without loss.
    pub fn heal(&self) {
        for way in Way::BOTH {
            let lane = self.lane(way);
            lane.cut.store(false, Ordering::SeqCst);
            lane.delay_us.store(0, Ordering::SeqCst);
            lane.loss.store(0, Ordering::SeqCst);
        }
    }

    /// Each frame takes so long, in each direction.
    pub fn slow(&self, delay: Duration) {
        let us = u64::try_from(delay.as_micros()).expect("a short time");
        Way::BOTH.iter().for_each(|way| self.lane(*way).delay_us.store(us, Ordering::SeqCst));
    }

    /// Of a thousand frames so many are lost, in each direction.
    pub fn lossy(&self, of_thousand: u32) {
        Way::BOTH.iter().for_each(|way| self.lane(*way).loss.store(of_thousand, Ordering::SeqCst));
    }

    /// How many frames came through, and how many did not.
    pub fn carried(&self, way: Way) -> (u64, u64) {
        let lane = self.lane(way);
        (lane.carried.load(Ordering::SeqCst), lane.lost.load(Ordering::SeqCst))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry(from: &Tun, to: &Tun, lane: &Lane, stop: &AtomicBool) {
    let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 65_536];
    let mut draw = 0x9e37_79b9_7f4a_7c15_u64;
    while !stop.load(Ordering::SeqCst) {
        let next = on_the_way.front().map_or(LOOK, |(due, _)| due.saturating_duration_since(Instant::now()));
        let mut wait = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        // interrupted, or nothing came: either way what is due is looked at
        let _ = ppoll(&mut wait, Some(TimeSpec::from(next.min(LOOK))), None);
        for _ in 0..64 {
            let Some(length) = from.receive(&mut buffer) else { break };
            // xorshift: the same frames are lost in every run
            draw ^= draw << 13;
            draw ^= draw >> 7;
            draw ^= draw << 17;
            let is_lost = draw % 1_000 < u64::from(lane.loss.load(Ordering::SeqCst));
            if is_lost || on_the_way.len() >= MOST_ON_THE_WAY {
                lane.lost.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let due = Instant::now() + Duration::from_micros(lane.delay_us.load(Ordering::SeqCst));
            on_the_way.push_back((due, buffer[..length].to_vec()));
        }
        while let Some((due, _)) = on_the_way.front()
            && *due <= Instant::now()
            && let Some((_, frame)) = on_the_way.pop_front()
        {
            let came = !lane.cut.load(Ordering::SeqCst) && to.send(&frame);
            let count = if came { &lane.carried } else { &lane.lost };
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}
