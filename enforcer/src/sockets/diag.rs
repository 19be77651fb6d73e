//! sock_diag(7): look a connected socket up, and destroy it by its cookie.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, TCP_ESTABLISHED, TCP_LISTEN,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use super::{DestroyError, Family, Outcome, WorkerSocket};
use crate::netlink;
use crate::session::{Flow, Protocol};

/// INET_DIAG_NOCOOKIE: any socket.
const NO_COOKIE: u64 = u64::MAX;

const TCP_FIN_WAIT2: u8 = 5;
const TCP_TIME_WAIT: u8 = 6;

/// What names one socket to the kernel.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub flow: Flow,
    pub family: Family,
    pub interface: u32,
    pub cookie: u64,
}

impl Name {
    pub fn of(socket: &WorkerSocket) -> Self {
        Self { flow: socket.flow, family: socket.family, interface: socket.interface, cookie: socket.cookie }
    }

    /// In an `inet_diag_sockid` the source is our end and the destination the peer's.
    fn id(&self) -> SocketId {
        // a mapped address finds an AF_INET6 socket that carries IPv4 (`inet_diag_find_one_icsk`)
        let address = |end: SocketAddr| match (self.family, end.ip()) {
            (Family::V6, IpAddr::V4(ip)) => IpAddr::V6(ip.to_ipv6_mapped()),
            (_, ip) => ip,
        };
        SocketId {
            source_port: self.flow.local().port(),
            destination_port: self.flow.client().port(),
            source_address: address(self.flow.local()),
            destination_address: address(self.flow.client()),
            interface_id: self.interface,
            cookie: cookie_to_wire(self.cookie),
        }
    }

    fn request(&self) -> SockDiagMessage {
        SockDiagMessage::InetRequest(InetRequest {
            family: match self.family {
                Family::V4 => AF_INET,
                Family::V6 => AF_INET6,
            },
            protocol: protocol_number(self.flow.protocol()),
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: self.id(),
        })
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    }
}

/// The cookie is two u32 in host order, the lower half first (`sock_diag_save_cookie`).
fn cookie_to_wire(cookie: u64) -> [u8; 8] {
    let mut wire = [0; 8];
    wire[..4].copy_from_slice(&((cookie & 0xffff_ffff) as u32).to_ne_bytes());
    wire[4..].copy_from_slice(&((cookie >> 32) as u32).to_ne_bytes());
    wire
}

fn cookie_from_wire(wire: [u8; 8]) -> u64 {
    let [a, b, c, d, e, f, g, h] = wire;
    u64::from(u32::from_ne_bytes([e, f, g, h])) << 32 | u64::from(u32::from_ne_bytes([a, b, c, d]))
}

/// A socket that the kernel told of.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub name: Name,
    /// 0: no process has it any more.
    pub inode: u32,
    /// Whose it is; nothing of one that no process has.
    pub uid: u32,
    state: u8,
    /// Bytes that were written and that the peer has not acknowledged.
    unsent: u32,
}

impl Found {
    /// Whether data of the session can still leave by it: not once all was acknowledged and no process can
    /// write any more.
    pub fn can_still_send(&self) -> bool {
        self.unsent > 0 || !matches!(self.state, TCP_FIN_WAIT2 | TCP_TIME_WAIT)
    }
}

/// A NETLINK_SOCK_DIAG socket. It belongs to the network namespace in which it was opened, wherever it is used.
pub(super) struct Diag {
    socket: Socket,
    sequence: u32,
}

fn other(what: &'static str) -> impl FnOnce(io::Error) -> DestroyError {
    move |source| DestroyError::Other { what, source }
}

impl Diag {
    pub fn open(netns: Option<&OwnedFd>) -> Result<Self, DestroyError> {
        Self::open_borrowed(netns.map(OwnedFd::as_fd))
    }

    pub fn open_borrowed(netns: Option<BorrowedFd<'_>>) -> Result<Self, DestroyError> {
        let socket = netlink::within(netns, || netlink::socket(NETLINK_SOCK_DIAG))
            .map_err(other("opening a sock_diag socket in the network namespace"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and gives every answer to `each` until the kernel is done or `each` says so.
    /// The kernel's refusal is returned as its error number.
    fn ask<M>(
        &mut self,
        message: M,
        flags: u16,
        mut each: impl FnMut(NetlinkPayload<SockDiagMessage>) -> bool,
    ) -> Result<Option<io::Error>, DestroyError>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, message.into());
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(other("asking sock_diag"))?;
        loop {
            let (answer, _) = self.socket.recv_from_full().map_err(other("reading sock_diag's answer"))?;
            let mut rest = answer.as_slice();
            while rest.len() >= 16 {
                // refusals repeat the request, which is no message that the reader below knows: look first
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let sequence = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
                let Some(one) = rest.get(..length).filter(|one| one.len() >= 16) else { break };
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                if sequence != self.sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(None),
                    libc::NLMSG_ERROR => {
                        let code =
                            one.get(16..20).map_or([0; 4], |code| [code[0], code[1], code[2], code[3]]);
                        return Ok(match i32::from_ne_bytes(code) {
                            0 => None,
                            code => Some(io::Error::from_raw_os_error(-code)),
                        });
                    }
                    _ => {
                        let message = NetlinkMessage::<SockDiagMessage>::deserialize(one)
                            .map_err(|error| other("decoding sock_diag's answer")(io::Error::other(error)))?;
                        if each(message.payload) {
                            return Ok(None);
                        }
                    }
                }
            }
        }
    }

    /// Destroys exactly the socket of that name.
    pub fn destroy(&mut self, name: &Name) -> Result<Outcome, DestroyError> {
        let refused = self.ask(SockDiagDestroy::new(name.request()), NLM_F_ACK, |_| false)?;
        match refused {
            None => Ok(Outcome::Destroyed),
            Some(error) => match error.raw_os_error() {
                // no such socket, or another cookie; or it was dead already (`tcp_abort`)
                Some(libc::ENOENT) => Ok(Outcome::AlreadyGone),
                Some(libc::EOPNOTSUPP) => match self.lookup(name)? {
                    // `tcp_abort` of older kernels says the same of a socket in TIME_WAIT, which sends nothing
                    Some(found) if found.state != TCP_TIME_WAIT => Err(DestroyError::Unsupported),
                    _ => Ok(Outcome::AlreadyGone),
                },
                _ => Err(other("SOCK_DESTROY")(error)),
            },
        }
    }

    /// The socket of that name as it is now; None if there is none with that 4-tuple and cookie.
    pub fn lookup(&mut self, name: &Name) -> Result<Option<Found>, DestroyError> {
        let mut found = None;
        let refused = self.ask(name.request(), 0, |payload| {
            found = read(name.flow.protocol(), name.interface, payload);
            true
        })?;
        match refused {
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Some(error) => Err(other("looking a socket up")(error)),
            // the kernel falls back on a listener or an unconnected socket: that is another name
            None => Ok(found.filter(|found| {
                found.name.flow == name.flow && (name.cookie == NO_COOKIE || found.name.cookie == name.cookie)
            })),
        }
    }

    /// The connected socket of that flow, whatever its family and cookie.
    pub fn find(&mut self, flow: &Flow) -> Result<Option<Found>, DestroyError> {
        let family = if flow.client().is_ipv4() { Family::V4 } else { Family::V6 };
        self.lookup(&Name { flow: *flow, family, interface: 0, cookie: NO_COOKIE })
    }

    /// Every connected TCP and UDP socket of the namespace: the way without pidfd_getfd.
    pub fn all(&mut self) -> Result<Vec<Found>, DestroyError> {
        let mut all = self.all_of(Protocol::Tcp, |_| true)?;
        all.extend(self.all_of(Protocol::Udp, |_| true)?);
        Ok(all)
    }

    /// Those of one protocol that are wanted.
    pub fn all_of(
        &mut self,
        protocol: Protocol,
        wanted: impl Fn(&Found) -> bool,
    ) -> Result<Vec<Found>, DestroyError> {
        let mut all = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
            let request = InetRequest {
                family,
                protocol: protocol_number(protocol),
                extensions: ExtensionFlags::empty(),
                states: StateFlags::all(),
                socket_id,
            };
            let refused = self.ask(SockDiagMessage::InetRequest(request), NLM_F_DUMP, |payload| {
                all.extend(read(protocol, 0, payload).filter(&wanted));
                false
            })?;
            if let Some(error) = refused {
                return Err(other("listing sockets")(error));
            }
        }
        Ok(all)
    }
}

/// A connected socket from an answer; None for everything else (a listener, an unconnected socket).
fn read(protocol: Protocol, interface: u32, payload: NetlinkPayload<SockDiagMessage>) -> Option<Found> {
    let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) = payload else { return None };
    let header = answer.header;
    let id = header.socket_id;
    let flow = Flow::new(
        protocol,
        SocketAddr::new(id.destination_address, id.destination_port),
        SocketAddr::new(id.source_address, id.source_port),
    )
    .ok()?;
    let connected = match protocol {
        Protocol::Tcp => header.state != TCP_LISTEN,
        // a UDP socket is `established` while it is connected, and closed else
        Protocol::Udp => header.state == TCP_ESTABLISHED,
    };
    let family = if header.family == AF_INET6 { Family::V6 } else { Family::V4 };
    let interface = if id.interface_id == 0 { interface } else { id.interface_id };
    connected.then(|| Found {
        name: Name { flow, family, interface, cookie: cookie_from_wire(id.cookie) },
        inode: header.inode,
        uid: header.uid,
        state: header.state,
        unsent: header.send_queue,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_reads_as_it_was_written() {
        assert_eq!(cookie_from_wire(cookie_to_wire(0x1122_3344_5566_7788)), 0x1122_3344_5566_7788);
        assert_eq!(
            cookie_to_wire(1),
            if cfg!(target_endian = "little") { [1, 0, 0, 0, 0, 0, 0, 0] } else { [0, 0, 0, 1, 0, 0, 0, 0] }
        );
        assert_eq!(cookie_to_wire(NO_COOKIE), [0xff; 8]);
    }
}
