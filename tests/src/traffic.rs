//! Numbered UDP packets between any two namespaces, with the times at which they were sent and received.

use std::collections::HashSet;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;

use crate::clock::Moment;
use crate::namespace::Namespace;
use crate::process::{BOUND, eventually};

/// What the issue calls a flood.
pub const FLOOD: u32 = 500;

/// One packet that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub sequence: u64,
    /// When the receiver's kernel took it in.
    pub at: Moment,
    /// When it was sent.
    pub sent: Moment,
}

/// Where packets come from and go to.
#[derive(Clone)]
pub struct Route<'a> {
    pub from: &'a Namespace,
    /// The source address; the kernel's choice if none. It need not be an address of the sender: it may be spoofed.
    pub source: Option<IpAddr>,
    /// The device to send through, whatever the routes say.
    pub device: Option<&'a str>,
    pub to: &'a Namespace,
    pub target: IpAddr,
}

impl<'a> Route<'a> {
    pub fn new(from: &'a Namespace, to: &'a Namespace, target: IpAddr) -> Self {
        Self { from, source: None, device: None, to, target }
    }

    #[must_use]
    pub fn source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    #[must_use]
    pub fn device(mut self, device: &'a str) -> Self {
        self.device = Some(device);
        self
    }
}

#[derive(Default)]
struct Records {
    /// When each packet was sent, by sequence number; none if the kernel refused to send it.
    sent: Mutex<Vec<Option<Moment>>>,
    received: Mutex<Vec<Received>>,
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
}

/// A stream of packets in one direction. Dropped: it stops.
pub struct Flood {
    records: Arc<Records>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
    what: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flood {
    /// Starts to send `rate` packets a second. Returns at once; see [`Flood::flowing`].
    pub fn start(route: &Route<'_>, rate: u32) -> Self {
        let records = Arc::new(Records::default());
        let what = format!("{} -> {} ({})", route.from.name(), route.to.name(), route.target);
        let v6 = route.target.is_ipv6();
        let receiver = route.to.within(|| open(v6, None, None));
        let any: IpAddr = if v6 { [0u16; 8].into() } else { [0u8; 4].into() };
        bind(receiver.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, 0))).expect("bind");
        let receiver = UdpSocket::from(receiver);
        let port = receiver.local_addr().expect("a bound socket").port();
        let sender = route.from.within(|| open(v6, route.source, route.device));
        let sender = UdpSocket::from(sender);
        let target = SocketAddr::new(route.target, port);
        let receiving = Arc::clone(&records);
        let sending = Arc::clone(&records);
        Self {
            records,
            receiver: Some(thread::spawn(move || receive(&receiver, &receiving))),
            sender: Some(thread::spawn(move || send(&sender, target, rate, &sending))),
            what,
        }
    }

    /// Waits until packets arrive (three more than now).
    #[track_caller]
    pub fn flowing(&self) -> &Self {
        let now = self.received().len();
        eventually(&format!("packets {}", self.what), BOUND, || {
            (self.received().len() >= now + 3).then_some(())
        });
        self
    }

    /// What arrived so far.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.records.received).clone()
    }

    pub fn sent_count(&self) -> usize {
        lock(&self.records.sent).len()
    }

    /// Packets that the receiver's kernel took in after `time`.
    pub fn received_after(&self, time: Moment) -> Vec<Received> {
        self.received().into_iter().filter(|packet| packet.at > time).collect()
    }

    /// Packets that were sent after `time`, and arrived: they passed the gateway after `time` for certain, however
    /// late a busy machine ran the sender's or the receiver's program.
    pub fn passed_after(&self, time: Moment) -> Vec<Received> {
        self.received().into_iter().filter(|packet| packet.sent > time).collect()
    }

    pub fn last(&self) -> Option<Received> {
        self.received().into_iter().max_by_key(|packet| packet.at)
    }

    pub fn first_after(&self, time: Moment) -> Option<Received> {
        self.received_after(time).into_iter().min_by_key(|packet| packet.at)
    }

    /// How many packets were really sent after `time`.
    pub fn sent_after(&self, time: Moment) -> usize {
        lock(&self.records.sent).iter().flatten().filter(|sent| **sent > time).count()
    }

    /// Waits until the sender has tried `count` more packets: "and in all this time none arrived".
    #[track_caller]
    pub fn wait_sent(&self, count: usize) {
        let now = self.sent_count();
        let what = format!("{count} more packets sent {}", self.what);
        eventually(&what, BOUND, || (self.sent_count() >= now + count).then_some(()));
    }

    /// The sequence numbers sent between the two times that did not arrive. Ask after [`Flood::stop_sending`].
    pub fn lost_between(&self, from: Moment, to: Moment) -> Vec<u64> {
        let arrived: HashSet<u64> = self.received().iter().map(|packet| packet.sequence).collect();
        let sent = lock(&self.records.sent);
        (0u64..)
            .zip(sent.iter())
            .filter(|(_, sent)| sent.is_none_or(|sent| sent >= from && sent <= to))
            .map(|(sequence, _)| sequence)
            .filter(|sequence| !arrived.contains(sequence))
            .collect()
    }

    /// Sends no more, and waits until what is on its way has had time to arrive.
    pub fn stop_sending(&mut self) {
        self.records.stop_sending.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
        // quiet: nothing has arrived for 200 ms
        let mut count = self.received().len();
        loop {
            thread::sleep(Duration::from_millis(200));
            let now = self.received().len();
            if now == count {
                return;
            }
            count = now;
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.records.stop_sending.store(true, Ordering::Relaxed);
        self.records.stop_receiving.store(true, Ordering::Relaxed);
        for thread in [self.sender.take(), self.receiver.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

/// A UDP socket in the calling thread's namespace, which may have a source address that is not its host's.
fn open(v6: bool, source: Option<IpAddr>, device: Option<&str>) -> OwnedFd {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("a UDP socket");
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).expect("SO_RCVBUFFORCE");
    if let Some(device) = device {
        setsockopt(&socket, sockopt::BindToDevice, &device.into()).expect("SO_BINDTODEVICE");
    }
    if let Some(source) = source {
        transparent(&socket, v6);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))
            .expect("bind to the source");
    }
    socket
}

/// `IP_TRANSPARENT`: packets may leave with any source address.
fn transparent(socket: &OwnedFd, v6: bool) {
    if !v6 {
        return setsockopt(socket, sockopt::IpTransparent, &true).expect("IP_TRANSPARENT");
    }
    let one: libc::c_int = 1;
    // SAFETY: the option's value is an int, and its address and size are those of `one`
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_TRANSPARENT,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert!(result == 0, "IPV6_TRANSPARENT: {}", std::io::Error::last_os_error());
}

fn send(socket: &UdpSocket, target: SocketAddr, rate: u32, records: &Records) {
    let pause = Duration::from_secs(1) / rate.max(1);
    let mut due = Instant::now();
    let mut sequence = 0u64;
    while !records.stop_sending.load(Ordering::Relaxed) {
        let now = Moment::now();
        let mut packet = [0; 64];
        packet[..8].copy_from_slice(&sequence.to_be_bytes());
        packet[8..16].copy_from_slice(&now.0.to_be_bytes());
        // ENETUNREACH and the like: the tunnel is not there; such a packet was not sent
        let sent = socket.send_to(&packet, target).is_ok();
        lock(&records.sent).push(sent.then_some(now));
        sequence += 1;
        due = (due + pause).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, records: &Records) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    setsockopt(socket, sockopt::ReceiveTimestampns, &true).expect("SO_TIMESTAMPNS");
    let mut buffer = [0; 2048];
    let mut control = nix::cmsg_space!(TimeSpec);
    while !records.stop_receiving.load(Ordering::Relaxed) {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty());
        let Ok(message) = message else { continue };
        let at = stamp(message.cmsgs().into_iter().flatten());
        let bytes = message.bytes;
        let word = |from: usize| buffer.get(from..from + 8).and_then(|word| word.try_into().ok());
        let (Some(sequence), Some(sent)) = (word(0), word(8)) else { continue };
        if bytes != 64 {
            continue;
        }
        let (sequence, sent) = (u64::from_be_bytes(sequence), Moment(u64::from_be_bytes(sent)));
        lock(&records.received).push(Received { sequence, at, sent });
    }
}

/// The kernel's time of a packet, or now if it has none.
pub fn stamp(messages: impl Iterator<Item = ControlMessageOwned>) -> Moment {
    for message in messages {
        if let ControlMessageOwned::ScmTimestampns(time) = message {
            let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
            return Moment(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0));
        }
    }
    Moment::now()
}
