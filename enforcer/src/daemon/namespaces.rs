//! Network namespaces: the daemon's own, and those that ocserv servers live in (containers).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::Context as _;

use crate::netlink;
use crate::session::{Device, Netns};

/// A namespace that is held open, and a socket in it: interface names and numbers are asked through the socket,
/// so that no thread has to move there.
struct Handle {
    fd: OwnedFd,
    socket: OwnedFd,
}

pub struct Namespaces {
    own: Netns,
    handles: BTreeMap<Netns, Handle>,
}

impl Namespaces {
    pub fn new(own: Netns, fd: OwnedFd) -> anyhow::Result<Self> {
        let socket = datagram_socket()?;
        Ok(Self { own, handles: BTreeMap::from([(own, Handle { fd, socket })]) })
    }

    pub fn own(&self) -> Netns {
        self.own
    }

    pub fn knows(&self, netns: Netns) -> bool {
        self.handles.contains_key(&netns)
    }

    pub fn known(&self) -> Vec<Netns> {
        self.handles.keys().copied().collect()
    }

    /// Holds a foreign namespace open from now on.
    pub fn add(&mut self, netns: Netns, fd: OwnedFd) -> anyhow::Result<()> {
        let socket = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                nix::sched::setns(&fd, nix::sched::CloneFlags::CLONE_NEWNET)
                    .context("cannot enter the namespace")?;
                datagram_socket()
            });
            inside.join().map_err(|_| anyhow::anyhow!("the thread in the namespace broke"))?
        })?;
        self.handles.insert(netns, Handle { fd, socket });
        Ok(())
    }

    /// Lets go of a namespace: holding it open keeps it alive. Never of our own.
    pub fn leave(&mut self, netns: Netns) {
        if netns != self.own {
            self.handles.remove(&netns);
        }
    }

    /// The addresses of this host in every namespace that is known.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut all = Vec::new();
        for netns in self.handles.keys() {
            // one that cannot be entered has none that could be told
            all.extend(netlink::within(self.fd(*netns), addresses).unwrap_or_default());
        }
        all
    }

    /// `None` for the daemon's own.
    pub fn fd(&self, netns: Netns) -> Option<BorrowedFd<'_>> {
        if netns == self.own { None } else { self.handles.get(&netns).map(|handle| handle.fd.as_fd()) }
    }

    /// The number of an interface, by its name now.
    pub fn index_of(&self, netns: Netns, name: &str) -> Option<Device> {
        let socket = &self.handles.get(&netns)?.socket;
        let mut request = request_for(name)?;
        // SAFETY: SIOCGIFINDEX reads the NUL-terminated name of the ifreq and writes its union; both are ours and
        // live across the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut request) };
        if result != 0 {
            return None;
        }
        // SAFETY: the call has succeeded, so that the union holds the index.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        u32::try_from(index).ok().map(|index| Device { netns, index })
    }

    /// What the interface is called now. `None`: it is gone, or the namespace is not known.
    pub fn name_of(&self, device: Device) -> Option<String> {
        let handle = self.handles.get(&device.netns)?;
        let index = i32::try_from(device.index).ok()?;
        // SAFETY: an ifreq is plain data; all zeroes is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = index;
        // SAFETY: SIOCGIFNAME reads the index of the ifreq and writes its name; both are ours.
        let result =
            unsafe { libc::ioctl(handle.socket.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) };
        if result != 0 {
            return None;
        }
        let name: Vec<u8> =
            request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
        Some(String::from_utf8_lossy(&name).into_owned())
    }
}

/// Of the calling thread's namespace.
fn addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        (address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip())))
            .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(interfaces.filter_map(address).collect())
}

fn request_for(name: &str) -> Option<libc::ifreq> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        return None;
    }
    // SAFETY: an ifreq is plain data; all zeroes is a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Some(request)
}

fn datagram_socket() -> anyhow::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers; its result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot open a socket to ask for interfaces");
    }
    // SAFETY: the descriptor is new, valid and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
