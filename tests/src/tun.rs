//! A tun device of a namespace, as a VPN server makes it for a client: what is written to it came from the client,
//! what is read from it goes there. And a tap device: the same with Ethernet frames.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::namespace::Namespace;

/// Gone when dropped.
pub struct Tun {
    file: File,
}

impl Tun {
    /// Up, without an address.
    pub fn create(namespace: &Namespace, name: &str) -> Self {
        Self::of_kind(namespace, name, libc::IFF_TUN)
    }

    /// One for Ethernet frames, up and without an address.
    pub fn tap(namespace: &Namespace, name: &str) -> Self {
        Self::of_kind(namespace, name, libc::IFF_TAP)
    }

    fn of_kind(namespace: &Namespace, name: &str, kind: libc::c_int) -> Self {
        let tun = namespace.within(|| {
            let mut open = File::options();
            let file = open.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
            let file = file.expect("/dev/net/tun");
            // SAFETY: zeroes are a valid ifreq.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = i16::try_from(kind | libc::IFF_NO_PI).expect("two small flags");
            // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
            assert!(made == 0, "TUNSETIFF {name}: {}", std::io::Error::last_os_error());
            Self { file }
        });
        namespace.ip(&format!("link set {name} up"));
        tun
    }

    /// A packet of the client's; `false`: the device does not take it.
    pub fn send(&self, packet: &[u8]) -> bool {
        (&self.file).write(packet).is_ok()
    }

    /// A packet to the client, if one is there.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        (&self.file).read(buffer).ok()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
