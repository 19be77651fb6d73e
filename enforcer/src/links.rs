//! The kernel's network interfaces: a list of them, and word of every change, in any network namespace.
//!
//! Nothing is missed: when more changes at once than a socket's buffer holds, the kernel drops what it had to say
//! and says so (ENOBUFS). That is told as a change like any other, and whoever is told of a change lists anew.

mod message;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink;
use message::{Said, Topic};

/// The kernel fills what it is given up to this.
const BUFFER: usize = 32 << 10;
/// What may wait in the kernel until it is read: some thousand changes.
const BACKLOG: usize = 4 << 20;
/// How many messages are read before somebody else gets a turn.
const AT_ONCE: usize = 1_024;
/// How many interfaces one [`Change`] names; with more it says that it is not complete.
const MOST: usize = 65_536;

/// One interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// An Ethernet device: it has link-layer headers (`ARPHRD_ETHER`); others carry bare IP.
    pub ethernet: bool,
    /// One of global scope: a link-local one says nothing, every interface has it. `false` if nobody asked.
    pub has_address: bool,
    /// In any table. `false` if nobody asked.
    pub has_default_route: bool,
}

/// What is wanted of an interface besides its name and kind. A router's many routes are nothing to whoever has named
/// his interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub addresses: bool,
    pub routes: bool,
}

/// Lists the interfaces of one namespace.
pub struct Lister {
    socket: Socket,
    wanted: Wanted,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Lister {
    /// In that namespace (`None`: the calling thread's), which lives at least as long as this does.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel gives no socket.
    pub fn open(netns: Option<BorrowedFd<'_>>, wanted: Wanted) -> io::Result<Self> {
        let socket = netlink::within(netns, || netlink::socket(NETLINK_ROUTE))?;
        Ok(Self { socket, wanted, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// All of them, in the order of their numbers. Waits for the kernel, a second at most for each message: not to be
    /// called where others wait.
    ///
    /// # Errors
    /// The kernel refuses or does not answer, or its answer cannot be read.
    pub fn list(&mut self) -> io::Result<Vec<Link>> {
        let mut links: BTreeMap<u32, Link> = BTreeMap::new();
        self.dump(Topic::Links, |said| {
            if let Said::Link(link) = said {
                links.insert(link.index, link);
            }
        })?;
        if self.wanted.addresses {
            self.dump(Topic::Addresses, |said| {
                if let Said::Address { index } = said
                    && let Some(link) = links.get_mut(&index)
                {
                    link.has_address = true;
                }
            })?;
        }
        if self.wanted.routes {
            self.dump(Topic::Routes, |said| {
                let Said::DefaultRoute { through } = said else { return };
                for index in through {
                    if let Some(link) = links.get_mut(&index) {
                        link.has_default_route = true;
                    }
                }
            })?;
        }
        Ok(links.into_values().collect())
    }

    fn dump(&mut self, topic: Topic, mut tell: impl FnMut(Said)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&message::dump(topic, self.sequence), 0)?;
        loop {
            let length = receive(&self.socket, &mut self.buffer)?;
            let mut rest =
                self.buffer.get(..length).ok_or_else(|| odd(format!("a message of {length} bytes")))?;
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(odd)?;
                let size = message.length() as usize;
                // of an earlier question, which was given up
                if message.sequence_number() == self.sequence {
                    match message::read(message.message_type(), message.payload()).map_err(odd)? {
                        Said::Done => return Ok(()),
                        Said::Refused(error) => return Err(error),
                        said => tell(said),
                    }
                }
                rest = message::after(rest, size);
            }
        }
    }
}

/// What has changed since the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Interfaces that went. One of that number may be there again.
    pub gone: BTreeSet<u32>,
    /// Interfaces of which somebody has taken a qdisc or a filter.
    pub unfiltered: BTreeSet<u32>,
    /// The kernel had more to say than there was room for: of what else has changed, and what has gone, nothing is known.
    pub overrun: bool,
}

/// Tells of changes in one namespace.
pub struct Watcher {
    socket: AsyncFd<Ends>,
    buffer: Vec<u8>,
}

/// A socket as tokio wants it.
struct Ends(Socket);

impl AsRawFd for Ends {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Watcher {
    /// From now on, in that namespace (`None`: the calling thread's), which lives at least as long as this does. To be
    /// called within a tokio runtime. `backlog`: how many bytes may wait in the kernel; `None` for the usual.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel gives no socket.
    pub fn open(netns: Option<BorrowedFd<'_>>, wanted: Wanted, backlog: Option<usize>) -> io::Result<Self> {
        let socket = netlink::within(netns, || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            // beyond what is allowed to everybody; where that is refused, a burst is an overrun earlier
            let backlog = backlog.unwrap_or(BACKLOG);
            if setsockopt(&socket, sockopt::RcvBufForce, &backlog).is_err() {
                setsockopt(&socket, sockopt::RcvBuf, &backlog)?;
            }
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in message::groups(wanted) {
                socket.add_membership(group)?;
            }
            Ok(socket)
        })?;
        // SAFETY: the socket's descriptor is its own, and is neither closed nor replaced before the socket is dropped,
        // which is after its registration.
        let socket = unsafe { AsyncFd::register_with_interest(Ends(socket), Interest::READABLE)? };
        Ok(Self { socket, buffer: vec![0; BUFFER] })
    }

    /// Waits until something has changed, and tells all that is known of it by then.
    ///
    /// # Errors
    /// The socket fails in another way than by being overrun.
    pub async fn changed(&mut self) -> io::Result<Change> {
        let Self { socket, buffer } = self;
        loop {
            let mut ready = socket.readable().await?;
            let mut change = Change::default();
            let mut any = false;
            let mut empty = false;
            for _ in 0..AT_ONCE {
                match receive(&ready.get_inner().0, buffer) {
                    Ok(length) => {
                        any = true;
                        match buffer.get(..length) {
                            Some(bytes) => change.add(bytes),
                            None => change.overrun = true,
                        }
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        any = true;
                        change.overrun = true;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        empty = true;
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if empty {
                ready.clear_ready();
            }
            drop(ready);
            if any {
                return Ok(change);
            }
        }
    }
}

impl Change {
    /// What cannot be read has changed something all the same.
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Ok(message) = NetlinkBuffer::new_checked(bytes) else { return };
            match message::read(message.message_type(), message.payload()) {
                Ok(Said::Gone { index }) => self.name(index, |change| &mut change.gone),
                Ok(Said::Unfiltered { index }) => self.name(index, |change| &mut change.unfiltered),
                _ => {}
            }
            bytes = message::after(bytes, message.length() as usize);
        }
    }

    fn name(&mut self, index: u32, list: impl FnOnce(&mut Self) -> &mut BTreeSet<u32>) {
        let list = list(self);
        if list.len() < MOST {
            list.insert(index);
        } else {
            self.overrun = true;
        }
    }

    /// Both together.
    pub fn join(&mut self, other: Self) {
        self.gone.extend(other.gone);
        self.unfiltered.extend(other.unfiltered);
        self.overrun |= other.overrun;
    }
}

/// One datagram of the kernel's: how long it is, which may be more than there was room for.
fn receive(socket: &Socket, mut buffer: &mut [u8]) -> io::Result<usize> {
    socket.recv(&mut buffer, libc::MSG_TRUNC)
}

fn odd(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("rtnetlink says something that cannot be read: {error}"))
}
