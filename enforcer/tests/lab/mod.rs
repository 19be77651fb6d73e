//! A gateway and its peer in network namespaces of their own, and a bpffs of its own, all gone with the test.
//!
//! The namespaces have no names: they live as long as somebody holds their descriptors, so also a test that
//! panics or is killed leaves none behind. The bpffs is unmounted by a guard.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use enforcer::dataplane::{Capacities, Dataplane, Settings, TcPreference, XdpPreference};
use enforcer::session::Netns;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// The addresses of `Lab::veth`.
pub const GATEWAY: &str = "10.0.0.1";
pub const PEER: &str = "10.0.0.2";
/// Further ones on the gateway, as if clients had them.
pub const CLIENT: &str = "10.9.0.2";
pub const OTHER: &str = "10.9.0.3";

pub struct Lab {
    pub gateway: OwnedFd,
    pub peer: OwnedFd,
    bpffs: tempfile::TempDir,
}

/// Runs a test on a thread of its own, whose network namespace is the gateway's.
pub fn lab(test: impl FnOnce(&Lab) + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes namespaces and loads BPF programs: run it as root"
    );
    let gateway = new_netns();
    let peer = new_netns();
    let lab = Lab { gateway, peer, bpffs: tempfile::tempdir().unwrap() };
    let outcome = std::thread::spawn(move || {
        setns(&lab.gateway, CloneFlags::CLONE_NEWNET).unwrap();
        lab.veth();
        test(&lab);
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

pub fn new_netns() -> OwnedFd {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace: run this as root");
        ip("link set lo up");
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

/// In the calling thread's namespace.
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2 is needed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

impl Drop for Lab {
    fn drop(&mut self) {
        // also where a test has mounted nothing
        while umount2(self.bpffs.path(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

impl Lab {
    /// `gw` here, `peer` there; every address of the gateway is known to the peer.
    fn veth(&self) {
        self.veth_named("gw", "peer", "");
        self.address();
    }

    pub fn veth_named(&self, here: &str, there: &str, index: &str) {
        let peer = format!("/proc/{}/fd/{}", std::process::id(), self.peer.as_raw_fd());
        ip(&format!("link add {here}{index} type veth peer name {there}"));
        ip(&format!("link set {there} netns {peer}"));
    }

    pub fn address(&self) {
        for address in [GATEWAY, CLIENT, OTHER] {
            ip(&format!("addr add {address}/8 dev gw"));
        }
        ip("addr add fd00::1/64 dev gw nodad");
        ip("link set gw up");
        self.there(|| {
            ip(&format!("addr add {PEER}/8 dev peer"));
            ip("addr add fd00::2/64 dev peer nodad");
            ip("link set peer up");
        });
    }

    /// Runs in the peer's namespace.
    pub fn there<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(self.peer.as_fd(), work)
    }

    pub fn netns(&self) -> Netns {
        number(&self.gateway)
    }

    pub fn pin_path(&self) -> PathBuf {
        self.bpffs.path().join("enforcer")
    }

    /// What [`Dataplane::open`] does by itself.
    pub fn mount_bpffs(&self) {
        let none: Option<&str> = None;
        mount(Some("bpf"), self.bpffs.path(), Some("bpf"), MsFlags::empty(), none).unwrap();
    }

    pub fn settings(&self) -> Settings {
        Settings {
            pin_path: self.pin_path(),
            xdp: XdpPreference::Auto,
            tc: TcPreference::Auto,
            fill: false,
            openvpn_ports: Vec::new(),
            capacities: Capacities {
                flows: 64,
                addresses: 64,
                devices: 4,
                tokens: 64,
                safe_ids: 64,
                cutoffs: 64,
                locks: 64,
            },
        }
    }

    pub fn open(&self) -> Dataplane {
        Dataplane::open(self.settings()).unwrap()
    }

    /// A socket here. `address` with port.
    pub fn here(&self, address: &str) -> Socket {
        Socket::bind(address)
    }

    /// A socket at the peer.
    pub fn far(&self, address: &str) -> Socket {
        self.there(|| Socket::bind(address))
    }
}

pub fn number(netns: &OwnedFd) -> Netns {
    let stat = std::fs::metadata(format!("/proc/self/fd/{}", netns.as_raw_fd())).unwrap();
    Netns(u32::try_from(stat.ino()).unwrap())
}

pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// A UDP socket that says whether a datagram came through.
pub struct Socket(pub UdpSocket);

impl Socket {
    fn bind(address: &str) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        Self(socket)
    }

    /// Whether a datagram with that content, sent by `self`, arrives at `to`.
    pub fn reaches_with(&self, to: &Self, payload: &[u8]) -> bool {
        while to.0.set_nonblocking(true).and_then(|()| to.0.recv(&mut [0; 2048])).is_ok() {}
        to.0.set_nonblocking(false).unwrap();
        match self.0.send_to(payload, to.0.local_addr().unwrap()) {
            // tc egress tells the sender
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return false,
            sent => sent.unwrap(),
        };
        let mut buffer = [0; 2048];
        match to.0.recv(&mut buffer) {
            Ok(length) => &buffer[..length] == payload,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    }

    pub fn reaches(&self, to: &Self) -> bool {
        self.reaches_with(to, b"hello")
    }
}

/// A tun device of the calling thread's namespace, up, with `10.8.0.1/24`, `fd08::1/64`.
pub struct Tun(File);

impl Tun {
    pub fn new(name: &str) -> Self {
        let flags = nix::libc::O_NONBLOCK;
        let file = File::options().read(true).write(true).custom_flags(flags).open("/dev/net/tun").unwrap();
        // SAFETY: zeroes are a valid ifreq.
        let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as nix::libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (nix::libc::IFF_TUN | nix::libc::IFF_NO_PI) as i16;
        // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
        let made = unsafe { nix::libc::ioctl(file.as_raw_fd(), nix::libc::TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        ip(&format!("addr add 10.8.0.1/24 dev {name}"));
        ip(&format!("addr add fd08::1/64 dev {name} nodad"));
        ip(&format!("link set {name} up"));
        Self(file)
    }

    /// The client sends a packet.
    pub fn send(&mut self, packet: &[u8]) {
        self.0.write_all(packet).unwrap();
    }

    /// The first packet to the client of which `what` makes something.
    pub fn next<T>(&mut self, what: impl Fn(&[u8]) -> Option<T>) -> T {
        let mut buffer = [0; 2048];
        for _ in 0..3000 {
            match self.0.read(&mut buffer) {
                Ok(length) => {
                    if let Some(made) = what(&buffer[..length]) {
                        return made;
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("nothing of it came in fifteen seconds");
    }

    /// Whether a packet with that payload at its end comes to the client.
    pub fn gets(&mut self, payload: &[u8]) -> bool {
        let mut buffer = [0; 2048];
        for _ in 0..30 {
            match self.0.read(&mut buffer) {
                Ok(length) if buffer[..length].ends_with(payload) => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        false
    }
}
