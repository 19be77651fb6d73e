//! Sees every packet of a namespace, with the kernel's time.
//!
//! A tap sees an incoming packet before tc may drop it, and an outgoing one after tc has let it pass: so what
//! "passed the gateway" is asked of outgoing packets.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike as _};

use crate::clock::Moment;
use crate::namespace::Namespace;
use crate::traffic::stamp;

/// One packet on one device.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Moment,
    pub device: String,
    pub index: u32,
    /// It leaves this namespace through the device.
    pub outgoing: bool,
    pub source: IpAddr,
    pub target: IpAddr,
    /// 6 TCP, 17 UDP, …
    pub protocol: u8,
    pub source_port: u16,
    pub target_port: u16,
    pub length: usize,
}

impl Seen {
    pub fn touches(&self, address: IpAddr) -> bool {
        self.source == address || self.target == address
    }
}

/// A running tap. Dropped: it ends.
pub struct Tap {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Sees all devices of `namespace`, also those that come later.
    pub fn start(namespace: &Namespace) -> Self {
        Self::without(namespace, None)
    }

    /// Sees no packet to this address: of a flood nothing has to be written down.
    pub fn without(namespace: &Namespace, flooded: Option<Ipv4Addr>) -> Self {
        let socket = namespace.within(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            );
            socket.expect("a packet socket")
        });
        if let Some(address) = flooded {
            ignore(&socket, address);
        }
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("SO_RCVBUFFORCE");
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("SO_TIMESTAMPNS");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).expect("SO_RCVTIMEO");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (into, until, namespace) = (Arc::clone(&seen), Arc::clone(&stop), namespace.clone());
        let thread = thread::spawn(move || {
            namespace.enter();
            watch(&socket, &into, &until);
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// What was seen so far and pleases `wanted`.
    pub fn seen(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|packet| wanted(packet)).cloned().collect()
    }

    /// The last packet that left through `device` from or to this address.
    pub fn last_out(&self, device: &str, address: IpAddr) -> Option<Seen> {
        self.seen(|packet| packet.outgoing && packet.device == device && packet.touches(address)).pop()
    }

    /// Packets that left through `device` after `time`, from or to one of these addresses.
    pub fn out_after(&self, device: &str, addresses: &[IpAddr], time: Moment) -> Vec<Seen> {
        self.seen(|packet| {
            packet.outgoing
                && packet.device == device
                && packet.at > time
                && addresses.iter().any(|address| packet.touches(*address))
        })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The kernel gives us no IPv4 packet to that address.
fn ignore(socket: &OwnedFd, address: Ipv4Addr) {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a code of 16 bits"),
        jt,
        jf,
        k,
    };
    // such a socket's packets begin with the IP header
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 16),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, address.into()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of_val(&program)).expect("a small size");
    // SAFETY: the program and its steps outlive the call, which copies them.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    assert_eq!(set, 0, "SO_ATTACH_FILTER: {}", std::io::Error::last_os_error());
}

fn watch(socket: &OwnedFd, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut buffer = [0; 256];
    let mut control = nix::cmsg_space!(TimeSpec);
    while !stop.load(Ordering::Relaxed) {
        let (at, index, kind, bytes) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received =
                recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_TRUNC);
            let Ok(message) = received else { continue };
            let Some(link) = message.address else { continue };
            let index = u32::try_from(link.ifindex()).unwrap_or(0);
            (stamp(message.cmsgs().into_iter().flatten()), index, link.pkttype(), message.bytes)
        };
        let name = names.entry(index).or_insert_with(|| {
            if_indextoname(index).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        });
        let captured = buffer.get(..bytes.min(buffer.len())).unwrap_or_default();
        if let Some(mut packet) = parse(captured) {
            packet.at = at;
            packet.index = index;
            packet.device.clone_from(name);
            packet.outgoing = kind == libc::PACKET_OUTGOING;
            packet.length = bytes;
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
        }
    }
}

/// The addresses and, where they follow at once, the ports of an IP packet.
fn parse(bytes: &[u8]) -> Option<Seen> {
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let (source, target, protocol, ports): (IpAddr, IpAddr, u8, usize) = match bytes.first()? >> 4 {
        4 => {
            let address = |at: usize| <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok();
            let header = usize::from(bytes.first()? & 15) * 4;
            (Ipv4Addr::from(address(12)?).into(), Ipv4Addr::from(address(16)?).into(), *bytes.get(9)?, header)
        }
        6 => {
            let address = |at: usize| <[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok();
            (Ipv6Addr::from(address(8)?).into(), Ipv6Addr::from(address(24)?).into(), *bytes.get(6)?, 40)
        }
        _ => return None,
    };
    Some(Seen {
        at: Moment(0),
        device: String::new(),
        index: 0,
        outgoing: false,
        source,
        target,
        protocol,
        source_port: word(ports).unwrap_or(0),
        target_port: word(ports + 2).unwrap_or(0),
        length: 0,
    })
}
