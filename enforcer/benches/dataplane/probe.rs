//! A client whose packets come one after another, and who sees when the last of them came in.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::lab::inside;
use crate::lane::{ADDRESS, Lane};

/// Between two packets of a client.
const PAUSE: Duration = Duration::from_micros(50);
/// So many in a row are missing when it has been stopped.
const MISSING: u64 = 200;
const BOUND: Duration = Duration::from_secs(10);

/// Nanoseconds of the clock that packets are stamped with.
pub fn now() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("a clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// What the receiving end of a lane knows of the client that it listens for.
#[derive(Default)]
struct Heard {
    /// The client's address; 0: nobody's.
    client: AtomicU32,
    packets: AtomicU64,
    last: AtomicI64,
    stop: AtomicBool,
}

/// Receives what comes in for a port, in the lane's receiving namespace.
pub struct Receiver {
    heard: Arc<Heard>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub fn new(lane: &Lane, port: u16) -> Self {
        let heard = Arc::new(Heard::default());
        let socket =
            lane.here(|| UdpSocket::bind(SocketAddrV4::new(ADDRESS.into(), port)).expect("a socket"));
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("SO_TIMESTAMPNS");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("SO_RCVTIMEO");
        let into = Arc::clone(&heard);
        let thread = thread::spawn(move || {
            while !into.stop.load(Ordering::Relaxed) {
                if let Some((from, at)) = receive(&socket)
                    && into.client.load(Ordering::Acquire) == u32::from(from)
                {
                    into.last.store(at, Ordering::Relaxed);
                    into.packets.fetch_add(1, Ordering::Release);
                }
            }
        });
        Self { heard, thread: Some(thread) }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.heard.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn receive(socket: &UdpSocket) -> Option<(Ipv4Addr, i64)> {
    let (mut bytes, mut control) = ([0; 64], nix::cmsg_space!(TimeSpec));
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<SockaddrIn>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())
            .ok()?;
    let at = message.cmsgs().ok()?.find_map(|one| match one {
        ControlMessageOwned::ScmTimestampns(at) => Some(at.tv_sec() * 1_000_000_000 + at.tv_nsec()),
        _ => None,
    })?;
    Some((message.address?.ip(), at))
}

/// A client that sends all the time. Dropped: it stops.
pub struct Probe {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    client: Ipv4Addr,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    pub fn start(lane: &Lane, client: Ipv4Addr, from: u16, to: u16) -> Self {
        let socket = inside(lane.sender.as_fd(), || {
            let kind = nix::sys::socket::SockType::Datagram;
            let none = nix::sys::socket::SockFlag::empty();
            let socket = nix::sys::socket::socket(nix::sys::socket::AddressFamily::Inet, kind, none, None);
            let socket = UdpSocket::from(socket.expect("a socket"));
            // its address is none of that host's
            setsockopt(&socket, sockopt::IpTransparent, &true).expect("IP_TRANSPARENT");
            let address = SockaddrIn::from(SocketAddrV4::new(client, from));
            nix::sys::socket::bind(socket.as_raw_fd(), &address).expect("an address");
            socket
        });
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let to = SocketAddr::from((ADDRESS, to));
        let thread = thread::spawn(move || {
            nix::sys::prctl::set_timerslack(1).expect("PR_SET_TIMERSLACK");
            while !stopped.load(Ordering::Relaxed) {
                // an answer that nobody wants makes the next call fail
                let _ = socket.send_to(b"probe", to);
                counted.fetch_add(1, Ordering::Release);
                thread::sleep(PAUSE);
            }
        });
        Self { sent, stop, client, thread: Some(thread) }
    }

    /// Waits until it is heard.
    pub fn comes_through(&self, receiver: &Receiver) {
        let heard = &receiver.heard;
        heard.client.store(0, Ordering::Release);
        heard.packets.store(0, Ordering::Relaxed);
        heard.client.store(self.client.into(), Ordering::Release);
        let bound = Instant::now() + BOUND;
        while heard.packets.load(Ordering::Acquire) < 20 {
            assert!(Instant::now() < bound, "no packet of {} comes through", self.client);
            thread::sleep(PAUSE);
        }
    }

    /// Waits until it is heard no more; gives when its last packet came in.
    pub fn last(&self, receiver: &Receiver) -> i64 {
        let heard = &receiver.heard;
        let bound = Instant::now() + BOUND;
        let (mut packets, mut sent) =
            (heard.packets.load(Ordering::Acquire), self.sent.load(Ordering::Acquire));
        loop {
            thread::sleep(PAUSE);
            let (new, by_now) = (heard.packets.load(Ordering::Acquire), self.sent.load(Ordering::Acquire));
            if new != packets {
                (packets, sent) = (new, by_now);
            } else if by_now - sent >= MISSING {
                return heard.last.load(Ordering::Relaxed);
            }
            assert!(Instant::now() < bound, "packets of {} still come through", self.client);
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
