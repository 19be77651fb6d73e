//! The same packet again and again, as fast as is asked for: hundreds of thousands a second, which [`crate::Flood`]
//! with its records is not made for. What arrives is counted by the receivers' firewalls ([`Counters`]).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::succeed;
use crate::tun::Tun;

/// How many packets one system call sends at most.
const BATCH: usize = 32;

/// A UDP packet over IPv4, from its IP header on; 64 bytes.
pub fn packet(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    const LENGTH: u8 = 64;
    let mut bytes = vec![0x45, 0, 0, LENGTH, 0, 0, 0x40, 0, 64, 17, 0, 0];
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    let sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("ten words");
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    // no checksum
    bytes.extend([0, LENGTH - 20, 0, 0]);
    bytes.resize(usize::from(LENGTH), b'x');
    bytes
}

/// Where packets are put onto a wire.
pub enum Port {
    /// An Ethernet device's own end.
    Wire {
        socket: OwnedFd,
        header: [u8; 14],
        device: libc::sockaddr_ll,
    },
    Tun(Arc<Tun>),
}

impl Port {
    /// Through `device` of `namespace`, to the device `next` of `peer`.
    pub fn wire(namespace: &Namespace, device: &str, peer: &Namespace, next: &str) -> Self {
        let mut header = [0; 14];
        header[..6].copy_from_slice(&mac(peer, next));
        header[6..12].copy_from_slice(&mac(namespace, device));
        header[12] = 8;
        let (socket, index) = namespace.within(|| {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
            (socket.expect("a packet socket"), nix::net::if_::if_nametoindex(device).expect("a device"))
        });
        // SAFETY: zeroes are a valid sockaddr_ll.
        let mut device: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        device.sll_family = libc::AF_PACKET as libc::c_ushort;
        device.sll_ifindex = i32::try_from(index).expect("a number of a device");
        Self::Wire { socket, header, device }
    }

    /// Sends that packet `count` times, at most [`BATCH`]; gives how many times it was taken.
    fn send(&self, packet: &[u8], count: usize) -> usize {
        match self {
            Self::Tun(tun) => (0..count).filter(|_| tun.send(packet)).count(),
            Self::Wire { socket, header, device } => {
                let part = |bytes: &[u8]| libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                };
                let mut parts = [part(header), part(packet)];
                // SAFETY: zeroes are a valid mmsghdr.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = std::ptr::from_ref(device).cast_mut().cast();
                message.msg_hdr.msg_namelen = size_of_val(device) as libc::socklen_t;
                message.msg_hdr.msg_iov = parts.as_mut_ptr();
                message.msg_hdr.msg_iovlen = parts.len();
                let mut messages = [message; BATCH];
                let count = libc::c_uint::try_from(count.min(BATCH)).expect("a small number");
                // SAFETY: the messages, and the name and parts that they point to, outlive the call, which only
                // reads what is sent and writes how much of each was.
                let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
                // nothing was taken: the device's queue is full
                usize::try_from(sent).unwrap_or(0)
            }
        }
    }
}

fn mac(namespace: &Namespace, device: &str) -> [u8; 6] {
    let mut ip = std::process::Command::new("ip");
    ip.args(["-n", namespace.name(), "-json", "link", "show", device]);
    let shown: Value = serde_json::from_str(&succeed(ip, "")).expect("JSON");
    let text = shown[0]["address"].as_str().expect("an address").to_owned();
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a hexadecimal byte")).collect();
    bytes.try_into().expect("six bytes")
}

/// A packet that is sent all the time. Dropped: it stops.
pub struct Blast {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
    started: Instant,
}

impl Blast {
    /// `rate`: packets a second, where the machine can.
    pub fn start(port: Port, packet: Vec<u8>, rate: u32) -> Self {
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let sender = thread::spawn(move || {
            let batch = usize::try_from(rate).expect("a rate").div_ceil(1_000).clamp(1, BATCH);
            let pause = Duration::from_secs(1).mul_f64(batch as f64) / rate.max(1);
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let taken = port.send(&packet, batch);
                counted.fetch_add(u64::try_from(taken).expect("a small number"), Ordering::Relaxed);
                // what a busy machine has missed is caught up with, within a tenth of a second
                due = (due + pause).max(Instant::now() - Duration::from_millis(100));
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        Self { sent, stop, sender: Some(sender), started: Instant::now() }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Packets a second so far.
    pub fn rate(&self) -> u64 {
        self.sent() * 1_000 / u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Sends no more; gives how many were sent.
    pub fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
        self.sent()
    }
}

impl Drop for Blast {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a namespace's firewall counts of what comes in, right behind XDP and tc: exact, at any rate.
pub struct Counters {
    namespace: Namespace,
}

impl Counters {
    /// `rules`: a name, and what nft is to match.
    pub fn new(namespace: &Namespace, rules: &[(&str, String)]) -> Self {
        let mut text = String::from("table inet blast {\n");
        for (name, _) in rules {
            text.push_str(&format!("counter {name} {{ }}\n"));
        }
        text.push_str("chain pre {\ntype filter hook prerouting priority -300\n");
        for (name, matches) in rules {
            text.push_str(&format!("{matches} counter name {name}\n"));
        }
        text.push_str("}\n}\n");
        namespace.nft(&text);
        Self { namespace: namespace.clone() }
    }

    pub fn packets(&self, name: &str) -> u64 {
        let mut nft = self.namespace.command("nft");
        nft.args(["-j", "list", "counter", "inet", "blast", name]);
        let shown: Value = serde_json::from_str(&succeed(nft, "")).expect("JSON");
        let all = shown["nftables"].as_array().expect("a list");
        all.iter().find_map(|one| one["counter"]["packets"].as_u64()).expect("a counter")
    }
}

/// The other end of a flow that nobody listens at.
pub fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}
